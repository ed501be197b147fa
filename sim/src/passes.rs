//! What a pipeline is made of: its shape, the cost of its passes, and why it cannot be simulated. Schedules put the passes in
//! order, the pipeline times them.

use psim_hardware::{Bytes, Time};
use psim_models::plan::Schedule;

/// Durations of one micro-batch in one model chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChunkCost {
    /// Forward.
    pub forward: Time,
    /// Backward: gradient of the input, recomputation included.
    pub backward_input: Time,
    /// Backward: gradient of the weights.
    pub backward_weight: Time,
}

/// What is scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PipelineSpec {
    /// Schedule.
    pub schedule: Schedule,
    /// Stages.
    pub stages: u32,
    /// Model chunks per stage (chunk `c` of the model runs on stage `c mod stages`; in ZB-V it goes down and up).
    pub chunks_per_stage: u32,
    /// Micro-batches.
    pub micro_batches: u32,
    /// Interleaved only: consecutive micro-batches that one chunk takes before the next chunk's turn
    /// (Megatron's `microbatch_group_size_per_vp_stage`); 0 means as many as there are stages.
    pub micro_batch_group: u32,
    /// Zero-bubble schedules only: order the passes for the given durations, within the memory of the schedule
    /// (`p` micro-batches for ZB-H1, `2p` for ZB-H2, `2p` half-size chunks for ZB-V), instead of by hand; ZB-1p and
    /// ZB-2p of Qi et al. 2024.
    pub automatic: bool,
}

/// Activation memory that one micro-batch holds in one model chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChunkMemory {
    /// From the start of the forward pass to the end of the input-gradient pass.
    pub forward: Bytes,
    /// From there to the end of a separate weight-gradient pass (unused where the schedule does not split them).
    pub weight: Bytes,
}

/// Costs of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PipelineCosts {
    /// Per model chunk, in model order (`stages · chunks_per_stage`).
    pub chunks: Vec<ChunkCost>,
    /// Latency plus transfer of activations across one stage boundary (gradients alike).
    pub p2p: Time,
    /// The sender goes on computing during the transfer. Otherwise sender and receiver meet in a blocking exchange:
    /// the sender computes nothing until its transfer is over, and the receiver waits for it in any case.
    pub p2p_overlap: bool,
    /// Transfer time per boundary between chunk `c` and `c + 1` (`chunks.len() - 1` values), where boundaries differ,
    /// as inside and between nodes; empty means `p2p` everywhere. Chunks on the same stage exchange nothing.
    pub p2p_per_boundary: Vec<Time>,
    /// Activation memory per model chunk, or empty where the caller only wants counts.
    pub memory: Vec<ChunkMemory>,
}

impl PipelineCosts {
    /// Transfer time between model chunk `boundary` and the next.
    pub fn boundary(&self, boundary: u32) -> Time {
        self.p2p_per_boundary.get(boundary as usize).copied().unwrap_or(self.p2p)
    }
}

/// Why a pipeline cannot be simulated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// Stages, chunks per stage or micro-batches are zero.
    #[error("a pipeline needs at least one stage, one chunk per stage and one micro-batch")]
    Empty,
    /// The costs do not describe every chunk.
    #[error("{what} has {found} entries, the pipeline needs {expected}")]
    Length {
        /// Which list.
        what: &'static str,
        /// Entries given.
        found: usize,
        /// Entries needed.
        expected: usize,
    },
    /// The schedule runs another number of chunks per stage.
    #[error("{schedule:?} runs {expected} chunk(s) per stage, not {found}")]
    Chunks {
        /// Schedule.
        schedule: Schedule,
        /// Chunks per stage asked for.
        found: u32,
        /// Chunks per stage that the schedule has.
        expected: &'static str,
    },
    /// Interleaving deadlocks when the last group of micro-batches is shorter than the pipeline.
    #[error(
        "interleaved 1F1B takes micro-batches in groups of {group}; the last group of {micro_batches} micro-batches \
         has {remainder}, which must be 0 or at least the {stages} stages"
    )]
    Remainder {
        /// Micro-batches.
        micro_batches: u32,
        /// Micro-batches per group.
        group: u32,
        /// What is left for the last group.
        remainder: u32,
        /// Stages.
        stages: u32,
    },
    /// The group of consecutive micro-batches is smaller than the pipeline.
    #[error("interleaved 1F1B needs groups of at least {stages} micro-batches (the stages), not {group}")]
    Group {
        /// Micro-batches per group.
        group: u32,
        /// Stages.
        stages: u32,
    },
    /// More passes than a simulation holds.
    #[error("{passes} passes are more than the {limit} that a pipeline simulation holds")]
    TooLarge {
        /// Passes.
        passes: u64,
        /// Limit.
        limit: u64,
    },
    /// The order of the passes contradicts their dependencies.
    #[error("the schedule deadlocks: stage {stage} waits for ever in position {position}")]
    Deadlock {
        /// First stage that waits.
        stage: u32,
        /// Position in its order.
        position: usize,
    },
}
