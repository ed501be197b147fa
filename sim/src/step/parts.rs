//! Time by cause, in seconds.

use crate::Breakdown;
use psim_hardware::Seconds;
use psim_models::operator::Dimension;

/// Time of a pass by cause; the fields sum to its duration.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Parts {
    /// Flops at datasheet peak.
    pub ideal: f64,
    /// Kernels below peak.
    pub inefficiency: f64,
    /// Passes run again.
    pub recompute: f64,
    /// Memory-bound operators.
    pub memory: f64,
    /// Gaps and host-bound time.
    pub launch: f64,
    /// Exposed tensor-parallel communication.
    pub tp: f64,
    /// Exposed context-parallel communication.
    pub cp: f64,
    /// Exposed expert-parallel communication.
    pub ep: f64,
    /// Exposed data-parallel communication.
    pub dp: f64,
    /// Compute slowed by communication beside it.
    pub contention: f64,
}

impl Parts {
    /// Sum of all causes.
    pub fn total(&self) -> f64 {
        self.ideal
            + self.inefficiency
            + self.recompute
            + self.memory
            + self.launch
            + self.tp
            + self.cp
            + self.ep
            + self.dp
            + self.contention
    }

    /// `self + other · factor`.
    #[must_use]
    pub fn plus(self, other: &Self, factor: f64) -> Self {
        Self {
            ideal: self.ideal + other.ideal * factor,
            inefficiency: self.inefficiency + other.inefficiency * factor,
            recompute: self.recompute + other.recompute * factor,
            memory: self.memory + other.memory * factor,
            launch: self.launch + other.launch * factor,
            tp: self.tp + other.tp * factor,
            cp: self.cp + other.cp * factor,
            ep: self.ep + other.ep * factor,
            dp: self.dp + other.dp * factor,
            contention: self.contention + other.contention * factor,
        }
    }

    /// The same time seen as recomputation: compute parts move to `recompute`, communication stays where it is.
    #[must_use]
    pub fn as_recompute(&self) -> Self {
        Self {
            recompute: self.ideal + self.inefficiency + self.memory + self.launch + self.recompute,
            tp: self.tp,
            cp: self.cp,
            ep: self.ep,
            dp: self.dp,
            contention: self.contention,
            ..Self::default()
        }
    }

    /// Adds exposed communication of a dimension.
    pub fn expose(&mut self, dimension: Dimension, seconds: f64) {
        match dimension {
            Dimension::Tp => self.tp += seconds,
            Dimension::Cp => self.cp += seconds,
            Dimension::Ep | Dimension::Etp => self.ep += seconds,
            Dimension::Dp | Dimension::Pp => self.dp += seconds,
        }
    }

    /// Into the parts of a step's breakdown.
    pub fn into_breakdown(self) -> Breakdown {
        Breakdown {
            ideal_compute: Seconds(self.ideal),
            kernel_inefficiency: Seconds(self.inefficiency),
            recompute: Seconds(self.recompute),
            memory_bound: Seconds(self.memory),
            launch: Seconds(self.launch),
            tp_exposed: Seconds(self.tp),
            cp_exposed: Seconds(self.cp),
            ep_exposed: Seconds(self.ep),
            dp_exposed: Seconds(self.dp),
            contention: Seconds(self.contention),
            ..Breakdown::default()
        }
    }
}
