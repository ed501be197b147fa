//! The page of `capacity --rate`: which accelerators carry a rate, how many, at what price and power.

use super::page::{Cell, NO_INTERVALS, figure, number, page, table, words};
use super::sections::{assumptions, fact, head};
use super::serving::tenants;
use crate::charts::{self, ParetoMark};
use crate::number::{grouped, three};
use crate::words::{layout_label, short_layout_label};
use maud::{Markup, html};
use psim_models::Model;
use psim_models::serving::ServingWorkload;
use psim_planner::Assumption;
use psim_planner::serving::{Layout, ServingSize};

/// What the page is made of.
#[derive(Debug, Clone, Copy)]
pub struct ServingCapacityPage<'a> {
    /// Model.
    pub model: &'a Model,
    /// Traffic at the rate asked for.
    pub workload: &'a ServingWorkload,
    /// Engine profile.
    pub engine: &'a str,
    /// Requests a second.
    pub rate: f64,
    /// Share of the time for which enough must be up, per cent.
    pub availability_percent: f64,
    /// Accelerators that carry it, cheapest first.
    pub options: &'a [ServingSize],
    /// Those that do not, with the reason.
    pub rejected: &'a [(String, String)],
    /// Defaults taken.
    pub assumptions: &'a [Assumption],
}

/// One page.
pub fn serving_capacity_page(input: &ServingCapacityPage<'_>) -> String {
    let title = format!("Capacity to serve {}", input.model.name);
    let (prompt, answer) = input.workload.mean_lengths();
    let subtitle = format!(
        "{} requests/s of {} tokens in and {} out on average; enough replicas up {} % of the time; engine {}.",
        three(input.rate),
        grouped(prompt.round() as u64),
        grouped(answer.round() as u64),
        input.availability_percent,
        input.engine,
    );
    let body = html! {
        (head(&title, &subtitle))
        @match input.options.first() {
            Some(best) => (cheapest(best)),
            None => p.verdict.warning { "No accelerator carries the rate within the promises." },
        }
        @if input.options.len() > 1 { (chart(input.options)) }
        @if !input.options.is_empty() { (options(input.options)) }
        @if !input.rejected.is_empty() {
            h2 { "Not possible" }
            @let rows: Vec<Vec<Cell>> =
                input.rejected.iter().map(|(what, why)| vec![words(what), words(why)]).collect();
            (table(&[("accelerator", false), ("why", false)], &rows))
        }
        (tenants(input.workload))
        (assumptions(input.assumptions))
    };
    page(&title, &body, NO_INTERVALS)
}

fn cheapest(best: &ServingSize) -> Markup {
    let ((one, many), needed, spare) = match (&best.layout, best.pools) {
        (_, Some(p)) => (
            ("instance of pools", "instances of pools"),
            p.prefill + p.decode,
            p.prefill_spares + p.decode_spares,
        ),
        (Layout::Replicas(_), None) => (("replica", "replicas"), best.needed.replicas, best.spare_replicas),
        (Layout::Pools(_), None) => {
            (("unit of pools", "units of pools"), best.needed.replicas, best.spare_replicas)
        }
    };
    let unit = |n: u32| if n == 1 { one } else { many };
    let stand_by = match spare {
        0 => "nothing stands by for failures".to_owned(),
        1 => format!("1 more {one} stands by for failures"),
        n => format!("{n} more {many} stand by for failures"),
    };
    html! {
        h2 { "Cheapest: " (grouped(u64::from(best.accelerators))) " × " (best.accelerator) }
        p.verdict {
            "The rate is carried by " (layout_label(&best.layout)) "; " (stand_by)
            ". At the rate asked for the rented ones are " (format!("{:.0} %", best.load * 100.0))
            " loaded."
            @if !best.measured { " Some kernel laws were measured on another accelerator and transferred." }
        }
        div.facts {
            (fact(&format!("${}", three(best.usd_per_hour)), "an hour, spares included"))
            (fact(&format!("${}", three(best.usd_per_million_tokens)), "per million generated tokens"))
            (fact(&grouped(u64::from(needed)), &format!("{} needed", unit(needed))))
            (fact(&grouped(u64::from(spare)), &format!("{} to spare", unit(spare))))
            (fact(&format!("{} kW", three(best.kilowatts)), "hosts and facility included"))
            (fact(&format!("{} J", three(best.joule_per_token)), "for a generated token"))
        }
    }
}

fn chart(list: &[ServingSize]) -> Markup {
    let marks: Vec<ParetoMark> = list
        .iter()
        .enumerate()
        .map(|(i, s)| ParetoMark {
            label: s.accelerator.clone(),
            x: s.usd_per_hour,
            y: s.kilowatts,
            best: i == 0,
        })
        .collect();
    html! {
        h2 { "Price against power" }
        (figure(charts::pareto("price against power", "US dollars an hour", "kilowatts", &marks),
            "Each accelerator with its cheapest layout for the rate, spares included. Lower and further left is better; marked: \
             the cheapest."))
    }
}

fn options(list: &[ServingSize]) -> Markup {
    let columns = [
        ("accelerator", false),
        ("deployment, without spares", false),
        ("GPUs", true),
        ("of them spare", true),
        ("load %", true),
        ("$/hour", true),
        ("$/GPU-hour", true),
        ("$/M tokens", true),
        ("kW", true),
        ("J/token", true),
        ("req/s of one", true),
        ("TTFT p95 ms", true),
        ("TPOT p95 ms", true),
    ];
    // The better form of each accelerator, then the other one.
    let all = list.iter().flat_map(|s| std::iter::once(s).chain(s.other.as_deref()));
    let rows: Vec<Vec<Cell>> = all
        .map(|s| {
            let cell = |v: f64| number(v, three(v));
            let count = |n: u32| number(f64::from(n), grouped(u64::from(n)));
            vec![
                words(&s.accelerator),
                words(short_layout_label(&s.layout)),
                count(s.accelerators),
                count(s.accelerators - s.needed.accelerators),
                number(s.load * 100.0, format!("{:.0}", s.load * 100.0)),
                cell(s.usd_per_hour),
                number(s.price_per_gpu_hour, format!("{:.2}", s.price_per_gpu_hour)),
                cell(s.usd_per_million_tokens),
                cell(s.kilowatts),
                cell(s.joule_per_token),
                cell(s.rate_per_unit),
                cell(s.report.ttft_ms.p95),
                cell(s.report.tpot_ms.p95),
            ]
        })
        .collect();
    html! {
        h2 { "All options" }
        p.soft {
            "Two rows of one accelerator: replicas, and pools for prompts and for answers (first + second). TTFT and TPOT of a \
             replica or unit at its highest rate. Prices are assumptions of the order of list prices unless a cluster file \
             gives them."
        }
        (table(&columns, &rows))
    }
}
