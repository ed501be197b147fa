//! Activations that one layer keeps for its backward pass.

use crate::arch::{Attention, Block, Ffn, Mixer, Mla, Model, Moe};
use crate::lowering::Shape;
use psim_hardware::profile::stack::AttentionKernel;

/// Bytes of one layer and micro-batch on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LayerActivations {
    /// Kept without recomputation.
    pub kept: f64,
    /// Of `kept`: the attention core, which selective recomputation drops.
    pub core: f64,
    /// The layer's input, which full recomputation keeps.
    pub input: f64,
    /// Transient workspace while the layer runs.
    pub scratch: f64,
}

/// Counts the tensors saved by one block.
pub fn layer_activations(block: &Block, model: &Model, shape: &Shape) -> LayerActivations {
    let base = shape.base.size();
    let narrow = shape.gemm.size().min(base);
    let tokens = shape.tokens as f64;
    let stream = shape.sharded_tokens as f64 * model.hidden as f64;
    let mut out = LayerActivations { input: base * stream, ..LayerActivations::default() };
    // Each norm keeps its input in the base format and its output in the format of the GEMM that reads it.
    let norms = f64::from(block.norms.max(1));
    out.kept += norms * (base + narrow) * stream;
    let mask = if shape.dropout { stream } else { 0.0 };
    match &block.mixer {
        Mixer::Attention(a) => {
            attention(&mut out, a, shape, tokens);
            out.kept += mask;
        }
        Mixer::Mla(m) => {
            latent(&mut out, m, shape, tokens);
            out.kept += mask;
        }
        Mixer::Mamba2(m) => {
            let tp = shape.tp as f64;
            let inner = (m.heads * m.head_dim) as f64 / tp;
            let projected = 2.0 * inner + (2 * m.groups * m.state + m.heads) as f64 / tp;
            let states = m.heads as f64 / tp * (m.head_dim * m.state) as f64 / m.chunk.max(1) as f64;
            out.kept += tokens * (base * (projected + 2.0 * inner) + narrow * inner + 4.0 * states);
        }
        Mixer::Linear(l) => {
            let tp = shape.tp as f64;
            let (keys, values) =
                ((l.key_heads * l.key_head_dim) as f64 / tp, (l.value_heads * l.value_head_dim) as f64 / tp);
            let states = l.value_heads as f64 / tp * (l.key_head_dim * l.value_head_dim) as f64
                / l.chunk.max(1) as f64;
            out.kept += tokens * (base * (4.0 * keys + 4.0 * values) + narrow * values + 4.0 * states);
        }
        Mixer::None => {}
    }
    if let Some(cross) = &block.cross_attention {
        attention(&mut out, cross, shape, tokens);
        out.kept += mask + (base + narrow) * stream;
    }
    match &block.ffn {
        Ffn::Dense(f) => {
            let inner = f.hidden as f64 / shape.tp as f64;
            let up = if f.gated { 2.0 } else { 1.0 };
            out.kept += tokens * inner * (up * base + narrow) + mask;
            if !shape.fusion.activation && f.gated {
                // The activated gate is kept beside its input and the product.
                out.kept += tokens * inner * base;
            }
        }
        Ffn::Moe(m) => moe(&mut out, m, model, shape),
        Ffn::None => {}
    }
    out.scratch = out.kept * 0.15;
    out
}

fn core(out: &mut LayerActivations, heads: f64, shape: &Shape, rows: f64) {
    let base = shape.base.size();
    if shape.attention == AttentionKernel::Unfused {
        let scores = rows * heads * shape.seq_len as f64;
        let mut each = base;
        if shape.dropout {
            each += 1.0 + base;
        }
        if !shape.fusion.softmax {
            each += 2.0 * base;
        }
        out.core += each * scores;
        out.kept += each * scores;
    } else {
        // Log-sum-exp of every row, fp32.
        out.kept += 4.0 * rows * heads;
    }
}

fn attention(out: &mut LayerActivations, a: &Attention, shape: &Shape, tokens: f64) {
    let tp = shape.tp as f64;
    let (base, narrow) = (shape.base.size(), shape.gemm.size().min(shape.base.size()));
    let heads = a.heads as f64 / tp;
    let kv = a.kv_heads.max(shape.tp).min(a.heads.max(1)) as f64 / tp;
    let gate = if a.output_gate { 2.0 } else { 1.0 };
    let qkv = gate * heads * a.head_dim as f64 + kv * (a.head_dim + a.v_head_dim) as f64;
    out.kept += base * tokens * qkv;
    let result = tokens * heads * a.v_head_dim as f64;
    out.kept += if narrow < base { (base + narrow) * result } else { base * result };
    core(out, heads, shape, tokens);
}

fn latent(out: &mut LayerActivations, m: &Mla, shape: &Shape, tokens: f64) {
    let tp = shape.tp as f64;
    let (base, narrow) = (shape.base.size(), shape.gemm.size().min(shape.base.size()));
    let heads = m.heads as f64 / tp;
    let sharded = shape.sharded_tokens as f64;
    let compressed = m.q_lora_rank.unwrap_or(0) as f64 + (m.kv_lora_rank + m.qk_rope_dim) as f64;
    // Compressed streams before and after their norms; joined queries, keys, values; output.
    out.kept += sharded * compressed * (base + narrow);
    let head = (m.qk_nope_dim + m.qk_rope_dim) as f64;
    out.kept += base * tokens * heads * (2.0 * head + m.v_head_dim as f64);
    let result = tokens * heads * m.v_head_dim as f64;
    out.kept += if narrow < base { (base + narrow) * result } else { base * result };
    core(out, heads, shape, tokens);
}

fn moe(out: &mut LayerActivations, m: &Moe, model: &Model, shape: &Shape) {
    let (base, narrow) = (shape.base.size(), shape.gemm.size().min(shape.base.size()));
    let tokens = shape.sharded_tokens as f64;
    let width = m.latent.unwrap_or(model.hidden) as f64;
    let inner = m.hidden as f64 / shape.etp as f64;
    let load = if shape.ep > 1 { shape.expert_imbalance } else { 1.0 };
    let rows = tokens * m.top_k as f64 * load * shape.etp as f64;
    let up = if m.gated { 2.0 } else { 1.0 };
    // Expert inputs, gate and up, activation output; without fused permutation also the expert outputs, which the
    // gradient of the router weights reads (fused stacks weigh the activation instead).
    out.kept += rows * (narrow * width + base * up * inner + narrow * inner);
    if !shape.fusion.moe_permute {
        out.kept += base * tokens * m.top_k as f64 * width;
    }
    out.kept += 3.0 * 4.0 * tokens * m.experts as f64;
    if m.shared_hidden > 0 {
        let inner = m.shared_hidden as f64 / shape.tp as f64;
        out.kept += shape.tokens as f64 * inner * (up * base + narrow);
    }
}
