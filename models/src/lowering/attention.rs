//! Softmax attention: projections, rotary embedding, core, context-parallel exchange; MLA.

use super::Shape;
use super::builder::{Builder, collective, compute, memory_kind};
use super::linear;
use super::sparse::{self, Choice};
use crate::arch::{Attention, Mla, Model, Norm, Position, QkNorm};
use crate::operator::{
    CollectiveKind, Dimension, GemmRole, MemoryClass, Operator, OperatorKind, Phase, Sync,
};
use crate::plan::ContextParallel;
use psim_hardware::Scaling;
use psim_hardware::profile::stack::AttentionKernel;

/// Dimensions of one attention core on this rank.
#[derive(Clone, Copy)]
struct Core {
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    v_head_dim: u64,
    density: f64,
}

/// Multi-head, grouped-query or multi-query attention with its projections.
pub(super) fn attention(b: &mut Builder<'_>, a: &Attention, model: &Model, causal: bool) {
    let shape = b.shape;
    let kv_heads = a.kv_heads.max(shape.tp).min(a.heads.max(1));
    let gate = if a.output_gate { 2 } else { 1 };
    let values = if a.variant.shared_key_value { 0 } else { a.v_head_dim };
    let keys = kv_heads * (a.head_dim + values);
    match a.variant.query_rank {
        Some(rank) => {
            let tokens = shape.sharded_tokens;
            linear::replicated(b, "q-down", tokens, model.hidden, rank);
            b.norm(rank, 1, model.norm);
            linear::column(b, "q-up", rank, gate * a.heads * a.head_dim);
            linear::column(b, "kv", model.hidden, keys);
        }
        None => linear::column(b, "qkv", model.hidden, gate * a.heads * a.head_dim + keys),
    }
    let core = Core {
        heads: a.heads.div_ceil(shape.tp),
        kv_heads: kv_heads.div_ceil(shape.tp),
        head_dim: a.head_dim,
        v_head_dim: a.v_head_dim,
        density: density(shape, a, causal),
    };
    if let Some(ratio) = a.variant.compression {
        sparse::compressor(b, model.hidden, a.head_dim, ratio.max(1));
    }
    if let Some(i) = &a.variant.indexer {
        let choice = Choice {
            from: a.variant.query_rank.unwrap_or(model.hidden),
            ratio: a.variant.compression.unwrap_or(1).max(1),
            heads: core.heads,
            key_width: a.head_dim,
        };
        sparse::indexer(b, i, model.hidden, choice);
    }
    let rotated = core.heads + core.kv_heads;
    if !matches!(a.qk_norm, QkNorm::None) {
        qk_norm(b, rotated * a.head_dim, model.norm);
    }
    if matches!(model.position, Position::Rope) {
        rope(b, rotated * a.head_dim);
    }
    exchange_and_core(b, core, matches!(model.position, Position::Alibi));
    if a.output_gate {
        let elements = (shape.tokens * core.heads * core.v_head_dim) as f64 * shape.base.size();
        b.memory("attention-gate", MemoryClass::Activation, (3.0 * elements, 1), (5.0 * elements, 1));
    }
    match a.variant.output_rank {
        Some(low) => sparse::grouped_output(b, a.heads * a.v_head_dim, low.groups, low.rank, model.hidden),
        None => linear::row(b, "attention-out", a.heads * a.v_head_dim, model.hidden),
    }
}

/// Share of the square of scores that is computed: the window, what an indexer chooses, and pooled keys beside a window.
fn density(shape: &Shape, a: &Attention, causal: bool) -> f64 {
    let near = shape.density(causal, a.window);
    match (a.variant.compression, &a.variant.indexer) {
        (Some(ratio), Some(i)) => (near + sparse::selected(shape, i, ratio.max(1))).min(1.0),
        (Some(ratio), None) => (near + shape.density(causal, None) / ratio.max(1) as f64).min(1.0),
        (None, Some(i)) => near.min(sparse::selected(shape, i, 1)),
        (None, None) => near,
    }
}

/// Multi-head latent attention in its expanded training form (DeepSeek-V2, section 2.1): compressions are replicated
/// over tp, expansions are column-parallel.
pub(super) fn latent(b: &mut Builder<'_>, m: &Mla, model: &Model) {
    let shape = b.shape;
    let tokens = shape.sharded_tokens;
    let head = m.qk_nope_dim + m.qk_rope_dim;
    let compressed = m.kv_lora_rank + m.qk_rope_dim;
    match m.q_lora_rank {
        Some(rank) => {
            linear::replicated(b, "q-down", tokens, model.hidden, rank);
            b.norm(rank, 1, model.norm);
            linear::column(b, "q-up", rank, m.heads * head);
        }
        None => linear::column(b, "q", model.hidden, m.heads * head),
    }
    linear::replicated(b, "kv-down", tokens, model.hidden, compressed);
    b.norm(m.kv_lora_rank, 1, model.norm);
    linear::column(b, "kv-up", m.kv_lora_rank, m.heads * (m.qk_nope_dim + m.v_head_dim));
    let heads = m.heads.div_ceil(shape.tp);
    // Rotary parts of queries and the shared key, then the copy that joins them to the other part.
    rope(b, (heads + 1) * m.qk_rope_dim);
    let joined = (shape.tokens * 2 * heads * head) as f64 * shape.base.size();
    b.memory("mla-join", MemoryClass::Elementwise, (2.0 * joined, 2), (2.0 * joined, 2));
    let core = match m.indexer.as_ref().filter(|i| i.top_k < shape.seq_len) {
        // Chosen keys differ from query to query but not from head to head: all heads read one latent key, whose first
        // part serves as value (V3.2 report, section 2.1); the expansions move into queries and outputs at equal cost.
        Some(i) => Core {
            heads,
            kv_heads: 1,
            head_dim: compressed,
            v_head_dim: m.kv_lora_rank,
            density: sparse::selected(shape, i, 1),
        },
        None => Core {
            heads,
            kv_heads: heads,
            head_dim: head,
            v_head_dim: m.v_head_dim,
            density: shape.density(true, None),
        },
    };
    if let Some(i) = m.indexer.as_ref().filter(|_| !m.indexer_shared) {
        let from = m.q_lora_rank.unwrap_or(model.hidden);
        let choice = Choice { from, ratio: 1, heads, key_width: core.head_dim };
        sparse::indexer(b, i, model.hidden, choice);
    }
    exchange_and_core(b, core, false);
    linear::row(b, "attention-out", m.heads * m.v_head_dim, model.hidden);
}

fn qk_norm(b: &mut Builder<'_>, width: u64, norm: Norm) {
    let _ = norm;
    let bytes = (b.shape.tokens * width) as f64 * b.shape.base.size();
    let (factor, kernels) = if b.shape.fusion.norm { (1.0, 2) } else { (2.5, 8) };
    b.memory(
        "qk-norm",
        MemoryClass::Norm,
        (2.0 * bytes * factor, kernels),
        (3.0 * bytes * factor, 2 * kernels),
    );
}

/// Rotary embedding: read and write once when fused; unfused, the halves are sliced, negated, multiplied and added.
fn rope(b: &mut Builder<'_>, width: u64) {
    let bytes = (b.shape.tokens * width) as f64 * b.shape.base.size();
    let (factor, kernels) = if b.shape.fusion.rope { (2.0, 2) } else { (8.0, 10) };
    b.memory("rope", MemoryClass::Rope, (factor * bytes, kernels), (factor * bytes, kernels));
}

/// The attention core between the context-parallel exchanges.
fn exchange_and_core(b: &mut Builder<'_>, core: Core, alibi: bool) {
    let shape = b.shape;
    let cp = shape.cp;
    let local = shape.seq_len.div_ceil(cp);
    let group = shape.groups.cp;
    let element = shape.base.size();
    let kv_width = core.kv_heads * (core.head_dim + core.v_head_dim);
    let kv_bytes = (shape.sequences * local * kv_width) as f64 * element;
    if cp == 1 {
        core_kernels(b, core, local, shape.seq_len, alibi);
        return;
    }
    match shape.cp_kind {
        ContextParallel::Ring => {
            // cp − 1 neighbour exchanges of the local keys and values; backward carries their gradients along.
            let steps = (cp - 1) as f64;
            let sync = |overlapped| if overlapped { Sync::WithNext } else { Sync::Serial };
            let overlapped = sync(shape.overlap.cp);
            b.forward_collective(
                "cp-ring",
                CollectiveKind::SendRecv,
                steps * kv_bytes,
                group,
                Dimension::Cp,
                overlapped,
            );
            core_kernels(b, core, local, shape.seq_len, alibi);
            let bytes = 2.0 * steps * kv_bytes;
            let kind = CollectiveKind::SendRecv;
            let phase = Phase::InputGradient;
            // Pushed after the core, so it precedes the core in the backward list.
            b.backward(
                collective("cp-ring", kind, bytes, group, Dimension::Cp, overlapped, phase)
                    .into_iter()
                    .collect(),
            );
        }
        ContextParallel::AllGather => {
            let total = kv_bytes * cp as f64;
            b.forward_collective(
                "cp-gather",
                CollectiveKind::AllGather,
                total,
                group,
                Dimension::Cp,
                Sync::Serial,
            );
            let scatter = collective(
                "cp-scatter",
                CollectiveKind::ReduceScatter,
                total,
                group,
                Dimension::Cp,
                Sync::Serial,
                Phase::InputGradient,
            );
            b.backward(scatter.into_iter().collect());
            core_kernels(b, core, local, shape.seq_len, alibi);
            let again = collective(
                "cp-gather",
                CollectiveKind::AllGather,
                total,
                group,
                Dimension::Cp,
                Sync::Serial,
                Phase::InputGradient,
            );
            b.backward(again.into_iter().collect());
        }
        ContextParallel::Ulysses => {
            // Sequence shards become head shards and back (Jacobs et al. 2023): q, k, v in, output back.
            let into = (shape.sequences * local * (core.heads * core.head_dim + kv_width)) as f64 * element;
            let back = (shape.sequences * local * core.heads * core.v_head_dim) as f64 * element;
            let exchange = |bytes, phase| {
                collective(
                    "cp-alltoall",
                    CollectiveKind::AllToAll,
                    bytes,
                    group,
                    Dimension::Cp,
                    Sync::Serial,
                    phase,
                )
            };
            b.forward_collective(
                "cp-alltoall",
                CollectiveKind::AllToAll,
                into,
                group,
                Dimension::Cp,
                Sync::Serial,
            );
            b.backward(exchange(into, Phase::InputGradient).into_iter().collect());
            let inner = Core { heads: core.heads.div_ceil(cp), kv_heads: core.kv_heads.div_ceil(cp), ..core };
            core_kernels(b, inner, shape.seq_len, shape.seq_len, alibi);
            b.forward_collective(
                "cp-alltoall",
                CollectiveKind::AllToAll,
                back,
                group,
                Dimension::Cp,
                Sync::Serial,
            );
            b.backward(exchange(back, Phase::InputGradient).into_iter().collect());
        }
    }
}

/// Fused kernel, or two batched GEMMs around a softmax over stored scores.
fn core_kernels(b: &mut Builder<'_>, core: Core, seq_q: u64, seq_kv: u64, alibi: bool) {
    b.in_attention_core = true;
    if b.shape.attention == AttentionKernel::Unfused {
        unfused(b, core, seq_q, seq_kv, alibi);
    } else {
        flash(b, core, seq_q, seq_kv);
    }
    b.in_attention_core = false;
}

fn flash(b: &mut Builder<'_>, core: Core, seq_q: u64, seq_kv: u64) {
    let shape = b.shape;
    let kernel = |backward| OperatorKind::Attention {
        batch: shape.sequences,
        q_heads: core.heads,
        kv_heads: core.kv_heads,
        head_dim: core.head_dim,
        head_dim_v: core.v_head_dim,
        seq_q,
        seq_kv,
        density: core.density,
        backward,
        dtype: shape.base,
    };
    b.forward("attention", kernel(false));
    b.backward(vec![compute("attention", kernel(true), Phase::InputGradient)]);
}

/// Unfused attention computes the whole square of scores; the mask saves nothing.
///
/// Softmax traffic per score, base format 2 bytes: fused scale-mask-softmax reads and writes once forward (4 bytes) and
/// reads two, writes one backward (6); unfused in half precision it is scale, mask and softmax (about 16 and 14). In fp32
/// it is conversion (6), scale (8), mask (9), softmax (8), conversion back (6), and backward the same with a softmax that reads
/// two (41): `FusedScaleMaskSoftmax` of Megatron-LM 2.x without its kernels.
/// Dropout adds a read, a write and a mask byte each way.
fn unfused(b: &mut Builder<'_>, core: Core, seq_q: u64, seq_kv: u64, alibi: bool) {
    let shape = b.shape;
    let batch = shape.sequences * core.heads;
    let gemm = |m, n, k, role| OperatorKind::Gemm {
        m,
        n,
        k,
        batch,
        dtype: shape.base,
        scaling: Scaling::None,
        out_bytes: shape.base.size(),
        role,
    };
    let scores = (batch * seq_q * seq_kv) as f64;
    let half = shape.base.size() / 2.0;
    let (mut forward, mut backward, kernels) = match (shape.fusion.softmax, shape.fusion.fp32_scores) {
        (true, _) => (4.0, 6.0, 1),
        (false, false) => (16.0, 14.0, 4),
        (false, true) => (37.0, 41.0, 5),
    };
    if shape.dropout {
        forward += 5.0;
        backward += 5.0;
    }
    if alibi {
        forward += 2.0;
    }
    let kernels = kernels + u32::from(shape.dropout);
    let softmax = |bytes: f64| memory_kind(MemoryClass::Softmax, bytes * scores * half, kernels);
    b.forward("attention-scores", gemm(seq_q, seq_kv, core.head_dim, GemmRole::Forward));
    b.forward("attention-softmax", softmax(forward));
    b.forward("attention-values", gemm(seq_q, core.v_head_dim, seq_kv, GemmRole::Forward));
    let op = |name: &'static str, kind| -> Operator { compute(name, kind, Phase::InputGradient) };
    let role = GemmRole::InputGradient;
    b.backward(vec![
        op("attention-values", gemm(seq_kv, core.v_head_dim, seq_q, role)),
        op("attention-values", gemm(seq_q, seq_kv, core.v_head_dim, role)),
        op("attention-softmax", softmax(backward)),
        op("attention-scores", gemm(seq_q, core.head_dim, seq_kv, role)),
        op("attention-scores", gemm(seq_kv, core.head_dim, seq_q, role)),
    ]);
}
