//! Collectives that leave the scale-up domain.
//!
//! Every rank owns an equal share of its node's cards, so a group with `per_domain` ranks in a domain drives that many
//! shares together (tensor parallelism over two 8-card nodes uses 8 cards). Rings carry the algorithm's bytes once
//! through every domain's cards; trees halve latency at some bandwidth; all-to-all sends only what leaves the domain.

use super::CollectiveTime;
use super::local::Local;
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
        let (roofline, fixed, moving) = match kind {
            CollectiveKind::AllReduce | CollectiveKind::AllGather | CollectiveKind::ReduceScatter => {
                self.reduction(kind, bytes, group, local)
            }
            CollectiveKind::AllToAll => self.exchange(bytes, group, local),
            CollectiveKind::Broadcast | CollectiveKind::SendRecv => self.message(kind, bytes, group),
        };
        CollectiveTime {
            seconds: (fixed + moving).max(roofline),
            roofline,
            latency_bound: fixed > moving,
            provenance: self.provenance,
            sigma: self.profile.sigma,
        }
    }

    /// Share of the bandwidth that survives the number of domains.
    fn scale(&self, domains: f64) -> f64 {
        1.0 - (self.profile.scale_loss * (domains / 2.0).log2()).clamp(0.0, 0.6)
    }

    /// Pipeline fill through the ranks of a domain: grows with the message until chunks have their full size.
    fn fill(&self, bytes: f64, per_domain: f64) -> f64 {
        let ranks = (per_domain - 1.0).clamp(0.0, 7.0);
        self.profile.fill_us * 1e-6 * ranks * bytes / (bytes + self.profile.half_bytes * per_domain.min(8.0))
    }

    /// Ring or tree through all domains: lower bound, fixed and moving part.
    fn reduction(
        &self,
        kind: CollectiveKind,
        bytes: f64,
        group: &GroupShape,
        local: &Local,
    ) -> (f64, f64, f64) {
        let ranks = f64::from(group.ranks);
        let per_domain = f64::from(group.per_domain);
        let domains = f64::from(group.domains());
        let all_reduce = kind == CollectiveKind::AllReduce;
        let passes = if all_reduce { 2.0 } else { 1.0 };
        let cards = self.share * per_domain;
        // Every domain sends and receives what the others hold at least once per pass.
        let in_network = self.in_network && all_reduce;
        let outside = if in_network { bytes } else { bytes * passes * (domains - 1.0) / domains };
        let inside = if per_domain > 1.0 { local.roofline(kind, bytes, per_domain) } else { 0.0 };
        let roofline = (outside / cards).max(inside);

        let driven = self.share * per_domain.min(self.profile.lanes) * self.scale(domains)
            / self.congestion(group, false);
        let step = self.step(group);
        let fill = self.fill(bytes, per_domain);
        let ring = (
            passes * (domains - 1.0) * step,
            bytes * passes * (ranks - 1.0) / ranks / (driven * self.profile.ring),
        );
        // Double binary trees (all-reduce only) send what the hierarchy needs and climb in logarithmic steps.
        let tree = (2.0 * domains.log2().ceil() * step, outside / (driven * self.profile.tree));
        let better = all_reduce && tree.0 + tree.1 < ring.0 + ring.1;
        let (steps, wire) = if better { tree } else { ring };
        let (start, inner) = if per_domain > 1.0 {
            let whole = local.time(kind, bytes, group.per_domain).seconds;
            let start = local.time(kind, 1.0, group.per_domain).seconds;
            (start, (whole - start).max(0.0))
        } else {
            (0.0, 0.0)
        };
        (roofline, self.profile.base_us * 1e-6 + start + steps + fill, wire.max(inner))
    }

    /// All-to-all: what leaves the domain goes through the rank's own share of the cards.
    fn exchange(&self, bytes: f64, group: &GroupShape, local: &Local) -> (f64, f64, f64) {
        let ranks = f64::from(group.ranks);
        let per_domain = f64::from(group.per_domain);
        let outside = bytes * (ranks - per_domain) / ranks;
        let inside = bytes * (per_domain - 1.0).max(0.0) / ranks;
        let roofline = (outside / self.share).max(inside / local.link_rate(per_domain.max(2.0)));
        let rate = self.share * self.profile.all_to_all * self.scale(f64::from(group.domains()))
            / self.congestion(group, true);
        let inner = if per_domain > 1.0 {
            local.time(CollectiveKind::AllToAll, bytes * per_domain / ranks, group.per_domain).seconds
        } else {
            0.0
        };
        // Messages to single peers start one after the other on a few channels.
        let peers = (ranks - per_domain) * 0.2e-6;
        (roofline, self.profile.base_us * 1e-6 + self.step(group) + peers, (outside / rate).max(inner))
    }

    /// One sender: point to point uses its own share of the cards, a broadcast is pipelined over its domain's.
    fn message(&self, kind: CollectiveKind, bytes: f64, group: &GroupShape) -> (f64, f64, f64) {
        let domains = f64::from(group.domains());
        let (cards, steps) = if kind == CollectiveKind::Broadcast {
            (self.share * f64::from(group.per_domain).min(self.profile.lanes), domains.log2().ceil().max(1.0))
        } else {
            (self.share, 1.0)
        };
        let rate = cards * self.profile.send_recv / self.congestion(group, false);
        (bytes / cards, self.profile.base_us * 1e-6 + steps * self.step(group), bytes / rate)
    }
}
