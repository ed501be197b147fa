//! Collectives inside one scale-up domain.

use super::{CollectiveTime, wire_factor};
use psim_hardware::profile::Provenance;
use psim_hardware::profile::accelerator::CollectiveCurve;
use psim_hardware::{ScaleUp, ScaleUpTopology};
use psim_models::operator::CollectiveKind;

/// A measured curve with logarithms of sizes and times.
#[derive(Debug, Clone)]
struct Curve {
    kind: CollectiveKind,
    ranks: u32,
    sizes: Vec<f32>,
    times: Vec<f32>,
    /// Seconds per byte beyond the last point.
    marginal: f64,
    sigma: f64,
}

/// Scale-up links of one node type with their measured curves.
#[derive(Debug, Clone)]
pub struct Local {
    bandwidth: f64,
    latency: f64,
    in_switch: bool,
    topology: ScaleUpTopology,
    domain: f64,
    curves: Vec<Curve>,
    /// Datasheet rate of the measured machine over this one's, when the curves come from a relative.
    stretch: f64,
    transferred: bool,
}

/// The name of a collective in profiles.
pub fn operation_name(kind: CollectiveKind) -> &'static str {
    match kind {
        CollectiveKind::AllReduce => "all-reduce",
        CollectiveKind::AllGather => "all-gather",
        CollectiveKind::ReduceScatter => "reduce-scatter",
        CollectiveKind::AllToAll => "all-to-all",
        CollectiveKind::Broadcast => "broadcast",
        CollectiveKind::SendRecv => "send-recv",
    }
}

const KINDS: [CollectiveKind; 6] = [
    CollectiveKind::AllReduce,
    CollectiveKind::AllGather,
    CollectiveKind::ReduceScatter,
    CollectiveKind::AllToAll,
    CollectiveKind::Broadcast,
    CollectiveKind::SendRecv,
];

/// Seconds per byte between the last two points of a curve, at most the mean of the last point.
fn marginal(bytes: &[f64], time_us: &[f64]) -> f64 {
    let last = bytes.len() - 1;
    let mean = time_us[last] * 1e-6 / bytes[last].max(1.0);
    if last == 0 || bytes[last] <= bytes[last - 1] {
        return mean;
    }
    ((time_us[last] - time_us[last - 1]) * 1e-6 / (bytes[last] - bytes[last - 1])).clamp(0.5 * mean, mean)
}

impl Local {
    /// Binds curves measured on a machine with `measured_bandwidth` bytes/s per accelerator to a scale-up domain.
    pub fn new(
        scale_up: &ScaleUp,
        curves: &[CollectiveCurve],
        measured_bandwidth: f64,
        transferred: bool,
    ) -> Self {
        let bandwidth = scale_up.bandwidth.0.max(1.0);
        let mut ready: Vec<Curve> = curves
            .iter()
            .filter(|c| {
                c.bytes.len() == c.time_us.len()
                    && !c.bytes.is_empty()
                    && (!c.in_switch || scale_up.in_switch_reduction)
            })
            .filter_map(|c| {
                let kind = KINDS.into_iter().find(|&k| operation_name(k) == c.operation)?;
                Some(Curve {
                    kind,
                    ranks: c.ranks,
                    sizes: c.bytes.iter().map(|b| b.max(1.0).ln() as f32).collect(),
                    times: c.time_us.iter().map(|t| (t * 1e-6).max(1e-9).ln() as f32).collect(),
                    marginal: marginal(&c.bytes, &c.time_us),
                    sigma: c.fit.sigma,
                })
            })
            .collect();
        ready.sort_by_key(|c| (c.kind, c.ranks));
        Self {
            bandwidth,
            latency: scale_up.latency.0,
            in_switch: scale_up.in_switch_reduction,
            topology: scale_up.topology,
            domain: f64::from(scale_up.domain.max(1)),
            curves: ready,
            stretch: (measured_bandwidth / bandwidth).max(1e-3),
            transferred,
        }
    }

    /// Rate that one rank can use towards `ranks - 1` peers of the group.
    pub fn link_rate(&self, ranks: f64) -> f64 {
        match self.topology {
            // Only the direct links to the group's members carry its traffic.
            ScaleUpTopology::FullMesh => {
                self.bandwidth * ((ranks - 1.0) / (self.domain - 1.0).max(1.0)).min(1.0)
            }
            _ => self.bandwidth,
        }
    }

    /// Least time on the wire at datasheet rates.
    pub fn roofline(&self, kind: CollectiveKind, bytes: f64, ranks: f64) -> f64 {
        bytes * wire_factor(kind, ranks, self.in_switch) / self.link_rate(ranks)
    }

    /// Time of a collective among `ranks` ranks of the domain.
    pub fn time(&self, kind: CollectiveKind, bytes: f64, ranks: u32) -> CollectiveTime {
        let n = f64::from(ranks);
        let roofline = self.roofline(kind, bytes, n);
        let scaled = bytes * self.stretch;
        let (seconds, provenance, sigma) = match self.measured(kind, scaled, ranks) {
            Some((seconds, exact, sigma)) => match (self.transferred, exact) {
                (true, _) => (seconds, Provenance::Transferred, sigma + 0.1),
                (false, true) => (seconds, Provenance::Interpolated, sigma),
                (false, false) => (seconds, Provenance::Extrapolated, sigma + 0.1),
            },
            None => (self.law(kind, bytes, n), Provenance::Datasheet, 0.3),
        };
        let seconds = seconds.max(roofline);
        CollectiveTime { seconds, roofline, latency_bound: roofline < 0.3 * seconds, provenance, sigma }
    }

    /// Seconds from the measured curves, whether the rank count itself was measured, and the curve's error.
    fn measured(&self, kind: CollectiveKind, bytes: f64, ranks: u32) -> Option<(f64, bool, f64)> {
        // A pipelined broadcast moves what an all-gather does; a pair exchange does not depend on the group.
        let (kind, ranks) = match kind {
            CollectiveKind::Broadcast => (CollectiveKind::AllGather, ranks),
            CollectiveKind::SendRecv => (kind, 2),
            other => (other, ranks),
        };
        let mut below: Option<&Curve> = None;
        let mut above: Option<&Curve> = None;
        for curve in self.curves.iter().filter(|c| c.kind == kind && c.covers(bytes)) {
            if curve.ranks == ranks {
                return Some((curve.at(bytes), true, curve.sigma));
            }
            if curve.ranks < ranks {
                below = Some(curve);
            } else if above.is_none() {
                above = Some(curve);
            }
        }
        let n = f64::from(ranks);
        match (below, above) {
            (Some(low), Some(high)) => {
                let position =
                    (n / f64::from(low.ranks)).ln() / (f64::from(high.ranks) / f64::from(low.ranks)).ln();
                let (a, b) = (low.for_ranks(bytes, n), high.for_ranks(bytes, n));
                Some((a.powf(1.0 - position) * b.powf(position), false, low.sigma))
            }
            (Some(curve), None) | (None, Some(curve)) => {
                Some((curve.for_ranks(bytes, n), false, curve.sigma))
            }
            (None, None) => None,
        }
    }

    /// Default law: a fixed time per step and a share of the link rate by topology.
    fn law(&self, kind: CollectiveKind, bytes: f64, n: f64) -> f64 {
        let steps = match kind {
            CollectiveKind::AllReduce => 2.0 * n.log2().ceil(),
            CollectiveKind::AllGather | CollectiveKind::ReduceScatter | CollectiveKind::Broadcast => {
                n.log2().ceil()
            }
            CollectiveKind::AllToAll | CollectiveKind::SendRecv => 1.0,
        };
        // PCIe: 38 GB/s of 64 between two cards, 24-26 among four and eight (RTX PRO 6000 rows).
        let share = match self.topology {
            ScaleUpTopology::Switch => 0.8,
            ScaleUpTopology::FullMesh | ScaleUpTopology::Torus => 0.7,
            ScaleUpTopology::Pcie | ScaleUpTopology::None if n <= 2.0 => 0.6,
            ScaleUpTopology::Pcie | ScaleUpTopology::None => 0.4,
        };
        6e-6 + steps * (self.latency + 1.5e-6)
            + bytes * wire_factor(kind, n, false) / (share * self.link_rate(n))
    }
}

impl Curve {
    /// The size lies in the measured range or can be extended from it: curves that start at large sizes say nothing
    /// about small ones.
    fn covers(&self, bytes: f64) -> bool {
        let first = f64::from(self.sizes[0]).exp();
        first <= 1e5 || bytes >= 0.9 * first
    }

    /// Seconds at a size: linear in the logarithms, marginal rate of the last points beyond them, first point below.
    fn at(&self, bytes: f64) -> f64 {
        let x = bytes.max(1.0).ln() as f32;
        let last = self.sizes.len() - 1;
        if x <= self.sizes[0] {
            return f64::from(self.times[0]).exp();
        }
        if x >= self.sizes[last] {
            return f64::from(self.times[last]).exp()
                + self.marginal * (bytes - f64::from(self.sizes[last]).exp()).max(0.0);
        }
        let line = self.sizes.partition_point(|&s| s <= x) - 1;
        let fraction = (x - self.sizes[line]) / (self.sizes[line + 1] - self.sizes[line]);
        f64::from(self.times[line] + fraction * (self.times[line + 1] - self.times[line])).exp()
    }

    /// Estimate for another number of ranks: between the same wire bytes at once (switches, trees) and the same
    /// chunks in more ring steps.
    fn for_ranks(&self, bytes: f64, n: f64) -> f64 {
        let own = f64::from(self.ranks);
        let wire = wire_factor(self.kind, n, false) / wire_factor(self.kind, own, false);
        let flat = self.at(bytes * wire);
        if matches!(self.kind, CollectiveKind::AllToAll | CollectiveKind::SendRecv) {
            return flat;
        }
        let steps = (n - 1.0) / (own - 1.0);
        (flat * steps * self.at(bytes * wire / steps)).sqrt()
    }
}
