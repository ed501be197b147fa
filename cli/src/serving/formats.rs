//! Number formats of weights and caches: by name, by flags, as a model is published.

use crate::failure::Failure;
use psim_hardware::DType;
use psim_models::Model;
use psim_models::serving::{NumberFormat, Quantization};
use psim_planner::Assumption;

/// Format of the cache by name.
pub(crate) fn cache_format(text: &str) -> Option<DType> {
    Some(match text.trim().to_lowercase().as_str() {
        "bf16" | "bfloat16" => DType::Bf16,
        "fp16" | "float16" | "half" => DType::Fp16,
        "fp8" => DType::Fp8,
        "int8" => DType::Int8,
        "fp4" | "nvfp4" => DType::Fp4,
        "int4" => DType::Int4,
        _ => return None,
    })
}

/// Reads `--kv-precision`.
pub(crate) fn kv_format(text: &str) -> Result<DType, Failure> {
    cache_format(text).ok_or_else(|| {
        Failure::input(
            format!("`{text}` is not a format of the KV cache"),
            "one of bf16, fp8, int8, fp4, int4",
        )
    })
}

/// Number formats by flags; what is not given is 16 bits, said in the assumptions.
pub(crate) fn formats(
    model: &Model,
    weights: Option<NumberFormat>,
    kv: Option<DType>,
    assumptions: &mut Vec<Assumption>,
) -> Quantization {
    let mut assume = |name: &str, value: &str, why: &str| {
        assumptions.push(Assumption { name: name.to_owned(), value: value.to_owned(), why: why.to_owned() });
    };
    let weights = match (weights, model.checkpoint) {
        (Some(format), _) => as_published(model, Quantization::uniform(format)),
        (None, Some(published)) => {
            assume("weights", published.experts.name(), "as this model is published; --precision");
            published
        }
        (None, None) => {
            assume("weights", "bf16", "as most checkpoints are published; --precision");
            Quantization::uniform(NumberFormat::Bf16)
        }
    };
    let kv = kv.unwrap_or_else(|| {
        assume("KV cache", "bf16", "the engines' default; --kv-precision");
        DType::Bf16
    });
    Quantization { kv, ..weights }
}

/// `fp8` of a model whose 8-bit weights are published with a scale per block means those weights: other kernels run.
pub(crate) fn as_published(model: &Model, given: Quantization) -> Quantization {
    let blocks = model.checkpoint.is_some_and(|published| published.experts == NumberFormat::Fp8Block);
    let format = |f: NumberFormat| if blocks && f == NumberFormat::Fp8 { NumberFormat::Fp8Block } else { f };
    Quantization {
        dense: format(given.dense),
        attention: format(given.attention),
        experts: format(given.experts),
        kv: given.kv,
    }
}
