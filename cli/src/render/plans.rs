//! Ranked plans as a table of at most 100 columns.

use crate::number::{grouped, seconds, short, three};
use crate::table::{Align::Left, Align::Right, Table, wrap};
use psim_models::plan::{Recompute, Schedule, Sharding};
use psim_planner::{Infeasible, Optimality, PlanReport, RankedPlan};
use psim_reports::plan_label;

/// Widest line.
const WIDTH: usize = 100;

/// The answer of a search.
pub(crate) fn text(report: &PlanReport) -> String {
    let mut out = String::new();
    if let Some(best) = report.plans.first() {
        out.push_str(&table(report));
        out.push('\n');
        out.push_str(&winner(best));
        out.push_str(&idle(report, best));
        out.push_str(&curve(report));
    }
    if let Some(why) = &report.infeasible {
        out.push_str(&infeasible(why));
    }
    out.push_str(&search(report));
    out
}

/// Recomputation in four characters.
fn recompute(kind: Recompute) -> String {
    match kind {
        Recompute::None => "none".to_owned(),
        Recompute::Selective => "sel".to_owned(),
        Recompute::Full => "full".to_owned(),
        Recompute::Layers(n) => format!("{n}L"),
    }
}

/// Sharding as the stage of ZeRO, none as a dash.
fn zero(kind: Sharding) -> String {
    match kind.zero_stage() {
        0 => "-".to_owned(),
        stage => stage.to_string(),
    }
}

fn schedule(kind: Schedule) -> &'static str {
    match kind {
        Schedule::Gpipe => "gpipe",
        Schedule::OneFOneB => "1f1b",
        Schedule::Interleaved => "intl",
        Schedule::ZbH1 => "zb-h1",
        Schedule::ZbH2 => "zb-h2",
        Schedule::ZbV => "zb-v",
    }
}

/// One line per plan. Columns in which every plan has the neutral value are left out.
fn table(report: &PlanReport) -> String {
    let plans = &report.plans;
    let any = |f: fn(&RankedPlan) -> bool| plans.iter().any(f);
    let batches = report.question.global_batch_min != report.question.global_batch_max;
    let shown = [
        ("gpus", any(|p| p.idle_accelerators > 0)),
        ("cp", any(|p| p.plan.cp > 1)),
        ("ep", any(|p| p.plan.ep > 1)),
        ("etp", any(|p| p.plan.etp > 1)),
        ("vpp", any(|p| p.plan.vpp > 1)),
        ("batch", batches),
        ("days", any(|p| p.days.is_some())),
    ];
    let keep = |name: &str| shown.iter().find(|s| s.0 == name).is_none_or(|s| s.1);
    let all = [
        "#", "gpus", "tp", "pp", "dp", "cp", "ep", "etp", "vpp", "mbs", "batch", "rcmp", "zero", "sched",
        "step s", "tok/s", "MFU%", "GB", "free", "bub%", "exp%", "$/Btok", "days",
    ];
    let columns: Vec<(&str, _)> = all
        .iter()
        .filter(|name| keep(name))
        .map(|name| (*name, if matches!(*name, "rcmp" | "sched") { Left } else { Right }))
        .collect();
    let mut table = Table::new(&columns);
    for (i, p) in plans.iter().enumerate() {
        let cells = [
            (i + 1).to_string(),
            p.plan.world().to_string(),
            p.plan.tp.to_string(),
            p.plan.pp.to_string(),
            p.plan.dp.to_string(),
            p.plan.cp.to_string(),
            p.plan.ep.to_string(),
            p.plan.etp.to_string(),
            p.plan.vpp.to_string(),
            p.plan.micro_batch.to_string(),
            p.plan.global_batch.to_string(),
            recompute(p.plan.recompute),
            zero(p.plan.sharding),
            schedule(p.plan.schedule).to_owned(),
            three(p.step_time_s.value),
            grouped(p.tokens_per_s_per_gpu.round() as u64),
            format!("{:.1}", p.mfu),
            format!("{:.1}", p.peak_mem_gb),
            format!("{:.1}", p.mem_capacity_gb - p.peak_mem_gb),
            format!("{:.1}", p.bubble * 100.0),
            format!("{:.1}", p.exposed_comm.max(0.0) * 100.0),
            three(p.cost_usd_per_btok),
            p.days.map(three).unwrap_or_default(),
        ];
        table.row(cells.into_iter().zip(all).filter(|(_, name)| keep(name)).map(|(cell, _)| cell));
    }
    let legend = "tok/s per GPU; GB peak and free per GPU; bub% pipeline bubble, exp% exposed communication; $/Btok US \
                  dollars per billion tokens; zero: ZeRO stage; rcmp: recompute; batch and mbs in sequences";
    format!("{}{}\n", table.render_within(WIDTH), wrap(legend, WIDTH, ""))
}

/// The best plan in words.
fn winner(best: &RankedPlan) -> String {
    let mut lines = vec![format!(
        "best: {} at {} a step (80 % interval {} to {}), {} J per token, level {:?}, weakest provenance {}",
        plan_label(&best.plan),
        seconds(best.step_time_s.value),
        seconds(best.step_time_s.low),
        seconds(best.step_time_s.high),
        three(best.energy_j_per_token),
        best.level,
        format!("{:?}", best.provenance).to_lowercase(),
    )];
    if !best.bound_by.sentence.is_empty() {
        lines.push(format!("bound by: {}", best.bound_by.sentence));
    }
    let mut parts = best.breakdown.clone();
    parts.sort_by(|a, b| b.share.total_cmp(&a.share));
    let parts: Vec<String> =
        parts.iter().take(6).map(|t| format!("{} {:.1} %", t.term, t.share * 100.0)).collect();
    lines.push(format!("time goes to: {}", parts.join(", ")));
    if let Some(stage) = best.prediction.memory.iter().max_by_key(|m| m.total) {
        let mut parts = stage.parts.clone();
        parts.sort_by_key(|p| std::cmp::Reverse(p.1));
        let parts: Vec<String> =
            parts.iter().take(5).map(|(name, b)| format!("{name} {:.1} GB", b.as_f64() / 1e9)).collect();
        lines.push(format!("memory of stage {}: {}", stage.stage, parts.join(", ")));
    }
    lines.extend(best.prediction.notes.iter().map(|n| format!("note: {n}")));
    lines.iter().map(|l| format!("{}\n", wrap(l, WIDTH, "  "))).collect()
}

/// What the best plan leaves idle, and what using all would cost.
fn idle(report: &PlanReport, best: &RankedPlan) -> String {
    if best.idle_accelerators == 0 {
        return String::new();
    }
    let all = report.plans.iter().position(|p| p.idle_accelerators == 0);
    let against = match all.map(|i| (i, &report.plans[i])) {
        Some((i, full)) => format!(
            "the best plan on all of them is number {}, {:.1} % slower",
            i + 1,
            100.0 * (full.step_time_s.value / best.step_time_s.value - 1.0)
        ),
        None => "no plan shown uses all of them".to_owned(),
    };
    let line = format!(
        "idle: {} of the {} accelerators, which divide the batch and the layers worse than {} do; {against}. Rates and MFU are \
         of those that work, the price is of their nodes",
        best.idle_accelerators,
        report.question.accelerators,
        best.plan.world()
    );
    format!("{}\n", wrap(&line, WIDTH, "  "))
}

/// Best plan per global batch.
fn curve(report: &PlanReport) -> String {
    if report.throughput_curve.len() < 2 {
        return String::new();
    }
    let mut table = Table::new(&[
        ("global batch", Right),
        ("step s", Right),
        ("tok/s per GPU", Right),
        ("best plan", Left),
    ]);
    for point in &report.throughput_curve {
        table.row([
            grouped(u64::from(point.global_batch)),
            point.step_time_s.map(three).unwrap_or_default(),
            grouped(point.tokens_per_s_per_gpu.round() as u64),
            point.plan.as_ref().map_or_else(|| "nothing feasible".to_owned(), plan_label),
        ]);
    }
    format!("\n{}", table.render_within(WIDTH))
}

/// Why nothing fits, largest reason first.
fn infeasible(why: &Infeasible) -> String {
    let mut out = String::from("no plan is feasible; what removed the candidates, most first:\n");
    for killed in &why.constraints {
        let line = format!(
            "  {} ({} candidates): {}",
            killed.constraint,
            grouped(killed.candidates),
            killed.example
        );
        out.push_str(&wrap(&line, WIDTH, "      "));
        out.push('\n');
    }
    if !why.nearest.is_empty() {
        out.push_str("nearest changes that make it feasible:\n");
        for near in &why.nearest {
            let plan = near.plan.as_ref().map(|p| format!(": {}", plan_label(p))).unwrap_or_default();
            out.push_str(&wrap(&format!("  {}{plan}", near.change), WIDTH, "      "));
            out.push('\n');
        }
    }
    out
}

/// How the answer was found.
fn search(report: &PlanReport) -> String {
    let sure = match &report.optimality {
        _ if report.plans.is_empty() => String::new(),
        Optimality::Proven { resimulated, gap } => format!(
            "; order proven for the space searched ({resimulated} re-simulated operator by operator, gap {:.1} %)",
            gap * 100.0
        ),
        Optimality::Heuristic { resimulated, remaining, reason } => format!(
            "; {resimulated} re-simulated operator by operator, {} not excluded: {reason}",
            grouped(*remaining as u64)
        ),
    };
    let line = format!(
        "searched {} candidates, pruned {}, simulated {}{sure}",
        short(report.searched as f64),
        short(report.pruned as f64),
        short(report.simulated as f64)
    );
    format!("{}\n", wrap(&line, WIDTH, "  "))
}
