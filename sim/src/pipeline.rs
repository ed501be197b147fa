//! Pipeline-level simulation (L1): micro-batches flow through stages under a schedule.

use psim_hardware::Time;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipelineSpec {
    /// Schedule.
    pub schedule: Schedule,
    /// Stages.
    pub stages: u32,
    /// Model chunks per stage (chunk `c` of the model runs on stage `c mod stages`; in ZB-V it goes down and up).
    pub chunks_per_stage: u32,
    /// Micro-batches.
    pub micro_batches: u32,
}

/// Costs of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineCosts {
    /// Per model chunk, in model order (`stages · chunks_per_stage`).
    pub chunks: Vec<ChunkCost>,
    /// Latency plus transfer of activations across one stage boundary (gradients alike).
    pub p2p: Time,
    /// The sender and receiver go on computing during the transfer (else both are blocked).
    pub p2p_overlap: bool,
}

/// One stage's outcome.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StageResult {
    /// Time spent computing.
    pub busy: Time,
    /// Start of its first task.
    pub first_start: Time,
    /// End of its last task.
    pub last_end: Time,
    /// End of its last task that produces gradients, per local chunk, for gradient reduction.
    pub chunk_done: Vec<Time>,
    /// Largest number of micro-batches whose activations are held at once, per local chunk.
    pub peak_in_flight: Vec<u32>,
    /// Largest number of chunk activations held at once, over all local chunks together.
    pub peak_total_in_flight: u32,
}

/// Outcome of a pipeline simulation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PipelineResult {
    /// End of the last task.
    pub makespan: Time,
    /// Per stage.
    pub stages: Vec<StageResult>,
}
