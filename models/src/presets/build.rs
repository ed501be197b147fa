//! Models from bare dimensions, for "what if" questions.

use serde::Deserialize;

use super::error::PresetError;
use crate::arch::{DenseFfn, Ffn, Mixer, Mla, Model, Moe, Position};
use crate::hf::reader;
use crate::hf::stack::{self, LAYER_NORM, RMS, block, plain_attention};

/// Kind of feed-forward network, and with it the conventions that go with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FfnKind {
    /// Two matrices with GELU: layer norm, biases everywhere, learned positions (GPT-3, Megatron-LM).
    Gelu,
    /// Three matrices (SwiGLU): RMS norm, no biases, rotary positions (Llama).
    #[default]
    Swiglu,
    /// Two matrices with squared ReLU: layer norm with bias, no other biases, rotary positions (Nemotron-4).
    SquaredRelu,
}

/// Dimensions of a dense decoder. What is `None` takes the convention of the kind of network.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DenseDims {
    /// Name of the model.
    pub name: String,
    /// Layers.
    pub layers: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Query heads.
    pub heads: u64,
    /// Key/value heads; `None`: as many as query heads.
    pub kv_heads: Option<u64>,
    /// Width of a head; `None`: `hidden / heads`.
    pub head_dim: Option<u64>,
    /// Inner width of the network; `None`: four times `hidden`.
    pub ffn_hidden: Option<u64>,
    /// Kind of network.
    pub ffn: FfnKind,
    /// Rows of the vocabulary.
    pub vocab: u64,
    /// Output layer shares the embedding; `None`: yes for GELU models, else no.
    pub tied_embeddings: Option<bool>,
    /// Longest context, the number of learned positions of GELU models; `None`: 2048.
    pub max_context: Option<u64>,
}

/// Experts of a mixture-of-experts decoder, in addition to its [`DenseDims`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MoeDims {
    /// Routed experts.
    pub experts: u64,
    /// Experts per token.
    pub top_k: u64,
    /// Inner width of one expert.
    pub ffn_hidden: u64,
    /// Shared experts of that width.
    pub shared_experts: u64,
    /// Layers with experts; `None`: all. The dense ones come first, except that half of the layers alternate.
    pub layers: Option<u64>,
    /// Latent attention with the ranks of DeepSeek-V2 and V3 instead of grouped heads.
    pub latent_attention: bool,
}

/// A GPT of the Megatron-LM kind: GELU, biases, learned positions for `seq` tokens, tied output.
///
/// # Errors
/// [`PresetError::Dimensions`] when the numbers make no model (heads that do not divide the width, zero, beyond 2^40).
pub fn gpt(layers: u64, hidden: u64, heads: u64, vocab: u64, seq: u64) -> Result<Model, PresetError> {
    dense(&DenseDims {
        name: format!("gpt-h{hidden}-l{layers}"),
        layers,
        hidden,
        heads,
        vocab,
        ffn: FfnKind::Gelu,
        max_context: Some(seq),
        ..DenseDims::default()
    })
}

/// A dense decoder.
///
/// # Errors
/// As [`gpt`].
pub fn dense(dims: &DenseDims) -> Result<Model, PresetError> {
    build(dims, None)
}

/// A mixture-of-experts decoder.
///
/// # Errors
/// As [`gpt`].
pub fn moe(dims: &DenseDims, experts: &MoeDims) -> Result<Model, PresetError> {
    build(dims, Some(experts))
}

fn build(dims: &DenseDims, experts: Option<&MoeDims>) -> Result<Model, PresetError> {
    let name = if dims.name.is_empty() { "custom" } else { &dims.name };
    sizes(name, dims, experts)?;
    let gelu = dims.ffn == FfnKind::Gelu;
    let gated = dims.ffn == FfnKind::Swiglu;
    let head_dim = match dims.head_dim {
        Some(width) => width,
        None if dims.hidden.is_multiple_of(dims.heads) => dims.hidden / dims.heads,
        None => {
            let message = format!("{} heads do not divide the width {}", dims.heads, dims.hidden);
            return Err(stack::inconsistent(name, message).into());
        }
    };
    let mixer = if experts.is_some_and(|e| e.latent_attention) {
        Mixer::Mla(latent(dims.heads))
    } else {
        let mut a = plain_attention(dims.heads, dims.kv_heads.unwrap_or(dims.heads), head_dim);
        (a.qkv_bias, a.out_bias) = (gelu, gelu);
        Mixer::Attention(a)
    };
    let dense_hidden = dims.ffn_hidden.unwrap_or(dims.hidden.saturating_mul(4));
    let dense = Ffn::Dense(DenseFfn { hidden: dense_hidden, gated, bias: gelu });
    let mut model = Model {
        name: name.to_owned(),
        family: if experts.is_some() { "moe" } else { "dense" }.to_owned(),
        hidden: dims.hidden,
        vocab: dims.vocab,
        tied_embeddings: dims.tied_embeddings.unwrap_or(gelu),
        head_bias: false,
        position: if gelu { Position::Learned(dims.max_context.unwrap_or(2048)) } else { Position::Rope },
        norm: if gated { RMS } else { LAYER_NORM },
        embedding_norm: false,
        final_norm: true,
        kinds: Vec::new(),
        pattern: Vec::new(),
        encoder: None,
        mtp_layers: 0,
        mtp_kind: None,
        embedding_width: None,
        extra_parameters: Vec::new(),
        max_context: dims.max_context,
        checkpoint: None,
        source: "dimensions given by the caller".to_owned(),
    };
    for layer in 0..dims.layers {
        let ffn = match experts {
            Some(e) if has_experts(layer, dims.layers, e.layers) => Ffn::Moe(Moe {
                gated,
                bias: gelu,
                shared_hidden: e.shared_experts.saturating_mul(e.ffn_hidden),
                router_bias: e.latent_attention,
                ..stack::experts(e.experts, e.top_k, e.ffn_hidden)
            }),
            _ => dense.clone(),
        };
        stack::push(&mut model, block(mixer.clone(), ffn));
    }
    Ok(stack::check(name, model)?)
}

/// Every dimension is at least 1 and at most 2^40; layers fit memory.
fn sizes(name: &str, dims: &DenseDims, experts: Option<&MoeDims>) -> Result<(), PresetError> {
    let mut checked = vec![
        ("hidden", dims.hidden),
        ("heads", dims.heads),
        ("vocab", dims.vocab),
        ("kv_heads", dims.kv_heads.unwrap_or(1)),
        ("head_dim", dims.head_dim.unwrap_or(1)),
        ("ffn_hidden", dims.ffn_hidden.unwrap_or(1)),
        ("max_context", dims.max_context.unwrap_or(1)),
    ];
    if let Some(e) = experts {
        checked.extend([("experts", e.experts), ("top_k", e.top_k), ("moe_ffn_hidden", e.ffn_hidden)]);
    }
    for (what, value) in checked {
        if value == 0 || value > reader::LARGEST {
            let message = format!("`{what}` is {value}, expected a whole number from 1 to 2^40");
            return Err(stack::inconsistent(name, message).into());
        }
    }
    if dims.layers == 0 || dims.layers > stack::MOST_LAYERS {
        let message = format!("`layers` is {}, expected 1 to {}", dims.layers, stack::MOST_LAYERS);
        return Err(stack::inconsistent(name, message).into());
    }
    Ok(())
}

/// Dense layers come first (DeepSeek); where exactly half have experts they alternate (Llama 4 Maverick).
fn has_experts(layer: u64, layers: u64, with_experts: Option<u64>) -> bool {
    match with_experts {
        None => true,
        Some(count) if count >= layers => true,
        Some(count) if count > 1 && count * 2 == layers => !layer.is_multiple_of(2),
        Some(count) => layer >= layers - count,
    }
}

/// Latent attention of DeepSeek-V2, V3 and Kimi K2: the same ranks and head widths in all of them.
fn latent(heads: u64) -> Mla {
    Mla {
        heads,
        q_lora_rank: Some(1536),
        kv_lora_rank: 512,
        qk_nope_dim: 128,
        qk_rope_dim: 64,
        v_head_dim: 128,
        bias: false,
        indexer: None,
        indexer_shared: false,
        output_gate: false,
    }
}
