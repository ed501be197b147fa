//! Sparse attention: the indexer that chooses keys, and the pooled keys of the far past.
//!
//! DeepSeek-V3.2 report, section 2.1 (lightning indexer, sparse training stage) and the released inference code of V3.2
//! and V4. The indexer is duplicated on every tensor-parallel rank and trained apart from the model: its inputs are
//! detached, its loss compares its scores with the attention of all heads on the chosen keys.

use super::Shape;
use super::builder::{Builder, collective, compute, gemm, memory_kind};
use super::linear;
use crate::arch::Indexer;
use crate::operator::{CollectiveKind, Dimension, GemmRole, MemoryClass, OperatorKind, Phase, Sync};
use psim_hardware::Scaling;

/// What the indexer chooses from and for whom.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    /// Width of what its queries are projected from.
    pub(super) from: u64,
    /// Tokens pooled into one candidate.
    pub(super) ratio: u64,
    /// Query heads of the attention on this rank, and the width of a key, for the target of its loss.
    pub(super) heads: u64,
    pub(super) key_width: u64,
}

/// Mean candidates that a query may choose from, and those that it attends to afterwards.
fn keys(shape: &Shape, i: &Indexer, ratio: u64) -> (u64, u64) {
    let length = shape.seq_len as f64 / ratio as f64;
    let candidates = (shape.density(true, None) * length).ceil().max(1.0);
    (candidates as u64, (selected(shape, i, ratio) * shape.seq_len as f64).ceil().max(1.0) as u64)
}

/// Share of the square of scores left when every query keeps the best `top_k` of its past, pooled by `ratio`.
pub(super) fn selected(shape: &Shape, i: &Indexer, ratio: u64) -> f64 {
    shape.density(true, Some(i.top_k.saturating_mul(ratio))) / ratio as f64
}

/// The indexer of one layer: projections, scores of all candidates by ReLU products of its heads, choice of the best,
/// and the training of its own weights.
pub(super) fn indexer(b: &mut Builder<'_>, i: &Indexer, hidden: u64, choice: Choice) {
    let shape = b.shape;
    let Choice { from, ratio, heads, key_width } = choice;
    let tokens = shape.tokens;
    let queries = shape.seq_len.div_ceil(shape.cp);
    let (candidates, kept) = keys(shape, i, ratio);
    // Every rank needs the inputs of all tokens.
    if shape.sequence_parallel {
        let bytes = b.row(from + hidden) * tokens as f64;
        let group = shape.groups.tp;
        b.forward_collective("indexer", CollectiveKind::AllGather, bytes, group, Dimension::Tp, Sync::Serial);
    }
    // A pooled key is a gated sum over two overlapping windows, keys and gates twice as wide (V4).
    let key = if ratio > 1 { 4 * i.head_dim } else { i.head_dim };
    let projections = [(from, i.heads * i.head_dim), (hidden, key + i.heads)];
    for (inputs, outputs) in projections {
        b.forward("indexer", gemm(shape, tokens, outputs, inputs, 1, GemmRole::Forward));
    }
    // Rotation of queries and keys, Hadamard transform and cast, each a pass over both.
    let elements = (tokens * (i.heads + 1) * i.head_dim) as f64;
    b.forward("indexer", memory_kind(MemoryClass::Rope, 3.0 * 2.0 * shape.base.size() * elements, 4));
    // Scores are summed over the heads before they are written, in fp32.
    let product = |m, n, k, batch, out_bytes, role| OperatorKind::Gemm {
        m,
        n,
        k,
        batch,
        dtype: shape.gemm,
        scaling: shape.precision.scaling(),
        out_bytes,
        role,
    };
    let batch = shape.sequences * i.heads;
    let written = 4.0 / i.heads.max(1) as f64;
    b.forward("indexer-scores", product(queries, candidates, i.head_dim, batch, written, GemmRole::Forward));
    // A radix selection reads the scores twice and writes the chosen positions.
    let chosen = (tokens * (2 * candidates + kept)) as f64 * 4.0;
    b.forward("indexer-choice", memory_kind(MemoryClass::Softmax, chosen, 2));
    if shape.lora_rank.is_some() {
        return;
    }
    // Target: attention of all heads on the chosen keys, summed over heads and ranks.
    let target = OperatorKind::Gemm {
        m: queries,
        n: kept,
        k: key_width,
        batch: shape.sequences * heads,
        dtype: shape.base,
        scaling: Scaling::None,
        out_bytes: 4.0 / heads.max(1) as f64,
        role: GemmRole::Forward,
    };
    let scores = (tokens * kept) as f64 * 4.0;
    b.forward("indexer-target", target);
    let (group, dimension) = (shape.groups.tp, Dimension::Tp);
    b.forward_collective("indexer-target", CollectiveKind::AllReduce, scores, group, dimension, Sync::Serial);
    b.forward("indexer-loss", memory_kind(MemoryClass::Softmax, 4.0 * scores, 3));
    let mut segment = vec![compute(
        "indexer-loss",
        memory_kind(MemoryClass::Softmax, 3.0 * scores, 2),
        Phase::InputGradient,
    )];
    // Gradients of queries and keys through the chosen scores only.
    for (m, n, k) in [(queries, i.head_dim, kept), (kept, i.head_dim, queries)] {
        let kind = product(m, n, k, batch, shape.base.size(), GemmRole::InputGradient);
        segment.push(compute("indexer-scores", kind, Phase::InputGradient));
    }
    for (inputs, outputs) in projections {
        let kind = gemm(shape, outputs, inputs, tokens, 1, GemmRole::WeightGradient);
        segment.push(compute("indexer", kind, Phase::WeightGradient));
    }
    b.backward(segment);
}

/// Keys (that serve as values) of the far past, `ratio` tokens pooled into one by learned gates; windows overlap at
/// ratio 4 (V4): keys and gates are then twice as wide.
pub(super) fn compressor(b: &mut Builder<'_>, hidden: u64, width: u64, ratio: u64) {
    let shape = b.shape;
    let tokens = shape.sharded_tokens;
    let projected = 2 * width * if ratio == 4 { 2 } else { 1 };
    linear::replicated(b, "compressor", tokens, hidden, projected);
    let read = (tokens * projected) as f64 * shape.base.size();
    let written = (tokens * width) as f64 * shape.base.size() / ratio as f64;
    // Softmax over the gates of a window, weighted sum, norm; backward reads both again and writes both gradients.
    b.memory("pooling", MemoryClass::Softmax, (read + 2.0 * written, 3), (2.0 * read + 2.0 * written, 4));
    if shape.sequence_parallel {
        let (group, bytes) = (shape.groups.tp, written * shape.tp as f64);
        b.forward_collective(
            "pooled-gather",
            CollectiveKind::AllGather,
            bytes,
            group,
            Dimension::Tp,
            Sync::Serial,
        );
        let scatter = CollectiveKind::ReduceScatter;
        let phase = Phase::InputGradient;
        let back = collective("pooled-scatter", scatter, bytes, group, Dimension::Tp, Sync::Serial, phase);
        b.backward(back.into_iter().collect());
    }
}

/// The output projection by groups of heads: each group down to `rank`, then all groups up to the model's width.
pub(super) fn grouped_output(b: &mut Builder<'_>, width: u64, groups: u64, rank: u64, hidden: u64) {
    let shape = b.shape;
    let (tokens, batch) = (shape.tokens, groups.div_ceil(shape.tp).max(1));
    let inputs = width.div_ceil(groups.max(1)).max(1);
    b.forward("attention-down", gemm(shape, tokens, rank, inputs, batch, GemmRole::Forward));
    let input = gemm(shape, tokens, inputs, rank, batch, GemmRole::InputGradient);
    let mut segment = vec![compute("attention-down", input, Phase::InputGradient)];
    if shape.lora_rank.is_none() {
        let weight = gemm(shape, rank, inputs, tokens, batch, GemmRole::WeightGradient);
        segment.push(compute("attention-down", weight, Phase::WeightGradient));
    }
    b.backward(segment);
    linear::row(b, "attention-out", groups * rank, hidden);
}
