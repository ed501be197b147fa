//! Llama and its relatives: pre-norm blocks, rotary positions, a gated network, grouped heads.

use serde_json::Value;

use super::reader::{Read, Reader};
use super::stack::{
    FFN, HEADS, HIDDEN, LAYER_NORM, RMS, attention, base, block, gated, head_dim, layers, plain_attention,
    push,
};
use crate::arch::{Attention, DenseFfn, Ffn, Mixer, Model, Norm, Position, QkNorm};

/// Pushes the same attention and dense network on every layer.
fn uniform(r: &Reader<'_>, model: &mut Model, attention: &Attention, ffn: &DenseFfn) -> Read<()> {
    for _ in 0..layers(r)? {
        push(model, block(Mixer::Attention(attention.clone()), Ffn::Dense(ffn.clone())));
    }
    Ok(())
}

fn gated_ffn(r: &Reader<'_>) -> Read<DenseFfn> {
    Ok(DenseFfn { hidden: r.size(FFN)?, gated: true, bias: r.flag(&["mlp_bias"], false)? })
}

/// Llama 1 to 3.3, Yi, CodeLlama, Granite, InternLM2: one bias flag for the four attention projections.
pub(super) fn llama(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    let bias = r.flag(&["attention_bias", "bias"], false)?;
    (a.qkv_bias, a.out_bias) = (bias, bias);
    uniform(r, &mut model, &a, &gated_ffn(r)?)?;
    Ok(model)
}

/// Mistral: Llama with a sliding window on every layer where the key is set.
pub(super) fn mistral(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    a.window = r.size_opt(&["sliding_window"])?;
    uniform(r, &mut model, &a, &gated_ffn(r)?)?;
    Ok(model)
}

/// The window of layer `layer`, as Qwen2 and its relatives say it: only with `use_sliding_window`, and then by
/// `layer_types` or from layer `max_window_layers` on.
pub(super) fn window(r: &Reader<'_>, layer: u64, layers: u64) -> Read<Option<u64>> {
    let Some(window) = r.size_opt(&["sliding_window"])? else { return Ok(None) };
    if !r.flag(&["use_sliding_window"], false)? {
        return Ok(None);
    }
    if let Some(types) = r.per_layer("layer_types", layers)? {
        let sliding = types.get(layer as usize).and_then(Value::as_str) == Some("sliding_attention");
        return Ok(sliding.then_some(window));
    }
    Ok((layer >= r.count(&["max_window_layers"])?).then_some(window))
}

fn windowed(r: &Reader<'_>, model: &mut Model, attention: &Attention, ffn: &DenseFfn) -> Read<()> {
    let layers = layers(r)?;
    for layer in 0..layers {
        let mut a = attention.clone();
        a.window = window(r, layer, layers)?;
        push(model, block(Mixer::Attention(a), Ffn::Dense(ffn.clone())));
    }
    Ok(())
}

/// Qwen2, Qwen2.5 and Long-VITA's language model: biases on queries, keys and values.
pub(super) fn qwen2(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    a.qkv_bias = true;
    windowed(r, &mut model, &a, &gated_ffn(r)?)?;
    Ok(model)
}

/// MiMo-7B: Qwen2 with the bias as a key, and multi-token-prediction layers.
pub(super) fn mimo(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    a.qkv_bias = r.flag(&["attention_bias"], true)?;
    windowed(r, &mut model, &a, &gated_ffn(r)?)?;
    model.mtp_layers = r.count(&["num_nextn_predict_layers"])?.min(u64::from(u16::MAX)) as u32;
    Ok(model)
}

/// Qwen3: a norm per query and key head.
pub(super) fn qwen3(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    let bias = r.flag(&["attention_bias"], false)?;
    (a.qkv_bias, a.out_bias, a.qk_norm) = (bias, bias, QkNorm::PerHead);
    windowed(r, &mut model, &a, &gated_ffn(r)?)?;
    Ok(model)
}

/// Phi-3 and Phi-4: no biases, a window on every layer.
pub(super) fn phi3(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    a.window = r.size_opt(&["sliding_window"])?;
    uniform(r, &mut model, &a, &gated_ffn(r)?)?;
    Ok(model)
}

/// OLMo: layer norm without parameters.
pub(super) fn olmo(r: &Reader<'_>) -> Read<Model> {
    let mut model = llama(r)?;
    model.norm = Norm { rms: false, bias: false, weight: false };
    Ok(model)
}

/// OLMo 2: norms after the branches, queries and keys normed over all heads.
pub(super) fn olmo2(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    let bias = r.flag(&["attention_bias"], false)?;
    (a.qkv_bias, a.out_bias, a.qk_norm) = (bias, bias, QkNorm::AllHeads);
    uniform(r, &mut model, &a, &gated_ffn(r)?)?;
    Ok(model)
}

/// Nemotron-4 and Minitron: squared ReLU (two matrices), layer norm with bias.
pub(super) fn nemotron(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    let bias = r.flag(&["attention_bias"], false)?;
    (a.qkv_bias, a.out_bias) = (bias, bias);
    let ffn = DenseFfn { gated: false, ..gated_ffn(r)? };
    model.norm = LAYER_NORM;
    uniform(r, &mut model, &a, &ffn)?;
    Ok(model)
}

/// StableLM: layer norm with bias, optional biases on queries, keys and values.
pub(super) fn stablelm(r: &Reader<'_>) -> Read<Model> {
    if r.flag(&["qk_layernorm"], false)? {
        return r.unsupported(Some("qk_layernorm"), "a separate norm for each head is not modelled");
    }
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    a.qkv_bias = r.flag(&["use_qkv_bias"], false)?;
    model.norm = LAYER_NORM;
    uniform(r, &mut model, &a, &gated_ffn(r)?)?;
    if r.flag(&["use_parallel_residual"], false)? {
        for kind in &mut model.kinds {
            (kind.parallel, kind.norms) = (true, 1);
        }
    }
    Ok(model)
}

/// StarCoder2: layer norm, biases everywhere, a plain network.
pub(super) fn starcoder2(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    let mut a = attention(r, model.hidden)?;
    let bias = r.flag(&["use_bias"], true)?;
    (a.qkv_bias, a.out_bias) = (bias, bias);
    a.window = r.size_opt(&["sliding_window"])?;
    model.norm = LAYER_NORM;
    uniform(r, &mut model, &a, &DenseFfn { hidden: r.size(FFN)?, gated: false, bias })?;
    Ok(model)
}

/// Baichuan: Llama without grouped heads; the 13B model (width 5120) uses linear biases.
pub(super) fn baichuan(r: &Reader<'_>) -> Read<Model> {
    let mut model = llama(r)?;
    if model.hidden == 5120 {
        model.position = Position::Alibi;
    }
    Ok(model)
}

/// Qwen 1: biases on queries, keys and values; `intermediate_size` is twice the width of a branch.
pub(super) fn qwen(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let mut a = attention(r, model.hidden)?;
    a.qkv_bias = true;
    a.out_bias = !r.flag(&["no_bias"], true)?;
    let doubled = r.size(FFN)?;
    if !doubled.is_multiple_of(2) {
        return r.bad("intermediate_size", "an even number: each branch of the Qwen 1 network is half of it");
    }
    uniform(r, &mut model, &a, &DenseFfn { hidden: doubled / 2, gated: true, bias: a.out_bias })?;
    Ok(model)
}

/// ChatGLM 2, 3 and GLM-4-9B: multi-query groups, biases on queries, keys and values.
pub(super) fn chatglm(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let heads = r.size(HEADS)?;
    let grouped = r.flag(&["multi_query_attention"], false)?;
    let kv_heads = if grouped { r.size(&["multi_query_group_num"])? } else { heads };
    let linear_bias = r.flag(&["add_bias_linear"], false)?;
    let mut a = plain_attention(heads, kv_heads, head_dim(r, model.hidden, heads)?);
    (a.qkv_bias, a.out_bias) = (linear_bias || r.flag(&["add_qkv_bias"], false)?, linear_bias);
    model.norm = if r.flag(&["rmsnorm"], true)? { RMS } else { LAYER_NORM };
    model.final_norm = r.flag(&["post_layer_norm"], true)?;
    let ffn = DenseFfn {
        hidden: r.size(&["ffn_hidden_size", "intermediate_size"])?,
        gated: true,
        bias: linear_bias,
    };
    uniform(r, &mut model, &a, &ffn)?;
    Ok(model)
}

/// DeciLM: Llama with a list of key/value heads per layer.
pub(super) fn deci(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let heads = r.size(HEADS)?;
    let width = head_dim(r, model.hidden, heads)?;
    let layers = layers(r)?;
    let Some(kv_heads) = r.integers("num_key_value_heads_per_layer")? else {
        return r.missing(&["num_key_value_heads_per_layer"]);
    };
    if kv_heads.len() as u64 != layers || kv_heads.contains(&0) {
        return r.bad(
            "num_key_value_heads_per_layer",
            format!("a positive number for each of the {layers} layers"),
        );
    }
    let ffn = gated_ffn(r)?;
    for kv_heads in kv_heads {
        let a = plain_attention(heads, kv_heads, width);
        push(&mut model, block(Mixer::Attention(a), Ffn::Dense(ffn.clone())));
    }
    Ok(model)
}

/// Inner width of a searched layer: two thirds of the multiple of the width, rounded up to 256.
fn searched_width(multiple: f64, hidden: u64) -> u64 {
    ((2.0 * multiple * hidden as f64 / 3.0) as u64).next_multiple_of(256)
}

/// Nemotron-NAS (Llama-Nemotron Super, Ultra): every layer has its own heads and network width, or lacks one of the two.
pub(super) fn nemotron_nas(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let hidden = r.size(HIDDEN)?;
    let heads = r.size(HEADS)?;
    let width = head_dim(r, hidden, heads)?;
    let bias = r.flag(&["attention_bias"], false)?;
    let mlp_bias = r.flag(&["mlp_bias"], false)?;
    let blocks = r.objects("block_configs")?;
    if blocks.len() as u64 != layers(r)? {
        return r.bad("block_configs", format!("one entry for each of the {} layers", layers(r)?));
    }
    for entry in blocks {
        let (Some(attention), Some(ffn)) = (entry.nested("attention")?, entry.nested("ffn")?) else {
            return r.bad("block_configs", "objects with `attention` and `ffn`");
        };
        let mixer = if attention.flag(&["no_op"], false)? {
            Mixer::None
        } else if attention.flag(&["replace_with_linear"], false)? {
            return r.unsupported(
                Some("replace_with_linear"),
                "attention replaced by a linear layer is not modelled",
            );
        } else {
            let group = attention.size(&["n_heads_in_group"])?;
            if !heads.is_multiple_of(group) {
                return r.inconsistent(
                    "n_heads_in_group",
                    format!("groups of {group} do not divide {heads} heads"),
                );
            }
            let mut a = plain_attention(heads, heads / group, width);
            (a.qkv_bias, a.out_bias) = (bias, bias);
            a.window = attention.size_opt(&["window_length"])?;
            Mixer::Attention(a)
        };
        let ffn = if ffn.flag(&["no_op"], false)? {
            Ffn::None
        } else if ffn.flag(&["replace_with_linear"], false)? {
            return r.unsupported(
                Some("replace_with_linear"),
                "a network replaced by a linear layer is not modelled",
            );
        } else {
            let multiple = match ffn.number("ffn_mult")? {
                Some(m) if m > 0.0 && m < 1e6 => m,
                _ => return ffn.missing(&["ffn_mult"]),
            };
            Ffn::Dense(DenseFfn { hidden: searched_width(multiple, hidden), gated: true, bias: mlp_bias })
        };
        let norms = u8::from(mixer != Mixer::None) + u8::from(ffn != Ffn::None);
        push(&mut model, crate::arch::Block { norms, ..block(mixer, ffn) });
    }
    Ok(model)
}

/// A gated network of the usual key, for readers that need nothing else.
pub(super) fn plain_gated(r: &Reader<'_>) -> Read<Ffn> {
    Ok(gated(r.size(FFN)?))
}
