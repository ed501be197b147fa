//! One accelerator (GPU, TPU, NPU …) as its datasheet gives it.

use crate::{Bytes, BytesPerSec, DType, FlopPerSec, Watts};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Datasheet facts of one accelerator; dense rates, no sparsity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accelerator {
    /// Canonical name, as in `accelerators.csv` of the measured data (`H100-SXM-80GB`).
    pub name: String,
    /// Vendor.
    pub vendor: String,
    /// Other names people type (`h100`, `h100-sxm`).
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Dense peak matrix rate per format. Formats absent are not supported.
    pub peak: BTreeMap<DType, FlopPerSec>,
    /// Device memory that a job can allocate from: the driver's total where known.
    pub memory: Bytes,
    /// Device memory as printed on the datasheet (`80GB`).
    #[serde(default)]
    pub memory_nominal: Option<Bytes>,
    /// Memory technology (`HBM3`).
    #[serde(default)]
    pub memory_type: String,
    /// Peak device-memory bandwidth.
    pub memory_bandwidth: BytesPerSec,
    /// Second-level cache next to the compute units.
    #[serde(default)]
    pub l2: Option<Bytes>,
    /// Memory-side cache behind it, if the part has one.
    #[serde(default)]
    pub last_level_cache: Option<Bytes>,
    /// Streaming multiprocessors, compute units or cores.
    #[serde(default)]
    pub sm_count: Option<u32>,
    /// Scale-up link name (`NVLink4`).
    #[serde(default)]
    pub link: String,
    /// All scale-up links of one accelerator together, one direction.
    #[serde(default)]
    pub link_bandwidth: Option<BytesPerSec>,
    /// Thermal design power of the board.
    #[serde(default)]
    pub tdp: Option<Watts>,
    /// Where the numbers come from.
    pub source: String,
    /// Remarks: conflicts between sources, assumptions.
    #[serde(default)]
    pub note: String,
}

impl Accelerator {
    /// Peak rate for a format; `None` if the part has no such units.
    pub fn peak(&self, dtype: DType) -> Option<FlopPerSec> {
        self.peak.get(&dtype).copied()
    }
}
