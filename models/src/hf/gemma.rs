//! Gemma 1 to 4: tied embeddings, gated GELU, wide heads, extra norms from Gemma 2 on.

use serde_json::Value;

use super::moe::TOP_K;
use super::reader::{Read, Reader};
use super::stack::{FFN, attention, base, block, experts, gated, layers, push};
use crate::arch::{Attention, Block, Ffn, Mixer, Model, Moe, QkNorm};

/// Gemma 1.
pub(super) fn gemma(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    let a = gemma_attention(r, model.hidden)?;
    for _ in 0..layers(r)? {
        push(&mut model, block(Mixer::Attention(a.clone()), gated(r.size(FFN)?)));
    }
    Ok(model)
}

/// Heads are never the width over their number: the key is required.
fn gemma_attention(r: &Reader<'_>, hidden: u64) -> Read<Attention> {
    if !r.has("head_dim") {
        return r.missing(&["head_dim"]);
    }
    let mut a = attention(r, hidden)?;
    let bias = r.flag(&["attention_bias"], false)?;
    (a.qkv_bias, a.out_bias) = (bias, bias);
    Ok(a)
}

/// Gemma 2: every other layer sees a window; four norms.
pub(super) fn gemma2(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    let a = gemma_attention(r, model.hidden)?;
    alternate(r, &mut model, &a, 2)?;
    Ok(model)
}

/// Gemma 3: five windowed layers to a full one; four norms, and one per query and key head.
pub(super) fn gemma3(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    let mut a = gemma_attention(r, model.hidden)?;
    a.qk_norm = QkNorm::PerHead;
    let every = r.size_or(&["sliding_window_pattern"], 6)?;
    alternate(r, &mut model, &a, every)?;
    Ok(model)
}

fn alternate(r: &Reader<'_>, model: &mut Model, attention: &Attention, full_every: u64) -> Read<()> {
    let layers = layers(r)?;
    let window = r.size_or(&["sliding_window"], 4096)?;
    let types = r.per_layer("layer_types", layers)?;
    let ffn = gated(r.size(FFN)?);
    for layer in 0..layers {
        let full = is_full(types, layer, full_every);
        let a = Attention { window: (!full).then_some(window), ..attention.clone() };
        push(model, Block { norms: 4, ..block(Mixer::Attention(a), ffn.clone()) });
    }
    Ok(())
}

fn is_full(types: Option<&[Value]>, layer: u64, full_every: u64) -> bool {
    match types.and_then(|types| types.get(layer as usize)) {
        Some(kind) => kind.as_str() == Some("full_attention"),
        None => (layer + 1).is_multiple_of(full_every),
    }
}

/// Gemma 4: full layers have wider, fewer key/value heads whose keys serve as values; the 26B model adds experts
/// beside the dense network, which runs for every token and is counted as the shared expert here.
pub(super) fn gemma4(r: &Reader<'_>) -> Read<Model> {
    if r.count(&["hidden_size_per_layer_input"])? > 0 {
        return r.unsupported(Some("hidden_size_per_layer_input"), "embeddings per layer are not modelled");
    }
    if r.count(&["num_kv_shared_layers"])? > 0 {
        return r.unsupported(
            Some("num_kv_shared_layers"),
            "keys and values shared between layers are not modelled",
        );
    }
    let mut model = base(r, true)?;
    let mut sliding = gemma_attention(r, model.hidden)?;
    sliding.qk_norm = QkNorm::PerHead;
    let mut full = sliding.clone();
    sliding.window = Some(r.size(&["sliding_window"])?);
    full.head_dim = r.size_or(&["global_head_dim"], sliding.head_dim)?;
    full.v_head_dim = full.head_dim;
    full.kv_heads = r.size_or(&["num_global_key_value_heads"], sliding.kv_heads)?;
    full.variant.shared_key_value = r.flag(&["attention_k_eq_v"], false)?;
    let width = r.size(FFN)?;
    let sparse = r.flag(&["enable_moe_block"], false)?;
    let ffn = if sparse {
        Ffn::Moe(Moe {
            shared_hidden: width,
            ..experts(r.size(&["num_experts"])?, r.size(TOP_K)?, r.size(&["moe_intermediate_size"])?)
        })
    } else {
        gated(width)
    };
    let layers = layers(r)?;
    let types = r.per_layer("layer_types", layers)?;
    for layer in 0..layers {
        let a = if is_full(types, layer, 6) { full.clone() } else { sliding.clone() };
        // A scalar per layer; with experts, a scale per channel and per expert in the router.
        let router = if sparse { model.hidden.saturating_add(r.size(&["num_experts"])?) } else { 0 };
        let plain = block(Mixer::Attention(a), ffn.clone());
        let norms = if sparse { 7 } else { 4 };
        push(&mut model, Block { norms, extra_parameters: router.saturating_add(1), ..plain });
    }
    Ok(model)
}
