//! Mixture-of-experts families with ordinary attention.

use serde_json::Value;

use super::llama::{plain_gated, window};
use super::reader::{Read, Reader};
use super::stack::{FFN, LAYER_NORM, attention, base, block, experts, gated, layers, push};
use crate::arch::{Attention, Block, Ffn, Mixer, Model, Moe, Norm, QkNorm};

/// Spellings of the number of routed experts.
pub(super) const EXPERTS: &[&str] =
    &["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];
/// Spellings of the experts per token.
pub(super) const TOP_K: &[&str] =
    &["num_experts_per_tok", "num_experts_per_token", "moe_top_k", "num_selected_experts", "top_k_experts"];

fn uniform(r: &Reader<'_>, model: &mut Model, attention: &Attention, moe: &Moe, norms: u8) -> Read<()> {
    for _ in 0..layers(r)? {
        push(model, Block { norms, ..block(Mixer::Attention(attention.clone()), Ffn::Moe(moe.clone())) });
    }
    Ok(())
}

/// Mixtral: every layer has experts as wide as a dense network.
pub(super) fn mixtral(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    a.window = r.size_opt(&["sliding_window"])?;
    let moe = experts(r.size(EXPERTS)?, r.size(TOP_K)?, r.size(FFN)?);
    uniform(r, &mut model, &a, &moe, 2)?;
    Ok(model)
}

/// Which layers of a Qwen model have experts (`decoder_sparse_step`, `mlp_only_layers`).
pub(super) fn qwen_sparse(r: &Reader<'_>, layers: u64) -> Read<Vec<bool>> {
    let dense_only = r.integer_set("mlp_only_layers")?;
    let step = r.size_or(&["decoder_sparse_step"], 1)?;
    Ok((0..layers).map(|layer| !dense_only.contains(&layer) && (layer + 1).is_multiple_of(step)).collect())
}

/// Experts of a Qwen model with the shared expert and its gate, where it has one.
pub(super) fn qwen_experts(r: &Reader<'_>) -> Read<Moe> {
    let shared = r.count(&["shared_expert_intermediate_size"])?;
    Ok(Moe {
        shared_hidden: shared,
        shared_gate: shared > 0,
        ..experts(r.size(EXPERTS)?, r.size(TOP_K)?, r.size(&["moe_intermediate_size"])?)
    })
}

fn qwen(r: &Reader<'_>, model: &mut Model, attention: &Attention) -> Read<()> {
    let moe = qwen_experts(r)?;
    let layers = layers(r)?;
    for (layer, has_experts) in qwen_sparse(r, layers)?.into_iter().enumerate() {
        let mut a = attention.clone();
        a.window = window(r, layer as u64, layers)?;
        let ffn = if has_experts { Ffn::Moe(moe.clone()) } else { plain_gated(r)? };
        push(model, block(Mixer::Attention(a), ffn));
    }
    Ok(())
}

/// Qwen1.5-MoE and Qwen2-MoE: biases on queries, keys and values, a gated shared expert.
pub(super) fn qwen2_moe(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    a.qkv_bias = r.flag(&["qkv_bias"], true)?;
    qwen(r, &mut model, &a)?;
    Ok(model)
}

/// Qwen3-MoE: a norm per query and key head, no shared expert.
pub(super) fn qwen3_moe(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    let bias = r.flag(&["attention_bias"], false)?;
    (a.qkv_bias, a.out_bias, a.qk_norm) = (bias, bias, QkNorm::PerHead);
    qwen(r, &mut model, &a)?;
    Ok(model)
}

/// OLMoE: queries and keys normed over all heads.
pub(super) fn olmoe(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    let bias = r.flag(&["attention_bias"], false)?;
    (a.qkv_bias, a.out_bias, a.qk_norm) = (bias, bias, QkNorm::AllHeads);
    let moe = experts(r.size(EXPERTS)?, r.size(TOP_K)?, r.size(FFN)?);
    uniform(r, &mut model, &a, &moe, 2)?;
    Ok(model)
}

/// Phi-3.5-MoE and its cut-down versions: layer norm, attention biases, an output bias.
pub(super) fn phimoe(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    model.norm = LAYER_NORM;
    model.head_bias = r.flag(&["lm_head_bias"], false)?;
    let mut a = attention(r, model.hidden)?;
    let bias = r.flag(&["attention_bias"], false)?;
    (a.qkv_bias, a.out_bias) = (bias, bias);
    a.window = r.size_opt(&["sliding_window"])?;
    let moe = experts(r.size(EXPERTS)?, r.size(TOP_K)?, r.size(FFN)?);
    uniform(r, &mut model, &a, &moe, 2)?;
    Ok(model)
}

/// gpt-oss: biases on everything, an attention sink per head, every other layer sees a window.
pub(super) fn gpt_oss(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let attention = attention(r, model.hidden)?;
    let bias = r.flag(&["attention_bias"], true)?;
    let sliding = r.size_or(&["sliding_window"], 128)?;
    let moe =
        Moe { bias: true, router_bias: true, ..experts(r.size(EXPERTS)?, r.size(TOP_K)?, r.size(FFN)?) };
    let layers = layers(r)?;
    let types = r.per_layer("layer_types", layers)?;
    for layer in 0..layers {
        let windowed = match types {
            Some(types) => types[layer as usize].as_str() == Some("sliding_attention"),
            None => layer % 2 == 0,
        };
        let a = Attention {
            qkv_bias: bias,
            out_bias: bias,
            sinks: true,
            window: windowed.then_some(sliding),
            ..attention.clone()
        };
        push(&mut model, block(Mixer::Attention(a), Ffn::Moe(moe.clone())));
    }
    Ok(model)
}

/// DBRX: keys nested in `attn_config` and `ffn_config`, layer norm without bias.
pub(super) fn dbrx(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    model.norm = Norm { rms: false, bias: false, weight: true };
    let (Some(attn), Some(ffn)) = (r.nested("attn_config")?, r.nested("ffn_config")?) else {
        return r.missing(if r.has("attn_config") { &["ffn_config"] } else { &["attn_config"] });
    };
    let mut a = attention(r, model.hidden)?;
    a.kv_heads = attn.size_or(&["kv_n_heads"], 1)?;
    let moe = experts(ffn.size(EXPERTS)?, ffn.size(TOP_K)?, ffn.size(&["ffn_hidden_size"])?);
    uniform(r, &mut model, &a, &moe, 2)?;
    Ok(model)
}

/// Grok-1: four norms a layer, gated experts, the embedding serves as output layer.
pub(super) fn grok(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    let a = attention(r, model.hidden)?;
    let moe = experts(r.size(EXPERTS)?, r.size(TOP_K)?, r.size(FFN)?);
    uniform(r, &mut model, &a, &moe, 4)?;
    Ok(model)
}

/// GLM-4.5 to 4.7: dense first layers, shared experts, a correction bias in the router.
pub(super) fn glm4_moe(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    a.qkv_bias = r.flag(&["attention_bias"], false)?;
    if r.flag(&["use_qk_norm"], false)? {
        a.qk_norm = QkNorm::PerHead;
    }
    let width = r.size(&["moe_intermediate_size"])?;
    let moe = Moe {
        shared_hidden: r.count(&["n_shared_experts"])?.saturating_mul(width),
        router_bias: true,
        ..experts(r.size(EXPERTS)?, r.size(TOP_K)?, width)
    };
    let dense = r.count(&["first_k_dense_replace"])?;
    for layer in 0..layers(r)? {
        let ffn = if layer < dense { gated(r.size(FFN)?) } else { Ffn::Moe(moe.clone()) };
        push(&mut model, block(Mixer::Attention(a.clone()), ffn));
    }
    model.mtp_layers = r.count(&["num_nextn_predict_layers"])?.min(1 << 10) as u32;
    Ok(model)
}

/// Which layers have experts: a list of 0 and 1 in `moe_layer_freq`, else `first_k_dense_replace`.
pub(super) fn sparse_layers(r: &Reader<'_>, layers: u64) -> Read<Vec<bool>> {
    let dense = r.count(&["first_k_dense_replace"])?;
    match r.get(&["moe_layer_freq"]) {
        Some((_, Value::Array(_))) => {
            let list = r.per_layer("moe_layer_freq", layers)?.unwrap_or_default();
            Ok(list.iter().map(|v| v.as_u64() != Some(0)).collect())
        }
        _ => {
            let step = r.size_or(&["moe_layer_freq"], 1)?;
            Ok((0..layers).map(|layer| layer >= dense && layer.is_multiple_of(step)).collect())
        }
    }
}
