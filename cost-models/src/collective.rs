//! Collectives: measured curves inside a scale-up domain, a hierarchical bandwidth-latency model across domains.

pub mod across;
pub mod local;

use across::Across;
use local::Local;
use psim_hardware::GroupShape;
use psim_hardware::profile::Provenance;
use psim_models::operator::CollectiveKind;

/// What the model of one group says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CollectiveTime {
    /// Predicted seconds.
    pub seconds: f64,
    /// Wire bytes over datasheet link rates.
    pub roofline: f64,
    /// Mostly fixed costs.
    pub latency_bound: bool,
    /// Origin.
    pub provenance: Provenance,
    /// Error of the table.
    pub sigma: f64,
}

/// Collectives of one node type on one cluster.
#[derive(Debug, Clone)]
pub struct CollectiveModel {
    /// Inside a scale-up domain.
    pub local: Local,
    /// Between scale-up domains.
    pub across: Across,
}

impl CollectiveModel {
    /// Time of one collective; a single rank costs nothing.
    pub fn time(&self, kind: CollectiveKind, bytes: f64, group: &GroupShape) -> CollectiveTime {
        if group.ranks <= 1 {
            return CollectiveTime {
                seconds: 0.0,
                roofline: 0.0,
                latency_bound: true,
                provenance: Provenance::Measured,
                sigma: 0.0,
            };
        }
        if group.is_local() {
            self.local.time(kind, bytes, group.ranks)
        } else {
            self.across.time(kind, bytes, group, &self.local)
        }
    }
}

/// Bytes that every rank must send at least, relative to the nccl-tests size; in-switch all-reduce sends each byte once.
pub fn wire_factor(kind: CollectiveKind, ranks: f64, in_switch: bool) -> f64 {
    let part = (ranks - 1.0) / ranks;
    match kind {
        CollectiveKind::AllReduce if in_switch => 1.0_f64.min(2.0 * part),
        CollectiveKind::AllReduce => 2.0 * part,
        CollectiveKind::AllGather if in_switch => 1.0 / ranks.max(1.0),
        CollectiveKind::AllGather | CollectiveKind::ReduceScatter | CollectiveKind::AllToAll => part,
        CollectiveKind::Broadcast | CollectiveKind::SendRecv => 1.0,
    }
}
