//! What time a serving run is measured in.

use psim_kernels::cpu::thread_seconds;
use std::time::{Duration, Instant};

/// Seconds before a moment from which on it is waited for awake.
const AWAKE: f64 = 5e-4;

/// What time is to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The clock on the wall: what a user of the engine sees.
    Wall,
    /// Processor time of the slowest rank in each step; an idle engine jumps to the next arrival. What a machine of
    /// one's own would show where other programs take turns on the cores; ranks that wait for each other's messages
    /// wait for free.
    Processor,
}

/// Seconds since the start of a run.
#[derive(Debug)]
pub(super) struct Watch {
    clock: Clock,
    begin: Instant,
    passed: f64,
    mark: f64,
}

impl Watch {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, begin: Instant::now(), passed: 0.0, mark: thread_seconds() }
    }

    /// Seconds since the start.
    pub(super) fn now(&self) -> f64 {
        match self.clock {
            Clock::Wall => self.begin.elapsed().as_secs_f64(),
            Clock::Processor => self.passed,
        }
    }

    /// Waits until a moment of the wall clock: asleep at first, awake towards its end, because waking takes its time.
    pub(super) fn wait(&self, until: Option<f64>) {
        let Some(until) = until else { return };
        loop {
            let left = until - self.begin.elapsed().as_secs_f64();
            if left > AWAKE {
                std::thread::sleep(Duration::from_secs_f64(left - AWAKE));
            } else if left > 0.0 {
                std::thread::yield_now();
            } else {
                return;
            }
        }
    }

    /// Processor seconds of this thread since the last lap.
    pub(super) fn lap(&mut self) -> f64 {
        let before = std::mem::replace(&mut self.mark, thread_seconds());
        self.mark - before
    }

    /// So much processor time has passed.
    pub(super) fn add(&mut self, seconds: f64) {
        self.passed += seconds;
    }

    /// Nothing happens before this moment.
    pub(super) fn jump(&mut self, to: Option<f64>) {
        self.passed = to.map_or(self.passed, |to| self.passed.max(to));
        self.mark = thread_seconds();
    }
}
