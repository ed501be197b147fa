//! GPT-2 and relatives: layer norm with biases, learned or linear-bias positions, a plain four-fold network.

use super::reader::{Read, Reader};
use super::stack::{CONTEXT, FFN, HEADS, LAYER_NORM, base, block, head_dim, layers, plain_attention, push};
use crate::arch::{Attention, DenseFfn, Ffn, Mixer, Model, Norm, Position};

/// Multi-head attention with every bias set to `bias`.
fn attention(r: &Reader<'_>, hidden: u64, bias: bool) -> Read<Attention> {
    let heads = r.size(HEADS)?;
    let mut a = plain_attention(heads, heads, head_dim(r, hidden, heads)?);
    (a.qkv_bias, a.out_bias) = (bias, bias);
    Ok(a)
}

fn plain_ffn(r: &Reader<'_>, hidden: u64, bias: bool) -> Read<DenseFfn> {
    Ok(DenseFfn { hidden: r.size_or(FFN, hidden.saturating_mul(4))?, gated: false, bias })
}

fn uniform(r: &Reader<'_>, model: &mut Model, attention: &Attention, ffn: &DenseFfn) -> Read<()> {
    for _ in 0..layers(r)? {
        push(model, block(Mixer::Attention(attention.clone()), Ffn::Dense(ffn.clone())));
    }
    Ok(())
}

/// GPT-2, GPT-3 and Megatron's GPT: all biases, learned positions, tied output.
pub(super) fn gpt2(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    model.norm = LAYER_NORM;
    model.position = Position::Learned(r.size_or(CONTEXT, 1024)?);
    let a = attention(r, model.hidden, true)?;
    let ffn = plain_ffn(r, model.hidden, true)?;
    uniform(r, &mut model, &a, &ffn)?;
    Ok(model)
}

/// StarCoder and SantaCoder: GPT-2 with one key/value head.
pub(super) fn bigcode(r: &Reader<'_>) -> Read<Model> {
    let mut model = gpt2(r)?;
    if r.flag(&["multi_query"], true)? {
        for kind in &mut model.kinds {
            if let Mixer::Attention(a) = &mut kind.mixer {
                a.kv_heads = 1;
            }
        }
    }
    Ok(model)
}

/// GPT-Neo: no bias on queries, keys and values; every other layer sees a local window.
pub(super) fn gpt_neo(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    model.norm = LAYER_NORM;
    model.position = Position::Learned(r.size_or(CONTEXT, 2048)?);
    let mut a = attention(r, model.hidden, true)?;
    a.qkv_bias = false;
    let window = r.size_or(&["window_size"], 256)?;
    let ffn = plain_ffn(r, model.hidden, true)?;
    for layer in 0..layers(r)? {
        a.window = (layer % 2 == 1).then_some(window);
        push(&mut model, block(Mixer::Attention(a.clone()), Ffn::Dense(ffn.clone())));
    }
    Ok(model)
}

/// OPT: two extra rows of learned positions; the 350M model has a narrow embedding and norms after the branches.
pub(super) fn opt(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    model.norm = LAYER_NORM;
    model.position = Position::Learned(r.size_or(CONTEXT, 2048)?.saturating_add(2));
    model.embedding_width = r.size_opt(&["word_embed_proj_dim"])?.filter(|width| *width != model.hidden);
    let remove = r.flag(&["_remove_final_layer_norm"], false)?;
    model.final_norm = r.flag(&["do_layer_norm_before"], true)? && !remove;
    let bias = r.flag(&["enable_bias"], true)?;
    let a = attention(r, model.hidden, bias)?;
    let Some(width) = r.size_opt(&["ffn_dim"])? else { return r.missing(&["ffn_dim"]) };
    uniform(r, &mut model, &a, &DenseFfn { hidden: width, gated: false, bias })?;
    Ok(model)
}

/// BLOOM: linear attention biases, a norm after the embedding, tied output.
pub(super) fn bloom(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    model.norm = LAYER_NORM;
    model.position = Position::Alibi;
    model.embedding_norm = true;
    let a = attention(r, model.hidden, true)?;
    let ffn = plain_ffn(r, model.hidden, true)?;
    uniform(r, &mut model, &a, &ffn)?;
    Ok(model)
}

/// MPT: `no_bias` removes every bias, the norms' too; learned positions unless linear biases are on.
pub(super) fn mpt(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    let bias = !r.flag(&["no_bias"], true)?;
    model.norm = Norm { rms: false, bias, weight: true };
    let heads = r.size(HEADS)?;
    let mut a = plain_attention(heads, heads, head_dim(r, model.hidden, heads)?);
    (a.qkv_bias, a.out_bias) = (bias, bias);
    let mut alibi = false;
    if let Some(config) = r.nested("attn_config")? {
        alibi = config.flag(&["alibi"], false)?;
        if config.flag(&["qk_ln"], false)? {
            return r.unsupported(Some("qk_ln"), "normalised queries and keys of MPT are not modelled");
        }
        a.kv_heads = config.size_or(&["kv_n_heads"], heads)?;
        if config.string("attn_type")? == Some("multiquery_attention") {
            a.kv_heads = 1;
        }
    }
    model.position = if alibi {
        Position::Alibi
    } else if r.flag(&["learned_pos_emb"], true)? {
        Position::Learned(r.size_or(CONTEXT, 2048)?)
    } else {
        Position::None
    };
    let ratio = r.size_or(&["expansion_ratio"], 4)?;
    let ffn = DenseFfn { hidden: model.hidden.saturating_mul(ratio), gated: false, bias };
    uniform(r, &mut model, &a, &ffn)?;
    Ok(model)
}
