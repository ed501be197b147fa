//! Mixture-of-experts layers: routing, permutation, all-to-all, grouped GEMMs, combination.

use super::builder::{Builder, collective, compute, memory_kind};
use super::{ffn, linear};
use crate::arch::Moe;
use crate::operator::{CollectiveKind, Dimension, GemmRole, MemoryClass, OperatorKind, Phase, Sync};

/// One mixture of experts.
///
/// Tokens enter sharded over tp (sequence parallel), or whole where tp = 1. Each of the `ep` ranks holds
/// `experts / ep` experts, each split over `etp` ranks; with `etp > 1` the received tokens are gathered over them and
/// the partial outputs are reduce-scattered back (MoE Parallel Folding, section 3).
pub(super) fn moe(b: &mut Builder<'_>, width: u64, m: &Moe) {
    let shape = b.shape;
    let tokens = shape.sharded_tokens;
    let element = shape.base.size();
    let expert_width = m.latent.unwrap_or(width);
    let (experts_here, inner) = (m.experts.div_ceil(shape.ep), m.hidden.div_ceil(shape.etp));
    // Rows after dispatch: every rank sends and, on average, receives tokens·top_k; the busiest one more, unless
    // tokens above the capacity are dropped.
    let load = match shape.capacity_factor {
        Some(factor) => shape.expert_imbalance.min(factor.max(1.0)),
        None => shape.expert_imbalance,
    };
    let routed = tokens * m.top_k;
    let received = ((routed as f64) * if shape.ep > 1 { load } else { 1.0 }).ceil() as u64;
    let rows = received * shape.etp;

    // Router in fp32-ish arithmetic: a narrow GEMM, softmax, top-k, histogram, index building.
    linear::replicated(b, "router", tokens, width, m.experts);
    let probabilities = (tokens * m.experts) as f64 * 4.0;
    b.memory("routing", MemoryClass::Softmax, (6.0 * probabilities, 8), (4.0 * probabilities, 5));

    if let Some(latent) = m.latent {
        linear::replicated(b, "latent-down", tokens, width, latent);
    }
    let row = expert_width as f64 * element;
    let fused = shape.fused_experts();
    let factor = if shape.fusion.moe_permute { 1.0 } else { 2.0 };
    let copy = |rows: u64, kernels: u32| {
        memory_kind(MemoryClass::Permute, 2.0 * rows as f64 * row * factor, kernels).of_width(expert_width)
    };
    // Dispatch.
    if !fused {
        permute(b, "permute", copy(routed, 2), copy(routed, 2));
    }
    let sent = routed as f64 * row * copies_sent(b, m.top_k);
    // Cast before the dispatch: one byte a value, and a scale every 32 values; gradients come back in full width.
    let narrowed = if fused { 0.5 * (1.0 + 1.0 / 32.0) } else { 1.0 };
    exchange(b, "dispatch", sent * narrowed, sent);
    expert_tensor_gather(b, rows as f64 * row);
    let sorted = (shape.ep > 1 || experts_here > 1) && !fused;
    if sorted {
        permute(b, "sort", copy(rows, 2), copy(rows, 2));
    }
    // Experts.
    let matrices = if m.gated { 2 } else { 1 };
    grouped(b, "expert-up", experts_here, rows, matrices * inner, expert_width);
    let activations = (rows * inner) as f64 * element;
    let (forward, backward) = ffn::activation_traffic(m.gated);
    // Bias, clamp and scaled sigmoid of gpt-oss experts run operator by operator in fp32 around the products; fused
    // kernels keep only the clamp apart.
    let (factor, kernels) = match (shape.fusion.activation, m.bias) {
        (_, true) => {
            if fused {
                (3.5, 6)
            } else {
                (BIASED_EXPERT_TRAFFIC, 12)
            }
        }
        _ if fused => (0.0, 0),
        (true, false) => (1.0, 1),
        (false, false) => (2.2, 3),
    };
    b.memory(
        "expert-activation",
        ffn::activation_class(m.gated),
        (forward * activations * factor, kernels),
        (backward * activations * factor, kernels),
    );
    grouped(b, "expert-down", experts_here, rows, expert_width, inner);
    // Combine.
    if sorted {
        permute(b, "unsort", copy(rows, 2), copy(rows, 2));
    }
    expert_tensor_scatter(b, rows as f64 * row);
    exchange(b, "combine", sent, sent * narrowed);
    if !fused {
        permute(b, "unpermute", copy(routed, 2), copy(routed, 3));
    }
    if let Some(latent) = m.latent {
        linear::replicated(b, "latent-up", tokens, latent, width);
    }
    if m.shared_hidden > 0 {
        ffn::dense(b, width, m.shared_hidden, m.gated, "shared", true);
    }
}

/// Traffic of an expert activation with bias and clamp in eager fp32 over that of one fused pass: split, bias, two
/// clamps, scale, sigmoid, product, shift, product, probability, each reading and writing four-byte values.
const BIASED_EXPERT_TRAFFIC: f64 = 12.0;

fn permute(b: &mut Builder<'_>, name: &'static str, forward: OperatorKind, backward: OperatorKind) {
    b.forward(name, forward);
    b.backward(vec![compute(name, backward, Phase::InputGradient)]);
}

/// Copies on the wire over copies computed on: with deduplicated dispatch a token crosses to each domain once. Of `k`
/// experts drawn evenly over `d` domains, `d·(1 − (1 − 1/d)^k)` distinct domains are expected.
fn copies_sent(b: &Builder<'_>, top_k: u64) -> f64 {
    let domains = b.shape.groups.ep.domains() as f64;
    if !b.shape.overlap.deduplicated_dispatch || domains < 2.0 {
        return 1.0;
    }
    let k = top_k.max(1) as f64;
    (domains * (1.0 - (1.0 - 1.0 / domains).powf(k)) / k).min(1.0)
}

/// All-to-all over the expert group, forward and (the reverse way) backward, with the bytes of each.
fn exchange(b: &mut Builder<'_>, name: &'static str, bytes: f64, back: f64) {
    let group = b.shape.groups.ep;
    let sync = if b.shape.overlap.ep { Sync::Async } else { Sync::Serial };
    let kind = CollectiveKind::AllToAll;
    b.forward_collective(name, kind, bytes, group, Dimension::Ep, sync);
    b.backward(
        collective(name, kind, back, group, Dimension::Ep, sync, Phase::InputGradient).into_iter().collect(),
    );
}

fn expert_tensor_gather(b: &mut Builder<'_>, bytes: f64) {
    let group = b.shape.groups.etp;
    b.forward_collective("etp-gather", CollectiveKind::AllGather, bytes, group, Dimension::Etp, Sync::Serial);
    let back = collective(
        "etp-scatter",
        CollectiveKind::ReduceScatter,
        bytes,
        group,
        Dimension::Etp,
        Sync::Serial,
        Phase::InputGradient,
    );
    b.backward(back.into_iter().collect());
}

fn expert_tensor_scatter(b: &mut Builder<'_>, bytes: f64) {
    let group = b.shape.groups.etp;
    b.forward_collective(
        "etp-scatter",
        CollectiveKind::ReduceScatter,
        bytes,
        group,
        Dimension::Etp,
        Sync::Serial,
    );
    let back = collective(
        "etp-gather",
        CollectiveKind::AllGather,
        bytes,
        group,
        Dimension::Etp,
        Sync::Serial,
        Phase::InputGradient,
    );
    b.backward(back.into_iter().collect());
}

/// A linear layer of all experts on the rank, with casts where the format is narrow.
fn grouped(b: &mut Builder<'_>, name: &'static str, groups: u64, rows: u64, outputs: u64, inputs: u64) {
    let shape = b.shape;
    let dtype = shape.gemm;
    // Fused kernels cast in the epilogue of the product (or the dispatch) before.
    let narrow = dtype.bits() < shape.base.bits() && !shape.fused_experts();
    let cast = |width: u64| {
        let bytes = linear::cast_bytes(shape, (rows * width) as f64);
        memory_kind(MemoryClass::Quantize, bytes, linear::cast_kernels(shape, groups))
    };
    let scaling = shape.precision.scaling();
    let gemm = |n, k, role| OperatorKind::GroupedGemm { groups, rows, n, k, dtype, scaling, role };
    if narrow {
        b.forward(name, cast(inputs));
    }
    b.forward(name, gemm(outputs, inputs, GemmRole::Forward));
    let mut segment = Vec::with_capacity(3);
    if narrow {
        segment.push(compute(name, cast(outputs), Phase::InputGradient));
    }
    segment.push(compute(name, gemm(inputs, outputs, GemmRole::InputGradient), Phase::InputGradient));
    if shape.lora_rank.is_none() {
        segment.push(compute(name, gemm(outputs, inputs, GemmRole::WeightGradient), Phase::WeightGradient));
    }
    b.backward(segment);
}
