//! One training step, from a model, a plan, a cluster and a software stack to a prediction.
//!
//! Depths: [`StepModel::lower_bound`] is L0. [`StepModel::predict`] list-schedules the operators of every kind of layer on
//! the compute and communication streams of a representative rank, runs the pipeline events on the sums, and adds
//! gradient reduction in closed form: L1. L2 runs the operators of a whole chunk as tasks on the streams of one rank per
//! stage (compute, model-parallel exchange, sharding, sends, host) with contention between them, across layers and
//! micro-batches, and takes the memory from the schedule. L3 ([`StepModel::predict_ranks`]) runs every data-parallel replica with the parts
//! and speeds of its own ranks.

mod chunk;
mod computation;
mod data_parallel;
mod deep;
mod device;
mod ends;
mod energy;
mod error;
mod fast;
pub mod interval;
mod layer;
mod mesh;
mod model;
mod operators;
mod optimizer;
mod parts;
mod pass;
mod predict;
mod program;
mod ranks;
mod report;
mod stages;
mod work;

pub use computation::Computation;
pub use error::SimError;
pub use layer::{KindTimes, LayerTimes};
pub use mesh::{MeshCosts, StageCosts};
pub use model::{Ranks, StepModel};
pub use parts::Parts;
pub use pass::{Pass, run_pass};
pub use program::StepProgram;

use crate::{Level, StepPrediction};
use psim_cost_models::ProfileLibrary;
use psim_hardware::Cluster;
use psim_hardware::profile::StackProfile;
use psim_models::{Model, Plan, TrainingWorkload};

/// Everything a prediction needs.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// What is trained.
    pub model: &'a Model,
    /// How it is laid out.
    pub plan: &'a Plan,
    /// Batch and sequence.
    pub workload: &'a TrainingWorkload,
    /// Where it runs.
    pub cluster: &'a Cluster,
    /// With which software (a release already applied).
    pub stack: &'a StackProfile,
    /// Measured profiles.
    pub library: &'a ProfileLibrary,
}

/// Predicts one training step.
///
/// # Errors
/// [`SimError`] when the plan does not fit the model or the cluster (sizes that do not divide, too many ranks), or a
/// depth is asked for that does not exist yet. A plan that exceeds memory is predicted all the same, with `fits` false.
pub fn predict_step(input: &StepInput<'_>, level: Level) -> Result<StepPrediction, SimError> {
    StepModel::new(input.model, input.workload, input.cluster, input.stack, input.library)
        .predict(input.plan, level, false)
}

/// As [`predict_step`], with the timeline of the step.
///
/// # Errors
/// As [`predict_step`].
pub fn predict_step_with_timeline(input: &StepInput<'_>, level: Level) -> Result<StepPrediction, SimError> {
    StepModel::new(input.model, input.workload, input.cluster, input.stack, input.library)
        .predict(input.plan, level, true)
}

#[cfg(test)]
mod tests;
