//! Sustained over burst rate of an accelerator inside a training step.
//!
//! Kernel tables are taken kernel by kernel, at burst clocks. A step keeps the matrix units busy for seconds: the power
//! limit lowers the clock, and how much depends on the part, the format and the board's limit. These shares are the
//! only accelerator numbers adjusted on end-to-end measurements.

use serde::{Deserialize, Serialize};

/// Sustained shares of one accelerator; 1 where nothing is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sustained {
    /// Canonical accelerator name.
    pub accelerator: String,
    /// 16-bit matrix products.
    #[serde(default = "one")]
    pub bf16: f64,
    /// 8-bit matrix products.
    #[serde(default = "one")]
    pub fp8: f64,
    /// 4-bit matrix products.
    #[serde(default = "one")]
    pub fp4: f64,
    /// Fused attention.
    #[serde(default = "one")]
    pub attention: f64,
}

/// Share of the tabled or default rate that a fabric sustains inside a training step (routing, shared switches).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FabricShare {
    /// Kind of fabric.
    pub kind: String,
    /// Share of every rate of its profile.
    pub share: f64,
}

impl FabricShare {
    /// Smallest and largest meaningful share.
    pub const BOUNDS: (f64, f64) = (0.2, 1.15);
}

fn one() -> f64 {
    1.0
}

impl Sustained {
    /// Nothing lost.
    pub fn none(accelerator: &str) -> Self {
        Self { accelerator: accelerator.to_owned(), bf16: 1.0, fp8: 1.0, fp4: 1.0, attention: 1.0 }
    }

    /// Keys of the shares.
    pub const KEYS: [&'static str; 4] = ["bf16", "fp8", "fp4", "attention"];

    /// Smallest and largest meaningful share.
    pub const BOUNDS: (f64, f64) = (0.4, 1.3);

    /// A share by key.
    pub fn share(&self, key: &str) -> Option<f64> {
        match key {
            "bf16" => Some(self.bf16),
            "fp8" => Some(self.fp8),
            "fp4" => Some(self.fp4),
            "attention" => Some(self.attention),
            _ => None,
        }
    }

    /// Sets a share by key; an unknown key or a value outside [`Sustained::BOUNDS`] changes nothing and gives `false`.
    pub fn set_share(&mut self, key: &str, value: f64) -> bool {
        let (low, high) = Self::BOUNDS;
        if !(value.is_finite() && value >= low && value <= high) {
            return false;
        }
        match key {
            "bf16" => self.bf16 = value,
            "fp8" => self.fp8 = value,
            "fp4" => self.fp4 = value,
            "attention" => self.attention = value,
            _ => return false,
        }
        true
    }
}
