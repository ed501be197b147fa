//! Gradient reduction and parameter gathering over data-parallel ranks.

use super::pass::slowed;
use psim_cost_models::CostModel;
use psim_hardware::profile::StackProfile;
use psim_hardware::{DType, GroupShape};
use psim_models::Model;
use psim_models::lowering::{Shape, padded_vocab};
use psim_models::memory::RankParameters;
use psim_models::operator::CollectiveKind;
use psim_models::plan::{Plan, Sharding};

/// Communication of one stage at the end of a step, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Reduction {
    /// Reduction of all gradients of the stage.
    pub(super) reduce: f64,
    /// Gathering of updated parameters.
    pub(super) gather: f64,
    /// Buckets that the gradients of the stage are sent in.
    pub(super) buckets: f64,
}

/// Time of a collective over `count` elements of `bytes` each, in buckets of the stack's size.
fn bucketed(
    cost: &CostModel,
    kind: CollectiveKind,
    count: f64,
    bytes: f64,
    group: &GroupShape,
    buckets: f64,
) -> f64 {
    if group.ranks <= 1 || count <= 0.0 {
        return 0.0;
    }
    let each = (count * bytes / buckets).ceil();
    buckets * cost.collective(kind, each as u64, group).time.0
}

/// What a stage with `parameters` per rank reduces and gathers at the end of a step.
///
/// `held`: parameters are sharded but stay gathered between micro-batches (FSDP under pipeline parallelism).
pub(super) fn reduction(
    plan: &Plan,
    shape: &Shape,
    stack: &StackProfile,
    cost: &CostModel,
    parameters: &RankParameters,
    held: bool,
    replicas: Option<&GroupShape>,
) -> Reduction {
    let base = shape.base.size();
    let gathered = if stack.overlap.narrow_gather { shape.gemm.size().clamp(1.0, base) } else { base };
    let wire = stack.states.gradient_wire;
    let whole = stack.states.whole_reduction;
    let mut out = Reduction { buckets: 1.0, ..Reduction::default() };
    let groups = [(parameters.dense, shape.groups.dp), (parameters.expert, shape.groups.edp)];
    for (count, group) in groups {
        let count = count * parameters.trainable;
        let fewest = f64::from(group.ranks) * stack.overlap.bucket_per_rank.as_f64();
        let bucket = if stack.overlap.bucket.0 > 0 { stack.overlap.bucket.as_f64().max(fewest) } else { 0.0 };
        let buckets = if bucket > 0.0 { (count * wire / bucket).ceil().clamp(1.0, 64.0) } else { 1.0 };
        out.buckets = out.buckets.max(buckets);
        let time = |kind, bytes| bucketed(cost, kind, count, bytes, &group, buckets);
        match plan.sharding {
            Sharding::None => out.reduce += time(CollectiveKind::AllReduce, wire),
            Sharding::Optimizer if whole => {
                out.reduce += time(CollectiveKind::AllReduce, wire);
                out.gather += time(CollectiveKind::AllGather, gathered);
            }
            Sharding::Optimizer | Sharding::Gradients => {
                out.reduce += time(CollectiveKind::ReduceScatter, wire);
                out.gather += time(CollectiveKind::AllGather, gathered);
            }
            Sharding::Parameters if held => {
                out.reduce += time(CollectiveKind::ReduceScatter, wire);
                out.gather += time(CollectiveKind::AllGather, gathered);
            }
            Sharding::Parameters => {
                // Hybrid sharding: the shards are summed over the replicas of the shard group.
                if let Some(replicas) = replicas {
                    let shard = f64::from(shape.groups.shard.ranks.max(1));
                    let kind = CollectiveKind::AllReduce;
                    out.reduce += bucketed(cost, kind, count / shard, wire, replicas, buckets);
                }
            }
        }
    }
    out
}

/// Summing the gradients of a tied embedding and output layer over the stages that hold them, in seconds: behind all other
/// reductions, in the format of the buffers, and nothing runs beside it (Megatron-LM, `allreduce_word_embedding_grads`;
/// DeepSpeed, `_exec_reduce_tied_grads`). All other stages wait with the gradient norm.
pub(super) fn tied_reduction(
    model: &Model,
    plan: &Plan,
    shape: &Shape,
    stack: &StackProfile,
    cost: &CostModel,
    ends: &GroupShape,
) -> f64 {
    let trained = shape.lora_rank.is_none();
    if !model.tied_embeddings || !trained || plan.pp < 2 || plan.vocabulary_parallel {
        return 0.0;
    }
    let rows = padded_vocab(model.vocab, shape.tp).div_ceil(shape.tp);
    let (bytes, _) = stack.states.gradient_buffer(shape.base == DType::Fp16);
    let bytes = (rows * model.hidden) as f64 * bytes;
    cost.collective(CollectiveKind::AllReduce, bytes.ceil() as u64, ends).time.0
}

/// The last backward pass of a local chunk: when it is over, how long it took, and its share of the gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LastBackward {
    pub(super) done: f64,
    pub(super) duration: f64,
    pub(super) share: f64,
}

/// Seconds of a stage's reduction that stick out after its last backward pass, and the compute slow-down it causes.
///
/// With overlap, buckets leave as their layers finish in the last micro-batch of each local chunk, one after another:
/// all but the last bucket can hide behind those passes, and behind whatever runs between them.
pub(super) fn exposed_reduction<I: Iterator<Item = LastBackward>>(
    reduction: &Reduction,
    chunks: impl Fn() -> I,
    last_end: f64,
    stack: &StackProfile,
) -> (f64, f64) {
    if !stack.overlap.grad_reduce || reduction.reduce <= 0.0 {
        return (reduction.reduce, 0.0);
    }
    let last = reduction.reduce / reduction.buckets;
    // Chunks finish last to first; a few at most, so picking the next is cheap.
    let mut until = f64::NEG_INFINITY;
    let mut after = f64::NEG_INFINITY;
    while let Some(next) = chunks().filter(|c| c.done > after).min_by(|a, b| a.done.total_cmp(&b.done)) {
        after = next.done;
        let buckets = (reduction.buckets * next.share).max(1.0);
        let leaves = next.done - next.duration * (1.0 - 1.0 / buckets);
        until = until.max(leaves) + reduction.reduce * next.share;
    }
    let exposed = f64::max(last, until - last_end).min(reduction.reduce);
    let hidden = reduction.reduce - exposed;
    (exposed, slowed(stack.efficiency.contention, f64::INFINITY, hidden))
}

/// Seconds of parameter gathering that stick out, and the compute slow-down: with overlap all but the first bucket
/// hide behind the next step's first forward pass of the stage.
pub(super) fn exposed_gather(reduction: &Reduction, window: f64, stack: &StackProfile) -> (f64, f64) {
    if !stack.overlap.param_gather {
        return (reduction.gather, 0.0);
    }
    let first = reduction.gather / reduction.buckets;
    let exposed = f64::max(first, reduction.gather - window);
    (exposed, slowed(stack.efficiency.contention, f64::INFINITY, reduction.gather - exposed))
}
