//! The report of `psim capacity`.

use super::page::{Cell, INTERVALS, figure, number, page, table, words};
use super::sections::{assumptions, fact, head};
use crate::charts::{self, Bar, ParetoMark};
use crate::number::{grouped, short, three};
use crate::words::plan_label;
use maud::{Markup, html};
use psim_planner::{CapacityOption, CapacityReport};

/// One page: the recommendation, every option, what was rejected and why.
pub fn capacity_page(report: &CapacityReport) -> String {
    let title = format!("Capacity for {}", report.model);
    let limits = [
        report.deadline_days.map(|d| format!("within {} days", three(d))),
        report.budget_usd.map(|b| format!("for at most ${}", short(b))),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    let subtitle =
        format!("Training {} on {} tokens {}.", report.model, short(report.tokens), limits.join(" and "));
    let body = html! {
        (head(&title, &subtitle))
        @match report.recommended.and_then(|i| report.options.get(i)) {
            Some(option) => (recommended(option)),
            None => p.verdict.warning { "No option meets the limits." },
        }
        (options(report))
        @if !report.rejected.is_empty() {
            h2 { "Not possible" }
            @let rows: Vec<Vec<Cell>> =
                report.rejected.iter().map(|(what, why)| vec![words(what), words(why)]).collect();
            (table(&[("what", false), ("why", false)], &rows))
        }
        (assumptions(&report.assumptions))
    };
    page(&title, &body, INTERVALS)
}

fn recommended(option: &CapacityOption) -> Markup {
    let failures = &option.failures;
    html! {
        h2 { "Recommended: " (grouped(u64::from(option.rented))) " × " (option.accelerator) }
        p.verdict { (plan_label(&option.plan.plan)) ". " (option.plan.bound_by.sentence) }
        div.facts {
            (fact(&format!("{} days", three(option.days)), "wall-clock time, failures included"))
            (fact(&format!("${}", short(option.cost_usd)), "price, spares included"))
            (fact(&format!("{} MWh", three(option.energy_mwh)), "energy, PUE included"))
            (fact(&format!("{:.1} %", option.plan.mfu), "model FLOPs utilisation (MFU)"))
            (fact(&format!("{:.1} %", failures.goodput * 100.0), "useful share of the time"))
            (fact(&three(failures.failures), "failures expected"))
            (fact(&failures.spare_nodes.to_string(), "spare nodes"))
            (fact(&format!("{} min", three(failures.checkpoint_interval_s / 60.0)), "between checkpoints"))
        }
    }
}

fn options(report: &CapacityReport) -> Markup {
    let columns = [
        ("accelerator", false),
        ("rented", true),
        ("days", true),
        ("price $", true),
        ("MWh", true),
        ("MFU %", true),
        ("$/GPU-hour", true),
        ("useful time", true),
        ("plan", false),
        ("meets", false),
    ];
    let rows: Vec<Vec<Cell>> = report
        .options
        .iter()
        .map(|o| {
            vec![
                words(&o.accelerator),
                number(f64::from(o.rented), grouped(u64::from(o.rented))),
                number(o.days, three(o.days)),
                number(o.cost_usd, short(o.cost_usd)),
                number(o.energy_mwh, three(o.energy_mwh)),
                number(o.plan.mfu, format!("{:.1}", o.plan.mfu)),
                number(o.price_per_gpu_hour, format!("{:.2}", o.price_per_gpu_hour)),
                number(o.failures.goodput, format!("{:.1} %", o.failures.goodput * 100.0)),
                words(plan_label(&o.plan.plan)),
                words(if o.meets { "yes".to_owned() } else { o.misses.join("; ") }),
            ]
        })
        .collect();
    let bars: Vec<Bar> = report
        .options
        .iter()
        .take(14)
        .map(|o| Bar {
            label: format!("{} × {}", grouped(u64::from(o.rented)), o.accelerator),
            value: o.cost_usd / 1e6,
            low: 0.0,
            high: 0.0,
            note: format!("${}, {} days", short(o.cost_usd), three(o.days)),
        })
        .collect();
    // Options far beyond the limits would squeeze the others into a corner.
    let any = report.options.iter().any(|o| o.meets);
    let marks: Vec<ParetoMark> = report
        .options
        .iter()
        .enumerate()
        .filter(|(_, o)| o.meets || !any)
        .map(|(i, o)| ParetoMark {
            label: format!("{} × {}", grouped(u64::from(o.rented)), o.accelerator),
            x: o.days,
            y: o.cost_usd / 1e6,
            best: report.recommended == Some(i),
        })
        .collect();
    html! {
        @if !rows.is_empty() {
            h2 { "Options" }
            (figure(charts::bars("price per option", "M$", &bars), "Price of the whole job, spares and failures included."))
            @if marks.len() > 1 {
                (figure(charts::pareto("days against price", "days", "M$", &marks), "Days against price of the options that meet the limits; the marked one is recommended."))
            }
            (table(&columns, &rows))
        }
    }
}
