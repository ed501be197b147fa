//! Multi-head latent attention: DeepSeek V2 to V3.2, Kimi K2, GLM-5 and the linear-attention hybrid of Kimi.

use serde_json::Value;

use super::moe::{EXPERTS, TOP_K, sparse_layers};
use super::reader::{Read, Reader};
use super::stack::{FFN, HEADS, base, block, experts, gated, layers, push};
use crate::arch::{Block, Ffn, Indexer, LinearAttention, Mixer, Mla, Model, Moe, Position};

fn latent_attention(r: &Reader<'_>) -> Read<Mla> {
    let indexer = match r.size_opt(&["index_n_heads"])? {
        Some(heads) => {
            Some(Indexer { heads, head_dim: r.size(&["index_head_dim"])?, top_k: r.size(&["index_topk"])? })
        }
        None => None,
    };
    Ok(Mla {
        heads: r.size(HEADS)?,
        q_lora_rank: r.size_opt(&["q_lora_rank"])?,
        kv_lora_rank: r.size(&["kv_lora_rank"])?,
        qk_nope_dim: r.size(&["qk_nope_head_dim"])?,
        qk_rope_dim: r.size(&["qk_rope_head_dim"])?,
        v_head_dim: r.size(&["v_head_dim"])?,
        bias: r.flag(&["attention_bias"], false)?,
        indexer,
        indexer_shared: false,
        output_gate: false,
    })
}

/// Routed and shared experts; the router carries a correction bias where selection is `noaux_tc`.
fn deepseek_experts(r: &Reader<'_>) -> Read<Moe> {
    let width = r.size(&["moe_intermediate_size"])?;
    Ok(Moe {
        shared_hidden: r.count(&["n_shared_experts", "num_shared_experts"])?.saturating_mul(width),
        router_bias: r.string("topk_method")? == Some("noaux_tc"),
        ..experts(r.size(EXPERTS)?, r.size(TOP_K)?, width)
    })
}

/// GLM-5: DeepSeek V3.2 whose published count leaves out the routers' correction, a buffer in its implementation.
pub(super) fn glm5(r: &Reader<'_>) -> Read<Model> {
    let mut model = deepseek(r)?;
    for kind in &mut model.kinds {
        if let Ffn::Moe(moe) = &mut kind.ffn {
            moe.router_bias = false;
        }
    }
    Ok(model)
}

/// DeepSeek V2, V3, V3.1, V3.2, R1; Kimi K2; GLM-4.7-Flash.
pub(super) fn deepseek(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let attention = latent_attention(r)?;
    let layers = layers(r)?;
    // A dense model of the family has no routed experts.
    let moe = if r.get(EXPERTS).is_some() { Some(deepseek_experts(r)?) } else { None };
    let indexers = r.per_layer("indexer_types", layers)?;
    for (layer, has_experts) in sparse_layers(r, layers)?.into_iter().enumerate() {
        let mut a = attention.clone();
        a.indexer_shared =
            a.indexer.is_some() && indexers.is_some_and(|types| types[layer].as_str() == Some("shared"));
        let ffn = match &moe {
            Some(moe) if has_experts => Ffn::Moe(moe.clone()),
            _ => gated(r.size(FFN)?),
        };
        push(&mut model, block(Mixer::Mla(a), ffn));
    }
    model.mtp_layers = r.count(&["num_nextn_predict_layers"])?.min(1 << 10) as u32;
    // A prediction layer computes its own selection of keys even where the last layers share one.
    if let (Some(moe), true) = (moe, model.mtp_layers > 0) {
        model.mtp_kind = Some(super::stack::kind(&mut model, block(Mixer::Mla(attention), Ffn::Moe(moe))));
    }
    Ok(model)
}

/// Kimi Linear: delta attention with a gate per channel on most layers, latent attention without positions on the others.
pub(super) fn kimi_linear(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    model.position = Position::None;
    let Some(linear) = r.nested("linear_attn_config")? else { return r.missing(&["linear_attn_config"]) };
    let heads = linear.size(&["num_heads"])?;
    let width = linear.size(&["head_dim"])?;
    let full_rank_gate = linear.flag(&["use_full_rank_gate"], false)?;
    let inner = heads.saturating_mul(width);
    let hidden = model.hidden;
    let delta = LinearAttention {
        key_heads: heads,
        value_heads: heads,
        key_head_dim: width,
        value_head_dim: width,
        conv_kernel: linear.size_or(&["short_conv_kernel_size"], 4)?,
        output_gate: true,
        // A full-rank output gate comes with a low-rank decay per channel, which the per-head scalars of that form lack.
        gate_rank: (!full_rank_gate).then_some(width),
        chunk: 64,
        // A decay per head and a time-step bias per channel.
        extra_parameters: heads.saturating_add(inner).saturating_add(if full_rank_gate {
            let decay = width.saturating_mul(hidden.saturating_add(inner));
            decay.saturating_sub(hidden.saturating_mul(heads))
        } else {
            0
        }),
    };
    let latent = Mla { output_gate: r.flag(&["mla_use_output_gate"], false)?, ..latent_attention(r)? };
    let mut moe = deepseek_experts(r)?;
    moe.router_bias = true;
    moe.latent = r.size_opt(&["routed_expert_hidden_size"])?.filter(|latent| *latent != hidden);
    let latent_norm = match moe.latent {
        Some(latent) if r.flag(&["latent_moe_use_norm"], false)? => latent,
        _ => 0,
    };
    if !linear.has("full_attn_layers") {
        return linear.missing(&["full_attn_layers"]);
    }
    let full = linear.integer_set("full_attn_layers")?;
    let layers = layers(r)?;
    for (layer, has_experts) in sparse_layers(r, layers)?.into_iter().enumerate() {
        // The list counts layers from 1.
        let mixer = if full.contains(&(layer as u64 + 1)) {
            Mixer::Mla(latent.clone())
        } else {
            Mixer::Linear(delta.clone())
        };
        let (ffn, extra_parameters) =
            if has_experts { (Ffn::Moe(moe.clone()), latent_norm) } else { (gated(r.size(FFN)?), 0) };
        push(&mut model, Block { extra_parameters, ..block(mixer, ffn) });
    }
    if let Some((_, Value::Number(_))) = r.get(&["num_nextn_predict_layers"]) {
        model.mtp_layers = r.count(&["num_nextn_predict_layers"])?.min(1 << 10) as u32;
    }
    Ok(model)
}
