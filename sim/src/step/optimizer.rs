//! The optimizer step: gradient norm, Adam update, copy to the working weights.

use psim_cost_models::CostModel;
use psim_hardware::GroupShape;
use psim_hardware::profile::StackProfile;
use psim_models::lowering::Shape;
use psim_models::memory::RankParameters;
use psim_models::operator::{CollectiveKind, MemoryClass};
use psim_models::plan::{Plan, Sharding};

/// Seconds of the optimizer step on one rank.
///
/// Bytes per parameter: the norm reads the gradient; Adam reads and writes master and moments, reads the gradient and
/// writes the working copy; the gradient buffer of all local parameters is cleared.
pub(super) fn optimizer_step(
    plan: &Plan,
    shape: &Shape,
    stack: &StackProfile,
    cost: &CostModel,
    parameters: &RankParameters,
    world: &GroupShape,
) -> f64 {
    let s = &stack.states;
    let share = |ranks: u32| match plan.sharding {
        Sharding::None => 1.0,
        _ => f64::from(ranks.max(1)),
    };
    let dense_ranks =
        if plan.sharding == Sharding::Parameters { shape.groups.shard.ranks } else { shape.groups.dp.ranks };
    let expert_ranks = shape.groups.edp.ranks.min(if plan.sharding == Sharding::Parameters {
        shape.groups.shard.ranks
    } else {
        u32::MAX
    });
    let all = parameters.trainable * (parameters.dense + parameters.expert);
    let local = parameters.trainable
        * (parameters.dense / share(dense_ranks) + parameters.expert / share(expert_ranks));
    let update = local * (2.0 * (s.master + s.moments) + 2.0 * s.gradient + shape.base.size());
    let held = if plan.sharding == Sharding::Parameters || plan.sharding == Sharding::Gradients {
        local
    } else {
        all
    };
    let clear = held * s.gradient;
    let bytes = |b: f64| b.ceil() as u64;
    let mut seconds = cost.memory(MemoryClass::Optimizer, bytes(update), 4, 0.0).time.0
        + cost.memory(MemoryClass::Elementwise, bytes(clear), 1, 0.0).time.0;
    if shape.gemm != shape.base {
        // The narrow copy of the weights is made once per step.
        let cast = all * (shape.base.size() + 2.0 * shape.gemm.size());
        seconds += cost.memory(MemoryClass::Quantize, bytes(cast), 8, 0.0).time.0;
    }
    // Gradient norm, overflow check and loss are small reductions over all ranks.
    if world.ranks > 1 {
        seconds += 3.0 * cost.collective(CollectiveKind::AllReduce, 64, world).time.0;
    }
    seconds
}
