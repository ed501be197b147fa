//! `psim compare` with a serving workload: two deployments under the same traffic, figure by figure.

use super::render;
use super::simulate::Case;
use crate::Host;
use crate::failure::Failure;
use crate::inputs::{CommonArguments, JobArguments};
use crate::number::three;
use crate::table::{Align::Left, Align::Right, Table};
use psim_planner::serving::ServingDetail;
use psim_reports::layout_label;
use serde_json::json;
use std::path::Path;

/// One side of the comparison: its job, its common flags, its deployment file.
pub(crate) type Side<'a> = (&'a JobArguments, &'a CommonArguments, &'a Path);

/// Name, value, and whether a saturated run has none.
fn figures(case: &Case, found: &ServingDetail) -> Vec<(&'static str, Option<f64>)> {
    let report = &found.report;
    let gpus = f64::from(case.served.accelerators());
    let steady = |v: f64| (!report.saturated).then_some(v);
    vec![
        ("accelerators", Some(gpus)),
        ("requests/s answered", Some(report.requests_per_s)),
        ("goodput, requests/s", steady(report.goodput)),
        ("goodput per GPU", steady(report.goodput / gpus)),
        ("generated tokens/s per GPU", Some(report.output_tokens_per_s / gpus)),
        ("TTFT p50, ms", steady(report.ttft_ms.p50)),
        ("TTFT p95, ms", steady(report.ttft_ms.p95)),
        ("TPOT p50, ms", steady(report.tpot_ms.p50)),
        ("TPOT p95, ms", steady(report.tpot_ms.p95)),
        ("ITL p99, ms", steady(report.itl_ms.p99)),
        ("E2E p95, ms", steady(report.e2e_ms.p95)),
        ("requests in the system", steady(report.mean_in_system)),
        ("KV cache used at most, %", Some(report.peak_cache * 100.0)),
        ("prompt tokens found cached, %", Some(report.cache_hits * 100.0)),
        ("preemptions", Some(report.preemptions as f64)),
        ("$ an hour", Some(found.usd_per_hour)),
        ("$ per million generated tokens", Some(found.usd_per_million_tokens())),
        ("kW", Some(found.energy.kilowatts)),
        ("J per generated token", Some(found.energy.joule_per_token)),
    ]
}

/// Runs both and prints them side by side.
pub(crate) fn run(a: Side<'_>, b: Side<'_>, host: &mut Host<'_>) -> Result<(), Failure> {
    let first = Case::load(a.0, a.1, a.2, host)?;
    let second = Case::load(b.0, b.1, b.2, host)?;
    let (x, y) = (first.run(0)?, second.run(0)?);
    if a.1.json {
        let side =
            |case: &Case, found: &ServingDetail| render::json::simulation(&case.job, &case.served, found);
        let rows: Vec<_> = figures(&first, &x)
            .into_iter()
            .zip(figures(&second, &y))
            .map(|((name, p), (_, q))| json!({ "figure": name, "a": p, "b": q, "ratio": ratio(p, q) }))
            .collect();
        return host.json(&json!({
            "schema": 1, "kind": "serving", "a": side(&first, &x), "b": side(&second, &y), "figures": rows,
        }));
    }
    host.print(render::header(&first.job))?;
    for (name, case, found) in [("A", &first, &x), ("B", &second, &y)] {
        let saturated = if found.report.saturated {
            "; SATURATED: requests come faster than they are answered, latencies are not given"
        } else {
            ""
        };
        host.line(crate::table::wrap(
            &format!(
                "{name}: {} on {} ({}){saturated}",
                layout_label(&found.layout),
                case.job.cluster.name,
                case.job.engine.name
            ),
            100,
            "  ",
        ))?;
    }
    let mut table = Table::new(&[("", Left), ("A", Right), ("B", Right), ("B / A", Right)]);
    for ((name, p), (_, q)) in figures(&first, &x).into_iter().zip(figures(&second, &y)) {
        let text = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), three);
        table.row([name.to_owned(), text(p), text(q), text(ratio(p, q))]);
    }
    host.line("")?;
    host.print(table.render())
}

fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) if a > 0.0 => Some(b / a),
        _ => None,
    }
}
