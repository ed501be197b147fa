//! The communicators of a plan, placed on a cluster in Megatron order: tp fastest, then cp, dp, pp.

use crate::plan::Plan;
use psim_hardware::{Cluster, GroupShape, Node};
use serde::Serialize;

/// Communicators of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Groups {
    /// Tensor parallel.
    pub tp: GroupShape,
    /// Context parallel.
    pub cp: GroupShape,
    /// Data parallel with context parallel: gradients of dense parameters are reduced over both.
    pub dp: GroupShape,
    /// Neighbouring pipeline stages.
    pub pp: GroupShape,
    /// Expert parallel.
    pub ep: GroupShape,
    /// Tensor parallel inside experts.
    pub etp: GroupShape,
    /// Replicas of an expert shard.
    pub edp: GroupShape,
    /// Ranks that share sharded states (all of `dp`, or a part: HSDP).
    pub shard: GroupShape,
    /// The scale-up domain spans several nodes (NVLink racks).
    pub rack_scale: bool,
}

impl Groups {
    /// Places the communicators of `plan` on `node`s of `cluster`.
    pub fn place(plan: &Plan, cluster: &Cluster, node: &Node) -> Self {
        let at = |ranks: u32, stride: u32| GroupShape::place(cluster, node, ranks, stride);
        let (tp, cp, dp) = (plan.tp.max(1), plan.cp.max(1), plan.dp.max(1));
        let (etp, ep) = (plan.etp.max(1), plan.ep.max(1));
        let replicas = cp * dp;
        let sharded = if plan.shard_group == 0 { replicas } else { plan.shard_group.min(replicas) };
        Self {
            tp: at(tp, 1),
            cp: at(cp, tp),
            dp: at(replicas, tp),
            pp: at(plan.pp.max(1), tp * replicas),
            ep: at(ep, etp),
            etp: at(etp, 1),
            edp: at(plan.edp().max(1), etp * ep),
            shard: at(sharded, tp),
            rack_scale: node.scale_up.domain > node.accelerators,
        }
    }
}
