//! The shape of a cluster file, before its values are checked against one another.

use crate::catalogue::Datasheet;
use crate::{Bytes, BytesPerSec, ScaleUpTopology, Seconds, Storage, Watts};
use serde::{Deserialize, Serialize};
use toml::Spanned;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterFile {
    pub(super) schema: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pue: Option<Spanned<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    /// Price for every group that does not give its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) price_per_gpu_hour: Option<Spanned<f64>>,
    #[serde(default)]
    pub(super) nodes: Vec<Spanned<NodeFile>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fabric: Option<FabricFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) storage: Option<Spanned<Storage>>,
    /// Parts that the catalogue does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) accelerator: Vec<Spanned<Datasheet>>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeFile {
    pub(super) count: Spanned<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) system: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) accelerator: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) accelerators: Option<Spanned<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host_memory: Option<Spanned<Bytes>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host_link: Option<Spanned<BytesPerSec>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host_power: Option<Spanned<Watts>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) price_per_gpu_hour: Option<Spanned<f64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) scale_up: Option<ScaleUpFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) nics: Option<NicsFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) nvme: Option<Spanned<Storage>>,
}

#[derive(Debug, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct ScaleUpFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) topology: Option<ScaleUpTopology>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) domain: Option<Spanned<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bandwidth: Option<Spanned<BytesPerSec>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency: Option<Spanned<Seconds>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) in_switch_reduction: Option<bool>,
}

#[derive(Debug, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct NicsFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) count: Option<Spanned<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rate: Option<Spanned<BytesPerSec>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rail_optimized: Option<bool>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FabricFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency: Option<Spanned<Seconds>>,
    #[serde(default)]
    pub(super) in_network_reduction: bool,
    #[serde(default, rename = "level", skip_serializing_if = "Vec::is_empty")]
    pub(super) levels: Vec<Spanned<LevelFile>>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LevelFile {
    pub(super) name: String,
    pub(super) nodes: Spanned<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) oversubscription: Option<Spanned<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency: Option<Spanned<Seconds>>,
}
