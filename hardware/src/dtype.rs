//! Numeric formats that tensors are stored and multiplied in.

use serde::{Deserialize, Serialize};

/// A storage or arithmetic format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 32-bit float.
    Fp32,
    /// 19-bit tensor-core float stored in 32 bits.
    Tf32,
    /// IEEE 16-bit float.
    Fp16,
    /// bfloat16.
    Bf16,
    /// 8-bit float (E4M3 or E5M2), scales per tensor, row or block.
    Fp8,
    /// 8-bit integer.
    Int8,
    /// 4-bit float with block scales (NVFP4, MXFP4).
    Fp4,
    /// 4-bit integer weights.
    Int4,
}

impl DType {
    /// Every format.
    pub const ALL: [Self; 8] =
        [Self::Fp32, Self::Tf32, Self::Fp16, Self::Bf16, Self::Fp8, Self::Int8, Self::Fp4, Self::Int4];

    /// Bits of one stored element, block scales not counted.
    pub fn bits(self) -> u64 {
        match self {
            Self::Fp32 | Self::Tf32 => 32,
            Self::Fp16 | Self::Bf16 => 16,
            Self::Fp8 | Self::Int8 => 8,
            Self::Fp4 | Self::Int4 => 4,
        }
    }

    /// Bytes of `count` stored elements, rounded up.
    pub fn bytes(self, count: u64) -> u64 {
        count.saturating_mul(self.bits()).div_ceil(8)
    }

    /// Bytes per element as a float.
    pub fn size(self) -> f64 {
        self.bits() as f64 / 8.0
    }

    /// The lower-case name used in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Fp4 => "fp4",
            Self::Int4 => "int4",
        }
    }
}

/// How the scales of a low-precision matrix product are laid out. Formats without scales use `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// No scales (fp32, tf32, fp16, bf16).
    #[default]
    None,
    /// One scale per tensor (delayed or current) or per row.
    Tensor,
    /// One scale per 32 (MX formats) or 16 (NVFP4) elements, applied by the matrix unit.
    MicroBlock,
    /// One scale per 128 elements or 128×128 block, applied by the kernel (DeepSeek recipe).
    Block128,
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
