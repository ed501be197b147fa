//! A cluster of N accelerators of one type in their usual nodes.

use super::{CatalogueError, accelerator, datasheet, default_fabric_latency, system};
use crate::{BytesPerSec, Cluster, Fabric, Nics, NodeGroup};

/// What may differ from the usual node; `None` keeps it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HomogeneousOptions {
    /// Accelerators per node.
    pub gpus_per_node: Option<u32>,
    /// Accelerators per scale-up domain.
    pub scale_up_domain: Option<u32>,
    /// Rate of one accelerator's scale-up links, one direction.
    pub scale_up_bandwidth: Option<BytesPerSec>,
    /// Network cards of a node.
    pub nics: Option<Nics>,
    /// Fabric (`infiniband`, `roce`, `efa`, `ethernet`, `slingshot`, `omni-path`).
    pub fabric: Option<String>,
    /// US dollars per accelerator and hour.
    pub price_per_gpu_hour: Option<f64>,
    /// Node type in place of the usual one.
    pub system: Option<String>,
}

/// A cluster of `gpus` accelerators of one type in the node people usually buy for it, on one full-bisection switch
/// level. Fewer accelerators than a node holds make one part-filled node; rack-scale domains are cut to the largest
/// number of whole nodes that divides the cluster (128 GPUs in NVL72 racks are 2 domains of 64).
///
/// # Errors
/// Unknown or unusable accelerators, zero, and numbers that do not fill equal nodes.
pub fn homogeneous(name: &str, gpus: u32, options: &HomogeneousOptions) -> Result<Cluster, CatalogueError> {
    let sheet = datasheet(name)?;
    let part = accelerator(name)?;
    let kind = options.system.as_deref().or(sheet.usual_system.as_deref()).unwrap_or("Generic PCIe node");
    let usual = system(kind)?;
    let price = options.price_per_gpu_hour.or(sheet.assumed_price_per_hour).unwrap_or(0.0);
    let mut node = usual.node(part, price);
    let arrangement = |message: String| CatalogueError::Arrangement { message };
    if gpus == 0 || options.gpus_per_node == Some(0) {
        return Err(arrangement("a cluster needs at least one accelerator, asked for 0".to_owned()));
    }

    let full = node.accelerators;
    let per_node = options.gpus_per_node.unwrap_or(full).min(gpus);
    if !gpus.is_multiple_of(per_node) {
        return Err(arrangement(format!(
            "{gpus} {} do not fill nodes of {per_node} ({} would)",
            part.name,
            gpus / per_node * per_node
        )));
    }
    node.accelerators = per_node;
    node.scale_up.domain = if let Some(domain) = options.scale_up_domain {
        domain.clamp(1, gpus)
    } else if usual.scale_up.domain <= full {
        usual.scale_up.domain.min(per_node)
    } else {
        // Whole nodes only, equal domains.
        let nodes = gpus / per_node;
        let most = (usual.scale_up.domain / per_node).clamp(1, nodes);
        let whole = (1..=most).rev().find(|n| nodes.is_multiple_of(*n)).unwrap_or(1);
        whole * per_node
    };
    if let Some(rate) = options.scale_up_bandwidth {
        node.scale_up.bandwidth = rate;
    }
    if let Some(nics) = &options.nics {
        node.nics = nics.clone();
    } else if per_node < full {
        // A part-filled node keeps its share of the cards.
        node.nics.count = (node.nics.count * per_node / full).max(1);
    }
    if per_node < full {
        node.host_power = node.host_power * (f64::from(per_node) / f64::from(full));
    }

    let fabric = options.fabric.clone().unwrap_or_else(|| usual.fabric.clone());
    Ok(Cluster {
        name: format!("{gpus}x{}", part.name),
        description: format!("{gpus} {} in {}, {}.", part.name, nodes_in_words(gpus / per_node), usual.name),
        groups: vec![NodeGroup { count: gpus / per_node, node }],
        fabric: Fabric {
            latency: default_fabric_latency(&fabric),
            kind: fabric,
            levels: Vec::new(),
            in_network_reduction: false,
        },
        storage: None,
        pue: 1.3,
        source: format!("catalogue: {}; {}", usual.source, usual.assumptions),
    })
}

fn nodes_in_words(nodes: u32) -> String {
    if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ScaleUpTopology;

    fn build(name: &str, gpus: u32) -> Cluster {
        homogeneous(name, gpus, &HomogeneousOptions::default()).unwrap()
    }

    #[test]
    fn usual_nodes() {
        let h100 = build("h100", 64);
        assert_eq!((h100.nodes(), h100.accelerators(), h100.first_node().scale_up.domain), (8, 64, 8));
        assert_eq!(build("h100", 4).first_node().scale_up.domain, 4);
        assert_eq!(build("h100", 4).description, "4 H100-SXM-80GB in 1 node, DGX/HGX H100 (NDR).");
        assert_eq!(build("gb200", 576).first_node().scale_up.domain, 72);
        assert_eq!(build("gb300", 128).first_node().scale_up.domain, 64);
        assert_eq!(build("h800", 8).first_node().scale_up.bandwidth, BytesPerSec(200e9));
        assert_eq!(build("l40s", 16).first_node().scale_up.topology, ScaleUpTopology::Pcie);
    }

    #[test]
    fn every_usable_accelerator_has_a_usual_cluster() {
        for part in super::super::accelerators() {
            for gpus in [1, 2, 8, 64] {
                let cluster = build(&part.name, gpus);
                assert_eq!(cluster.accelerators(), gpus, "{}", part.name);
                assert!(cluster.price_per_hour() > 0.0, "{}", part.name);
            }
        }
    }

    #[test]
    fn unequal_nodes_are_refused() {
        let none = HomogeneousOptions::default();
        let error = homogeneous("h100", 12, &none).unwrap_err().to_string();
        assert!(error.contains("12") && error.contains("nodes of 8"), "{error}");
        assert!(homogeneous("h100", 0, &none).is_err());
        let error = homogeneous("ascend-910b", 8, &none).unwrap_err();
        assert!(error.to_string().contains("public pages disagree"), "{error}");
        let error = homogeneous("h10", 8, &none).unwrap_err();
        assert_eq!(error.hint(), "did you mean `h100`?");
    }
}
