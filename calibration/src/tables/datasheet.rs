//! Datasheet facts that the fits divide by, read from the measured folder's own table.

use super::{TableError, read};
use psim_cost_models::gemm::Rates;
use psim_hardware::DType;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// One accelerator's rates.
#[derive(Debug, Clone, Deserialize)]
pub struct Datasheet {
    /// Canonical name.
    pub accelerator: String,
    fp32_tflops: Option<f64>,
    fp16_tflops: Option<f64>,
    bf16_tflops: Option<f64>,
    fp8_tflops: Option<f64>,
    int8_tops: Option<f64>,
    fp4_tflops: Option<f64>,
    /// Memory bandwidth, 10^12 bytes/s.
    pub mem_tbps: Option<f64>,
    sm_count: Option<f64>,
    /// Scale-up rate, one direction, 10^9 bytes/s.
    pub link_gbps_per_dir: Option<f64>,
    /// Board power.
    pub tdp_w: Option<f64>,
}

impl Datasheet {
    /// Units that run tiles at once. Where the datasheet table has no count, the full parts' published ones: 148 SMs
    /// for data-centre Blackwell, 142 for L40S, 188 for RTX PRO 6000, 160 vector engines for Arc Pro B60.
    pub fn units(&self) -> f64 {
        self.sm_count.unwrap_or(match self.accelerator.as_str() {
            "B300-SXM" | "GB200" | "GB300" => 148.0,
            "L40S" => 142.0,
            "RTX-PRO-6000-Server" => 188.0,
            "Arc-Pro-B60" => 160.0,
            _ => 128.0,
        })
    }

    /// Rates for a format; `None` when the part lacks it (or its bandwidth is unknown).
    pub fn rates(&self, dtype: DType) -> Option<Rates> {
        let half = self.bf16_tflops.or(self.fp16_tflops);
        let peak = match dtype {
            DType::Fp32 | DType::Tf32 => self.fp32_tflops,
            DType::Fp16 => self.fp16_tflops.or(self.bf16_tflops),
            DType::Bf16 => half,
            DType::Fp8 => self.fp8_tflops.or(half),
            DType::Int8 => self.int8_tops,
            DType::Fp4 => self.fp4_tflops,
            DType::Int4 => None,
        }?;
        Some(Rates { peak: peak * 1e12, bandwidth: self.mem_tbps? * 1e12, units: self.units() })
    }
}

/// All datasheets by canonical name.
pub fn datasheets(folder: &Path) -> Result<BTreeMap<String, Datasheet>, TableError> {
    let rows: Vec<Datasheet> = read(folder, "accelerators.csv")?;
    Ok(rows.into_iter().map(|d| (d.accelerator.clone(), d)).collect())
}
