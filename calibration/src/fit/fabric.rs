//! Scale-out fabrics from collectives over several nodes.

use super::law::{Measured, Problem};
use super::minimise::Bounded;
use super::surface::Smoothing;
use super::{Summary, median};
use crate::tables::network::{CollectiveRow, PointRow};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::collective::CollectiveModel;
use psim_cost_models::collective::across::Across;
use psim_cost_models::collective::local::Local;
use psim_cost_models::defaults;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_hardware::profile::FabricProfile;
use psim_hardware::{Cluster, GroupShape};
use psim_models::operator::CollectiveKind;

/// Rows of one system: start of its name, fabric, node type where it is not the usual one, nodes per row are the row's.
const SYSTEMS: [(&str, &str, Option<&str>, f64); 10] = [
    ("CoreWeave HGX H100 8x NDR400", "infiniband", None, 1.0),
    ("GB200 NVL72 x2 racks", "infiniband", None, 1.0),
    ("GB200 NVL72 x20 racks", "infiniband", None, 1.0),
    ("HGX B200 x2 nodes (CoreWeave)", "infiniband", None, 1.0),
    ("HGX H100 x2 nodes (CoreWeave)", "infiniband", None, 1.0),
    ("2 x 8xH20", "infiniband", Some("DGX/HGX H100 (NDR)"), 1.0),
    ("AWS p4de.24xlarge", "efa", Some("AWS p4d/p4de"), 0.3),
    ("AWS p5.48xlarge (8xH100, 32x100Gb EFA)", "efa", Some("AWS p5/p5e"), 1.0),
    ("AWS p5en", "efa", Some("AWS p5en"), 1.0),
    ("AWS P6-B200 (8xB200, 8x400Gb EFAv4)", "efa", Some("AWS p6-b200"), 0.5),
];

/// One measured collective on its cluster.
struct Sample {
    cluster: Cluster,
    local: Local,
    group: GroupShape,
    bytes: f64,
    seconds: f64,
    weight: f64,
}

impl Measured for Sample {
    fn seconds(&self) -> f64 {
        self.seconds
    }
    fn weight(&self) -> f64 {
        self.weight
    }
    fn point(&self) -> [f64; 3] {
        [self.bytes, f64::from(self.group.ranks), 1.0]
    }
    fn family(&self) -> Vec<f64> {
        vec![self.bytes]
    }
    fn core(&self) -> bool {
        self.bytes >= 16e6
    }
}

const BOUNDS: [Bounded; 7] = [
    // Vendor slides: 192 of 200 and 380 of 400 GB/s on rings of several nodes.
    Bounded { low: 0.88, high: 0.98 },
    Bounded { low: 0.6, high: 0.98 },
    Bounded { low: 0.0, high: 80.0 },
    Bounded { low: 0.0, high: 30.0 },
    Bounded { low: 0.0, high: 90.0 },
    Bounded { low: 1e5, high: 2e7 },
    Bounded { low: 0.0, high: 0.03 },
];

fn profile(kind: &str, p: &[f64]) -> FabricProfile {
    FabricProfile {
        ring: p[0],
        tree: p[1],
        base_us: p[2],
        step_us: p[3],
        fill_us: p[4],
        half_bytes: p[5],
        scale_loss: p[6],
        ..defaults::fabric(kind)
    }
}

/// Fits one kind of fabric; `library` holds the accelerators' own curves.
pub fn fit(
    kind: &str,
    rows: &[CollectiveRow],
    points: &[PointRow],
    library: &ProfileLibrary,
) -> Option<(FabricProfile, Summary)> {
    let mut samples = Vec::new();
    for row in rows {
        let Some((_, _, system, weight)) =
            SYSTEMS.iter().find(|s| s.1 == kind && row.system.starts_with(s.0))
        else {
            continue;
        };
        let (Some(gpus), Some(bytes), Some(time)) = (row.gpus, row.bytes, row.time_us) else { continue };
        if row.op != "all_reduce" || time <= 0.0 {
            continue;
        }
        let gpu = if row.gpu.contains("H20-") || row.gpu == "H20" { "H20-96GB" } else { row.gpu.as_str() };
        let options = HomogeneousOptions {
            fabric: Some(kind.to_owned()),
            system: system.map(str::to_owned),
            ..HomogeneousOptions::default()
        };
        let Ok(cluster) = homogeneous(gpu, gpus as u32, &options) else { continue };
        let node = cluster.first_node();
        let found = library.accelerator(&node.accelerator);
        let measured = found.profile.link_bandwidth.map_or(node.scale_up.bandwidth.0, |b| b.0);
        let local = Local::new(&node.scale_up, &found.profile.collectives, measured, false);
        let group = GroupShape::place(&cluster, node, gpus as u32, 1);
        samples.push(Sample { local, group, bytes, seconds: time * 1e-6, weight: *weight, cluster });
    }
    if samples.len() < 8 {
        return None;
    }
    let time = |p: &[f64], s: &Sample| {
        let across = Across::new(&s.cluster, s.cluster.first_node(), &profile(kind, p));
        let model = CollectiveModel { local: s.local.clone(), across };
        model.time(CollectiveKind::AllReduce, s.bytes, &s.group).seconds
    };
    let d = defaults::fabric(kind);
    let problem = Problem::<Sample> {
        bounds: &BOUNDS,
        start: &[d.ring, d.tree, d.base_us, d.step_us, d.fill_us, d.half_bytes, d.scale_loss],
        law: &time,
        extra: None,
        axes: None,
        probe: None,
        smoothing: Smoothing { curvature: [1.0; 3], shrink: 1.0 },
    };
    let (fitted, errors) = problem.fit(&samples);
    let mut out = profile(kind, &fitted.parameters);
    out.sigma = errors.sigma();
    out.points = samples.len() as u32;
    out.source = "fitted to the public measurements listed in FIT.md".to_owned();
    if kind == "infiniband" {
        if let Some(share) = all_to_all(rows) {
            out.all_to_all = share;
        }
        if let Some(share) = stream(points) {
            out.send_recv = share;
        }
    }
    for value in [&mut out.ring, &mut out.tree, &mut out.all_to_all, &mut out.send_recv] {
        *value = super::round(*value, 3);
    }
    let text = format!(
        "ring {:.2}, tree {:.2}, all-to-all {:.2}, stream {:.2}, base {:.0} us, step {:.1} us, fill {:.0} us per rank (half at {:.1} MB), loss per doubling {:.3}",
        out.ring,
        out.tree,
        out.all_to_all,
        out.send_recv,
        out.base_us,
        out.step_us,
        out.fill_us,
        out.half_bytes / 1e6,
        out.scale_loss
    );
    let summary = errors.summary("fabric", kind.to_owned(), text);
    Some((out, summary))
}

/// Share of the card rate that all-to-all reaches: bus bandwidth of 4 nodes of 8 against what leaves a node.
fn all_to_all(rows: &[CollectiveRow]) -> Option<f64> {
    let shares: Vec<f64> = rows
        .iter()
        .filter(|r| r.op == "alltoall" && r.nodes == Some(4.0) && r.gpus == Some(32.0))
        .filter_map(|r| {
            let card = if r.system.contains("8x400Gb") { 50.0 } else { 25.0 };
            Some(r.busbw? * 24.0 / 31.0 / card)
        })
        .collect();
    (!shares.is_empty()).then(|| median(&shares))
}

/// Share of the card rate that one point-to-point stream reaches on InfiniBand NDR.
fn stream(points: &[PointRow]) -> Option<f64> {
    let rates: Vec<f64> = points
        .iter()
        .filter(|r| {
            r.system.starts_with("DGX H100") && r.scope == "inter-node" && r.bytes.is_some_and(|b| b >= 8e6)
        })
        .filter_map(|r| r.gbps)
        .collect();
    (!rates.is_empty()).then(|| median(&rates) / 50.0)
}
