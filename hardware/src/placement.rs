//! Where a communicator's ranks lie on the cluster: how many share a scale-up domain, a node, a leaf.

use crate::{Cluster, Node};
use serde::Serialize;

/// A communicator as the collective cost models see it. All ranks are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct GroupShape {
    /// Ranks in the group.
    pub ranks: u32,
    /// Ranks of the group that share one scale-up domain.
    pub per_domain: u32,
    /// Ranks of the group that share one node (hence its NICs).
    pub per_node: u32,
    /// Distance of neighbouring ranks in global rank order.
    pub stride: u32,
    /// Highest fabric level crossed: 0 stays in a scale-up domain, 1 under one leaf, 2 crosses the next level …
    pub level: u32,
}

impl GroupShape {
    /// Places `ranks` ranks at distance `stride` (tp first, then cp, dp, pp: Megatron order) on equal nodes.
    pub fn place(cluster: &Cluster, node: &Node, ranks: u32, stride: u32) -> Self {
        let stride = stride.max(1);
        let ranks = ranks.max(1);
        let within = |size: u32| (size / stride).clamp(1, ranks);
        let per_domain = within(node.scale_up.domain.max(1));
        let per_node = within(node.accelerators.max(1));
        let span = u64::from(ranks - 1) * u64::from(stride) + 1;
        let mut level = 0;
        if per_domain < ranks {
            level = 1;
            for tier in &cluster.fabric.levels {
                if u64::from(tier.nodes) * u64::from(node.accelerators) >= span {
                    break;
                }
                level += 1;
            }
        }
        Self { ranks, per_domain, per_node, stride, level }
    }

    /// The group stays inside one scale-up domain.
    pub fn is_local(&self) -> bool {
        self.per_domain >= self.ranks
    }

    /// Scale-up domains that the group touches.
    pub fn domains(&self) -> u32 {
        self.ranks.div_ceil(self.per_domain)
    }
}
