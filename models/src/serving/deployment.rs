//! How a model is deployed for serving: parallel degrees and number formats.

use crate::Model;
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

/// A replica's layout and the number of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Deployment {
    /// Independent copies of the engine, behind a router.
    pub replicas: u32,
    /// Tensor-parallel ranks of the attention.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Copies of the attention inside a replica, each with its own requests; experts are shared by all.
    pub attention_dp: u32,
    /// Groups that experts are spread over; divides `tp · attention_dp`. 1 splits each expert over all ranks.
    pub ep: u32,
    /// Number formats.
    pub quantization: Quantization,
}

/// Why a deployment is impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeploymentError {
    /// A degree of zero.
    #[error("`{0}` must be at least 1")]
    Zero(&'static str),
    /// Heads do not divide.
    #[error("{heads} query heads do not divide over tp = {tp}")]
    Heads {
        /// Query heads.
        heads: u64,
        /// Degree.
        tp: u32,
    },
    /// Experts or ranks do not divide.
    #[error("expert parallelism {ep} fits neither {ranks} ranks nor {experts} experts")]
    Experts {
        /// Degree.
        ep: u32,
        /// Ranks of the replica without pipeline.
        ranks: u32,
        /// Experts of the model.
        experts: u64,
    },
    /// More stages than layers.
    #[error("{pp} pipeline stages for {layers} layers")]
    Stages {
        /// Degree.
        pp: u32,
        /// Layers.
        layers: u32,
    },
}

impl Deployment {
    /// One replica on `tp` accelerators.
    pub fn tensor_parallel(tp: u32, quantization: Quantization) -> Self {
        Self { replicas: 1, tp, pp: 1, attention_dp: 1, ep: 1, quantization }
    }

    /// Accelerators of one replica.
    pub fn accelerators_per_replica(&self) -> u32 {
        self.tp * self.pp * self.attention_dp
    }

    /// Accelerators in all.
    pub fn accelerators(&self) -> u32 {
        self.replicas * self.accelerators_per_replica()
    }

    /// Batches in flight inside a replica: attention copies, or pipeline stages each working on its own batch.
    pub fn lanes(&self) -> u32 {
        self.attention_dp * self.pp
    }

    /// Checks the degrees against the model.
    ///
    /// # Errors
    /// The first degree that does not fit.
    pub fn check(&self, model: &Model) -> Result<(), DeploymentError> {
        for (name, degree) in [
            ("replicas", self.replicas),
            ("tp", self.tp),
            ("pp", self.pp),
            ("attention_dp", self.attention_dp),
            ("ep", self.ep),
        ] {
            if degree == 0 {
                return Err(DeploymentError::Zero(name));
            }
        }
        let heads = model.heads();
        if heads > 0 && !heads.is_multiple_of(u64::from(self.tp)) {
            return Err(DeploymentError::Heads { heads, tp: self.tp });
        }
        if self.pp > model.layers() {
            return Err(DeploymentError::Stages { pp: self.pp, layers: model.layers() });
        }
        let ranks = self.tp * self.attention_dp;
        let experts = model.moe().map_or(0, |m| m.experts);
        if self.ep > 1 && (!ranks.is_multiple_of(self.ep) || u64::from(self.ep) > experts) {
            return Err(DeploymentError::Experts { ep: self.ep, ranks, experts });
        }
        Ok(())
    }
}
