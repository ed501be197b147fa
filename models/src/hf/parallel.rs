//! Families whose attention and network read the same input and are added together.

use super::reader::{Read, Reader};
use super::stack::{FFN, HEADS, LAYER_NORM, attention, base, block, head_dim, layers, plain_attention, push};
use crate::arch::{Attention, Block, DenseFfn, Ffn, Mixer, Model, Norm, Position, QkNorm};

fn stack(
    r: &Reader<'_>,
    model: &mut Model,
    a: &Attention,
    ffn: &DenseFfn,
    norms: u8,
    parallel: bool,
) -> Read<()> {
    for _ in 0..layers(r)? {
        let plain = block(Mixer::Attention(a.clone()), Ffn::Dense(ffn.clone()));
        push(model, Block { norms, parallel, ..plain });
    }
    Ok(())
}

fn four_fold(r: &Reader<'_>, hidden: u64, bias: bool) -> Read<DenseFfn> {
    Ok(DenseFfn { hidden: r.size_or(FFN, hidden.saturating_mul(4))?, gated: false, bias })
}

/// GPT-J and CodeGen: one norm, no attention biases, an output bias.
pub(super) fn gptj(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    (model.norm, model.head_bias) = (LAYER_NORM, true);
    let heads = r.size(HEADS)?;
    let a = plain_attention(heads, heads, head_dim(r, model.hidden, heads)?);
    let ffn = four_fold(r, model.hidden, true)?;
    stack(r, &mut model, &a, &ffn, 1, true)?;
    Ok(model)
}

/// GPT-NeoX and Pythia: two norms, all biases.
pub(super) fn neox(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    model.norm = LAYER_NORM;
    let heads = r.size(HEADS)?;
    let mut a = plain_attention(heads, heads, head_dim(r, model.hidden, heads)?);
    let bias = r.flag(&["attention_bias"], true)?;
    (a.qkv_bias, a.out_bias) = (bias, bias);
    let ffn = four_fold(r, model.hidden, true)?;
    stack(r, &mut model, &a, &ffn, 2, r.flag(&["use_parallel_residual"], true)?)?;
    Ok(model)
}

/// Phi-1 to Phi-2: one norm, all biases, an output bias.
pub(super) fn phi(r: &Reader<'_>) -> Read<Model> {
    if r.flag(&["qk_layernorm"], false)? {
        return r.unsupported(Some("qk_layernorm"), "layer-normed queries and keys of Phi are not modelled");
    }
    let mut model = base(r, false)?;
    (model.norm, model.head_bias) = (LAYER_NORM, true);
    let mut a = attention(r, model.hidden)?;
    (a.qkv_bias, a.out_bias) = (true, true);
    let ffn = four_fold(r, model.hidden, true)?;
    stack(r, &mut model, &a, &ffn, 1, true)?;
    Ok(model)
}

/// Command-R: one norm without bias, a gated network.
pub(super) fn cohere(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    model.norm = Norm { rms: false, bias: false, weight: true };
    let mut a = attention(r, model.hidden)?;
    let bias = r.flag(&["attention_bias"], false)?;
    (a.qkv_bias, a.out_bias) = (bias, bias);
    if r.flag(&["use_qk_norm"], false)? {
        // A weight for every channel of every head, as wide as the projections.
        a.qk_norm = QkNorm::AllHeads;
    }
    let ffn = DenseFfn { hidden: r.size(FFN)?, gated: true, bias: false };
    stack(r, &mut model, &a, &ffn, 1, true)?;
    Ok(model)
}

/// Falcon. The new decoder (40B, 180B) has grouped heads and two norms, the old one (7B) a single key/value head and one.
pub(super) fn falcon(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    model.norm = LAYER_NORM;
    let heads = r.size(HEADS)?;
    let width = head_dim(r, model.hidden, heads)?;
    let new = r.flag(&["new_decoder_architecture"], false)?;
    let kv_heads = if new {
        r.size_or(&["num_kv_heads", "n_head_kv"], heads)?
    } else if r.flag(&["multi_query"], true)? {
        1
    } else {
        heads
    };
    let bias = r.flag(&["bias"], false)?;
    let mut a = plain_attention(heads, kv_heads, width);
    (a.qkv_bias, a.out_bias) = (bias, bias);
    if r.flag(&["alibi"], false)? {
        model.position = Position::Alibi;
    }
    let parallel = new || r.flag(&["parallel_attn"], true)?;
    let norms = match (new, parallel) {
        (true, _) => r.size_or(&["num_ln_in_parallel_attn"], 2)?.min(2) as u8,
        (false, true) => 1,
        (false, false) => 2,
    };
    let ffn = DenseFfn {
        hidden: r.size_or(&["ffn_hidden_size"], model.hidden.saturating_mul(4))?,
        gated: false,
        bias,
    };
    stack(r, &mut model, &a, &ffn, norms, parallel)?;
    Ok(model)
}
