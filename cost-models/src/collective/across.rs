//! Collectives that leave the scale-up domain.
//!
//! Every rank owns an equal share of its node's cards, so a group with `per_domain` ranks in a domain drives that many
//! shares together (tensor parallelism over two 8-card nodes uses 8 cards). Rings carry the algorithm's bytes once
//! through every domain's cards; trees halve latency at some bandwidth; all-to-all sends only what leaves the domain.

use super::local::Local;
use super::{CollectiveTime, wire_factor};
use psim_hardware::profile::{FabricProfile, Provenance};
use psim_hardware::{Cluster, GroupShape, Node};
use psim_models::operator::CollectiveKind;

/// One switch level made ready.
#[derive(Debug, Clone, Copy)]
struct Level {
    nodes: f64,
    oversubscription: f64,
    latency: f64,
}

/// Scale-out side of one node type on one cluster.
#[derive(Debug, Clone)]
pub struct Across {
    profile: FabricProfile,
    /// One accelerator's share of its node's cards, bytes/s.
    share: f64,
    accelerators: f64,
    latency: f64,
    levels: Vec<Level>,
    in_network: bool,
    provenance: Provenance,
}

impl Across {
    /// Binds a fabric profile to a cluster and node type.
    pub fn new(cluster: &Cluster, node: &Node, profile: &FabricProfile) -> Self {
        let accelerators = f64::from(node.accelerators.max(1));
        Self {
            profile: profile.clone(),
            share: (f64::from(node.nics.count) * node.nics.rate.0 / accelerators).max(1.0),
            accelerators,
            latency: cluster.fabric.latency.0,
            levels: cluster
                .fabric
                .levels
                .iter()
                .map(|l| Level {
                    nodes: f64::from(l.nodes),
                    oversubscription: l.oversubscription,
                    latency: l.latency.0,
                })
                .collect(),
            in_network: cluster.fabric.in_network_reduction,
            provenance: if profile.points > 0 { Provenance::Interpolated } else { Provenance::Datasheet },
        }
    }

    /// Slow-down of the cards by oversubscribed levels: a ring leaves a level once per group and level, an all-to-all
    /// with everything addressed outside.
    fn congestion(&self, group: &GroupShape, everything: bool) -> f64 {
        let domains = f64::from(group.domains());
        let spacing = (f64::from(group.stride) * f64::from(group.per_node) / self.accelerators).max(1.0);
        let mut worst: f64 = 1.0;
        for level in self.levels.iter().take(group.level.saturating_sub(1) as usize) {
            let inside = (level.nodes / spacing).clamp(1.0, domains);
            let leaving = if everything {
                (domains - inside).max(0.0) / (domains - 1.0).max(1.0)
            } else {
                1.0 / inside
            };
            worst = worst.max(level.oversubscription * leaving);
        }
        worst
    }

    /// Time of one message between neighbouring nodes, without its bytes.
    fn step(&self, group: &GroupShape) -> f64 {
        let crossing: f64 =
            self.levels.iter().take(group.level.saturating_sub(1) as usize).map(|l| l.latency).sum();
        self.latency + crossing + self.profile.step_us * 1e-6
    }

    /// Time of a collective.
    pub fn time(
        &self,
        kind: CollectiveKind,
        bytes: f64,
        group: &GroupShape,
        local: &Local,
    ) -> CollectiveTime {
        let ranks = f64::from(group.ranks);
        let per_domain = f64::from(group.per_domain);
        let domains = f64::from(group.domains());
        let cards = self.share * per_domain;
        let scale = 1.0 - (self.profile.scale_loss * (domains / 2.0).log2()).clamp(0.0, 0.6);
        let step = self.step(group);
        let base = self.profile.base_us * 1e-6;
        let link = local.link_rate(per_domain.max(2.0));
        let reduce_in_network = self.in_network && kind == CollectiveKind::AllReduce;
        let part = (domains - 1.0) / domains;
        let (roofline, fixed, moving) = match kind {
            CollectiveKind::AllReduce | CollectiveKind::AllGather | CollectiveKind::ReduceScatter => {
                let passes = if kind == CollectiveKind::AllReduce { 2.0 } else { 1.0 };
                let outside = if reduce_in_network { bytes } else { bytes * passes * part };
                let inside =
                    if per_domain > 1.0 { bytes * wire_factor(kind, per_domain, true) / link } else { 0.0 };
                let roofline = (outside / cards).max(inside);
                let ring_rate = cards * self.profile.ring * scale / self.congestion(group, false);
                let tree_rate = cards * self.profile.tree * scale / self.congestion(group, false);
                let ramp = self.profile.half_bytes * per_domain;
                let inside_steps =
                    if per_domain > 1.0 { local.time(kind, 1.0, group.per_domain).seconds } else { 0.0 };
                let ring_bytes = bytes * passes * (ranks - 1.0) / ranks;
                let ring_steps = passes * (domains - 1.0) * step;
                let ring = (ring_steps, (ring_bytes + ramp) / ring_rate);
                let tree_steps = passes * domains.log2().ceil() * step * 1.5;
                let tree = (tree_steps, (ring_bytes.max(outside) + ramp) / tree_rate);
                let (steps, moving) = if ring.0 + ring.1 <= tree.0 + tree.1 { ring } else { tree };
                let inner =
                    if per_domain > 1.0 { local.time(kind, bytes, group.per_domain).seconds } else { 0.0 };
                (roofline, base + inside_steps + steps, moving.max(inner))
            }
            CollectiveKind::AllToAll => {
                let outside = bytes * (ranks - per_domain) / ranks;
                let inside = bytes * (per_domain - 1.0).max(0.0) / ranks;
                let roofline = (outside / self.share).max(inside / link);
                let rate = self.share * self.profile.all_to_all * scale / self.congestion(group, true);
                // Messages to one peer shrink as the group grows: each pays for its start.
                let ramp = self.profile.half_bytes * (ranks - per_domain).min(64.0) / 8.0;
                let inner = if per_domain > 1.0 {
                    local.time(kind, bytes * per_domain / ranks, group.per_domain).seconds
                } else {
                    0.0
                };
                let peers = (ranks - per_domain) * 0.1e-6;
                (roofline, base + step + peers, ((outside + ramp) / rate).max(inner))
            }
            CollectiveKind::Broadcast | CollectiveKind::SendRecv => {
                let steps =
                    if kind == CollectiveKind::Broadcast { domains.log2().ceil().max(1.0) } else { 1.0 };
                // One rank of a domain uses its own share only; a broadcast is pipelined over all of the domain's.
                let cards = if kind == CollectiveKind::Broadcast { cards } else { self.share };
                let rate = cards * self.profile.send_recv / self.congestion(group, false);
                (bytes / cards, base * 0.5 + steps * step, (bytes + self.profile.half_bytes) / rate)
            }
        };
        let seconds = (fixed + moving).max(roofline);
        CollectiveTime {
            seconds,
            roofline,
            latency_bound: fixed > moving,
            provenance: self.provenance,
            sigma: self.profile.sigma,
        }
    }
}
