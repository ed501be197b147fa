//! Number formats that weights and caches are stored in.

use psim_hardware::DType;
use serde::{Deserialize, Serialize};

/// Storage and arithmetic format of a weight matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NumberFormat {
    /// 16-bit floats.
    Bf16,
    /// 8-bit floats, one scale per tensor or row.
    Fp8,
    /// 8-bit floats, scales per 128 elements (DeepSeek).
    Fp8Block,
    /// 8-bit integers for weights and activations (SmoothQuant).
    Int8,
    /// 8-bit integer weights, 16-bit arithmetic.
    W8a16,
    /// 4-bit integer weights, 16-bit arithmetic (AWQ, GPTQ).
    W4a16,
    /// 4-bit integer weights, 8-bit float arithmetic.
    W4a8,
    /// 4-bit floats with a scale per 16, weights and activations.
    Nvfp4,
    /// 4-bit floats with a scale per 32; arithmetic in 8-bit floats, or 16 bits where the part has no 4-bit units.
    Mxfp4,
    /// llama.cpp Q4_K_M: 4.85 bits a weight on average, 8-bit integer or 16-bit arithmetic.
    Q4km,
}

impl NumberFormat {
    /// Every format.
    pub const ALL: [Self; 10] = [
        Self::Bf16,
        Self::Fp8,
        Self::Fp8Block,
        Self::Int8,
        Self::W8a16,
        Self::W4a16,
        Self::W4a8,
        Self::Nvfp4,
        Self::Mxfp4,
        Self::Q4km,
    ];

    /// Bits of a stored weight, scales included.
    pub fn weight_bits(self) -> f64 {
        match self {
            Self::Bf16 => 16.0,
            Self::Fp8 | Self::Int8 | Self::W8a16 => 8.0,
            Self::Fp8Block => 8.0 + 32.0 / 16_384.0,
            // A 16-bit scale and a zero point for every 128 weights.
            Self::W4a16 | Self::W4a8 => 4.15,
            Self::Nvfp4 => 4.5,
            Self::Mxfp4 => 4.25,
            Self::Q4km => 4.85,
        }
    }

    /// Lower-case name, as in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Fp8Block => "fp8-block",
            Self::Int8 => "int8",
            Self::W8a16 => "w8a16",
            Self::W4a16 => "w4a16",
            Self::W4a8 => "w4a8",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp4 => "mxfp4",
            Self::Q4km => "q4km",
        }
    }

    /// Reads a name or a usual alias.
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.trim().to_lowercase();
        Some(match lower.as_str() {
            "bf16" | "fp16" | "half" | "bfloat16" | "float16" => Self::Bf16,
            "fp8" | "fp8-tensor" | "w8a8-fp8" => Self::Fp8,
            "fp8-block" | "fp8_block" | "fp8-block128" => Self::Fp8Block,
            "int8" | "w8a8" | "int8-sq" | "smoothquant" => Self::Int8,
            "w8a16" | "int8-wo" => Self::W8a16,
            "w4a16" | "int4" | "int4-wo" | "awq" | "gptq" => Self::W4a16,
            "w4a8" => Self::W4a8,
            "nvfp4" | "fp4" => Self::Nvfp4,
            "mxfp4" => Self::Mxfp4,
            "q4km" | "q4_k_m" | "gguf q4_k_m" => Self::Q4km,
            _ => return None,
        })
    }
}

/// Number formats of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Quantization {
    /// Attention projections and dense feed-forward matrices.
    pub dense: NumberFormat,
    /// Matrices of the attention alone, where they differ (kept in 16 bits by gpt-oss and some checkpoints).
    pub attention: NumberFormat,
    /// Expert matrices.
    pub experts: NumberFormat,
    /// Keys and values in the cache.
    pub kv: DType,
}

impl Quantization {
    /// One format for all matrices; the cache in 16 bits.
    pub fn uniform(format: NumberFormat) -> Self {
        Self { dense: format, attention: format, experts: format, kv: DType::Bf16 }
    }
}
