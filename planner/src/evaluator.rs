//! What the search asks of a simulator: memory, a lower bound, and times of growing depth.

use psim_hardware::{Bytes, Time};
use psim_models::Plan;
use psim_models::plan::{ContextParallel, Precision, Schedule, Sharding};
use psim_sim::StepPrediction;

/// The fields that decide what one micro-batch costs in one layer; plans with equal keys share their stage costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CostKey {
    /// tp, cp, ep, etp, sequences per micro-batch.
    pub sizes: [u32; 5],
    /// Context exchange.
    pub cp_kind: ContextParallel,
    /// Megatron sequence parallelism.
    pub sequence_parallel: bool,
    /// Arithmetic.
    pub precision: Precision,
    /// Weight gradients run apart.
    pub split: bool,
    /// The output layer is spread over the stages.
    pub vocabulary_parallel: bool,
}

impl CostKey {
    /// The key of a plan.
    pub fn of(plan: &Plan) -> Self {
        Self {
            sizes: [plan.tp, plan.cp, plan.ep, plan.etp, plan.micro_batch],
            cp_kind: plan.cp_kind,
            sequence_parallel: plan.sequence_parallel,
            precision: plan.precision,
            split: matches!(plan.schedule, Schedule::ZbH1 | Schedule::ZbH2 | Schedule::ZbV),
            vocabulary_parallel: plan.vocabulary_parallel,
        }
    }
}

/// The fields that decide layout, reductions and optimizer; plans with equal keys share their mesh costs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshKey {
    /// tp, pp, dp, cp, ep, etp, vpp, shard group.
    pub sizes: [u32; 8],
    /// Schedule.
    pub schedule: Schedule,
    /// Sharding.
    pub sharding: Sharding,
    /// Arithmetic.
    pub precision: Precision,
    /// The output layer is spread over the stages.
    pub vocabulary_parallel: bool,
    /// Layers per chunk, where uneven.
    pub stage_layers: Vec<u32>,
}

impl MeshKey {
    /// The key of a plan.
    pub fn of(plan: &Plan) -> Self {
        Self {
            sizes: [plan.tp, plan.pp, plan.dp, plan.cp, plan.ep, plan.etp, plan.vpp, plan.shard_group],
            schedule: plan.schedule,
            sharding: plan.sharding,
            precision: plan.precision,
            vocabulary_parallel: plan.vocabulary_parallel,
            stage_layers: plan.stage_layers.clone(),
        }
    }
}

/// A simulator as the search sees it.
///
/// Contract: `l0 ≤ l1` for every plan, `energy` never falls when the time grows, every method is a pure
/// function of its arguments.
pub trait Evaluator: Sync {
    /// What plans with equal [`CostKey`] share.
    type Costs: Send + Sync;
    /// What plans with equal [`MeshKey`] share.
    type Mesh: Send + Sync;

    /// Computes what the plans on a mesh share; any plan with the key may be given.
    ///
    /// # Errors
    /// When the layers cannot be laid out (named cause).
    fn mesh(&self, plan: &Plan) -> Result<Self::Mesh, String>;

    /// Computes the shared costs; any plan with the key may be given.
    ///
    /// # Errors
    /// When the plan cannot be lowered (named cause).
    fn costs(&self, plan: &Plan) -> Result<Self::Costs, String>;

    /// Uneven layers per chunk that beat the even split, if any (entries as in [`Plan::stage_layers`]).
    fn uneven_layers(&self, costs: &Self::Costs, plan: &Plan) -> Option<Vec<u32>>;

    /// Peak memory of the fullest accelerator.
    fn memory(&self, costs: &Self::Costs, mesh: &Self::Mesh, plan: &Plan) -> Bytes;

    /// Usable memory of one accelerator.
    fn memory_capacity(&self) -> Bytes;

    /// Closed-form lower bound of the step time.
    fn l0(&self, costs: &Self::Costs, mesh: &Self::Mesh, plan: &Plan) -> Time;

    /// Step time from pipeline events.
    fn l1(&self, costs: &Self::Costs, mesh: &Self::Mesh, plan: &Plan) -> Time;

    /// Joules of one step that takes `step` seconds, PUE included.
    fn energy(&self, costs: &Self::Costs, mesh: &Self::Mesh, plan: &Plan, step: Time) -> f64;

    /// Full prediction at L2.
    ///
    /// # Errors
    /// When the plan cannot be simulated (named cause).
    fn l2(&self, plan: &Plan) -> Result<StepPrediction, String>;

    /// The prediction that ranks the finalists, with the plan as it was simulated: L2, or deeper where the cluster needs
    /// it.
    ///
    /// # Errors
    /// As [`Evaluator::l2`].
    fn finalist(&self, plan: &Plan) -> Result<(Plan, StepPrediction), String> {
        Ok((plan.clone(), self.l2(plan)?))
    }

    /// Share by which a finalist may come out faster than L1 has it, where that is more than `gap`.
    fn widest_gap(&self, gap: f64) -> f64 {
        gap
    }
}
