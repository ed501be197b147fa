//! The report of `psim plan`.

use super::page::{Cell, INTERVALS, figure, number, page, table, words};
use super::sections::{assumptions, head, model_line, plan_facts, plan_table};
use crate::charts::{self, Bar, ParetoMark};
use crate::number::{grouped, three};
use crate::words::plan_label;
use maud::{Markup, html};
use psim_planner::{Infeasible, KilledBy, Optimality, PlanReport, RankedPlan};

/// One page: the winner, where its time and memory go, the other plans, the Pareto set, the search.
pub fn plan_page(report: &PlanReport) -> String {
    let q = &report.question;
    let batch = if q.global_batch_min == q.global_batch_max {
        grouped(u64::from(q.global_batch_min))
    } else {
        format!("{} to {}", grouped(u64::from(q.global_batch_min)), grouped(u64::from(q.global_batch_max)))
    };
    let title = format!("{} on {}", q.model, q.cluster);
    let subtitle = format!(
        "Training plans for {} ({}) on {} {}; sequences of {}, global batch {batch}, {}, software stack {}; best by {}.",
        q.model,
        model_line(q.parameters, q.tokens),
        grouped(u64::from(q.accelerators)),
        q.accelerator,
        grouped(q.seq_len),
        q.precisions.join("/"),
        q.stack,
        q.objective.name(),
    );
    let body = html! {
        (head(&title, &subtitle))
        @match report.plans.first() {
            Some(best) => (winner(best)),
            None => (nothing_fits(report.infeasible.as_ref())),
        }
        @if report.plans.len() > 1 { (others(report)) }
        (curve(report))
        (pareto(report))
        (search(report))
        (assumptions(&q.assumptions))
    };
    page(&title, &body, INTERVALS)
}

/// The best plan in detail.
fn winner(best: &RankedPlan) -> Markup {
    let terms: Vec<(String, f64)> = best.breakdown.iter().map(|t| (t.term.to_owned(), t.seconds)).collect();
    let prediction = &best.prediction;
    html! {
        h2 { "Best plan: " (plan_label(&best.plan)) }
        p.verdict { (best.bound_by.sentence) }
        (plan_facts(best))
        @if best.idle_accelerators > 0 {
            p.verdict.warning { (best.idle_accelerators) " accelerators of the cluster stay idle under this plan." }
        }
        @if !best.bound_by.against_next.is_empty() {
            p.soft {
                "Against the next plan (seconds, this minus next): "
                @for (i, (term, seconds)) in best.bound_by.against_next.iter().filter(|(_, s)| s.abs() >= 5e-4).take(4).enumerate() {
                    @if i > 0 { ", " } (term) " " (format!("{seconds:+.3}"))
                }
            }
        }
        h2 { "Where the time goes" }
        (figure(charts::waterfall("step time by term", "s", &terms),
            "From ideal compute at the datasheet rate to the step time; every bar starts where the one above ends."))
        @if let Some(timeline) = &prediction.timeline {
            h2 { "The step as a timeline" }
            (figure(charts::timeline("timeline of the step", timeline),
                "Forward passes blue, backward passes green, weight gradients light blue, communication orange; one line per stage. \
                 `psim simulate --trace` writes the same for the Perfetto viewer."))
        }
        (memory_section(best))
        @if !prediction.notes.is_empty() {
            h2 { "Remarks" }
            ul { @for note in &prediction.notes { li { (note) } } }
        }
    }
}

/// Memory per stage, stacked, with a legend ordered by size.
fn memory_section(best: &RankedPlan) -> Markup {
    let stages = &best.prediction.memory;
    let mut names: Vec<(&'static str, u64)> = Vec::new();
    for stage in stages {
        for (name, bytes) in &stage.parts {
            match names.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += bytes.0,
                None => names.push((name, bytes.0)),
            }
        }
    }
    names.sort_by_key(|(_, sum)| std::cmp::Reverse(*sum));
    names.retain(|(_, sum)| *sum > 0);
    // Seven parts have a colour of their own; the rest share the last one.
    let shown = names.len().min(7);
    let mut legend: Vec<String> = names[..shown].iter().map(|(name, _)| (*name).to_owned()).collect();
    if names.len() > shown {
        legend.push("other".to_owned());
    }
    let columns: Vec<(String, Vec<f64>)> = stages
        .iter()
        .map(|stage| {
            let mut parts = vec![0.0; legend.len()];
            for (name, bytes) in &stage.parts {
                let at = names.iter().position(|(known, _)| known == name).unwrap_or(shown);
                if let Some(slot) = parts.get_mut(at.min(shown)) {
                    *slot += bytes.as_f64() / 1e9;
                }
            }
            (stage.stage.to_string(), parts)
        })
        .collect();
    let svg = if columns.is_empty() {
        String::new()
    } else {
        charts::memory("memory per pipeline stage", "GB", &columns, best.mem_capacity_gb)
    };
    html! {
        @if !svg.is_empty() {
            h2 { "Memory per stage" }
            (figure(svg, "Peak memory of one accelerator of each pipeline stage, in 10⁹ bytes; the line is what can be used."))
            div.legend {
                @for (i, name) in legend.iter().enumerate() {
                    span { i style=(format!("background:{}", charts::colour(i))) {} (name) }
                }
            }
        }
    }
}

/// All plans: bars and table.
fn others(report: &PlanReport) -> Markup {
    let bars: Vec<Bar> = report
        .plans
        .iter()
        .take(12)
        .map(|p| Bar {
            label: plan_label(&p.plan),
            value: p.step_time_s.value,
            low: p.step_time_s.low,
            high: p.step_time_s.high,
            note: format!("{} s, MFU {:.1} %", three(p.step_time_s.value), p.mfu),
        })
        .collect();
    html! {
        h2 { "The best plans" }
        (figure(charts::bars("step time of the best plans", "s", &bars), "Step time with its 80 % interval."))
        p.soft { "Click a column title to sort." }
        (plan_table(&report.plans))
    }
}

/// Throughput over the global batch.
fn curve(report: &PlanReport) -> Markup {
    let points: Vec<(f64, f64)> = report
        .throughput_curve
        .iter()
        .filter(|p| p.step_time_s.is_some())
        .map(|p| (f64::from(p.global_batch), p.tokens_per_s_per_gpu))
        .collect();
    html! {
        @if points.len() > 1 {
            h2 { "Throughput over the global batch" }
            (figure(
                charts::curve("throughput over global batch", "global batch, sequences", "tokens/s per accelerator", &points),
                "The best plan at each batch size."))
        }
    }
}

/// The Pareto set.
fn pareto(report: &PlanReport) -> Markup {
    let marks: Vec<ParetoMark> = report
        .pareto
        .iter()
        .map(|p| ParetoMark {
            label: plan_label(&p.plan),
            x: p.step_time_s,
            y: p.peak_mem_gb,
            best: p.rank == Some(0),
        })
        .collect();
    let rows: Vec<Vec<Cell>> = report
        .pareto
        .iter()
        .map(|p| {
            vec![
                words(plan_label(&p.plan)),
                number(p.step_time_s, three(p.step_time_s)),
                number(p.peak_mem_gb, format!("{:.1}", p.peak_mem_gb)),
                number(p.cost_usd_per_btok, three(p.cost_usd_per_btok)),
            ]
        })
        .collect();
    html! {
        @if marks.len() > 1 {
            h2 { "Time against memory" }
            (figure(charts::pareto("Pareto set", "step time, s", "peak memory, GB", &marks),
                "Plans that no other beats in time, memory and cost at once; the marked one is the best."))
            details {
                summary { "All " (marks.len()) " plans of the set" }
                (table(&[("plan", false), ("step s", true), ("memory GB", true), ("$/B tokens", true)], &rows))
            }
        }
    }
}

/// How the answer was found.
fn search(report: &PlanReport) -> Markup {
    let rows: Vec<Vec<Cell>> = report.constraints.iter().map(constraint).collect();
    html! {
        h2 { "Search" }
        p {
            (grouped(report.searched)) " candidates, " (grouped(report.pruned)) " removed by rules, memory or bound, "
            (grouped(report.simulated)) " simulated. "
            @match &report.optimality {
                Optimality::Proven { resimulated, .. } => {
                    "The order is proven for the space searched: " (resimulated) " candidates were simulated operator by operator."
                }
                Optimality::Heuristic { resimulated, remaining, reason } => {
                    (resimulated) " candidates were simulated operator by operator; " (remaining)
                    " more are not excluded (" (reason) ")."
                }
            }
        }
        @if !rows.is_empty() { (table(&[("constraint", false), ("candidates removed", true), ("for example", false)], &rows)) }
    }
}

fn constraint(killed: &KilledBy) -> Vec<Cell> {
    vec![
        words(killed.constraint),
        number(killed.candidates as f64, grouped(killed.candidates)),
        words(&killed.example),
    ]
}

/// The page of a question without an answer.
fn nothing_fits(infeasible: Option<&Infeasible>) -> Markup {
    html! {
        h2 { "No feasible plan" }
        @match infeasible {
            None => p.verdict.warning { "No candidate of the space is feasible." },
            Some(why) => {
                @let rows: Vec<Vec<Cell>> = why.constraints.iter().map(constraint).collect();
                (table(&[("constraint", false), ("candidates removed", true), ("for example", false)], &rows))
                @if !why.nearest.is_empty() {
                    h2 { "Nearest changes that make it feasible" }
                    ul { @for change in &why.nearest {
                        li { (change.change) @if let Some(plan) = &change.plan { ": " (plan_label(plan)) } }
                    } }
                }
            }
        }
    }
}
