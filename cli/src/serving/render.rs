//! Serving answers as text of at most 100 columns; as JSON in [`json`].

mod arrangement;
pub(crate) mod json;
mod speculative;

pub(crate) use speculative::{speculative_split_table, speculative_table};

use super::deployment::{placement_name, router_name, transfer_name};
use super::job::ServingJob;
use crate::number::{counted, grouped, seconds, short, three};
use crate::table::{Align::Left, Align::Right, Table, wrap};
use psim_hardware::Cluster;
use psim_models::serving::{Arrival, Deployment, Tenant};
use psim_planner::Objective;
use psim_planner::serving::{
    DeviceSteps, DisaggregatedReport, Layout, Served, ServingDetail, ServingPlan, Steps,
};
use psim_reports::{layout_label, serving_label};
use psim_sim::serving::{Flowing, ServingReport};

/// Widest line.
const WIDTH: usize = 100;

/// Arrivals in words.
fn arrival(arrival: &Arrival) -> String {
    match arrival {
        Arrival::Burst => "all at once".to_owned(),
        Arrival::Constant { rate } => format!("{} requests/s at equal gaps", three(*rate)),
        Arrival::Poisson { rate } => format!("Poisson at {} requests/s", three(*rate)),
        Arrival::Gamma { rate, cv } => {
            format!("gamma arrivals at {} requests/s (cv {})", three(*rate), three(*cv))
        }
        Arrival::ClosedLoop { concurrency } => {
            format!("closed loop of {} clients", grouped(u64::from(*concurrency)))
        }
        Arrival::Ramp { from, to, over_s } => {
            format!("{} to {} requests/s over {}", three(*from), three(*to), seconds(*over_s))
        }
        Arrival::Diurnal { mean, peak_ratio, period_s } => {
            format!(
                "{} requests/s on average over a day of {}, peak {} times that",
                three(*mean),
                seconds(*period_s),
                three(*peak_ratio)
            )
        }
        Arrival::Trace(rows) => format!("trace of {} requests", grouped(rows.requests.len() as u64)),
    }
}

/// A tenant on one line.
fn tenant(tenant: &Tenant) -> String {
    let (input, output) = tenant.mean_lengths();
    let promises: Vec<String> = tenant
        .slo
        .promises
        .iter()
        .map(|p| format!("{} p{} < {}", p.metric.name(), three(p.percentile), seconds(p.limit_ms * 1e-3)))
        .collect();
    let promises = if promises.is_empty() { "no promise".to_owned() } else { promises.join(", ") };
    let mut kind = String::new();
    if let Some(p) = &tenant.prefix {
        kind.push_str(&format!(", {} of them shared by {} groups", grouped(u64::from(p.tokens)), p.groups));
    }
    if let Some(s) = &tenant.sessions {
        kind.push_str(&format!(
            ", conversations of {} turns on average with {} between them",
            three(tenant.requests_per_arrival()),
            seconds(s.think_s)
        ));
    }
    if let Some(a) = &tenant.adapters {
        kind.push_str(&format!(", {} adapters", grouped(u64::from(a.count))));
    }
    format!(
        "{}: {}; {} tokens in and {} out on average{kind}; {promises}",
        tenant.name,
        arrival(&tenant.arrival),
        grouped(input.round() as u64),
        grouped(output.round() as u64),
    )
}

/// Accelerators by kind.
fn accelerators(cluster: &Cluster) -> String {
    let kinds: Vec<String> = cluster
        .groups
        .iter()
        .map(|g| {
            format!("{} x {}", grouped(u64::from(g.count * g.node.accelerators)), g.node.accelerator.name)
        })
        .collect();
    kinds.join(" and ")
}

/// What was asked, and every default taken.
pub(crate) fn header(job: &ServingJob) -> String {
    let cluster = &job.cluster;
    let first = format!(
        "{} ({} parameters) on {}: {}, {} {}",
        job.model.name,
        short(job.model.parameters().total as f64),
        cluster.name,
        accelerators(cluster),
        grouped(u64::from(cluster.nodes())),
        if cluster.nodes() == 1 { "node" } else { "nodes" },
    );
    let q = job.quantization;
    let engine = format!("engine {}, weights {}, KV cache {}", job.engine.name, q.dense.name(), q.kv.name());
    let mut lines = vec![first, format!("serving {}; {engine}", job.workload.name)];
    lines.extend(job.workload.tenants.iter().map(tenant));
    if !job.settings.is_empty() {
        lines.push(format!("with {}", job.settings.join(", ")));
    }
    if !job.assumptions.is_empty() {
        let list: Vec<String> =
            job.assumptions.iter().map(|a| format!("{} {} ({})", a.name, a.value, a.why)).collect();
        lines.push(format!("assumed: {}", list.join("; ")));
    }
    lines.iter().map(|l| format!("{}\n", wrap(l, WIDTH, "  "))).collect()
}

/// Plans as a table; columns in which every plan has the neutral value are left out.
pub(crate) fn plan_table(plans: &[ServingPlan], rate: Option<f64>, objective: Objective) -> String {
    let any = |f: fn(&Deployment) -> bool| plans.iter().any(|p| f(&p.deployment));
    let needed = rate.map(|r| format!("GPUs@{}/s", three(r)));
    let energy = objective == Objective::Energy;
    let mixed = plans.windows(2).any(|w| w[0].group != w[1].group);
    let shown = [
        ("pp", any(|d| d.pp > 1)),
        ("adp", any(|d| d.attention_dp > 1)),
        ("ep", any(|d| d.ep > 1)),
        ("budget", plans.windows(2).any(|w| w[0].token_budget != w[1].token_budget)),
        ("needed", needed.is_some() && !energy && !mixed),
        ("$/Mtok", !energy),
        ("J/tok", energy),
        ("on", mixed),
    ];
    let keep = |name: &str| shown.iter().find(|s| s.0 == name).is_none_or(|s| s.1);
    let all = [
        "#",
        "tp",
        "pp",
        "adp",
        "ep",
        "reps",
        "budget",
        "req/s",
        "/GPU",
        "tok/s/GPU",
        "tok/s/user",
        "TTFT p50",
        "p95",
        "TPOT p50",
        "p95",
        "$/Mtok",
        "J/tok",
        "needed",
        "P",
        "on",
    ];
    let titles: Vec<(&str, _)> = all
        .iter()
        .filter(|n| keep(n))
        .map(|n| match *n {
            "needed" => (needed.as_deref().unwrap_or(n), Right),
            "on" => ("on", Left),
            n => (n, Right),
        })
        .collect();
    let mut table = Table::new(&titles);
    for (i, p) in plans.iter().enumerate() {
        let d = &p.deployment;
        let none = p.rate_per_replica <= 0.0;
        let unless = |text: String| if none { "-".to_owned() } else { text };
        let ms = |v: f64| unless(three(v));
        // Answers of one token have no time per token.
        let paced = |v: f64| if p.report.tpot_ms.max > 0.0 { ms(v) } else { "-".to_owned() };
        let cells = [
            (i + 1).to_string(),
            d.tp.to_string(),
            d.pp.to_string(),
            d.attention_dp.to_string(),
            d.ep.to_string(),
            d.replicas.to_string(),
            p.token_budget.to_string(),
            if none { "none".to_owned() } else { three(p.rate) },
            unless(three(p.rate_per_accelerator)),
            unless(grouped(p.tokens_per_s_per_accelerator.round() as u64)),
            paced(p.tokens_per_s_per_user),
            ms(p.report.ttft_ms.p50),
            ms(p.report.ttft_ms.p95),
            paced(p.report.tpot_ms.p50),
            paced(p.report.tpot_ms.p95),
            unless(three(p.usd_per_million_tokens)),
            unless(three(p.joule_per_token)),
            rate.and_then(|r| p.needed(r))
                .map_or_else(|| "-".to_owned(), |n| grouped(u64::from(n.accelerators))),
            if p.pareto { "*" } else { "" }.to_owned(),
            p.accelerator.split('-').next().unwrap_or("").to_owned(),
        ];
        table.row(cells.into_iter().zip(all).filter(|(_, n)| keep(n)).map(|(c, _)| c));
    }
    let legend = "reps: replicas; budget: most tokens of a step; req/s: most requests a second within every promise, all replicas; tok/s generated tokens at that rate; \
                  TTFT and TPOT in ms at that rate; none: a promise breaks even for a single request; P: no other plan, split or not, has \
                  both more tok/s/GPU and more tok/s/user";
    let joules =
        if energy { "; J/tok: joules for a generated token, hosts and facility included" } else { "" };
    format!("{}{}\n", table.render_within(WIDTH), wrap(&format!("{legend}{joules}"), WIDTH, ""))
}

/// The best plan in words.
pub(crate) fn winner(plan: &ServingPlan) -> String {
    if plan.rate_per_replica <= 0.0 {
        return String::new();
    }
    let laws = if plan.measured { "kernel laws measured" } else { "some kernel laws transferred" };
    let line = format!(
        "best: {} with at most {} tokens a step carries {} requests/s within every promise, {} per GPU; ${} per million generated tokens; {laws} on this \
         accelerator",
        serving_label(&plan.deployment),
        grouped(u64::from(plan.token_budget)),
        three(plan.rate),
        three(plan.rate_per_accelerator),
        three(plan.usd_per_million_tokens),
    );
    format!("{}\n", wrap(&line, WIDTH, "  "))
}

/// Rates without the beginning and the tail, and whether the run was long enough to tell.
fn while_they_came(flowing: &Flowing, too_short: bool) -> String {
    if too_short {
        return format!(
            "TOO SHORT: the last request came after {}, before an answer to the first ones was long done. Engines were still \
             filling: latencies are of that time, and whether they keep up is not known; give more requests",
            seconds(2.0 * flowing.seconds)
        );
    }
    format!(
        "while requests came (second half, without the tail of {}): {} requests/s, {} tokens/s out",
        seconds(flowing.tail_s),
        three(flowing.requests_per_s),
        grouped(flowing.output_tokens_per_s.round() as u64)
    )
}

/// Figures of a run, latencies as a table; a saturated run has no latencies.
pub(crate) fn figures(report: &ServingReport) -> String {
    let mut out = String::new();
    let line = format!(
        "{} requests answered{} in {}: {} requests/s, {} tokens/s in, {} out; mean {} in the system, KV cache at most {:.0} % \
         full{}{}",
        grouped(report.requests),
        if report.refused > 0 {
            format!(", {} refused (too long for the cache),", report.refused)
        } else {
            String::new()
        },
        seconds(report.seconds),
        three(report.requests_per_s),
        grouped(report.input_tokens_per_s.round() as u64),
        grouped(report.output_tokens_per_s.round() as u64),
        three(report.mean_in_system),
        report.peak_cache * 100.0,
        if report.preemptions > 0 {
            format!(", {} preemptions", grouped(report.preemptions))
        } else {
            String::new()
        },
        if report.cache_hits > 0.0 {
            format!(", {:.0} % of the prompt tokens found in the cache", report.cache_hits * 100.0)
        } else {
            String::new()
        },
    );
    out.push_str(&wrap(&line, WIDTH, "  "));
    out.push('\n');
    if report.saturated {
        out.push_str(&wrap(
            "SATURATED: requests come faster than they are answered. Latencies would grow with the length of the run and are \
             not given; requests/s above is what the deployment can do.",
            WIDTH,
            "  ",
        ));
        out.push('\n');
        return out;
    }
    if report.requests == 0 {
        return out;
    }
    if let Some(flowing) = report.flowing {
        out.push_str(&wrap(&while_they_came(&flowing, report.too_short), WIDTH, "  "));
        out.push('\n');
    }
    let columns = [
        ("ms", Left),
        ("mean", Right),
        ("p50", Right),
        ("p90", Right),
        ("p95", Right),
        ("p99", Right),
        ("max", Right),
    ];
    let mut table = Table::new(&columns);
    for (name, p) in [
        ("TTFT", &report.ttft_ms),
        ("TPOT", &report.tpot_ms),
        ("ITL", &report.itl_ms),
        ("E2E", &report.e2e_ms),
    ] {
        // Answers of one token have no time per token.
        let cell = |v: f64| if p.max > 0.0 { three(v) } else { "-".to_owned() };
        let cells = [p.mean, p.p50, p.p90, p.p95, p.p99, p.max].map(cell);
        table.row(std::iter::once(name.to_owned()).chain(cells));
    }
    out.push('\n');
    out.push_str(&table.render());
    if !report.promises.is_empty() {
        let kept: Vec<String> = report
            .promises
            .iter()
            .map(|k| {
                let reached = if k.reached_ms > 0.0 {
                    seconds(k.reached_ms * 1e-3)
                } else {
                    "nothing to measure".to_owned()
                };
                format!(
                    "{} p{} {reached} of {} ({})",
                    k.metric.name(),
                    three(k.percentile),
                    seconds(k.limit_ms * 1e-3),
                    if k.kept {
                        "kept"
                    } else if report.too_short && k.reached_ms <= k.limit_ms {
                        "not known"
                    } else {
                        "BROKEN"
                    }
                )
            })
            .collect();
        let line = format!(
            "promises: {}; goodput {} requests/s ({:.1} % of the requests keep every limit)",
            kept.join(", "),
            three(report.goodput),
            report.good_share * 100.0
        );
        out.push_str(&wrap(&line, WIDTH, "  "));
        out.push('\n');
    }
    out
}

/// What a deployment is, what its cache holds, and what runs beside it.
pub(crate) fn deployment_line(detail: &ServingDetail, served: &Served) -> String {
    let pooled = detail.pools.is_some();
    let cache = if detail.cache_tokens.is_finite() {
        let of = if pooled { "instance for answers" } else { "replica" };
        format!("{} tokens of KV cache per {of}", grouped(detail.cache_tokens as u64))
    } else {
        "no KV cache that grows".to_owned()
    };
    let router =
        if pooled { String::new() } else { format!(", {} router", router_name(served.options.router)) };
    let mut lines = vec![format!(
        "deployment: {}, {}{router}; {cache}",
        layout_label(&detail.layout),
        counted(u64::from(served.accelerators()), "GPU", "GPUs"),
    )];
    if let (Some(p), Layout::Pools(split)) = (&detail.pools, &detail.layout) {
        lines.push(format!(
            "pools ({} placement, {} transfer): a cache takes {} ms to arrive, {} were held back; instances for prompts work \
             {:.0} % of the time, those for answers {:.0} %",
            placement_name(split.placement),
            transfer_name(split.transfer),
            three(p.transfer_ms),
            grouped(p.held_back),
            p.prefill_busy * 100.0,
            p.decode_busy * 100.0,
        ));
    }
    if let (Some(s), Some(asked)) = (&detail.speculation, &served.speculation) {
        lines.push(format!(
            "speculation {}: {} drafted a round, {} tokens come of it on average; prompts run whole and before answers, \
             whatever the engine's policy",
            asked.name,
            asked.tokens,
            three(s.tokens_per_round),
        ));
    }
    lines.extend(arrangement::line(detail, served));
    if let Some(rule) = &served.options.autoscale {
        lines.push(format!(
            "autoscaling: {} to {} replicas, {} on average, {} at most",
            rule.least,
            detail.layout.deployment().replicas,
            three(detail.run.replica_seconds / detail.run.end.seconds().0.max(1e-12)),
            detail.run.most_replicas,
        ));
    }
    let moved = detail.run.extra.moved_bytes;
    if moved > 0 {
        lines.push(format!(
            "{} GB moved between accelerators and host memory or disk",
            three(moved as f64 * 1e-9)
        ));
    }
    lines.iter().map(|line| format!("{}\n", wrap(line, WIDTH, "  "))).collect()
}

/// Price and energy of a run.
pub(crate) fn price_line(detail: &ServingDetail) -> String {
    let line = format!(
        "${} an hour, ${} per million generated tokens at this rate; {} kW, {} J per generated token, hosts and facility \
         included",
        three(detail.usd_per_hour),
        three(detail.usd_per_million_tokens()),
        three(detail.energy.kilowatts),
        three(detail.energy.joule_per_token),
    );
    format!("{}\n", wrap(&line, WIDTH, "  "))
}

/// Decoding steps on a device of several engines.
pub(crate) fn device_steps(model: &str, layout: &Deployment, steps: &DeviceSteps) -> String {
    let mut columns = vec![
        ("decoding sequences".to_owned(), Right),
        ("step ms".to_owned(), Right),
        ("tok/s/user".to_owned(), Right),
        ("tok/s/device".to_owned(), Right),
        ("GiB".to_owned(), Right),
    ];
    columns.extend(steps.engines.iter().map(|e| (format!("{e} busy %"), Right)));
    let titles: Vec<(&str, _)> = columns.iter().map(|(name, align)| (name.as_str(), *align)).collect();
    let mut table = Table::new(&titles);
    for p in &steps.decode {
        let mut cells = vec![
            format!("{}{}", grouped(u64::from(p.batch)), if p.interleaved { " (in halves)" } else { "" }),
            three(p.step_ms),
            three(p.tokens_per_s_per_user),
            three(p.tokens_per_s_per_device),
            three(p.gib),
        ];
        cells.extend(p.busy.iter().map(|b| format!("{:.0}", b * 100.0)));
        table.row(cells);
    }
    let line = format!(
        "{model} on {} x {}, {} arithmetic: decoding with {} tokens of context per sequence. Datasheet rates of the engines and \
         memories, each operator on the engine that its roofline favours; no host, no prompts{}. Its engines read a memory of {} GiB{}",
        layout.accelerators_per_replica(),
        steps.device,
        steps.dtype.name(),
        grouped(steps.context as u64),
        if steps.exchange_left_out { ", no exchange between the devices" } else { "" },
        three(steps.capacity_gib),
        if steps.decode.first().is_some_and(|p| p.gib > steps.capacity_gib) {
            ": IT DOES NOT HOLD THE MODEL"
        } else {
            ""
        },
    );
    format!("{}\n\n{}", wrap(&line, WIDTH, "  "), table.render_within(WIDTH))
}

/// Steps against their roofline.
pub(crate) fn steps(steps: &Steps, engine: &str) -> String {
    let share = |roofline: f64, step: f64| format!("{:.0}", 100.0 * roofline / step.max(1e-12));
    let mut decode = Table::new(&[
        ("decoding sequences", Right),
        ("step ms", Right),
        ("roofline ms", Right),
        ("reached %", Right),
        ("tok/s/user", Right),
        ("tok/s/GPU", Right),
    ]);
    for p in &steps.decode {
        decode.row([
            grouped(u64::from(p.batch)),
            three(p.step_ms),
            three(p.roofline_ms),
            share(p.roofline_ms, p.step_ms),
            three(p.tokens_per_s_per_user),
            three(p.tokens_per_s_per_gpu),
        ]);
    }
    let mut prompts = Table::new(&[
        ("prompt tokens", Right),
        ("step ms", Right),
        ("roofline ms", Right),
        ("reached %", Right),
        ("tok/s/GPU", Right),
    ]);
    for p in &steps.prompts {
        prompts.row([
            grouped(u64::from(p.tokens)),
            three(p.step_ms),
            three(p.roofline_ms),
            share(p.roofline_ms, p.step_ms),
            three(p.tokens_per_s_per_gpu),
        ]);
    }
    let limit = if steps.fit < steps.engine_limit {
        format!("the KV cache, which holds {} sequences of the mean length", grouped(u64::from(steps.fit)))
    } else {
        format!("{engine}, which runs at most {} sequences", grouped(u64::from(steps.engine_limit)))
    };
    let line = format!(
        "each accelerator holds {} GiB of weights and has {} GiB for the KV cache; the batch of one copy of the attention is \
         limited by {limit}. Decoding below reads {} tokens of context per sequence. reached: what datasheet rates allow over \
         the step's time",
        three(steps.weights_gib),
        three(steps.cache_gib),
        grouped(steps.context as u64),
    );
    let line = match &steps.apart {
        Some(figures) => format!("{line}. {}", arrangement::to_and_fro(figures)),
        None => line,
    };
    format!("{}\n\n{}\n{}", wrap(&line, WIDTH, "  "), decode.render(), prompts.render())
}

/// The best split into prompt and answer pools, beside the best plan without a split.
pub(crate) fn split(report: &DisaggregatedReport, best: Option<&ServingPlan>) -> String {
    let Some(p) = report.plans.first() else { return String::new() };
    let against = match best.filter(|b| b.rate > 0.0) {
        Some(b) => format!("{:+.0} % against the best without a split", 100.0 * (p.rate / b.rate - 1.0)),
        None => "nothing without a split keeps the promises".to_owned(),
    };
    let pool = |d: &Deployment| {
        let mut text = format!("{} x TP{}", d.replicas, d.tp);
        for (name, size) in [("PP", d.pp), ("attention-DP", d.attention_dp), ("EP", d.ep)] {
            if size > 1 {
                text.push_str(&format!(" {name}{size}"));
            }
        }
        text
    };
    let line = format!(
        "split into pools: prompts on {}, answers on {} carry {} requests/s, {} per GPU ({against}); TTFT p95 {} ms, TPOT p95 {} \
         ms, the cache takes {} ms to arrive",
        pool(&p.prefill),
        pool(&p.decode),
        three(p.rate),
        three(p.rate_per_accelerator),
        three(p.report.ttft_ms.p95),
        three(p.report.tpot_ms.p95),
        three(p.transfer_ms),
    );
    format!("{}\n", wrap(&line, WIDTH, "  "))
}
