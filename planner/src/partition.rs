//! Which contiguous layers each pipeline stage gets, when an even split is impossible or unfair.
//!
//! Minimise the time of the slowest stage under each stage's memory limit. The first stage also carries the embedding,
//! the last the output layer. [`dynamic`] is exact and used by the planner; [`integer_program`] is an independent
//! formulation for equal layers that the tests hold against it.

pub mod dynamic;
pub mod integer_program;

/// One layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLoad {
    /// Forward and backward time of one micro-batch, picoseconds.
    pub time: u64,
    /// Parameters, gradients and optimizer states, bytes.
    pub state_bytes: u64,
    /// Activations of one micro-batch, bytes.
    pub activation_bytes: u64,
}

/// What a stage offers and carries beside its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageLimit {
    /// Time of the embedding or output layer on it, picoseconds.
    pub extra_time: u64,
    /// Memory of whatever is on the stage beside layers, bytes.
    pub extra_bytes: u64,
    /// Micro-batches whose activations are held at the peak.
    pub in_flight: u64,
    /// Usable memory, bytes.
    pub capacity: u64,
}

/// An assignment problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Layers in model order.
    pub layers: Vec<LayerLoad>,
    /// Stages in pipeline order.
    pub stages: Vec<StageLimit>,
}

/// An assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Layers per stage, each at least 1.
    pub counts: Vec<u32>,
    /// Time of the slowest stage, picoseconds.
    pub slowest: u64,
}

/// Why there is no assignment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// More stages than layers.
    #[error("{stages} stages need at least as many layers; there are {layers}")]
    TooFewLayers {
        /// Stages.
        stages: usize,
        /// Layers.
        layers: usize,
    },
    /// No contiguous assignment respects the memory limits.
    #[error("no contiguous assignment of {layers} layers to {stages} stages fits into memory")]
    Memory {
        /// Stages.
        stages: usize,
        /// Layers.
        layers: usize,
    },
    /// The formulation does not cover the problem.
    #[error("{0}")]
    Unsupported(String),
    /// The solver failed.
    #[error("the integer program failed: {0}")]
    Solver(String),
}

/// A way to solve a [`Problem`].
pub trait Partitioner {
    /// Name for messages.
    fn name(&self) -> &'static str;

    /// Finds an assignment with the smallest possible slowest stage.
    ///
    /// # Errors
    /// When none exists, or the method does not cover the problem.
    fn partition(&self, problem: &Problem) -> Result<Partition, PartitionError>;
}

impl Problem {
    /// Time of stage `s` holding layers `from..to`.
    pub fn stage_time(&self, s: usize, from: usize, to: usize) -> u64 {
        self.layers[from..to].iter().map(|l| l.time).sum::<u64>() + self.stages[s].extra_time
    }

    /// Memory of stage `s` holding layers `from..to`.
    pub fn stage_bytes(&self, s: usize, from: usize, to: usize) -> u64 {
        let stage = &self.stages[s];
        self.layers[from..to]
            .iter()
            .map(|l| l.state_bytes + l.activation_bytes * stage.in_flight)
            .sum::<u64>()
            + stage.extra_bytes
    }

    /// The slowest stage of an assignment; `None` when it does not cover the layers or does not fit.
    pub fn slowest(&self, counts: &[u32]) -> Option<u64> {
        if counts.len() != self.stages.len() || counts.contains(&0) {
            return None;
        }
        let mut from = 0;
        let mut slowest = 0;
        for (s, &count) in counts.iter().enumerate() {
            let to = from + count as usize;
            if to > self.layers.len() || self.stage_bytes(s, from, to) > self.stages[s].capacity {
                return None;
            }
            slowest = slowest.max(self.stage_time(s, from, to));
            from = to;
        }
        (from == self.layers.len()).then_some(slowest)
    }
}

#[cfg(test)]
mod tests;
