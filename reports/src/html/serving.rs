//! The page of a serving question: plans, the best one's latencies and timelines.

use super::page::{Cell, NO_INTERVALS, figure, number, page, table, words};
use super::sections::{assumptions, fact, head};
use crate::charts::{self, Limit, Line, ParetoMark};
use crate::number::{counted, grouped, seconds, short, three};
use crate::words::{layout_label, serving_label};
use maud::{Markup, html};
use psim_hardware::Cluster;
use psim_models::Model;
use psim_models::serving::{Metric, ServingWorkload};
use psim_planner::Assumption;
use psim_planner::serving::{DisaggregatedReport, Layout, ServingDetail, ServingPlan, ServingPlanReport};
use psim_sim::serving::{Percentiles, Sample, ServingReport};

/// What a serving page is made of.
#[derive(Debug, Clone, Copy)]
pub struct ServingPage<'a> {
    /// Model.
    pub model: &'a Model,
    /// Machines.
    pub cluster: &'a Cluster,
    /// Traffic.
    pub workload: &'a ServingWorkload,
    /// Engine profile.
    pub engine: &'a str,
    /// What the plans are ordered by.
    pub objective: &'a str,
    /// Plans, best first; `None` where one deployment was simulated.
    pub report: Option<&'a ServingPlanReport>,
    /// Splits into pools for prompts and answers, best first.
    pub splits: Option<&'a DisaggregatedReport>,
    /// A deployment under the workload's own traffic.
    pub detail: Option<&'a ServingDetail>,
    /// Defaults taken.
    pub assumptions: &'a [Assumption],
}

/// Columns of a timeline.
const COLUMNS: usize = 240;

/// One page.
pub fn serving_page(input: &ServingPage<'_>) -> String {
    let title = format!("Serving {} on {}", input.model.name, input.cluster.name);
    let (prompt, answer) = input.workload.mean_lengths();
    let rate = input.workload.rate().map(|r| format!(", {} requests/s", three(r))).unwrap_or_default();
    let subtitle = format!(
        "{} on {} {}; workload {} ({} tokens in, {} out on average{rate}); engine {}{}.",
        input.model.name,
        grouped(u64::from(input.cluster.accelerators())),
        input.cluster.first_node().accelerator.name,
        input.workload.name,
        grouped(prompt.round() as u64),
        grouped(answer.round() as u64),
        input.engine,
        if input.report.is_some() { format!("; best by {}", input.objective) } else { String::new() },
    );
    let body = html! {
        (head(&title, &subtitle))
        @if let Some(report) = input.report { (winner(report, input.splits)) }
        @if let Some(detail) = input.detail { (deployed(input, detail)) }
        @if let Some(report) = input.report { (plans(report, input.splits)) }
        @if let Some(splits) = input.splits { (pools(splits)) }
        (tenants(input.workload))
        (assumptions(input.assumptions))
    };
    page(&title, &body, NO_INTERVALS)
}

/// The best plan in figures, and a split that carries more.
fn winner(report: &ServingPlanReport, splits: Option<&DisaggregatedReport>) -> Markup {
    let split = splits.and_then(|s| s.plans.first());
    html! {
        @match report.plans.first().filter(|p| p.rate_per_replica > 0.0) {
            None => p.verdict.warning { "No layout keeps the promises, not even for a single request." },
            Some(best) => {
                h2 { "Best deployment: " (serving_label(&best.deployment)) }
                p.verdict {
                    "At most " (three(best.rate)) " requests/s within every promise on " (grouped(u64::from(best.accelerators)))
                    " accelerators"
                    @if !best.measured { ". Some kernel laws were measured on another accelerator and transferred" }
                    "."
                    @if let Some(split) = split.filter(|s| s.rate > best.rate) {
                        " A split into pools carries more, " (three(split.rate)) " requests/s: "
                        (layout_label(&Layout::Pools(split.split()))) "."
                    }
                }
                div.facts {
                    (fact(&three(best.rate), "requests/s within every promise"))
                    (fact(&three(best.rate_per_accelerator), "requests/s per accelerator"))
                    (fact(&grouped(best.tokens_per_s_per_accelerator.round() as u64), "generated tokens/s per accelerator"))
                    @if best.report.tpot_ms.max > 0.0 {
                        (fact(&three(best.tokens_per_s_per_user), "tokens/s that a user sees"))
                    }
                    (fact(&format!("${}", three(best.usd_per_million_tokens)), "per million generated tokens"))
                }
            }
        }
    }
}

/// A deployment under the workload's own traffic.
fn deployed(input: &ServingPage<'_>, detail: &ServingDetail) -> Markup {
    let report = &detail.report;
    html! {
        h2 { (layout_label(&detail.layout)) " under the workload's own traffic" }
        @if report.saturated {
            p.verdict.warning {
                "Saturated: requests come faster than they are answered. Latencies would grow with the length of the run and are \
                 not given; the rate below is what the deployment can do."
            }
        }
        @if report.too_short {
            p.verdict.warning {
                "Too short: requests came for hardly longer than an answer takes. Engines were still filling: latencies are of \
                 that time, and whether they keep up is not known; give more requests."
            }
        }
        div.facts {
            (fact(&three(report.requests_per_s), "requests/s answered"))
            (fact(&grouped(report.output_tokens_per_s.round() as u64), "generated tokens/s"))
            @if !report.saturated && !report.promises.is_empty() {
                (fact(&format!("{:.1} %", report.good_share * 100.0), "of the requests keep every limit"))
                (fact(&three(report.goodput), "requests/s that do (goodput)"))
            }
            (fact(&three(report.mean_in_system), "requests in the system on average"))
            (fact(&format!("{:.0} %", report.peak_cache * 100.0), "of the KV cache used at most"))
            @if let Some(p) = &detail.pools {
                (fact(&format!("{} ms", three(p.transfer_ms)), "for a cache to arrive"))
                (fact(&format!("{:.0} %", p.prefill_busy * 100.0), "of the time prefill instances work"))
                (fact(&format!("{:.0} %", p.decode_busy * 100.0), "of the time decode instances work"))
            }
            @if let Some(a) = &detail.apart {
                (fact(&format!("{:.0} %", a.attention_busy * 100.0), "of a full step attention works"))
                (fact(&format!("{:.0} %", a.feed_forward_busy * 100.0), "of it feed-forward GPUs work"))
            }
            @if let Some(s) = &detail.speculation {
                (fact(&three(s.tokens_per_round), "tokens of a round of speculation"))
            }
            (fact(&format!("{} kW", three(detail.energy.kilowatts)), "of power, hosts and facility included"))
            (fact(&format!("{} J", three(detail.energy.joule_per_token)), "for a generated token"))
            (fact(&format!("${}", three(detail.usd_per_hour)), "an hour"))
            @if report.preemptions > 0 { (fact(&grouped(report.preemptions), "preemptions")) }
            @if report.cache_hits > 0.0 { (fact(&format!("{:.0} %", report.cache_hits * 100.0), "of prompt tokens found in the cache")) }
            @if report.refused > 0 { (fact(&grouped(report.refused), "requests too long for the cache")) }
        }
        @if !report.saturated { (latencies(input, detail)) }
        (timelines(&detail.run.samples, detail.layout.deployment().replicas))
    }
}

/// Percentiles as a table and as curves, with the promises.
fn latencies(input: &ServingPage<'_>, detail: &ServingDetail) -> Markup {
    let report = &detail.report;
    let row = |name: &str, p: &Percentiles| {
        let mut cells = vec![words(name)];
        // Answers of one token have no time per token.
        let cell = |v: f64| if p.max > 0.0 { number(v, three(v)) } else { words("–") };
        cells.extend([p.mean, p.p50, p.p90, p.p95, p.p99, p.max].map(cell));
        cells
    };
    let rows = vec![
        row("time to first token (TTFT)", &report.ttft_ms),
        row("time per output token (TPOT)", &report.tpot_ms),
        row("gap between tokens (ITL)", &report.itl_ms),
        row("whole answer (E2E)", &report.e2e_ms),
    ];
    let columns = [
        ("milliseconds", false),
        ("mean", true),
        ("p50", true),
        ("p90", true),
        ("p95", true),
        ("p99", true),
        ("max", true),
    ];
    html! {
        h2 { "Latencies" }
        (table(&columns, &rows))
        @if !report.promises.is_empty() { (promises(report)) }
        (figure(distribution(input, detail, Metric::Ttft), "Share of the requests whose first token came within this time. Dashed: limits."))
        (figure(distribution(input, detail, Metric::Tpot), "Share of the requests whose tokens came at this pace or faster. Dashed: limits."))
    }
}

fn promises(report: &ServingReport) -> Markup {
    let rows: Vec<Vec<Cell>> = report
        .promises
        .iter()
        .map(|k| {
            vec![
                words(format!("{} p{}", k.metric.name(), three(k.percentile))),
                number(k.limit_ms, three(k.limit_ms)),
                if k.reached_ms > 0.0 { number(k.reached_ms, three(k.reached_ms)) } else { words("–") },
                words(match (k.kept, report.too_short && k.reached_ms <= k.limit_ms) {
                    (true, _) => "kept",
                    (false, true) => "not known",
                    (false, false) => "broken",
                }),
            ]
        })
        .collect();
    html! {
        h2 { "Promises" }
        (table(&[("promise", false), ("limit ms", true), ("reached ms", true), ("verdict", false)], &rows))
    }
}

/// Cumulative distribution of a latency, in the unit that suits it.
fn distribution(input: &ServingPage<'_>, detail: &ServingDetail, metric: Metric) -> String {
    let mut values: Vec<f64> = detail
        .run
        .outcomes
        .iter()
        .zip(&detail.traffic.requests)
        .filter(|(o, _)| !o.refused)
        .filter_map(|(o, r)| match metric {
            Metric::Ttft => Some((o.first_token - o.sent).0 as f64 * 1e-9),
            _ if r.output > 1 => Some((o.finish - o.first_token).0 as f64 * 1e-9 / f64::from(r.output - 1)),
            _ => None,
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1).filter(|n| *n > 0) else { return String::new() };
    // The slowest half per cent would squeeze the rest to the left.
    let shown = (last as f64 * 0.995).ceil() as usize;
    let (unit, per) = if values[shown] >= 10_000.0 { ("s", 1e-3) } else { ("ms", 1.0) };
    let mut points: Vec<(f64, f64)> = vec![(values[0] * per, 0.0)];
    for i in 0..=200 {
        let at = shown * i / 200;
        points.push((values[at] * per, 100.0 * at as f64 / last as f64));
    }
    let limits: Vec<Limit> = input
        .workload
        .tenants
        .iter()
        .flat_map(|t| &t.slo.promises)
        .filter(|p| p.metric == metric && p.limit_ms < 4.0 * values[shown])
        .map(|p| Limit {
            name: format!("p{} {}", three(p.percentile), seconds(p.limit_ms * 1e-3)),
            at: p.limit_ms * per,
            line: 5,
        })
        .collect();
    let name = metric.name();
    let line = Line { name: name.to_owned(), points };
    charts::lines(
        &format!("distribution of {name}"),
        &format!("{name}, {unit}"),
        "% of requests",
        250,
        Some(100.0),
        &[line],
        &limits,
    )
}

/// Queue, batch and cache over time, over all replicas.
fn timelines(samples: &[Sample], replicas: u32) -> Markup {
    let series = binned(samples, replicas);
    // Up to the brim where the cache comes near it, else as much as is used.
    let full = series.fullest.iter().any(|p| p.1 > 40.0).then_some(100.0);
    html! {
        @if !series.waiting.is_empty() {
            h2 { "Over time" }
            (figure(
                charts::lines("requests over time", "seconds", "requests, all replicas", 260, None,
                    &[Line { name: "running".to_owned(), points: series.running }, Line { name: "waiting".to_owned(), points: series.waiting }], &[]),
                "Requests in the batches of all replicas, and in their queues."))
            (figure(
                charts::lines("cache over time", "seconds", "% of the KV cache", 210, full,
                    &[Line { name: "fullest".to_owned(), points: series.fullest }, Line { name: "mean".to_owned(), points: series.cache }], &[]),
                "Share of the key/value cache in use: mean over the replicas, and the fullest one."))
        }
    }
}

#[derive(Debug, Default)]
struct Series {
    running: Vec<(f64, f64)>,
    waiting: Vec<(f64, f64)>,
    cache: Vec<(f64, f64)>,
    fullest: Vec<(f64, f64)>,
}

/// The state of all replicas at equal intervals: each keeps what it was last seen with.
fn binned(samples: &[Sample], replicas: u32) -> Series {
    let mut out = Series::default();
    let n = replicas.max(1) as usize;
    let mut order: Vec<&Sample> = samples.iter().collect();
    order.sort_by_key(|s| s.time);
    let (Some(first), Some(last)) = (order.first(), order.last()) else { return out };
    let (start, span) = (first.time.0, (last.time.0 - first.time.0).max(1));
    let mut state = vec![(0u32, 0u32, 0f32); n];
    let mut next = 0;
    for column in 0..=COLUMNS {
        let until = start + (u128::from(span) * column as u128 / COLUMNS as u128) as u64;
        while let Some(s) = order.get(next).filter(|s| s.time.0 <= until) {
            if let Some(slot) = state.get_mut(s.replica as usize) {
                *slot = (s.running, s.waiting, s.cache);
            }
            next += 1;
        }
        let t = (until - start) as f64 * 1e-12;
        let sum = |f: fn(&(u32, u32, f32)) -> f64| state.iter().map(f).sum::<f64>();
        out.running.push((t, sum(|s| f64::from(s.0))));
        out.waiting.push((t, sum(|s| f64::from(s.1))));
        out.cache.push((t, 100.0 * sum(|s| f64::from(s.2)) / n as f64));
        out.fullest.push((t, 100.0 * state.iter().map(|s| f64::from(s.2)).fold(0.0, f64::max)));
    }
    out
}

/// The pools that were simulated.
fn pools(report: &DisaggregatedReport) -> Markup {
    let columns = [
        ("#", true),
        ("pools", false),
        ("req/s", true),
        ("/GPU", true),
        ("tok/s/GPU", true),
        ("tok/s/user", true),
        ("TTFT p95", true),
        ("TPOT p95", true),
        ("cache arrives, ms", true),
        ("$/M tokens", true),
        ("J/token", true),
        ("Pareto", false),
    ];
    let rows: Vec<Vec<Cell>> = report
        .plans
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let cell = |v: f64| number(v, three(v));
            vec![
                number(i as f64 + 1.0, (i + 1).to_string()),
                words(layout_label(&Layout::Pools(p.split()))),
                cell(p.rate),
                cell(p.rate_per_accelerator),
                cell(p.tokens_per_s_per_accelerator),
                cell(p.tokens_per_s_per_user),
                cell(p.report.ttft_ms.p95),
                cell(p.report.tpot_ms.p95),
                cell(p.transfer_ms),
                cell(p.usd_per_million_tokens),
                cell(p.joule_per_token),
                words(if p.pareto { "yes" } else { "" }),
            ]
        })
        .collect();
    html! {
        h2 { "Prompts and answers on pools of their own" }
        p.soft {
            "The best split, and those that it was compared with: " (grouped(report.simulated as u64)) " of "
            (grouped(report.searched as u64)) " were simulated, the others cannot carry more by their bounds."
        }
        (table(&columns, &rows))
    }
}

/// Plans: Pareto plot and table.
fn plans(report: &ServingPlanReport, splits: Option<&DisaggregatedReport>) -> Markup {
    let able: Vec<&ServingPlan> = report.plans.iter().filter(|p| p.rate_per_replica > 0.0).collect();
    let mut marks: Vec<ParetoMark> = able
        .iter()
        .enumerate()
        .map(|(i, p)| ParetoMark {
            label: if p.pareto || i == 0 { serving_label(&p.deployment) } else { String::new() },
            x: p.tokens_per_s_per_user,
            y: p.tokens_per_s_per_accelerator,
            best: i == 0,
        })
        .collect();
    let split = splits.map_or(&[][..], |s| s.plans.as_slice());
    marks.extend(split.iter().map(|p| ParetoMark {
        label: if p.pareto {
            let (a, b) = (&p.prefill, &p.decode);
            format!("{} x TP{} + {} x TP{}", a.replicas, a.tp, b.replicas, b.tp)
        } else {
            String::new()
        },
        x: p.tokens_per_s_per_user,
        y: p.tokens_per_s_per_accelerator,
        best: false,
    }));
    let columns = [
        ("#", true),
        ("deployment", false),
        ("req/s", true),
        ("/GPU", true),
        ("tok/s/GPU", true),
        ("tok/s/user", true),
        ("TTFT p50", true),
        ("TTFT p95", true),
        ("TPOT p50", true),
        ("TPOT p95", true),
        ("$/M tokens", true),
        ("J/token", true),
        ("Pareto", false),
    ];
    let rows: Vec<Vec<Cell>> = report
        .plans
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let none = p.rate_per_replica <= 0.0;
            let cell = |v: f64| if none { words("–") } else { number(v, three(v)) };
            // Answers of one token have no time per token.
            let paced = |v: f64| if p.report.tpot_ms.max > 0.0 { cell(v) } else { words("–") };
            vec![
                number(i as f64 + 1.0, (i + 1).to_string()),
                words(serving_label(&p.deployment)),
                if none { words("none") } else { number(p.rate, three(p.rate)) },
                cell(p.rate_per_accelerator),
                cell(p.tokens_per_s_per_accelerator),
                paced(p.tokens_per_s_per_user),
                cell(p.report.ttft_ms.p50),
                cell(p.report.ttft_ms.p95),
                paced(p.report.tpot_ms.p50),
                paced(p.report.tpot_ms.p95),
                cell(p.usd_per_million_tokens),
                cell(p.joule_per_token),
                words(if p.pareto { "yes" } else { "" }),
            ]
        })
        .collect();
    let rejected: Vec<Vec<Cell>> =
        report.rejected.iter().map(|(what, why)| vec![words(what), words(why)]).collect();
    html! {
        @if marks.len() > 1 {
            h2 { "Throughput against what a user sees" }
            (figure(charts::pareto("tokens per accelerator against tokens per user", "generated tokens/s of one user", "generated tokens/s per accelerator", &marks),
                "Every layout at the highest rate that keeps the promises, splits into pools (prompts + answers) included. Named: no other is better in both; the marked one is the best plan."))
        }
        @if !rows.is_empty() {
            h2 { "All layouts" }
            p.soft { "Latencies in ms of one replica at its highest rate. Click a column title to sort. none: a promise breaks even for a single request." }
            (table(&columns, &rows))
        }
        @if !rejected.is_empty() {
            details { summary { (counted(rejected.len() as u64, "layout that does", "layouts that do")) " not run" } (table(&[("layout", false), ("why", false)], &rejected)) }
        }
    }
}

/// The traffic.
pub(super) fn tenants(workload: &ServingWorkload) -> Markup {
    let rows: Vec<Vec<Cell>> = workload
        .tenants
        .iter()
        .map(|t| {
            let (input, output) = t.mean_lengths();
            let promises: Vec<String> = t
                .slo
                .promises
                .iter()
                .map(|p| format!("{} p{} < {} ms", p.metric.name(), three(p.percentile), three(p.limit_ms)))
                .collect();
            vec![
                words(&t.name),
                t.rate().map_or_else(|| words("–"), |r| number(r, three(r))),
                number(input, short(input)),
                number(output, short(output)),
                words(if promises.is_empty() { "none".to_owned() } else { promises.join(", ") }),
            ]
        })
        .collect();
    html! {
        h2 { "Traffic" }
        (table(&[("tenant", false), ("requests/s", true), ("tokens in", true), ("tokens out", true), ("promises", false)], &rows))
    }
}
