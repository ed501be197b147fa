//! What may be rented: types of accelerators in any number, or a cluster that exists.

use psim_hardware::Cluster;
use psim_hardware::catalogue::{HomogeneousOptions, datasheet, homogeneous};

/// Something to rent.
#[derive(Debug, Clone, PartialEq)]
pub enum Offer {
    /// Any number of accelerators of one type, in the nodes people usually buy.
    Type {
        /// Name of the accelerator, as in the catalogue.
        name: String,
        /// What differs from the usual node or price.
        options: HomogeneousOptions,
    },
    /// One cluster that exists: all of it, or a part with the rest as spares.
    Fixed(Box<Cluster>),
}

/// Types compared when none is named: what large training jobs are bought on.
const DEFAULT_TYPES: [&str; 5] = ["A100-SXM-80GB", "H100-SXM-80GB", "H200-SXM-141GB", "B200-SXM", "MI300X"];

/// The offers compared when nothing is said; types that the catalogue lacks are left out.
pub fn default_offers() -> Vec<Offer> {
    DEFAULT_TYPES
        .iter()
        .filter(|name| datasheet(name).is_ok())
        .map(|name| Offer::Type { name: (*name).to_owned(), options: HomogeneousOptions::default() })
        .collect()
}

impl Offer {
    /// Its name for messages.
    pub fn name(&self) -> &str {
        match self {
            Self::Type { name, .. } => name,
            Self::Fixed(cluster) => &cluster.name,
        }
    }

    /// The cluster with `count` accelerators.
    pub(super) fn cluster(&self, count: u32) -> Result<Cluster, String> {
        match self {
            Self::Type { name, options } => homogeneous(name, count, options).map_err(|e| e.to_string()),
            Self::Fixed(cluster) => {
                let mut part = (**cluster).clone();
                let mut over = cluster.accelerators().saturating_sub(count);
                // Nodes of the last kinds stay spare.
                for group in part.groups.iter_mut().rev() {
                    let each = group.node.accelerators.max(1);
                    let fewer = (over / each).min(group.count);
                    group.count -= fewer;
                    over -= fewer * each;
                }
                part.groups.retain(|group| group.count > 0);
                Ok(part)
            }
        }
    }

    /// Accelerators of a node.
    fn node(&self) -> u32 {
        match self {
            // A single accelerator shows the node it would stand in only through the options; eight is the usual node.
            Self::Type { options, .. } => options.gpus_per_node.unwrap_or(8).max(1),
            Self::Fixed(cluster) => cluster.first_node().accelerators.max(1),
        }
    }

    /// Nodes of a cluster that exists.
    pub(super) fn nodes_that_exist(&self) -> Option<u32> {
        match self {
            Self::Type { .. } => None,
            Self::Fixed(cluster) => Some(cluster.nodes()),
        }
    }

    /// Sizes to try first: doublings from one node.
    pub(super) fn counts(&self, most: u32) -> Vec<u32> {
        match self {
            Self::Type { .. } => std::iter::successors(Some(self.node()), |n| n.checked_mul(2))
                .take_while(|&n| n <= most)
                .collect(),
            Self::Fixed(cluster) => {
                let (all, node) = (cluster.accelerators(), self.node());
                let mut parts: Vec<u32> =
                    [4, 6, 7, 8].iter().map(|eighths| all / node * eighths / 8 * node).collect();
                parts.push(all);
                parts.retain(|&part| part > 0);
                parts.dedup();
                parts
            }
        }
    }

    /// Sizes between two doublings: quarters, in whole nodes.
    pub(super) fn counts_between(&self, low: u32, high: u32) -> Vec<u32> {
        let node = self.node();
        let nodes = (high - low) / node;
        (1..4).map(|q| low + nodes * q / 4 * node).filter(|&n| n > low && n < high).collect()
    }
}
