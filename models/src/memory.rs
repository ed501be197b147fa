//! The memory ledger: what each pipeline stage holds at its peak.
//!
//! States follow ZeRO (Rajbhandari et al. 2020, section 3): a working copy, a gradient, master weights and Adam
//! moments, each divided by the ranks that share it. Activations follow the tensors that the backward pass of
//! [`crate::lowering`]'s operators reads; for a GPT block this gives the `34·s·b·h` (+ `5·a·s²·b` unfused) of
//! Korthikanti et al. 2022, section 4.1.

mod activations;

pub use activations::{LayerActivations, layer_activations};

use crate::arch::{Ffn, Model};
use crate::layout::{Chunk, Layout, block_of};
use crate::lowering::{Shape, padded_vocab};
use crate::parameters::Split;
use crate::plan::{Plan, Recompute, Sharding};
use psim_hardware::profile::StackProfile;
use psim_hardware::{Bytes, DType};
use serde::Serialize;

/// Named parts of one stage's peak memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct StageLedger {
    /// Working copy of the weights.
    pub parameters: Bytes,
    /// Gradient buffers.
    pub gradients: Bytes,
    /// Master weights and moments.
    pub optimizer: Bytes,
    /// Activations of the micro-batches in flight.
    pub activations: Bytes,
    /// Working set: what one layer needs while it runs (recomputed activations, attention scratch).
    pub working: Bytes,
    /// Logits and loss of the last stage.
    pub logits: Bytes,
    /// Parameters gathered just in time (FSDP / ZeRO-3).
    pub gathered: Bytes,
    /// Communication buffers.
    pub communication: Bytes,
    /// Driver context, libraries, allocator fragmentation.
    pub overhead: Bytes,
}

impl StageLedger {
    /// The parts with their names.
    pub fn parts(&self) -> [(&'static str, Bytes); 9] {
        [
            ("parameters", self.parameters),
            ("gradients", self.gradients),
            ("optimizer states", self.optimizer),
            ("activations", self.activations),
            ("working set", self.working),
            ("logits and loss", self.logits),
            ("gathered parameters", self.gathered),
            ("communication buffers", self.communication),
            ("context and fragmentation", self.overhead),
        ]
    }

    /// Sum.
    pub fn total(&self) -> Bytes {
        self.parts().iter().map(|p| p.1).sum()
    }
}

/// Parameters of one rank of one stage, split by who shares their states.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RankParameters {
    /// Dense parameters on this rank (after tp), replicated over data parallel.
    pub dense: f64,
    /// Expert parameters on this rank (after ep and etp), replicated over `edp`.
    pub expert: f64,
    /// Of `dense`: the largest single layer (unit of FSDP gathering).
    pub largest_layer: f64,
    /// The largest layer's experts.
    pub largest_expert_layer: f64,
    /// Trainable share (1, or the adapters' share under LoRA).
    pub trainable: f64,
}

/// Counts the parameters of `stage` on one rank.
pub fn rank_parameters(model: &Model, layout: &Layout, stage: usize, shape: &Shape) -> RankParameters {
    let tp = shape.tp as f64;
    let expert_ranks = (shape.ep * shape.etp) as f64;
    let local = |s: Split| s.sharded as f64 / tp + s.replicated as f64;
    let mut out = RankParameters { trainable: 1.0, ..RankParameters::default() };
    let embedding = model.embedding_parameters() as f64 / tp;
    for (_, chunk) in layout.chunks_of(stage) {
        for &(kind, count) in &chunk.layers {
            let Some(block) = block_of(model, kind) else { continue };
            let p = block.parameters(model.hidden, model.norm);
            let (dense, expert) = (local(p.dense_split()), p.experts as f64 / expert_ranks);
            out.dense += f64::from(count) * dense;
            out.expert += f64::from(count) * expert;
            out.largest_layer = out.largest_layer.max(dense);
            out.largest_expert_layer = out.largest_expert_layer.max(expert);
            if let Some(rank) = shape.lora_rank {
                // Adapters on every linear layer: rank · (inputs + outputs), about 12 widths a layer.
                let adapters = (rank * 12 * model.hidden) as f64 / tp;
                out.trainable = (adapters / dense.max(1.0)).min(1.0);
            }
        }
        if chunk.embedding {
            out.dense += embedding;
        }
        if chunk.head {
            out.dense += model.head_parameters() as f64 / tp;
            if model.tied_embeddings && !chunk.embedding {
                // A tied output layer on another stage is a copy of the embedding.
                out.dense += (model.vocab * model.hidden) as f64 / tp;
            }
            if model.mtp_layers > 0
                && let Some(block) = model.mtp_block()
            {
                let p = block.parameters(model.hidden, model.norm);
                let projection = (2 * model.hidden * model.hidden) as f64 / tp;
                let n = f64::from(model.mtp_layers);
                out.dense += n * (local(p.dense_split()) + projection);
                out.expert += n * p.experts as f64 / expert_ranks;
            }
        }
    }
    out
}

/// Elements of the largest weight of a stage on one rank: the embedding (or the output layer's copy of it) where the stage
/// has one, else the wider matrix of a feed-forward part.
fn largest_weight(model: &Model, layout: &Layout, stage: usize, shape: &Shape) -> f64 {
    let mut largest: f64 = 0.0;
    for (_, chunk) in layout.chunks_of(stage) {
        if chunk.embedding || chunk.head {
            largest = largest.max((padded_vocab(model.vocab, shape.tp) * model.hidden) as f64);
        }
        for &(kind, _) in &chunk.layers {
            let width = match block_of(model, kind).map(|b| &b.ffn) {
                Some(Ffn::Dense(dense)) => dense.hidden * if dense.gated { 2 } else { 1 },
                Some(Ffn::Moe(moe)) => moe.hidden * if moe.gated { 2 } else { 1 },
                _ => 0,
            };
            largest = largest.max((width * model.hidden) as f64);
        }
    }
    largest / shape.tp as f64
}

/// Activations held on a stage at the peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Held<'a> {
    /// Micro-batches in flight per local chunk, all peaking together.
    MicroBatches(&'a [u32]),
    /// Bytes, from a simulated schedule fed with [`chunk_activations`].
    Total(Bytes),
}

/// Micro-batches whose activations each local chunk holds at the peak, in closed form per schedule.
///
/// 1F1B keeps `pp − s` micro-batches on stage `s`; interleaved warm-up runs `2·(pp − s − 1) + (vpp − 1)·pp` chunks ahead
/// (Narayanan et al. 2021, section 2.2); GPipe keeps all. ZB-H1 as 1F1B; ZB-H2 and ZB-V up to `2·pp − 1` and `pp` units.
pub fn in_flight(plan: &Plan, stage: u32) -> Vec<u32> {
    use crate::plan::Schedule;
    let (m, pp, v) = (plan.micro_batches().max(1), plan.pp.max(1), plan.vpp.max(1));
    let ahead = pp.saturating_sub(stage);
    match plan.schedule {
        Schedule::Gpipe => vec![m; v as usize],
        Schedule::ZbH2 => vec![(2 * ahead).saturating_sub(1).clamp(1, m); v as usize],
        Schedule::ZbV => vec![pp.min(m); v as usize],
        _ if v > 1 => {
            let total = (2 * (ahead - 1) + (v - 1) * pp + 1).min(m * v);
            // Chunks fill in rounds of pp micro-batches, first chunk first.
            let mut left = total;
            (0..v)
                .map(|c| {
                    let remaining_chunks = v - c;
                    let take = if remaining_chunks == 1 {
                        left
                    } else {
                        left.div_ceil(remaining_chunks).max(pp.min(left))
                    };
                    let take = take.min(left).min(m);
                    left -= take;
                    take
                })
                .collect()
        }
        _ => vec![ahead.min(m); v as usize],
    }
}

/// Peak memory of every stage.
pub fn ledger(
    model: &Model,
    plan: &Plan,
    layout: &Layout,
    shape: &Shape,
    stack: &StackProfile,
) -> Vec<StageLedger> {
    (0..plan.pp.max(1)).map(|s| stage_ledger(model, plan, layout, shape, stack, s)).collect()
}

/// Peak memory of one stage.
pub fn stage_ledger(
    model: &Model,
    plan: &Plan,
    layout: &Layout,
    shape: &Shape,
    stack: &StackProfile,
    stage: u32,
) -> StageLedger {
    let held = in_flight(plan, stage);
    stage_ledger_with(model, plan, layout, shape, stack, stage, Held::MicroBatches(&held))
}

/// Peak memory of one stage with known micro-batches in flight (from a simulated schedule).
pub fn stage_ledger_with(
    model: &Model,
    plan: &Plan,
    layout: &Layout,
    shape: &Shape,
    stack: &StackProfile,
    stage: u32,
    held: Held<'_>,
) -> StageLedger {
    let mut p = rank_parameters(model, layout, stage as usize, shape);
    let stages = f64::from(plan.pp.max(1));
    let spread = plan.vocabulary_parallel && plan.pp > 1;
    if spread {
        // Embedding and output layer are sharded over the stages (arXiv 2411.05288, section 4).
        let tp = shape.tp as f64;
        let (input, output) = (model.embedding_parameters() as f64 / tp, model.head_parameters() as f64 / tp);
        let copy = if model.tied_embeddings { (model.vocab * model.hidden) as f64 / tp } else { 0.0 };
        let own =
            if stage == 0 { input } else { 0.0 } + if stage + 1 == plan.pp { output + copy } else { 0.0 };
        p.dense += (input + output) / stages - own;
    }
    let (mut out, step_gradients) = states(plan, shape, stack, &p);
    let mut activations = 0.0;
    let mut working: f64 = 0.0;
    for (local, (_, chunk)) in layout.chunks_of(stage as usize).enumerate() {
        let (per_micro_batch, needed) = chunk_parts(chunk, model, plan, shape);
        working = working.max(needed);
        match held {
            Held::MicroBatches(counts) => {
                activations += f64::from(counts.get(local).copied().unwrap_or(1)) * per_micro_batch;
            }
            Held::Total(bytes) => activations = bytes.as_f64(),
        }
        if chunk.head || spread {
            let logits = (shape.tokens * padded_vocab(model.vocab, shape.tp).div_ceil(shape.tp)) as f64;
            let base = shape.base.size();
            // A fused loss writes the gradient over the logits.
            let each = match (shape.fusion.cross_entropy, shape.fp32_logits) {
                (true, _) => base,
                (false, false) => base + 4.0 + base,
                (false, true) => base + 4.0 + 4.0,
            };
            // The output layer's weight gradient comes to life beside the logits' gradient.
            let weight = if plan.sharding == Sharding::Parameters || p.trainable < 1.0 {
                0.0
            } else {
                base * (padded_vocab(model.vocab, shape.tp).div_ceil(shape.tp) * model.hidden) as f64
            };
            let most = f64::max(each * logits, base * logits + weight);
            out.logits = Bytes::from_f64(most / if spread { stages } else { 1.0 });
        }
    }
    if shape.sequence_parallel {
        // The gathered input of a linear layer lives while the layer runs.
        working += shape.base.size() * (shape.tokens * model.hidden) as f64;
    }
    let bf16_optimizer = stack.states.is_bf16_optimizer(shape.base == DType::Bf16);
    if stack.states.bf16_gradient_copy && bf16_optimizer && p.trainable >= 1.0 {
        // Larger than any block that activations leave behind: the allocator takes memory of its own for it.
        working += 4.0 * largest_weight(model, layout, stage as usize, shape);
    }
    if stack.memory.placeholder_gradients && p.trainable >= 1.0 {
        // One gradient per distinct shape of weight: those of one layer; the experts of a layer share two.
        working += shape.base.size() * p.largest_layer;
    }
    out.activations = Bytes::from_f64(activations);
    out.working = Bytes::from_f64(working);
    let transient = activations + working + out.logits.as_f64();
    // fp32 gradients of the update live when the activations are gone.
    out.optimizer += Bytes::from_f64(step_gradients - transient);
    out.overhead = stack.memory.context + Bytes::from_f64(transient * stack.memory.fragmentation);
    out
}

/// Activations of one micro-batch in one chunk, kept until its backward pass.
pub fn chunk_activations(chunk: &Chunk, model: &Model, plan: &Plan, shape: &Shape) -> Bytes {
    Bytes::from_f64(chunk_parts(chunk, model, plan, shape).0)
}

/// Bytes kept per micro-batch, and the working set of the most demanding layer.
fn chunk_parts(chunk: &Chunk, model: &Model, plan: &Plan, shape: &Shape) -> (f64, f64) {
    let mut kept_bytes = 0.0;
    let mut working: f64 = 0.0;
    let mut full = match plan.recompute {
        Recompute::Full => u32::MAX,
        Recompute::Layers(n) => n,
        _ => 0,
    };
    for &(kind, count) in &chunk.layers {
        let Some(block) = block_of(model, kind) else { continue };
        let layer = layer_activations(block, model, shape);
        let recomputed = full.min(count);
        full -= recomputed;
        let kept = f64::from(count - recomputed);
        let each = if plan.recompute == Recompute::Selective { layer.kept - layer.core } else { layer.kept };
        kept_bytes += kept * each + f64::from(recomputed) * layer.input;
        working = working.max(if recomputed > 0 { layer.kept } else { layer.scratch });
        if plan.recompute == Recompute::Selective {
            working = working.max(layer.core);
        }
    }
    if chunk.embedding && shape.dropout {
        kept_bytes += (shape.sharded_tokens * model.hidden) as f64;
    }
    if chunk.head {
        kept_bytes += 2.0 * shape.base.size() * (shape.sharded_tokens * model.hidden) as f64;
    }
    (kept_bytes, working)
}

/// Parameters, gradients, optimizer states, gathered parameters and communication buffers; beside them the fp32
/// gradients that exist during the update only.
fn states(plan: &Plan, shape: &Shape, stack: &StackProfile, p: &RankParameters) -> (StageLedger, f64) {
    let replicas = f64::from(shape.groups.dp.ranks);
    let expert_replicas = f64::from(shape.groups.edp.ranks);
    let shard = f64::from(shape.groups.shard.ranks);
    let base = shape.base.size();
    let s = &stack.states;
    let (mut parameters, mut gradients, mut optimizer, mut gathered) = (0.0, 0.0, 0.0, 0.0);
    let mut step_gradients = 0.0;
    let sharded = |on: bool, ranks: f64| if on { ranks.max(1.0) } else { 1.0 };
    for (count, ranks, largest) in
        [(p.dense, replicas, p.largest_layer), (p.expert, expert_replicas, p.largest_expert_layer)]
    {
        let ranks = if plan.sharding == Sharding::Parameters { ranks.min(shard) } else { ranks };
        let all = plan.sharding == Sharding::Parameters;
        let optimizer_ranks = sharded(plan.sharding != Sharding::None, ranks);
        let gradient_ranks =
            sharded(matches!(plan.sharding, Sharding::Gradients | Sharding::Parameters), ranks);
        let master = if base >= 4.0 { 0.0 } else { s.master };
        let shard_is_master = all && master > 0.0 && !s.shard_beside_master;
        parameters += if shard_is_master { 0.0 } else { base * count / sharded(all, ranks) };
        let fp16 = shape.base == DType::Fp16;
        let gradient = if fp16 { s.fp16_gradient.unwrap_or(s.gradient) } else { s.gradient };
        gradients += gradient * count * p.trainable / gradient_ranks;
        let kept = if shard_is_master { master.max(base) } else { master } + s.moments;
        optimizer += kept * count * p.trainable / optimizer_ranks;
        if fp16 {
            step_gradients += s.sharded_gradient * count * p.trainable / optimizer_ranks;
        }
        if p.trainable < 1.0 {
            parameters += if shard_is_master { base * count / ranks } else { 0.0 };
        }
        if all {
            let prefetched = f64::from(1 + stack.overlap.fsdp_prefetch);
            gathered += base * largest * prefetched + s.gradient_wire * largest;
        }
    }
    let communicators = [shape.groups.tp, shape.groups.cp, shape.groups.dp, shape.groups.pp, shape.groups.ep]
        .iter()
        .filter(|g| g.ranks > 1)
        .count() as u64;
    let ledger = StageLedger {
        parameters: Bytes::from_f64(parameters),
        gradients: Bytes::from_f64(gradients),
        optimizer: Bytes::from_f64(optimizer),
        gathered: Bytes::from_f64(gathered),
        communication: stack.memory.per_communicator * communicators,
        ..StageLedger::default()
    };
    (ledger, step_gradients)
}
