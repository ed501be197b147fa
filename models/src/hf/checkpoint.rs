//! Formats of published weights: the `quantization_config` of a released configuration.
//!
//! The spellings are those of the Hugging Face quantisers (`fp8`, `mxfp4`, `awq`, `gptq`, `compressed-tensors`) and of
//! NVIDIA's Model Optimizer (`modelopt`, with `quant_algo`).

use crate::serving::{NumberFormat, Quantization};
use psim_hardware::DType;
use serde_json::Value;

/// Formats of the matrices, or nothing where the configuration is of a kind that psim does not price.
pub(super) fn formats(config: &Value) -> Option<Quantization> {
    let format = algorithm(config)?;
    let kept = kept_in_16_bits(config);
    let unless = |kept: bool| if kept { NumberFormat::Bf16 } else { format };
    let attention = unless(kept.iter().any(|module| module.contains("self_attn")));
    let dense = unless(kept.iter().any(|module| module.contains("mlp") && module.contains("proj")));
    Some(Quantization { dense, attention, experts: format, kv: DType::Bf16 })
}

fn algorithm(config: &Value) -> Option<NumberFormat> {
    let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_ascii_lowercase);
    match text("quant_method")?.as_str() {
        "fp8" if config.get("weight_block_size").is_some_and(|size| !size.is_null()) => {
            Some(NumberFormat::Fp8Block)
        }
        "fp8" => Some(NumberFormat::Fp8),
        "mxfp4" => Some(NumberFormat::Mxfp4),
        "awq" | "gptq" => match config.get("bits").and_then(Value::as_u64) {
            Some(8) => Some(NumberFormat::W8a16),
            Some(4) | None => Some(NumberFormat::W4a16),
            Some(_) => None,
        },
        "compressed-tensors" | "modelopt" => grouped(config),
        _ => None,
    }
}

/// The first group of `config_groups`: width and kind of the weights, and whether activations are narrow too.
fn grouped(config: &Value) -> Option<NumberFormat> {
    if let Some(algorithm) = config.get("quant_algo").and_then(Value::as_str) {
        match algorithm {
            "NVFP4" => return Some(NumberFormat::Nvfp4),
            "FP8" => return Some(NumberFormat::Fp8),
            "FP8_BLOCK_SCALES" => return Some(NumberFormat::Fp8Block),
            _ => {}
        }
    }
    let group = config.get("config_groups")?.as_object()?.values().next()?;
    let weights = group.get("weights")?;
    let bits = weights.get("num_bits").and_then(Value::as_u64)?;
    let float = weights.get("type").and_then(Value::as_str) == Some("float");
    let size = weights.get("group_size").and_then(Value::as_u64);
    let blocks = weights.get("strategy").and_then(Value::as_str) == Some("block");
    let narrow = group.get("input_activations").is_some_and(|activations| !activations.is_null());
    match (bits, float) {
        (4, true) if size == Some(32) => Some(NumberFormat::Mxfp4),
        (4, true) => Some(NumberFormat::Nvfp4),
        (4, false) if narrow => Some(NumberFormat::W4a8),
        (4, false) => Some(NumberFormat::W4a16),
        (8, true) if blocks => Some(NumberFormat::Fp8Block),
        (8, true) => Some(NumberFormat::Fp8),
        (8, false) if narrow => Some(NumberFormat::Int8),
        (8, false) => Some(NumberFormat::W8a16),
        _ => None,
    }
}

/// Modules that the quantiser left alone in every layer.
fn kept_in_16_bits(config: &Value) -> Vec<&str> {
    ["modules_to_not_convert", "ignore", "exclude_modules"]
        .iter()
        .filter_map(|key| config.get(key).and_then(Value::as_array))
        .flatten()
        .filter_map(Value::as_str)
        // One layer left alone is no rule; patterns over all layers are.
        .filter(|module| module.contains('*') || !module.contains(char::is_numeric))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: &Value) -> Option<(&'static str, &'static str)> {
        formats(config).map(|q| (q.attention.name(), q.experts.name()))
    }

    #[test]
    fn released_configurations_are_understood() {
        let deepseek = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]});
        assert_eq!(read(&deepseek), Some(("fp8-block", "fp8-block")));
        let gpt_oss = json!({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]});
        assert_eq!(read(&gpt_oss), Some(("bf16", "mxfp4")));
        let int4 = json!({"quant_method": "compressed-tensors", "ignore": ["re:.*self_attn.*"], "config_groups": {"group_0": {
            "input_activations": null, "weights": {"num_bits": 4, "type": "int", "group_size": 32}}}});
        assert_eq!(read(&int4), Some(("bf16", "w4a16")));
        let nvfp4 = json!({"quant_method": "modelopt", "ignore": ["lm_head", "model.layers.0.self_attn"],
            "config_groups": {"group_0": {"input_activations": {"num_bits": 4},
            "weights": {"num_bits": 4, "type": "float", "group_size": 16}}}});
        assert_eq!(read(&nvfp4), Some(("nvfp4", "nvfp4")));
        assert_eq!(read(&json!({"quant_method": "gptq", "bits": 8})), Some(("w8a16", "w8a16")));
    }

    #[test]
    fn what_is_not_understood_is_not_guessed() {
        for config in [
            json!({}),
            json!({"quant_method": "fbgemm"}),
            json!({"quant_method": "gptq", "bits": 3}),
            json!(7),
        ] {
            assert_eq!(read(&config), None);
        }
    }
}
