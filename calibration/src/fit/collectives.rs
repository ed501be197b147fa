//! Collectives inside a scale-up domain: measured curves, cleaned so that more bytes never take less time.

use crate::tables::network::{CollectiveRow, PointRow};
use psim_hardware::profile::accelerator::{CollectiveCurve, FitQuality};
use std::collections::BTreeMap;

/// The profile's name of a collective of the measured table.
fn operation(op: &str) -> Option<&'static str> {
    Some(match op {
        "all_reduce" => "all-reduce",
        "all_gather" => "all-gather",
        "reduce_scatter" => "reduce-scatter",
        "alltoall" => "all-to-all",
        _ => return None,
    })
}

/// Curves of one accelerator: NCCL (or its vendor's equal) in 16-bit formats on one node; the newest library version
/// wins, and larger sizes of other sources extend an all-reduce curve.
pub fn curves(gpu: &str, rows: &[CollectiveRow]) -> Vec<CollectiveCurve> {
    let mut groups: BTreeMap<(&'static str, u32), Vec<&CollectiveRow>> = BTreeMap::new();
    for row in rows {
        let (Some(op), Some(ranks)) = (operation(&row.op), row.gpus) else { continue };
        let library = row.library.starts_with("NCCL") || row.library.starts_with("oneCCL");
        let scope = row.nodes == Some(1.0) || (row.system.contains("NVL72 (1 rack)"));
        if row.gpu == gpu
            && library
            && scope
            && row.dtype != "int8"
            && row.bytes.is_some()
            && !row.source.starts_with("issue")
            && !row.system.contains("pairwise")
        {
            groups.entry((op, ranks as u32)).or_default().push(row);
        }
    }
    groups.into_iter().filter_map(|((op, ranks), rows)| curve(op, ranks, &rows)).collect()
}

fn curve(operation: &str, ranks: u32, rows: &[&CollectiveRow]) -> Option<CollectiveCurve> {
    let newest = rows.iter().filter(|r| r.source.starts_with("aic-")).map(|r| r.source.as_str()).max();
    let mut points: Vec<(f64, f64)> = Vec::new();
    let primary = |r: &&&CollectiveRow| newest.is_none_or(|s| r.source == s);
    for row in rows.iter().filter(primary) {
        points.push((row.bytes?, row.time_us.unwrap_or(0.0)));
    }
    let top = points.iter().map(|p| p.0).fold(0.0, f64::max);
    for row in rows.iter().filter(|r| !primary(r) && r.algo != "Ring") {
        let (Some(bytes), Some(time)) = (row.bytes, row.time_us) else { continue };
        if bytes > 1.5 * top
            && (row.source == "ml-eng" || row.source == "azure-aibg" || row.source == "aws-adt")
        {
            points.push((bytes, time));
        }
    }
    points.retain(|p| p.0 > 0.0 && p.1 > 0.0);
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    points.dedup_by(|b, a| a.0 == b.0);
    if points.len() < 3 {
        return None;
    }
    // A spike that the next sizes do not confirm is a hiccup of the run: a smaller message cannot take longer.
    let mut floor = f64::INFINITY;
    for point in points.iter_mut().rev() {
        floor = floor.min(point.1);
        point.1 = floor;
    }
    Some(CollectiveCurve {
        operation: operation.to_owned(),
        ranks,
        in_switch: false,
        bytes: points.iter().map(|p| p.0.round()).collect(),
        time_us: points.iter().map(|p| (p.1 * 100.0).round() / 100.0).collect(),
        fit: FitQuality { points: points.len() as u32, sigma: 0.06 },
    })
}

/// Send and receive between neighbours of a node, from point-to-point rows.
pub fn send_recv(gpu: &str, rows: &[PointRow]) -> Option<CollectiveCurve> {
    let mut points: Vec<(f64, f64)> = rows
        .iter()
        .filter(|r| r.gpu == gpu && r.scope == "intra-node" && !r.system.contains("pairwise"))
        .filter_map(|r| Some((r.bytes?, r.time_us?)))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    if points.len() < 5 {
        return None;
    }
    let mut floor = f64::INFINITY;
    for point in points.iter_mut().rev() {
        floor = floor.min(point.1);
        point.1 = floor;
    }
    Some(CollectiveCurve {
        operation: "send-recv".to_owned(),
        ranks: 2,
        in_switch: false,
        bytes: points.iter().map(|p| p.0).collect(),
        time_us: points.iter().map(|p| p.1).collect(),
        fit: FitQuality { points: points.len() as u32, sigma: 0.1 },
    })
}
