//! Why a pipeline cannot be simulated.

use psim_models::plan::Schedule;

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
