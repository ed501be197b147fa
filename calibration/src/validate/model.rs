//! The model of a row: printed dimensions first; the preset of the same name where they are missing or too coarse.

use super::row::{ConfigFields, ModelFields};
use psim_models::Model;
use psim_models::arch::{
    Attention, AttentionVariant, Block, DenseFfn, Ffn, Mixer, Mla, Moe, Norm, Position, QkNorm,
};

/// Builds the model.
///
/// # Errors
/// Missing or contradictory dimensions of a model that no preset knows.
pub fn map(fields: &ModelFields, config: &ConfigFields) -> Result<(Model, Vec<String>), String> {
    let mut notes = Vec::new();
    let mut model = match preset_for(fields) {
        Some(preset) => preset,
        None => from_dimensions(fields, config)?,
    };
    // Presets carry the released model's prediction layers; a run has them only where it says so.
    model.mtp_layers = config.extra_number("mtp_layers").map_or(0, |layers| (layers as u32).min(8));
    if config.extra_text("position").is_some_and(|p| p.eq_ignore_ascii_case("alibi")) {
        model.position = Position::Alibi;
    }
    if let Some(printed) = fields.params_b.filter(|p| *p > 0.0) {
        let counted = model.parameters().total as f64 / 1e9;
        if (counted / printed).ln().abs() > 0.1 {
            notes.push(format!("{counted:.2} billion parameters counted, {printed} printed"));
        }
    }
    Ok((model, notes))
}

/// Name without remarks in brackets: `llama3-70b (12 layers)` is `llama3-70b`.
fn base_name(name: &str) -> &str {
    name.split('(').next().unwrap_or(name).trim()
}

/// The preset of that name if every printed dimension agrees with it; layers are cut to the printed number.
fn preset_for(fields: &ModelFields) -> Option<Model> {
    let mut model = psim_models::presets::find(base_name(&fields.name)).ok()?;
    let same = |printed: Option<u64>, preset: u64| printed.is_none_or(|p| p == preset);
    if !same(fields.hidden, model.hidden) || !same(fields.heads, model.heads()) {
        return None;
    }
    let moe = model.moe().cloned();
    let dense = model.kinds.iter().find_map(|b| match &b.ffn {
        Ffn::Dense(d) => Some(d.hidden),
        _ => None,
    });
    let attention = model.kinds.iter().find_map(|b| match &b.mixer {
        Mixer::Attention(a) => Some(a.clone()),
        _ => None,
    });
    let agrees = |a: &Attention| same(fields.kv_heads, a.kv_heads) && same(fields.head_dim, a.head_dim);
    if !attention.as_ref().is_none_or(agrees) {
        return None;
    }
    match moe {
        Some(moe) => {
            let agree = same(fields.experts, moe.experts)
                && same(fields.top_k, moe.top_k)
                && same(fields.moe_ffn_hidden, moe.hidden);
            if !agree {
                return None;
            }
        }
        None => {
            if fields.experts.is_some_and(|e| e > 1) {
                return None;
            }
            if dense.is_some_and(|d| !same(fields.ffn_hidden, d)) {
                return None;
            }
        }
    }
    if let Some(layers) = fields.layers {
        let have = u64::from(model.layers());
        if layers > have || layers == 0 {
            return None;
        }
        if layers < have {
            // A cut keeps the printed number of dense layers in front of the mixtures.
            let dense = fields.moe_layers.map(|m| layers.saturating_sub(m) as usize);
            let is_moe = |k: &u16| matches!(model.kinds[usize::from(*k)].ffn, Ffn::Moe(_));
            let first_moe = model.pattern.iter().position(is_moe);
            let skip = match (dense, first_moe) {
                (Some(dense), Some(first)) => first.saturating_sub(dense),
                _ => 0,
            };
            model.pattern = model.pattern.iter().skip(skip).take(layers as usize).copied().collect();
            model.name = format!("{} ({layers} layers)", model.name);
        }
    }
    if let Some(vocab) = fields.vocab.filter(|v| *v > 0) {
        model.vocab = vocab;
    }
    if let Some(tied) = fields.tied_embeddings {
        model.tied_embeddings = tied;
    }
    Some(model)
}

/// What a family of names implies beyond the printed dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Layer norm, biases, learned positions (GPT-2/3, Megatron, OPT, T5-like).
    Gpt,
    /// Layer norm, ALiBi, biases, norm after the embedding.
    Bloom,
    /// Layer norm without biases, ALiBi or learned positions.
    Mpt,
    /// Layer norm, rotary, no biases, squared ReLU.
    Nemotron,
    /// RMS norm, rotary, gated, no biases.
    Llama,
}

fn style(name: &str, ffn: Option<&str>) -> Style {
    if name.contains("bloom") {
        Style::Bloom
    } else if name.contains("mpt") {
        Style::Mpt
    } else if name.contains("nemotron") || ffn.is_some_and(|f| f.contains("squared")) {
        Style::Nemotron
    } else if ffn.is_some_and(|f| f.contains("glu"))
        || (ffn.is_none() && !name.contains("gpt") && !name.contains("opt"))
    {
        Style::Llama
    } else {
        Style::Gpt
    }
}

/// Vocabulary where none is printed: the SentencePiece one of C4 (32,000) in the zero-bubble fork, whose examples train
/// on it (it also makes the output layer as heavy as a layer, which the paper's layer counts take for granted);
/// Megatron's GPT corpus, padded, everywhere else.
fn usual_vocab(config: &ConfigFields) -> u64 {
    if config.framework.to_lowercase().contains("zero bubble") { 32_000 } else { 51_200 }
}

fn from_dimensions(fields: &ModelFields, config: &ConfigFields) -> Result<Model, String> {
    let name = fields.name.to_lowercase();
    let need = |value: Option<u64>, key: &str| {
        value
            .filter(|v| *v > 0)
            .ok_or_else(|| format!("`model.{key}` is missing and no preset is called `{}`", fields.name))
    };
    let layers = need(fields.layers, "layers")?;
    let hidden = need(fields.hidden, "hidden")?;
    if layers > 4096 || hidden > 1 << 20 {
        return Err(format!("absurd size: {layers} layers of width {hidden}"));
    }
    let style = style(&name, fields.ffn.as_deref());
    let heads = fields.heads.filter(|h| *h > 0).unwrap_or_else(|| usual_heads(hidden, fields.head_dim));
    let head_dim = fields.head_dim.filter(|d| *d > 0).unwrap_or((hidden / heads).max(1));
    let kv_heads = fields.kv_heads.filter(|h| *h > 0).unwrap_or(heads);
    let gated = fields.ffn.as_deref().map_or(style == Style::Llama, |f| f.contains("glu"));
    let ffn_hidden =
        fields.ffn_hidden.filter(|f| *f > 0).unwrap_or(if gated { hidden * 8 / 3 } else { 4 * hidden });
    let bias = matches!(style, Style::Gpt | Style::Bloom);
    let qwen = name.contains("qwen");
    let qkv_bias = bias || (qwen && !name.contains("qwen3"));
    let mixer = if fields.attention.as_deref() == Some("mla") {
        Mixer::Mla(mla(&name, heads))
    } else {
        Mixer::Attention(Attention {
            heads,
            kv_heads,
            head_dim,
            v_head_dim: head_dim,
            window: None,
            qkv_bias,
            out_bias: bias,
            qk_norm: if name.contains("qwen3") { QkNorm::PerHead } else { QkNorm::None },
            sinks: false,
            output_gate: false,
            variant: AttentionVariant::default(),
        })
    };
    let block = |ffn: Ffn| Block {
        mixer: mixer.clone(),
        cross_attention: None,
        ffn,
        norms: 2,
        parallel: name.contains("gpt-j") || name.contains("neox") || name.contains("falcon"),
        extra_parameters: 0,
    };
    let dense = block(Ffn::Dense(DenseFfn { hidden: ffn_hidden, gated, bias }));
    let (kinds, pattern) = match fields.experts.filter(|e| *e > 1) {
        None => (vec![dense], vec![0; layers as usize]),
        Some(experts) => {
            let expert_hidden = fields.moe_ffn_hidden.filter(|f| *f > 0).unwrap_or(ffn_hidden);
            let sparse = block(Ffn::Moe(Moe {
                experts,
                top_k: fields.top_k.filter(|k| *k > 0).unwrap_or(2).min(experts),
                hidden: expert_hidden,
                gated,
                bias: false,
                shared_hidden: fields.shared_experts.unwrap_or(0) * expert_hidden,
                shared_gate: qwen && fields.shared_experts.unwrap_or(0) > 0,
                router_bias: name.contains("deepseek-v3") || name.contains("kimi"),
                latent: None,
            }));
            let moe_layers = fields.moe_layers.unwrap_or(layers).min(layers);
            (vec![dense, sparse], moe_pattern(&name, layers as usize, moe_layers as usize))
        }
    };
    let layer_norm = style != Style::Llama;
    let position = match style {
        Style::Gpt if name.contains("gpt-j") || name.contains("neox") => Position::Rope,
        Style::Gpt | Style::Mpt => Position::Learned(config.seq_len.unwrap_or(2048)),
        Style::Bloom => Position::Alibi,
        Style::Nemotron | Style::Llama => Position::Rope,
    };
    Ok(Model {
        name: fields.name.clone(),
        family: format!("{style:?}").to_lowercase(),
        hidden,
        vocab: fields.vocab.filter(|v| *v > 0).unwrap_or_else(|| usual_vocab(config)),
        // The zero-bubble runtime refuses tied embeddings (its `validate_arguments`).
        tied_embeddings: fields.tied_embeddings.unwrap_or_else(|| {
            matches!(style, Style::Gpt | Style::Bloom | Style::Mpt)
                && !config.framework.to_lowercase().contains("zero bubble")
        }),
        head_bias: false,
        position,
        norm: Norm { rms: !layer_norm, bias: bias || style == Style::Nemotron, weight: true },
        embedding_norm: style == Style::Bloom,
        final_norm: true,
        kinds,
        pattern,
        encoder: None,
        mtp_layers: 0,
        mtp_kind: None,
        embedding_width: None,
        extra_parameters: Vec::new(),
        max_context: None,
        checkpoint: None,
        source: "dimensions printed with the measurement".to_owned(),
    })
}

/// Dense layers stand in front (DeepSeek); Llama 4 and Snowflake alternate.
fn moe_pattern(name: &str, layers: usize, moe_layers: usize) -> Vec<u16> {
    let alternate = moe_layers * 2 == layers && (name.contains("llama4") || name.contains("llama-4"));
    (0..layers)
        .map(
            |layer| {
                if alternate { u16::from(layer % 2 == 1) } else { u16::from(layer >= layers - moe_layers) }
            },
        )
        .collect()
}

/// Heads of width 128 where they divide the model, as nearly every GPT of that size has.
fn usual_heads(hidden: u64, head_dim: Option<u64>) -> u64 {
    if let Some(width) = head_dim.filter(|d| *d > 0) {
        return (hidden / width).max(1);
    }
    for width in [128, 150, 160, 96, 64, 80] {
        if hidden.is_multiple_of(width) {
            return hidden / width;
        }
    }
    (hidden / 128).max(1)
}

/// Latent attention of the DeepSeek line (arXiv 2405.04434, 2412.19437): only the "lite" sizes project queries directly.
fn mla(name: &str, heads: u64) -> Mla {
    let lite = name.contains("lite") || name.contains("moonlight");
    Mla {
        heads,
        q_lora_rank: (!lite).then_some(1536),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::row;

    fn model(json: &str) -> Result<(Model, Vec<String>), String> {
        let row =
            &row::read(&format!(r#"{{"id":"a","model":{json},"config":{{"seq_len":2048}}}}"#)).unwrap()[0];
        map(&row.model, &row.config)
    }

    #[test]
    fn printed_dimensions() {
        let (gpt, notes) = model(
            r#"{"name":"gpt-18B","layers":40,"hidden":6144,"heads":48,"kv_heads":48,"head_dim":128,"ffn_hidden":24576,"ffn":"gelu","vocab":51200,"tied_embeddings":true,"params_b":18.4}"#,
        )
        .unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        assert!((gpt.parameters().total as f64 / 18.45e9 - 1.0).abs() < 0.01);
        let (grok, _) = model(
            r#"{"name":"grok1-314b (proxy, 4 layers)","layers":4,"hidden":6144,"heads":48,"kv_heads":8,"head_dim":128,"ffn_hidden":32768,"ffn":"swiglu","vocab":128256,"experts":8,"top_k":2,"moe_ffn_hidden":32768,"shared_experts":0,"moe_layers":4}"#,
        )
        .unwrap();
        assert_eq!((grok.layers(), grok.moe().unwrap().experts), (4, 8));
        assert!(model(r#"{"name":"nothing-known"}"#).unwrap_err().contains("model.layers"));
    }

    #[test]
    fn cut_models_keep_their_dense_layers() {
        let (cut, _) = model(
            r#"{"name":"deepseek-v3 (4 layers)","layers":4,"hidden":7168,"heads":128,"kv_heads":128,"ffn_hidden":18432,"ffn":"swiglu","vocab":129280,"experts":256,"top_k":8,"moe_ffn_hidden":2048,"shared_experts":1,"moe_layers":3,"attention":"mla"}"#,
        )
        .unwrap();
        let mixtures =
            cut.pattern.iter().filter(|k| matches!(cut.kinds[usize::from(**k)].ffn, Ffn::Moe(_))).count();
        assert_eq!((cut.layers(), mixtures), (4, 3));
    }
}
