//! Mixture-of-experts families whose layers differ in attention: windows, block sparsity, per-layer heads.

use std::collections::BTreeSet;

use serde_json::Value;

use super::moe::{EXPERTS, TOP_K, sparse_layers};
use super::reader::{Read, Reader};
use super::stack::{FFN, HEADS, attention, base, block, experts, gated, kind, layers, plain_attention, push};
use crate::arch::{Attention, Ffn, Indexer, Mixer, Model, Moe, QkNorm};

/// MiniMax-M2: every layer attends to everything; queries and keys are normed over all heads.
pub(super) fn minimax_m2(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    if let Some(list) = r.list("attn_type_list")?
        && list.iter().any(|kind| kind.as_u64() != Some(1))
    {
        return r.unsupported(Some("attn_type_list"), "only full attention (1) is known in this family");
    }
    let mut a = attention(r, model.hidden)?;
    if r.flag(&["use_qk_norm"], false)? {
        a.qk_norm = qk_norm(r)?;
    }
    let width = r.size(FFN)?;
    let moe = Moe {
        shared_hidden: r.count(&["shared_intermediate_size"])?,
        router_bias: r.flag(&["use_routing_bias"], false)?,
        ..experts(r.size(EXPERTS)?, r.size(TOP_K)?, width)
    };
    for _ in 0..layers(r)? {
        push(&mut model, block(Mixer::Attention(a.clone()), Ffn::Moe(moe.clone())));
    }
    if r.flag(&["use_mtp"], false)? {
        let modules =
            r.count(&["num_mtp_modules"])?.saturating_mul(r.size_or(&["mtp_transformer_layers"], 1)?);
        model.mtp_layers = modules.min(1 << 10) as u32;
    }
    Ok(model)
}

fn qk_norm(r: &Reader<'_>) -> Read<QkNorm> {
    match r.string("qk_norm_type")? {
        Some("per_layer") => Ok(QkNorm::AllHeads),
        Some("per_head") | None => Ok(QkNorm::PerHead),
        Some(_) => r.bad("qk_norm_type", "`per_layer` or `per_head`"),
    }
}

/// MiniMax-M3: dense first layers with full attention, then experts with a shared one and block-sparse attention.
pub(super) fn minimax_m3(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut attention = attention(r, model.hidden)?;
    if r.flag(&["use_qk_norm"], false)? {
        attention.qk_norm = qk_norm(r)?;
    }
    attention.output_gate = r.flag(&["attention_output_gate"], false)?;
    let layers = layers(r)?;
    let sparse = match r.nested("sparse_attention_config")? {
        Some(config) if config.flag(&["use_sparse_attention"], false)? => Some(Sparse {
            indexer: Indexer {
                heads: config.size(&["sparse_num_index_heads"])?,
                head_dim: config.size(&["sparse_index_dim"])?,
                top_k: config
                    .size(&["sparse_topk_blocks"])?
                    .saturating_mul(config.size(&["sparse_block_size"])?),
            },
            on: config.per_layer("sparse_attention_freq", layers)?,
        }),
        _ => None,
    };
    let width = r.size(&["moe_intermediate_size", "intermediate_size"])?;
    let moe = Moe {
        shared_hidden: r
            .count(&["n_shared_experts"])?
            .saturating_mul(r.size_or(&["shared_intermediate_size"], width)?),
        router_bias: r.flag(&["use_routing_bias"], false)?,
        ..experts(r.size(EXPERTS)?, r.size(TOP_K)?, width)
    };
    for (layer, has_experts) in sparse_layers(r, layers)?.into_iter().enumerate() {
        let mut a = attention.clone();
        if let Some(sparse) = &sparse
            && sparse.on.is_none_or(|on| on[layer].as_u64() != Some(0))
        {
            a.variant.indexer = Some(sparse.indexer.clone());
        }
        let ffn = if has_experts {
            Ffn::Moe(moe.clone())
        } else {
            gated(r.size(&["dense_intermediate_size", "intermediate_size"])?)
        };
        push(&mut model, block(Mixer::Attention(a), ffn));
    }
    model.mtp_layers = r.count(&["num_nextn_predict_layers"])?.min(1 << 10) as u32;
    Ok(model)
}

struct Sparse<'a> {
    indexer: Indexer,
    on: Option<&'a [Value]>,
}

/// Llama 4: experts on every `interleave_moe_layer_step`-th layer with a shared one of the same width; three of four
/// layers attend within chunks, the fourth to everything without positions.
pub(super) fn llama4(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    let bias = r.flag(&["attention_bias"], false)?;
    (a.qkv_bias, a.out_bias) = (bias, bias);
    let chunk = r.size_opt(&["attention_chunk_size"])?;
    let width = r.size(FFN)?;
    let moe = Moe { shared_hidden: width, ..experts(r.size(EXPERTS)?, r.size(TOP_K)?, width) };
    let dense = gated(r.size_or(&["intermediate_size_mlp"], width)?);
    let step = r.size_or(&["interleave_moe_layer_step"], 1)?;
    let full_every = r.size_or(&["no_rope_layer_interval"], 4)?;
    for layer in 0..layers(r)? {
        a.window = if (layer + 1).is_multiple_of(full_every) { None } else { chunk };
        let ffn = if (layer + 1).is_multiple_of(step) { Ffn::Moe(moe.clone()) } else { dense.clone() };
        push(&mut model, block(Mixer::Attention(a.clone()), ffn));
    }
    Ok(model)
}

/// MiMo-V2: keys wider than values; windowed layers have their own heads and a sink per head.
pub(super) fn mimo_v2(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let layers = layers(r)?;
    let heads = r.size(HEADS)?;
    let full = Attention {
        v_head_dim: r.size(&["v_head_dim"])?,
        sinks: r.flag(&["add_full_attention_sink_bias"], false)?,
        ..plain_attention(heads, r.size(&["num_key_value_heads"])?, r.size(&["head_dim"])?)
    };
    let sliding = Attention {
        v_head_dim: r.size(&["swa_v_head_dim", "v_head_dim"])?,
        sinks: r.flag(&["add_swa_attention_sink_bias"], false)?,
        window: Some(r.size(&["sliding_window", "sliding_window_size"])?),
        ..plain_attention(
            r.size_or(&["swa_num_attention_heads"], heads)?,
            r.size(&["swa_num_key_value_heads", "num_key_value_heads"])?,
            r.size(&["swa_head_dim", "head_dim"])?,
        )
    };
    let width = r.size(&["moe_intermediate_size"])?;
    let moe = Moe {
        shared_hidden: r.count(&["n_shared_experts"])?.saturating_mul(width),
        router_bias: r.string("topk_method")? == Some("noaux_tc"),
        ..experts(r.size(EXPERTS)?, r.size(TOP_K)?, width)
    };
    let Some(pattern) = r.per_layer("hybrid_layer_pattern", layers)? else {
        return r.missing(&["hybrid_layer_pattern"]);
    };
    for (layer, has_experts) in sparse_layers(r, layers)?.into_iter().enumerate() {
        let a = if pattern[layer].as_u64() == Some(0) { &full } else { &sliding };
        let ffn = if has_experts { Ffn::Moe(moe.clone()) } else { gated(r.size(FFN)?) };
        push(&mut model, block(Mixer::Attention(a.clone()), ffn));
    }
    Ok(model)
}

/// Experts of a Step model with the shared one.
fn step_experts(r: &Reader<'_>) -> Read<Moe> {
    Ok(Moe {
        shared_hidden: r.count(&["share_expert_dim"])?,
        router_bias: r.flag(&["use_moe_router_bias"], false)?,
        ..experts(r.size(EXPERTS)?, r.size(TOP_K)?, r.size(&["moe_intermediate_size"])?)
    })
}

/// Step-3: queries through a bottleneck, one key/value head (multi-matrix factorisation attention); the layers with
/// experts are listed in a string.
pub(super) fn step3(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = plain_attention(
        r.size(HEADS)?,
        r.size(&["num_attention_groups", "num_key_value_heads"])?,
        r.size(&["head_dim"])?,
    );
    if r.flag(&["use_mfa"], true)? {
        a.variant.query_rank = Some(r.size(&["share_q_dim"])?);
    }
    let moe = step_experts(r)?;
    let layers = layers(r)?;
    let sparse = listed_layers(r)?.unwrap_or_else(|| (1..layers).collect());
    for layer in 0..layers {
        let ffn = if sparse.contains(&layer) { Ffn::Moe(moe.clone()) } else { gated(r.size(FFN)?) };
        push(&mut model, block(Mixer::Attention(a.clone()), ffn));
    }
    Ok(model)
}

/// Step-3.5 and 3.7 Flash: windowed layers between full ones, dense first layers, experts with a shared one. Windowed
/// layers may have heads of their own (`attention_other_setting`).
pub(super) fn step3p7(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let heads = r.size(HEADS)?;
    let kv_heads = r.size_or(&["num_key_value_heads", "num_attention_groups"], heads)?;
    let mut full = plain_attention(heads, kv_heads, r.size(&["head_dim"])?);
    if r.flag(&["use_qk_norm"], false)? {
        full.qk_norm = QkNorm::PerHead;
    }
    full.variant.head_gate = r.flag(&["use_head_wise_attn_gate"], false)?;
    let mut sliding = Attention { window: Some(r.size(&["sliding_window"])?), ..full.clone() };
    if let Some(other) = r.nested("attention_other_setting")? {
        sliding.heads = other.size_or(&["num_attention_heads"], heads)?;
        sliding.kv_heads = other.size_or(&["num_attention_groups"], kv_heads)?;
        sliding.head_dim = other.size_or(&["head_dim"], full.head_dim)?;
        sliding.v_head_dim = sliding.head_dim;
    }
    let moe = step_experts(r)?;
    let layers = layers(r)?;
    let Some(types) = r.per_layer("layer_types", layers)? else { return r.missing(&["layer_types"]) };
    let sparse = match listed_layers(r)? {
        Some(listed) => (0..layers).map(|layer| listed.contains(&layer)).collect(),
        None => sparse_layers(r, layers)?,
    };
    let dense = gated(r.size(FFN)?);
    for (layer, has_experts) in sparse.into_iter().enumerate() {
        let a = if types[layer].as_str() == Some("sliding_attention") { &sliding } else { &full };
        let ffn = if has_experts { Ffn::Moe(moe.clone()) } else { dense.clone() };
        push(&mut model, block(Mixer::Attention(a.clone()), ffn));
    }
    model.mtp_layers = r.count(&["num_nextn_predict_layers"])?.min(1 << 10) as u32;
    if model.mtp_layers > 0 {
        // Prediction layers are dense and windowed (Step-3.5-Flash report).
        model.mtp_kind = Some(kind(&mut model, block(Mixer::Attention(sliding), dense)));
    }
    Ok(model)
}

/// The layers with experts, written as numbers separated by commas.
fn listed_layers(r: &Reader<'_>) -> Read<Option<BTreeSet<u64>>> {
    let Some(list) = r.string("moe_layers_enum")? else { return Ok(None) };
    match list.split(',').map(|n| n.trim().parse().ok()).collect::<Option<BTreeSet<u64>>>() {
        Some(listed) => Ok(Some(listed)),
        None => r.bad("moe_layers_enum", "layer numbers separated by commas"),
    }
}
