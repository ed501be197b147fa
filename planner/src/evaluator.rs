//! What the search asks of a simulator: memory, a lower bound, and times of growing depth.

use psim_hardware::{Bytes, Time};
use psim_models::Plan;
use psim_models::plan::{ContextParallel, Precision, Recompute};
use psim_sim::StepPrediction;

/// The fields that decide what one micro-batch costs in one layer; plans with equal keys share their stage costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CostKey {
    /// Tensor-parallel ranks.
    pub tp: u32,
    /// Context-parallel ranks.
    pub cp: u32,
    /// Their exchange.
    pub cp_kind: ContextParallel,
    /// Expert-parallel ranks.
    pub ep: u32,
    /// Tensor-parallel ranks inside an expert.
    pub etp: u32,
    /// Sequences per micro-batch.
    pub micro_batch: u32,
    /// Megatron sequence parallelism.
    pub sequence_parallel: bool,
    /// Recomputation; `Layers` counts as `Full` here, the number of layers is the plan's.
    pub recompute: Recompute,
    /// Arithmetic.
    pub precision: Precision,
}

impl CostKey {
    /// The key of a plan.
    pub fn of(plan: &Plan) -> Self {
        let recompute = match plan.recompute {
            Recompute::Layers(_) => Recompute::Full,
            other => other,
        };
        Self {
            tp: plan.tp,
            cp: plan.cp,
            cp_kind: plan.cp_kind,
            ep: plan.ep,
            etp: plan.etp,
            micro_batch: plan.micro_batch,
            sequence_parallel: plan.sequence_parallel,
            recompute,
            precision: plan.precision,
        }
    }
}

/// A simulator as the search sees it.
///
/// Contract: `l0(c, p) ≤ l1(c, p)` for every plan, `energy` never falls when the time grows, every method is a pure
/// function of its arguments.
pub trait Evaluator: Sync {
    /// What plans with equal [`CostKey`] share.
    type Costs: Send + Sync;

    /// Computes the shared costs; any plan with the key may be given.
    ///
    /// # Errors
    /// When the plan cannot be lowered (named cause).
    fn costs(&self, plan: &Plan) -> Result<Self::Costs, String>;

    /// Uneven layers per chunk that beat the even split, if any (entries as in [`Plan::stage_layers`]).
    fn uneven_layers(&self, costs: &Self::Costs, plan: &Plan) -> Option<Vec<u32>>;

    /// Peak memory of the fullest accelerator.
    fn memory(&self, costs: &Self::Costs, plan: &Plan) -> Bytes;

    /// Usable memory of one accelerator.
    fn memory_capacity(&self) -> Bytes;

    /// Closed-form lower bound of the step time.
    fn l0(&self, costs: &Self::Costs, plan: &Plan) -> Time;

    /// Step time from pipeline events.
    fn l1(&self, costs: &Self::Costs, plan: &Plan) -> Time;

    /// Joules of one step that takes `step` seconds, PUE included.
    fn energy(&self, costs: &Self::Costs, plan: &Plan, step: Time) -> f64;

    /// Full prediction at L2.
    ///
    /// # Errors
    /// When the plan cannot be simulated (named cause).
    fn l2(&self, plan: &Plan) -> Result<StepPrediction, String>;
}
