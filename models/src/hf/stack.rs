//! Assembling a model from layers.

use super::checkpoint;
use super::error::{HfError, HfProblem};
use super::reader::{Read, Reader};
use crate::arch::{
    Attention, AttentionVariant, Block, DenseFfn, Ffn, Mixer, Model, Moe, Norm, Position, QkNorm,
};

/// Spellings of common keys over the families.
pub(super) const HIDDEN: &[&str] = &["hidden_size", "n_embd", "d_model", "n_embed"];
pub(super) const LAYERS: &[&str] = &["num_hidden_layers", "n_layer", "num_layers", "n_layers"];
pub(super) const HEADS: &[&str] = &["num_attention_heads", "n_head", "num_heads", "n_heads"];
pub(super) const VOCAB: &[&str] = &["vocab_size", "padded_vocab_size"];
pub(super) const CONTEXT: &[&str] =
    &["max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "n_ctx"];
pub(super) const FFN: &[&str] = &["intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim", "d_ff"];

/// More layers than this are a mistake.
pub(crate) const MOST_LAYERS: u64 = 1 << 16;
/// More kinds of layers than this are a mistake; searched models have a few dozen.
const MOST_KINDS: usize = 512;
/// More parameters than this are a mistake.
const MOST_PARAMETERS: u64 = 1 << 60;

pub(crate) const RMS: Norm = Norm { rms: true, bias: false, weight: true };
pub(crate) const LAYER_NORM: Norm = Norm { rms: false, bias: true, weight: true };

/// A model with the common keys filled in and no layers yet.
pub(super) fn base(r: &Reader<'_>, tied_default: bool) -> Read<Model> {
    Ok(Model {
        name: r.file.to_owned(),
        family: r.family.to_owned(),
        hidden: r.size(HIDDEN)?,
        vocab: r.size(VOCAB)?,
        tied_embeddings: r.flag(&["tie_word_embeddings"], tied_default)?,
        head_bias: false,
        position: Position::Rope,
        norm: RMS,
        embedding_norm: false,
        final_norm: true,
        kinds: Vec::new(),
        pattern: Vec::new(),
        encoder: None,
        mtp_layers: 0,
        mtp_kind: None,
        embedding_width: None,
        extra_parameters: Vec::new(),
        max_context: r.size_opt(CONTEXT)?,
        checkpoint: r.get(&["quantization_config"]).and_then(|(_, config)| checkpoint::formats(config)),
        source: format!("configuration {}", r.file),
    })
}

/// Number of layers, in a range that fits memory.
pub(super) fn layers(r: &Reader<'_>) -> Read<u64> {
    let layers = r.size(LAYERS)?;
    if layers > MOST_LAYERS {
        let key = r.get(LAYERS).map_or("num_hidden_layers", |(key, _)| key);
        return r.bad(key, format!("at most {MOST_LAYERS} layers"));
    }
    Ok(layers)
}

/// Adds a layer, reusing an equal block kind.
pub(crate) fn push(model: &mut Model, block: Block) {
    let kind = kind(model, block);
    model.pattern.push(kind);
}

/// Index of a block kind, adding it when new. Past [`MOST_KINDS`] nothing is added and [`check`] refuses the model.
pub(super) fn kind(model: &mut Model, block: Block) -> u16 {
    let known = model.kinds.iter().position(|k| *k == block);
    let at = known.unwrap_or_else(|| {
        if model.kinds.len() <= MOST_KINDS {
            model.kinds.push(block);
        }
        model.kinds.len() - 1
    });
    at as u16
}

/// Width of a head: given, or the model's width over the heads.
pub(super) fn head_dim(r: &Reader<'_>, hidden: u64, heads: u64) -> Read<u64> {
    if let Some(given) = r.size_opt(&["head_dim", "kv_channels", "attention_head_dim", "d_kv"])? {
        return Ok(given);
    }
    if !hidden.is_multiple_of(heads) {
        let key = r.get(HEADS).map_or("num_attention_heads", |(key, _)| key);
        return r.inconsistent(
            key,
            format!("{heads} heads do not divide the width {hidden}, and no `head_dim` is given"),
        );
    }
    Ok(hidden / heads)
}

/// Attention of the Llama kind: keys `num_attention_heads`, `num_key_value_heads`, `head_dim`.
pub(super) fn attention(r: &Reader<'_>, hidden: u64) -> Read<Attention> {
    let heads = r.size(HEADS)?;
    let kv_heads = r.size_or(&["num_key_value_heads", "num_kv_heads"], heads)?;
    let head_dim = head_dim(r, hidden, heads)?;
    Ok(plain_attention(heads, kv_heads, head_dim))
}

/// Attention without biases or extras.
pub(crate) fn plain_attention(heads: u64, kv_heads: u64, head_dim: u64) -> Attention {
    Attention {
        heads,
        kv_heads,
        head_dim,
        v_head_dim: head_dim,
        window: None,
        qkv_bias: false,
        out_bias: false,
        qk_norm: QkNorm::None,
        sinks: false,
        output_gate: false,
        variant: AttentionVariant::default(),
    }
}

/// A layer with two norms.
pub(crate) fn block(mixer: Mixer, ffn: Ffn) -> Block {
    Block { mixer, cross_attention: None, ffn, norms: 2, parallel: false, extra_parameters: 0 }
}

/// Gated network without biases.
pub(crate) fn gated(hidden: u64) -> Ffn {
    Ffn::Dense(DenseFfn { hidden, gated: true, bias: false })
}

/// Experts without biases, shared part or latent width.
pub(crate) fn experts(experts: u64, top_k: u64, hidden: u64) -> Moe {
    Moe {
        experts,
        top_k,
        hidden,
        gated: true,
        bias: false,
        shared_hidden: 0,
        shared_gate: false,
        router_bias: false,
        latent: None,
    }
}

/// Refuses what no model is: heads that do not group, more experts per token than experts, absurd totals.
pub(crate) fn check(file: &str, model: Model) -> Read<Model> {
    let fail = |message: String| Err(inconsistent(file, message));
    if model.pattern.is_empty() {
        return fail("the model has no layers".to_owned());
    }
    if model.kinds.len() > MOST_KINDS {
        return fail(format!("more than {MOST_KINDS} different kinds of layers"));
    }
    for block in &model.kinds {
        if let Mixer::Attention(a) = &block.mixer
            && !a.heads.is_multiple_of(a.kv_heads)
        {
            return fail(format!(
                "{} query heads cannot share {} key/value heads evenly",
                a.heads, a.kv_heads
            ));
        }
        if let Mixer::Linear(l) = &block.mixer
            && !l.value_heads.is_multiple_of(l.key_heads)
        {
            return fail(format!(
                "{} value heads cannot share {} key heads evenly",
                l.value_heads, l.key_heads
            ));
        }
        if let Ffn::Moe(moe) = &block.ffn
            && moe.top_k > moe.experts
        {
            return fail(format!("{} experts per token, but only {} experts", moe.top_k, moe.experts));
        }
    }
    let total = model.parameters().total_with_mtp();
    if total > MOST_PARAMETERS {
        return fail(format!("{total} parameters are beyond any model (2^60)"));
    }
    Ok(model)
}

/// An error about dimensions that contradict each other.
pub(crate) fn inconsistent(file: &str, message: String) -> HfError {
    HfError { file: file.to_owned(), line: None, problem: HfProblem::Inconsistent(message) }
}
