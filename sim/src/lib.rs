//! Discrete-event simulation of training steps and serving runs.
//!
//! Depths (see DESIGN): L0 closed-form bound, L1 pipeline events from per-stage costs, L2 operator events on the
//! streams of representative ranks, L3 all ranks with shared links.
//!
//! This crate is pure: it reads no files, no clock and no environment.

pub mod engine;
pub mod gallery;
mod passes;
pub mod pipeline;
pub mod prediction;
pub mod residual;
pub mod schedule;
pub mod serving;
pub mod step;
pub mod stream;
pub mod timeline;

pub use pipeline::{
    ChunkCost, ChunkMemory, PipelineCosts, PipelineError, PipelineResult, PipelineSim, PipelineSpec,
    StageResult,
};
pub use prediction::{Breakdown, Estimate, Level, StageMemory, StepPrediction};
pub use step::{SimError, StepInput, StepModel, predict_step, predict_step_with_timeline};
pub use timeline::{Span, Timeline, Track};
