//! Hybrids of attention with state-space or linear-attention layers.

use serde_json::Value;

use super::llama::plain_gated;
use super::moe::{EXPERTS, TOP_K, qwen_experts, qwen_sparse};
use super::reader::{Read, Reader};
use super::stack::{FFN, HIDDEN, attention, base, block, experts, kind, layers, push};
use crate::arch::{Block, DenseFfn, Ffn, LinearAttention, Mamba2, Mixer, Model, Moe, QkNorm};

/// Qwen3-Next and Qwen3.5: three gated delta layers to one of gated attention, experts or a dense network.
pub(super) fn qwen3_next(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut full = attention(r, model.hidden)?;
    let bias = r.flag(&["attention_bias"], false)?;
    (full.qkv_bias, full.out_bias, full.qk_norm) = (bias, bias, QkNorm::PerHead);
    full.output_gate = r.flag(&["attn_output_gate"], true)?;
    let value_heads = r.size(&["linear_num_value_heads"])?;
    let delta = LinearAttention {
        key_heads: r.size(&["linear_num_key_heads"])?,
        value_heads,
        key_head_dim: r.size(&["linear_key_head_dim"])?,
        value_head_dim: r.size(&["linear_value_head_dim"])?,
        conv_kernel: r.size(&["linear_conv_kernel_dim"])?,
        output_gate: true,
        gate_rank: None,
        chunk: 64,
        // A decay and a time-step bias per value head.
        extra_parameters: value_heads.saturating_mul(2),
    };
    let moe = if r.get(EXPERTS).is_some() { Some(qwen_experts(r)?) } else { None };
    let layers = layers(r)?;
    let types = r.per_layer("layer_types", layers)?;
    let interval = r.size_or(&["full_attention_interval"], 4)?;
    for (layer, has_experts) in qwen_sparse(r, layers)?.into_iter().enumerate() {
        let is_full = match types {
            Some(types) => types[layer].as_str() == Some("full_attention"),
            None => (layer as u64 + 1).is_multiple_of(interval),
        };
        let mixer = if is_full { Mixer::Attention(full.clone()) } else { Mixer::Linear(delta.clone()) };
        let ffn = match &moe {
            Some(moe) if has_experts => Ffn::Moe(moe.clone()),
            _ => plain_gated(r)?,
        };
        push(&mut model, block(mixer, ffn));
    }
    model.mtp_layers = r.count(&["mtp_num_hidden_layers", "num_nextn_predict_layers"])?.min(1 << 10) as u32;
    if model.mtp_layers > 0 {
        let ffn = match moe {
            Some(moe) => Ffn::Moe(moe),
            None => plain_gated(r)?,
        };
        model.mtp_kind = Some(kind(&mut model, block(Mixer::Attention(full), ffn)));
    }
    Ok(model)
}

fn mamba2_mixer(r: &Reader<'_>, heads: &[&'static str], head_dim: &[&'static str]) -> Read<Mamba2> {
    Ok(Mamba2 {
        heads: r.size(heads)?,
        head_dim: r.size(head_dim)?,
        state: r.size(&["ssm_state_size", "state_size"])?,
        groups: r.size(&["n_groups", "mamba_n_groups"])?,
        conv_kernel: r.size(&["conv_kernel"])?,
        conv_bias: r.flag(&["use_conv_bias"], true)?,
        bias: r.flag(&["mamba_proj_bias", "use_bias"], false)?,
        chunk: r.size_or(&["chunk_size"], 128)?,
    })
}

/// Nemotron-H and Nemotron 3: every layer is one thing (state-space, attention, dense or experts) behind one norm.
pub(super) fn nemotron_h(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    model.position = crate::arch::Position::None;
    let pattern: Vec<String> = if let Some(pattern) = r.string("hybrid_override_pattern")? {
        let words = pattern.chars().map(|c| match c {
            'M' => "mamba".to_owned(),
            '*' => "attention".to_owned(),
            '-' => "mlp".to_owned(),
            'E' => "moe".to_owned(),
            other => other.to_string(),
        });
        words.collect()
    } else if let Some(list) = r.list("layers_block_type")? {
        list.iter().map(|v| v.as_str().unwrap_or_default().to_owned()).collect()
    } else {
        return r.missing(&["hybrid_override_pattern", "layers_block_type"]);
    };
    if let Some(layers) = r.size_opt(&["num_hidden_layers"])?
        && layers != pattern.len() as u64
    {
        return r.bad("num_hidden_layers", format!("{}, the length of the layer pattern", pattern.len()));
    }
    if pattern.len() > 1 << 16 {
        return r.inconsistent("hybrid_override_pattern", format!("{} layers are too many", pattern.len()));
    }
    for name in &pattern {
        let block = nemotron_layer(r, name)?;
        push(&mut model, block);
    }
    prediction_layers(r, &mut model)?;
    Ok(model)
}

/// Prediction layers of Nemotron 3: an attention and an expert layer that together make one block of two norms.
fn prediction_layers(r: &Reader<'_>, model: &mut Model) -> Read<()> {
    let count = r.count(&["num_nextn_predict_layers"])?.min(1 << 10) as u32;
    let names: Vec<&str> = match (r.string("mtp_hybrid_override_pattern")?, r.list("mtp_layers_block_type")?)
    {
        (Some("*E"), _) => vec!["attention", "moe"],
        (_, Some(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if count == 0 || names.is_empty() {
        return Ok(());
    }
    if names != ["attention", "moe"] {
        return r.unsupported(
            Some("mtp_layers_block_type"),
            "prediction layers other than attention and experts",
        );
    }
    let (attention, moe) = (nemotron_layer(r, "attention")?, nemotron_layer(r, "moe")?);
    model.mtp_layers = count;
    model.mtp_kind = Some(kind(model, block(attention.mixer, moe.ffn)));
    Ok(())
}

fn nemotron_layer(r: &Reader<'_>, name: &str) -> Read<Block> {
    let bias = r.flag(&["mlp_bias"], false)?;
    let (mixer, ffn) = match name {
        "mamba" => {
            let mamba = mamba2_mixer(r, &["mamba_num_heads"], &["mamba_head_dim"])?;
            (Mixer::Mamba2(mamba), Ffn::None)
        }
        "attention" => {
            let mut a = attention(r, r.size(HIDDEN)?)?;
            let bias = r.flag(&["attention_bias"], false)?;
            (a.qkv_bias, a.out_bias) = (bias, bias);
            (Mixer::Attention(a), Ffn::None)
        }
        "mlp" => (Mixer::None, Ffn::Dense(DenseFfn { hidden: r.size(FFN)?, gated: false, bias })),
        "moe" => {
            let moe = Moe {
                gated: false,
                bias,
                shared_hidden: r
                    .count(&["n_shared_experts"])?
                    .saturating_mul(r.count(&["moe_shared_expert_intermediate_size"])?),
                router_bias: true,
                latent: r.size_opt(&["moe_latent_size"])?,
                ..experts(r.size(EXPERTS)?, r.size(TOP_K)?, r.size(&["moe_intermediate_size"])?)
            };
            (Mixer::None, Ffn::Moe(moe))
        }
        other => {
            return r.unsupported(
                Some("hybrid_override_pattern"),
                format!("layer `{other}`; known are mamba (M), attention (*), mlp (-) and moe (E)"),
            );
        }
    };
    Ok(Block { norms: 1, ..block(mixer, ffn) })
}

/// A pure Mamba-2 model.
pub(super) fn mamba2(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    model.position = crate::arch::Position::None;
    let mixer = mamba2_mixer(r, &["num_heads"], &["head_dim"])?;
    for _ in 0..layers(r)? {
        push(&mut model, Block { norms: 1, ..block(Mixer::Mamba2(mixer.clone()), Ffn::None) });
    }
    Ok(model)
}

/// Jamba: refused, because its state-space layers are of the first Mamba generation.
pub(super) fn jamba(r: &Reader<'_>) -> Read<Model> {
    r.unsupported(
        Some("mamba_d_state"),
        "its Mamba-1 layers (selective scan with a matrix per channel) are not modelled; Mamba-2 hybrids are",
    )
}
