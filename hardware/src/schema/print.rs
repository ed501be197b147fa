//! Writes a cluster as a file that parses back to the same cluster.

use super::CLUSTER_SCHEMA;
use super::file::{ClusterFile, FabricFile, LevelFile, NicsFile, NodeFile, ScaleUpFile};
use crate::catalogue::{self, Datasheet};
use crate::{Accelerator, Cluster, NodeGroup};
use toml::Spanned;

/// A value that has no place in a file yet.
fn new<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

fn some<T>(value: T) -> Option<Spanned<T>> {
    Some(new(value))
}

/// The cluster as TOML of schema 1, every value spelled out, so that any of them can be changed by hand.
pub fn print_cluster(cluster: &Cluster) -> String {
    let mut own: Vec<&Accelerator> = Vec::new();
    for group in &cluster.groups {
        let part = &group.node.accelerator;
        let built_in = catalogue::accelerator(&part.name).is_ok_and(|known| known == part);
        if !built_in && !own.iter().any(|a| a.name == part.name) {
            own.push(part);
        }
    }
    let file = ClusterFile {
        schema: u32::try_from(CLUSTER_SCHEMA).unwrap_or(1),
        name: Some(cluster.name.clone()),
        description: Some(cluster.description.clone()),
        pue: some(cluster.pue),
        source: Some(cluster.source.clone()),
        price_per_gpu_hour: None,
        nodes: cluster.groups.iter().map(|g| new(group(g))).collect(),
        fabric: Some(FabricFile {
            kind: some(cluster.fabric.kind.clone()),
            latency: some(cluster.fabric.latency),
            in_network_reduction: cluster.fabric.in_network_reduction,
            levels: cluster
                .fabric
                .levels
                .iter()
                .map(|l| {
                    new(LevelFile {
                        name: l.name.clone(),
                        nodes: new(l.nodes),
                        oversubscription: some(l.oversubscription),
                        latency: some(l.latency),
                    })
                })
                .collect(),
        }),
        storage: cluster.storage.clone().map(new),
        accelerator: own.into_iter().map(|a| new(Datasheet::from(a))).collect(),
    };
    // The types above serialise to TOML tables; there is no value that TOML cannot hold.
    toml::to_string(&file).unwrap_or_default()
}

fn group(group: &NodeGroup) -> NodeFile {
    let node = &group.node;
    NodeFile {
        count: new(group.count),
        system: None,
        accelerator: some(node.accelerator.name.clone()),
        accelerators: some(node.accelerators),
        host_memory: some(node.host_memory),
        host_link: some(node.host_link),
        host_power: some(node.host_power),
        price_per_gpu_hour: some(node.price_per_gpu_hour),
        scale_up: Some(ScaleUpFile {
            topology: Some(node.scale_up.topology),
            domain: some(node.scale_up.domain),
            bandwidth: some(node.scale_up.bandwidth),
            latency: some(node.scale_up.latency),
            in_switch_reduction: Some(node.scale_up.in_switch_reduction),
        }),
        nics: Some(NicsFile {
            count: some(node.nics.count),
            rate: (node.nics.rate.0 > 0.0).then(|| new(node.nics.rate)),
            rail_optimized: Some(node.nics.rail_optimized),
        }),
        nvme: node.nvme.clone().map(new),
    }
}
