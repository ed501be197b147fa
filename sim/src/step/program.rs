//! The pipeline program of a plan: one object, which the simulator prices and the executor runs.

use crate::pipeline::{PipelineError, PipelineSpec, build_order};
use crate::schedule::Order;
use psim_models::Plan;
use psim_models::plan::Schedule;

/// The passes of every stage in order, with the pipeline they belong to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepProgram {
    /// Stages, chunks, micro-batches, schedule.
    pub spec: PipelineSpec,
    /// The order.
    pub order: Order,
}

impl StepProgram {
    /// The program of a plan.
    ///
    /// # Errors
    /// When the schedule cannot run with the plan's sizes.
    pub fn new(plan: &Plan) -> Result<Self, PipelineError> {
        let spec = spec(plan);
        let mut order = Order::default();
        build_order(&spec, &mut order)?;
        Ok(Self { spec, order })
    }
}

/// The pipeline of a plan: 1F1B with several chunks per stage is interleaved, and interleaving one chunk is 1F1B.
pub(super) fn spec(plan: &Plan) -> PipelineSpec {
    let schedule = match plan.schedule {
        Schedule::OneFOneB if plan.vpp > 1 => Schedule::Interleaved,
        Schedule::Interleaved if plan.vpp <= 1 => Schedule::OneFOneB,
        other => other,
    };
    PipelineSpec {
        schedule,
        stages: plan.pp,
        chunks_per_stage: plan.vpp,
        micro_batches: plan.micro_batches().max(1),
        ..PipelineSpec::default()
    }
}
