//! Parts that several pages share.

use super::page::{Cell, number, table, words};
use crate::number::{grouped, short, three};
use crate::words::{percent, plan_label, recompute, schedule, sharding};
use maud::{Markup, html};
use psim_planner::{Assumption, RankedPlan};

/// A figure of merit.
pub(super) fn fact(value: &str, name: &str) -> Markup {
    html! { div.fact { b { (value) } span { (name) } } }
}

/// Title, subtitle and the theme switch.
pub(super) fn head(title: &str, subtitle: &str) -> Markup {
    html! {
        header {
            div { h1 { (title) } p.soft { (subtitle) } }
            button id="theme" type="button" { "dark / light" }
        }
    }
}

/// Defaults that were taken.
pub(super) fn assumptions(list: &[Assumption]) -> Markup {
    let rows: Vec<Vec<Cell>> =
        list.iter().map(|a| vec![words(&a.name), words(&a.value), words(&a.why)]).collect();
    html! {
        @if !list.is_empty() {
            h2 { "Assumed" }
            (table(&[("what", false), ("value", false), ("why, and how to change it", false)], &rows))
        }
    }
}

/// The figures of merit of a plan.
pub(super) fn plan_facts(plan: &RankedPlan) -> Markup {
    let free = plan.mem_capacity_gb - plan.peak_mem_gb;
    html! {
        div.facts {
            (fact(&format!("{} s", three(plan.step_time_s.value)),
                &format!("step time ({} to {})", three(plan.step_time_s.low), three(plan.step_time_s.high))))
            (fact(&grouped(plan.tokens_per_s_per_gpu.round() as u64), "tokens/s per accelerator"))
            (fact(&format!("{:.1} %", plan.mfu), "model FLOPs utilisation (MFU)"))
            (fact(&format!("{:.1} GB", plan.peak_mem_gb), &format!("peak memory ({free:.1} GB free)")))
            (fact(&percent(plan.bubble), "pipeline bubble"))
            (fact(&percent(plan.exposed_comm), "exposed communication"))
            (fact(&format!("${}", three(plan.cost_usd_per_btok)), "per billion tokens"))
            (fact(&format!("{} J", three(plan.energy_j_per_token)), "per token"))
            @if let Some(days) = plan.days { (fact(&format!("{} days", three(days)), "for the token budget")) }
        }
    }
}

/// The ranked plans as a sortable table.
pub(super) fn plan_table(plans: &[RankedPlan]) -> Markup {
    let columns = [
        ("#", true),
        ("plan", false),
        ("sharding", false),
        ("schedule", false),
        ("recompute", false),
        ("step s", true),
        ("tok/s/GPU", true),
        ("MFU %", true),
        ("memory GB", true),
        ("free GB", true),
        ("bubble", true),
        ("exposed", true),
        ("$/B tokens", true),
        ("days", true),
    ];
    let rows: Vec<Vec<Cell>> = plans
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let free = p.mem_capacity_gb - p.peak_mem_gb;
            vec![
                number(i as f64 + 1.0, (i + 1).to_string()),
                words(plan_label(&p.plan)),
                words(sharding(p.plan.sharding)),
                words(schedule(p.plan.schedule)),
                words(recompute(p.plan.recompute)),
                number(p.step_time_s.value, three(p.step_time_s.value)),
                number(p.tokens_per_s_per_gpu, grouped(p.tokens_per_s_per_gpu.round() as u64)),
                number(p.mfu, format!("{:.1}", p.mfu)),
                number(p.peak_mem_gb, format!("{:.1}", p.peak_mem_gb)),
                number(free, format!("{free:.1}")),
                number(p.bubble, percent(p.bubble)),
                number(p.exposed_comm, percent(p.exposed_comm)),
                number(p.cost_usd_per_btok, three(p.cost_usd_per_btok)),
                p.days.map_or_else(|| words(""), |d| number(d, three(d))),
            ]
        })
        .collect();
    table(&columns, &rows)
}

/// A sentence on model and budget.
pub(super) fn model_line(parameters: u64, tokens: Option<f64>) -> String {
    let budget = tokens.map(|t| format!(", {} tokens in all", short(t))).unwrap_or_default();
    format!("{} parameters{budget}", short(parameters as f64))
}
