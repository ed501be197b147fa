//! Clusters: groups of nodes joined by a fabric.
//!
//! The TOML form is parsed and checked in `schema`; these are the checked values that everything else uses.

use crate::{Accelerator, Bytes, BytesPerSec, Seconds, Watts};
use serde::{Deserialize, Serialize};

/// A cluster: one or more groups of equal nodes, a scale-out fabric, storage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cluster {
    /// Name (`h100x64`).
    pub name: String,
    /// One sentence.
    pub description: String,
    /// Groups of equal nodes, in rank order. Several groups make a mixed cluster.
    pub groups: Vec<NodeGroup>,
    /// What joins the nodes.
    pub fabric: Fabric,
    /// Shared storage, if described.
    pub storage: Option<Storage>,
    /// Power usage effectiveness: facility power / IT power (at least 1).
    pub pue: f64,
    /// Where the numbers come from.
    pub source: String,
}

/// `count` equal nodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeGroup {
    /// Number of nodes.
    pub count: u32,
    /// The node.
    pub node: Node,
}

/// One node (server or compute tray).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Accelerators in the node.
    pub accelerators: u32,
    /// The fast domain (may span several nodes, as in an NVL72 rack).
    pub scale_up: ScaleUp,
    /// Scale-out network cards of the node.
    pub nics: Nics,
    /// Host memory of the node.
    pub host_memory: Bytes,
    /// Host link of one accelerator, one direction (PCIe, C2C).
    pub host_link: BytesPerSec,
    /// Local NVMe bandwidth (read, write) and capacity of the node.
    pub nvme: Option<Storage>,
    /// Price of one accelerator for one hour, US dollars.
    pub price_per_gpu_hour: f64,
    /// Power of the node beside its accelerators (CPUs, NICs, fans).
    pub host_power: Watts,
}

/// How accelerators are joined inside the scale-up domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleUpTopology {
    /// Full-rate switch: every accelerator reaches every other at its full link rate.
    Switch,
    /// Direct link between every pair; one pair gets `bandwidth / (domain - 1)`.
    FullMesh,
    /// Ring or torus neighbours only.
    Torus,
    /// PCIe through switches or the host; the rate is shared.
    Pcie,
    /// No scale-up link: one accelerator per domain.
    None,
}

/// The scale-up domain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScaleUp {
    /// Topology.
    pub topology: ScaleUpTopology,
    /// Accelerators that share the domain.
    pub domain: u32,
    /// Rate of one accelerator, one direction, all links.
    pub bandwidth: BytesPerSec,
    /// One-hop latency.
    pub latency: Seconds,
    /// The switch can reduce in flight (NVLS).
    pub in_switch_reduction: bool,
}

/// Scale-out network cards of a node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Nics {
    /// Cards per node.
    pub count: u32,
    /// Rate of one card, one direction.
    pub rate: BytesPerSec,
    /// Rail-optimised wiring: card *i* of every node hangs on the same leaf.
    pub rail_optimized: bool,
}

/// The scale-out fabric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fabric {
    /// Name of the profile that describes it (`infiniband`, `roce`, `efa`, `ethernet`, `slingshot`, `omni-path`).
    pub kind: String,
    /// Latency of one message between two nodes under one switch.
    pub latency: Seconds,
    /// Switch levels from the nodes upwards. Empty: one ideal switch.
    pub levels: Vec<FabricLevel>,
    /// Switches can reduce in flight (SHARP).
    pub in_network_reduction: bool,
}

/// One switch level.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FabricLevel {
    /// Name (`leaf`, `spine`).
    pub name: String,
    /// Nodes that reach one another without leaving this level.
    pub nodes: u32,
    /// Downlink over uplink capacity (1 = full bisection), applied to traffic that leaves the level.
    pub oversubscription: f64,
    /// Extra latency of crossing it.
    pub latency: Seconds,
}

/// A storage tier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// Read rate.
    pub read: BytesPerSec,
    /// Write rate.
    pub write: BytesPerSec,
    /// Capacity.
    #[serde(default)]
    pub capacity: Option<Bytes>,
}

impl Cluster {
    /// Accelerators in all groups.
    pub fn accelerators(&self) -> u32 {
        self.groups.iter().map(|g| g.count * g.node.accelerators).sum()
    }

    /// Nodes in all groups.
    pub fn nodes(&self) -> u32 {
        self.groups.iter().map(|g| g.count).sum()
    }

    /// More than one kind of node.
    pub fn is_mixed(&self) -> bool {
        self.groups.len() > 1
    }

    /// The node of the first group; a checked cluster has at least one group.
    pub fn first_node(&self) -> &Node {
        &self.groups[0].node
    }

    /// The group with the accelerator that limits a plan spread over all groups: the lowest bf16 (else fp16) peak.
    pub fn slowest_node(&self) -> &Node {
        use crate::DType;
        let rate = |n: &Node| {
            n.accelerator.peak(DType::Bf16).or(n.accelerator.peak(DType::Fp16)).map_or(0.0, |f| f.0)
        };
        let mut slowest = self.first_node();
        for group in &self.groups[1..] {
            if rate(&group.node) < rate(slowest) {
                slowest = &group.node;
            }
        }
        slowest
    }

    /// Hourly price of the whole cluster, US dollars.
    pub fn price_per_hour(&self) -> f64 {
        self.groups.iter().map(|g| f64::from(g.count * g.node.accelerators) * g.node.price_per_gpu_hour).sum()
    }
}
