//! How tasks on one device slow each other down.

use super::{CLASSES, StreamError, TaskClass};

/// Bits after the binary point of a rate.
pub(crate) const RATE_BITS: u32 = 20;
/// Full speed.
pub(crate) const FULL_RATE: u64 = 1 << RATE_BITS;

/// Rate of each class beside each set of classes (bit `b` set: class `b` runs too).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    table: [[u64; 1 << CLASSES]; CLASSES],
    shared: [bool; CLASSES],
}

impl Rates {
    /// Rate of a task of `class` beside the classes in `present`, `count` tasks of its own class included.
    pub(crate) fn of(&self, class: usize, present: usize, count: u32) -> u64 {
        let rate = self.table[class][present];
        if self.shared[class] && count > 1 { (rate / u64::from(count)).max(1) } else { rate }
    }
}

/// Slow-downs between classes of tasks that run at the same time on one device.
///
/// While tasks of other classes run, a task takes longer by the product of the slow-downs that they cause; several
/// tasks of one class count once, and a task is slowed by others of its own class too. Tasks of a shared class
/// ([`Contention::sharing`]) split its capacity evenly besides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contention {
    /// `slowdown[a][b]`: how many times longer a task of class `a` takes while one of class `b` runs; at least 1.
    slowdown: [[f64; CLASSES]; CLASSES],
    /// Classes whose tasks share one capacity (a link): `n` at once run at `1 / n` each.
    shared: [bool; CLASSES],
}

impl Default for Contention {
    fn default() -> Self {
        Self::none()
    }
}

impl Contention {
    /// Tasks do not disturb each other.
    pub fn none() -> Self {
        Self { slowdown: [[1.0; CLASSES]; CLASSES], shared: [false; CLASSES] }
    }

    /// Compute (and memory-bound work) takes `compute` times as long while communication runs, and communication
    /// `communication` times as long while either of them runs.
    pub fn between_compute_and_communication(compute: f64, communication: f64) -> Self {
        [TaskClass::Communication, TaskClass::Local].into_iter().fold(Self::none(), |contention, network| {
            contention
                .with(TaskClass::Compute, network, compute)
                .with(TaskClass::Memory, network, compute)
                .with(network, TaskClass::Compute, communication)
                .with(network, TaskClass::Memory, communication)
        })
    }

    /// The same with tasks of `class` sharing one capacity evenly.
    #[must_use]
    pub fn sharing(mut self, class: TaskClass) -> Self {
        self.shared[class as usize] = true;
        self
    }

    /// The same with `slowed` taking `factor` times as long while `by` runs.
    #[must_use]
    pub fn with(mut self, slowed: TaskClass, by: TaskClass, factor: f64) -> Self {
        self.slowdown[slowed as usize][by as usize] = factor;
        self
    }

    /// Nothing is slowed.
    pub(crate) fn is_none(&self) -> bool {
        self.slowdown.iter().flatten().all(|&factor| factor == 1.0) && self.shared.iter().all(|&s| !s)
    }

    /// The slow-downs as integer rates.
    pub(crate) fn rates(&self) -> Result<Rates, StreamError> {
        if let Some(&bad) = self.slowdown.iter().flatten().find(|f| !f.is_finite() || **f < 1.0) {
            return Err(StreamError::Slowdown(bad));
        }
        let mut table = [[FULL_RATE; 1 << CLASSES]; CLASSES];
        for (class, row) in table.iter_mut().enumerate() {
            for (present, rate) in row.iter_mut().enumerate() {
                let slowdown: f64 = (0..CLASSES)
                    .filter(|other| present & (1 << other) != 0)
                    .map(|other| self.slowdown[class][other])
                    .product();
                // At least one unit, so that every task ends.
                *rate = ((FULL_RATE as f64 / slowdown).round() as u64).max(1);
            }
        }
        Ok(Rates { table, shared: self.shared })
    }
}
