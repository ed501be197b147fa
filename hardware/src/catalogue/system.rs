//! Node types: one row of the systems table each.

use crate::{Accelerator, Bytes, BytesPerSec, Nics, Node, ScaleUp, ScaleUpTopology, Seconds, Storage, Watts};
use serde::{Deserialize, Serialize};

/// A node type as sold or rented.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// Schema version.
    pub schema: u32,
    /// Canonical name (`DGX/HGX H100 (NDR)`).
    pub name: String,
    /// Other names people type.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The accelerator it usually holds.
    pub accelerator: String,
    /// Accelerators that software sees.
    pub accelerators: u32,
    /// Packages, where one package shows as several accelerators.
    #[serde(default)]
    pub packages: Option<u32>,
    /// Host memory.
    pub host_memory: Bytes,
    /// Host link of one accelerator, one direction.
    pub host_link: BytesPerSec,
    /// The host link in words.
    #[serde(default)]
    pub host_link_description: String,
    /// Power beside the accelerators while they work. Of what the rated power of DGX and HGX nodes leaves beside eight
    /// accelerators, 0.61: an 8 x H100 node rated 10.2 kW drew 8.4 kW at most (Latif et al. 2025, IEEE Access 13).
    pub host_power: Watts,
    /// Fabric it usually hangs on (`infiniband`, `efa` …).
    pub fabric: String,
    /// The scale-out fabric in words.
    #[serde(default)]
    pub scale_out_description: String,
    /// Oversubscription as the source prints it.
    #[serde(default)]
    pub oversubscription: String,
    /// Where the numbers come from.
    pub source: String,
    /// Remarks of the source.
    #[serde(default)]
    pub note: String,
    /// Which of the numbers are assumptions.
    pub assumptions: String,
    /// The scale-up domain.
    pub scale_up: SystemScaleUp,
    /// Network cards.
    pub nics: SystemNics,
    /// Local NVMe.
    #[serde(default)]
    pub nvme: Option<Storage>,
}

/// Scale-up domain of a node type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemScaleUp {
    /// Topology as simulated.
    pub topology: ScaleUpTopology,
    /// Topology in the source's words.
    #[serde(default)]
    pub description: String,
    /// Accelerators in the domain.
    pub domain: u32,
    /// Rate of one accelerator, one direction.
    pub bandwidth: BytesPerSec,
    /// One-hop latency.
    pub latency: Seconds,
    /// The switch can reduce in flight.
    pub in_switch_reduction: bool,
}

/// Network cards of a node type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemNics {
    /// Cards.
    pub count: u32,
    /// Rate of one card, one direction.
    pub rate: BytesPerSec,
    /// Rail-optimised wiring.
    pub rail_optimized: bool,
}

impl System {
    /// A node of this type with the given accelerator. Another part than the usual one brings its own link rate.
    pub fn node(&self, accelerator: &Accelerator, price_per_gpu_hour: f64) -> Node {
        let own = accelerator.link_bandwidth.filter(|_| accelerator.name != self.accelerator);
        let bandwidth = match (self.scale_up.topology, own) {
            // A bridge joins two cards only: all eight share the PCIe rate.
            (ScaleUpTopology::Pcie, Some(rate)) => rate.min(PCIE5),
            (_, Some(rate)) => rate,
            (_, None) => self.scale_up.bandwidth,
        };
        Node {
            accelerator: accelerator.clone(),
            accelerators: self.accelerators,
            scale_up: ScaleUp {
                topology: self.scale_up.topology,
                domain: self.scale_up.domain,
                bandwidth,
                latency: self.scale_up.latency,
                in_switch_reduction: self.scale_up.in_switch_reduction,
            },
            nics: Nics {
                count: self.nics.count,
                rate: self.nics.rate,
                rail_optimized: self.nics.rail_optimized,
            },
            host_memory: self.host_memory,
            host_link: self.host_link,
            nvme: self.nvme.clone(),
            price_per_gpu_hour,
            host_power: self.host_power,
        }
    }
}

/// PCIe 5 x16, one direction.
const PCIE5: BytesPerSec = BytesPerSec(64e9);

/// Assumed latency of one message between two nodes under one switch, as a collective library sees it, until a fabric
/// profile replaces it. 5 us is what NCCL's tuning model takes for InfiniBand; the others are relative to it.
pub fn default_fabric_latency(kind: &str) -> Seconds {
    Seconds(match kind {
        "infiniband" | "omni-path" => 5e-6,
        "efa" => 15e-6,
        "ethernet" => 30e-6,
        _ => 6e-6,
    })
}
