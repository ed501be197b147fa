//! One row of the accelerator catalogue, blanks included.

use crate::{Accelerator, Bytes, BytesPerSec, DType, FlopPerSec, Watts};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is publicly known of an accelerator; unknown facts are absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datasheet {
    /// Schema version (files of their own only; absent in a cluster file).
    #[serde(default, skip_serializing)]
    pub schema: Option<u32>,
    /// Canonical name.
    pub name: String,
    /// Vendor.
    #[serde(default)]
    pub vendor: String,
    /// Other names people type.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Memory as printed on the datasheet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_nominal: Option<Bytes>,
    /// Memory a job can allocate from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Memory technology.
    #[serde(default)]
    pub memory_type: String,
    /// Peak memory bandwidth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bandwidth: Option<BytesPerSec>,
    /// Second-level cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<Bytes>,
    /// Memory-side cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_level_cache: Option<Bytes>,
    /// Streaming multiprocessors, compute units or cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sm_count: Option<u32>,
    /// Scale-up link.
    #[serde(default)]
    pub link: String,
    /// All scale-up links, one direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_bandwidth: Option<BytesPerSec>,
    /// Board power.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tdp: Option<Watts>,
    /// Node type it usually sits in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usual_system: Option<String>,
    /// Assumed price of one accelerator for one hour, US dollars: the order of public on-demand list prices, to be
    /// overridden with `price_per_gpu_hour`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assumed_price_per_hour: Option<f64>,
    /// Where the numbers come from.
    #[serde(default)]
    pub source: String,
    /// Remarks.
    #[serde(default)]
    pub note: String,
    /// Dense peak rate per format.
    #[serde(default)]
    pub peak: BTreeMap<DType, FlopPerSec>,
}

impl Datasheet {
    /// The accelerator, if the facts suffice for a prediction.
    ///
    /// # Errors
    /// A sentence naming what is missing or impossible.
    pub fn accelerator(&self) -> Result<Accelerator, String> {
        let mut missing = Vec::new();
        if self.memory.is_none() {
            missing.push("memory");
        }
        if self.memory_bandwidth.is_none() {
            missing.push("memory_bandwidth");
        }
        if self.peak.is_empty() {
            missing.push("peak");
        }
        let (Some(memory), Some(memory_bandwidth), true) =
            (self.memory, self.memory_bandwidth, missing.is_empty())
        else {
            let note = if self.note.is_empty() { String::new() } else { format!(" ({})", self.note) };
            return Err(format!("no public figure for {}{note}", missing.join(", ")));
        };
        let positive = |name: &str, value: f64| {
            if value > 0.0 { Ok(()) } else { Err(format!("{name} must be more than 0")) }
        };
        positive("memory", memory.as_f64())?;
        positive("memory_bandwidth", memory_bandwidth.0)?;
        for (dtype, rate) in &self.peak {
            positive(&format!("peak.{dtype}"), rate.0)?;
        }
        if let Some(rate) = self.link_bandwidth {
            positive("link_bandwidth", rate.0)?;
        }
        Ok(Accelerator {
            name: self.name.clone(),
            vendor: self.vendor.clone(),
            aliases: self.aliases.clone(),
            peak: self.peak.clone(),
            memory,
            memory_nominal: self.memory_nominal,
            memory_type: self.memory_type.clone(),
            memory_bandwidth,
            l2: self.l2,
            last_level_cache: self.last_level_cache,
            sm_count: self.sm_count,
            link: self.link.clone(),
            link_bandwidth: self.link_bandwidth,
            tdp: self.tdp,
            source: self.source.clone(),
            note: self.note.clone(),
        })
    }
}

impl From<&Accelerator> for Datasheet {
    fn from(a: &Accelerator) -> Self {
        Self {
            schema: None,
            name: a.name.clone(),
            vendor: a.vendor.clone(),
            aliases: a.aliases.clone(),
            memory_nominal: a.memory_nominal,
            memory: Some(a.memory),
            memory_type: a.memory_type.clone(),
            memory_bandwidth: Some(a.memory_bandwidth),
            l2: a.l2,
            last_level_cache: a.last_level_cache,
            sm_count: a.sm_count,
            link: a.link.clone(),
            link_bandwidth: a.link_bandwidth,
            tdp: a.tdp,
            usual_system: None,
            assumed_price_per_hour: None,
            source: a.source.clone(),
            note: a.note.clone(),
            peak: a.peak.clone(),
        }
    }
}
