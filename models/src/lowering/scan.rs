//! State-space and linear-attention layers.

use super::builder::Builder;
use super::linear;
use crate::arch::{LinearAttention, Mamba2};
use crate::operator::{MemoryClass, OperatorKind, Phase};

/// Adds a chunked scan: flops forward (backward twice), bytes of inputs and outputs, kernels.
fn scan(b: &mut Builder<'_>, name: &'static str, flops: f64, bytes: f64, kernels: u32) {
    let kind = |factor: f64, kernels| OperatorKind::Memory {
        class: MemoryClass::Scan,
        bytes: (bytes * factor).ceil() as u64,
        kernels,
        flops: flops * factor,
        width: 0,
    };
    b.forward(name, kind(1.0, kernels));
    b.backward(vec![super::builder::compute(name, kind(2.5, 2 * kernels), Phase::InputGradient)]);
}

/// Mamba-2: input projection, causal convolution, chunked state-space dual scan, gated norm, output projection.
///
/// Scan work per token and head (Dao and Gu 2024, section 6): inside a chunk of Q tokens `2·Q·(N + P)` halved by the
/// causal mask, chunk states and their output `4·N·P`.
pub(super) fn mamba2(b: &mut Builder<'_>, m: &Mamba2, hidden: u64) {
    let inner = m.heads * m.head_dim;
    let outputs = 2 * inner + 2 * m.groups * m.state + m.heads;
    linear::column(b, "ssm-in", hidden, outputs);
    let shape = b.shape;
    let tp = shape.tp;
    let base = shape.base.size();
    let tokens = shape.tokens as f64;
    let conv = (inner + 2 * m.groups * m.state).div_ceil(tp) as f64 * tokens * base;
    b.memory("ssm-conv", MemoryClass::Elementwise, (2.0 * conv, 1), (4.0 * conv, 2));
    let heads = m.heads.div_ceil(tp) as f64;
    let (n, p, q) = (m.state as f64, m.head_dim as f64, m.chunk as f64);
    let flops = tokens * heads * (q * (n + p) + 4.0 * n * p);
    let states = tokens / q * heads * n * p * 4.0;
    let streams = tokens * (inner.div_ceil(tp) * 2 + 2 * (m.groups * m.state).div_ceil(tp)) as f64 * base;
    scan(b, "ssm-scan", flops, streams + 3.0 * states, 5);
    let gated = (inner.div_ceil(tp) * shape.tokens) as f64 * base;
    b.memory("ssm-gate", MemoryClass::Activation, (3.0 * gated, 1), (5.0 * gated, 2));
    linear::row(b, "ssm-out", inner, hidden);
}

/// Linear attention with a gated delta rule: projections, convolution, chunked recurrence, gated norm, output.
pub(super) fn linear(b: &mut Builder<'_>, l: &LinearAttention, hidden: u64) {
    let (keys, values) = (l.key_heads * l.key_head_dim, l.value_heads * l.value_head_dim);
    let gate = if l.output_gate && l.gate_rank.is_none() { values } else { 0 };
    linear::column(b, "linear-qkv", hidden, 2 * keys + values + gate + 2 * l.value_heads);
    if let Some(rank) = l.gate_rank {
        let tokens = b.shape.sharded_tokens;
        linear::replicated(b, "gate-down", tokens, hidden, 2 * rank);
        linear::column(b, "gate-up", 2 * rank, values);
    }
    let shape = b.shape;
    let tp = shape.tp;
    let base = shape.base.size();
    let tokens = shape.tokens as f64;
    let width = (2 * keys + values).div_ceil(tp) as f64 * tokens * base;
    if l.conv_kernel > 0 {
        b.memory("linear-conv", MemoryClass::Elementwise, (2.0 * width, 1), (4.0 * width, 2));
    }
    let heads = l.value_heads.div_ceil(tp) as f64;
    let (dk, dv, q) = (l.key_head_dim as f64, l.value_head_dim as f64, l.chunk.max(1) as f64);
    // Inside a chunk: scores, their triangular inverse and products; across chunks: state update and read-out.
    let flops = tokens * heads * (2.0 * q * (dk + dv) + q * q / 3.0 + 6.0 * dk * dv);
    let states = tokens / q * heads * dk * dv * 4.0;
    scan(b, "linear-scan", flops, 2.0 * width + 3.0 * states, 6);
    let gated = values.div_ceil(tp) as f64 * tokens * base;
    b.memory("linear-gate", MemoryClass::Activation, (3.0 * gated, 1), (5.0 * gated, 2));
    linear::row(b, "linear-out", values, hidden);
}
