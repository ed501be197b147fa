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
        let law = self.law(kind, bytes, n);
        let measured = self.curves.iter().find(|c| c.kind == kind && c.ranks == ranks);
        let (seconds, provenance, sigma) = match measured {
            Some(curve) if !self.transferred => (curve.at(bytes), Provenance::Interpolated, curve.sigma),
            Some(curve) => {
                let scaled = curve.at(bytes * self.stretch);
                (scaled, Provenance::Transferred, curve.sigma + 0.1)
            }
            None => (law, Provenance::Datasheet, 0.3),
        };
        let seconds = seconds.max(roofline);
        CollectiveTime { seconds, roofline, latency_bound: roofline < 0.3 * seconds, provenance, sigma }
    }

    /// Default law: a fixed time per step and 80 % of the link rate.
    fn law(&self, kind: CollectiveKind, bytes: f64, n: f64) -> f64 {
        let steps = match kind {
            CollectiveKind::AllReduce => 2.0 * n.log2().ceil(),
            CollectiveKind::AllGather | CollectiveKind::ReduceScatter | CollectiveKind::Broadcast => {
                n.log2().ceil()
            }
            CollectiveKind::AllToAll | CollectiveKind::SendRecv => 1.0,
        };
        6e-6 + steps * (self.latency + 1.5e-6)
            + bytes * wire_factor(kind, n, false) / (0.8 * self.link_rate(n))
    }
}

impl Curve {
    /// Seconds at a size: linear in the logarithms, rate of the last point beyond it, first point below.
    fn at(&self, bytes: f64) -> f64 {
        let x = bytes.max(1.0).ln() as f32;
        let last = self.sizes.len() - 1;
        if x <= self.sizes[0] {
            return f64::from(self.times[0]).exp();
        }
        if x >= self.sizes[last] {
            return f64::from(self.times[last] + (x - self.sizes[last])).exp();
        }
        let line = self.sizes.partition_point(|&s| s <= x) - 1;
        let fraction = (x - self.sizes[line]) / (self.sizes[line + 1] - self.sizes[line]);
        f64::from(self.times[line] + fraction * (self.times[line + 1] - self.times[line])).exp()
    }
}
