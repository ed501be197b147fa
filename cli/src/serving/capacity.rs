//! `psim capacity --rate`: how many of which accelerators carry a rate within a service level.

use super::formats::{formats, kv_format};
use super::job::load_engine;
use super::{render, workload};
use crate::Host;
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::inputs::job::Format;
use crate::inputs::{CommonArguments, cluster, model};
use crate::number::{counted, grouped, three};
use crate::table::{Align::Left, Align::Right, Table, wrap};
use clap::Args;
use psim_cost_models::serving::EngineProfile;
use psim_cost_models::serving::engine::DEFAULT_ENGINE;
use psim_hardware::Cluster;
use psim_hardware::catalogue::{self, HomogeneousOptions, homogeneous};
use psim_models::serving::{Arrival, Lengths, ServiceLevel, ServingWorkload};
use psim_planner::Assumption;
use psim_planner::serving::size::REPAIR_HOURS;
use psim_planner::serving::{Layout, ServingPlanError, ServingRequest, ServingSize, size_all};
use psim_reports::{ServingCapacityPage, serving_capacity_page, short_layout_label};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Accelerators compared when none is named: what serving is rented on.
const DEFAULT_TYPES: [&str; 5] = ["A100-SXM-80GB", "H100-SXM-80GB", "H200-SXM-141GB", "B200-SXM", "MI300X"];

/// Accelerators of the machine on which layouts are tried: two usual nodes, or the smallest that exists.
const TRIED: [u32; 5] = [16, 8, 72, 4, 1];

/// Requests of one simulation of the search.
const SEARCH_REQUESTS: u32 = 400;

/// Flags of `psim capacity` that ask about serving.
#[derive(Debug, Args)]
pub(crate) struct ServingCapacityArguments {
    /// Serving: requests a second to carry, such as 50rps
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    pub(crate) rate: Option<f64>,
    /// Serving: what is promised, such as 'ttft_p95<2s,tpot_p95<50ms'
    #[arg(long, value_name = "PROMISES")]
    slo: Option<String>,
    /// Serving: workload file or built-in workload whose lengths and arrivals are taken [default: chat]
    #[arg(long, value_name = "FILE|NAME")]
    workload: Option<PathBuf>,
    /// Serving: prompt tokens of every request, in place of a workload
    #[arg(long, value_name = "N", requires = "output")]
    input: Option<u64>,
    /// Serving: answer tokens of every request, in place of a workload
    #[arg(long, value_name = "N", requires = "input")]
    output: Option<u64>,
    /// Serving: percent of the time for which enough replicas must be up
    #[arg(long, value_name = "PERCENT", default_value_t = 99.9, value_parser = parse_percent)]
    availability: f64,
    /// Serving: format of the KV cache [default: bf16]
    #[arg(long, value_name = "P")]
    kv_precision: Option<String>,
}

/// Reads `50rps`, `50/s`, `50`, `3000rpm`.
fn parse_rate(text: &str) -> Result<f64, String> {
    let lower = text.trim().to_lowercase();
    let (number, factor) = if let Some(n) = lower.strip_suffix("rpm") {
        (n, 1.0 / 60.0)
    } else {
        (lower.trim_end_matches("rps").trim_end_matches("/s"), 1.0)
    };
    let wrong = || format!("`{text}` is not a rate; write for example 50rps or 3000rpm");
    let value = number.trim().parse::<f64>().map_err(|_| wrong())? * factor;
    if value.is_finite() && value > 0.0 && value < 1e9 { Ok(value) } else { Err(wrong()) }
}

/// Reads `99.9` or `99.9%`.
fn parse_percent(text: &str) -> Result<f64, String> {
    let value: f64 = text
        .trim()
        .trim_end_matches('%')
        .parse()
        .map_err(|_| format!("`{text}` is not a percentage; write for example 99.9"))?;
    if value > 0.0 && value < 100.0 {
        Ok(value)
    } else {
        Err(format!("{value} % is impossible to promise; it must lie above 0 and below 100"))
    }
}

/// What the flags ask for.
struct Question {
    model: psim_models::Model,
    workload: ServingWorkload,
    engine: EngineProfile,
    rate: f64,
    availability: f64,
    assumptions: Vec<Assumption>,
}

/// The traffic: a workload at the rate asked for, with the promises of `--slo` for every tenant.
fn traffic(
    arguments: &ServingCapacityArguments,
    rate: f64,
    assumptions: &mut Vec<Assumption>,
    host: &Host<'_>,
) -> Result<ServingWorkload, Failure> {
    let mut assume = |name: &str, value: &str, why: &str| {
        assumptions.push(Assumption { name: name.to_owned(), value: value.to_owned(), why: why.to_owned() });
    };
    let mut load = match (arguments.input, arguments.output, &arguments.workload) {
        (Some(_), _, Some(_)) => {
            return Err(Failure::input(
                "--input and --output stand beside --workload, which has lengths of its own",
                "leave one of them out",
            ));
        }
        (Some(input), Some(output), None) => {
            for tokens in [input, output] {
                if let Some(fault) = Lengths::Fixed(tokens).fault() {
                    return Err(Failure::input(fault, "lengths are whole tokens"));
                }
            }
            assume("arrivals", "Poisson", "independent users; --workload FILE for others");
            ServingWorkload::fixed("fixed lengths", Arrival::Poisson { rate }, 4096, input, output)
        }
        (_, _, Some(path)) => workload::load(host, path)?,
        _ => {
            assume(
                "workload",
                "chat (conversation lengths, Poisson)",
                "the Azure trace of 2023; --workload, or --input and --output",
            );
            workload::load(host, std::path::Path::new("chat"))?
        }
    };
    load = load.at_rate(rate);
    if let Some(text) = &arguments.slo {
        let level = ServiceLevel::parse(text).map_err(|m| {
            Failure::input(format!("--slo: {m}"), "write for example 'ttft_p95<2s,tpot_p95<50ms'")
        })?;
        for tenant in &mut load.tenants {
            tenant.slo = level.clone();
        }
    }
    if load.tenants.iter().all(|t| t.slo.promises.is_empty()) {
        return Err(Failure::input(
            "nothing is promised, so any number of accelerators would do",
            "add --slo 'ttft_p95<2s,tpot_p95<50ms', or `slo` to the workload",
        ));
    }
    Ok(load)
}

/// Machines, each with the accelerators that there are if it exists already, and what is not possible with the reason.
type Machines = (Vec<(Cluster, Option<u32>)>, Vec<(String, String)>);

/// Machines to compare: named types and clusters, else the usual types; what is not possible with the reason.
fn machines(types: &[String], clusters: &[String], host: &Host<'_>) -> Result<Machines, Failure> {
    let mut out = Vec::new();
    let mut rejected = Vec::new();
    for name in clusters {
        let whole = cluster::load(host, name)?;
        // Nodes of each kind are an option of their own.
        for group in &whole.groups {
            let part = Cluster { groups: vec![group.clone()], ..whole.clone() };
            let there = part.accelerators();
            out.push((part, Some(there)));
        }
    }
    let usual: Vec<String> =
        DEFAULT_TYPES.iter().filter(|n| catalogue::datasheet(n).is_ok()).map(|n| (*n).to_owned()).collect();
    let types = if types.is_empty() && clusters.is_empty() { &usual } else { types };
    for name in types {
        let part = catalogue::accelerator(name).map_err(|e| Failure::input(e.to_string(), e.hint()))?;
        let mut last = String::new();
        let found = TRIED.iter().find_map(|count| {
            homogeneous(&part.name, *count, &HomogeneousOptions::default())
                .map_err(|e| last = e.to_string())
                .ok()
        });
        match found {
            Some(cluster) => out.push((cluster, None)),
            None => rejected.push((part.name.clone(), last)),
        }
    }
    Ok((out, rejected))
}

/// Answers and prints.
pub(crate) fn run(
    model_name: &str,
    arguments: &ServingCapacityArguments,
    common: &CommonArguments,
    precision: Option<Format>,
    (types, clusters): (&[String], &[String]),
    report: Option<&Path>,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    let Some(rate) = arguments.rate else {
        return Err(Failure::input("serving capacity needs a rate", "add --rate 50rps"));
    };
    let mut assumptions = Vec::new();
    let model = model::load(host, model_name)?;
    let quantization = formats(
        &model,
        precision.map(Format::serving).transpose()?,
        arguments.kv_precision.as_deref().map(kv_format).transpose()?,
        &mut assumptions,
    );
    if common.stack.is_none() {
        assumptions.push(Assumption {
            name: "engine".to_owned(),
            value: DEFAULT_ENGINE.to_owned(),
            why: "the newest vLLM; --stack".to_owned(),
        });
    }
    let question = Question {
        model,
        workload: traffic(arguments, rate, &mut assumptions, host)?,
        engine: load_engine(host, common.stack.as_deref().unwrap_or(DEFAULT_ENGINE))?,
        rate,
        availability: arguments.availability,
        assumptions,
    };
    if !common.settings.is_empty() {
        return Err(Failure::input(
            "--set changes one engine on one accelerator, and capacity compares several",
            "give an engine file with --stack",
        ));
    }
    let (library, _) = common.library(host)?;
    let (machines, mut rejected) = machines(types, clusters, host)?;
    let requests: Vec<ServingRequest<'_>> = machines
        .iter()
        .map(|(cluster, _)| ServingRequest {
            model: &question.model,
            cluster,
            engine: &question.engine,
            workload: &question.workload,
            quantization,
            library: &library,
            requests: SEARCH_REQUESTS,
            seed: common.seed,
        })
        .collect();
    let answers = common.on_threads(|| size_all(&requests, rate, question.availability / 100.0))?;
    let mut options = Vec::new();
    for ((cluster, there), answer) in machines.iter().zip(answers) {
        match answer {
            Ok(size) => match there.filter(|there| size.accelerators > *there) {
                Some(there) => {
                    let name = format!("{} ({})", cluster.name, cluster.first_node().accelerator.name);
                    let why =
                        format!("{} are needed, spares included, and there are {there}", size.accelerators);
                    rejected.push((name, why));
                }
                None => options.push(size),
            },
            Err(ServingPlanError::Infeasible { reasons, .. }) => {
                rejected.push((cluster.first_node().accelerator.name.clone(), reasons.join("; ")));
            }
            Err(error) => return Err(super::plan::failure(&error)),
        }
    }
    options.sort_by(|a, b| a.usd_per_hour.total_cmp(&b.usd_per_hour));
    if let Some(path) = report {
        let page = serving_capacity_page(&ServingCapacityPage {
            model: &question.model,
            workload: &question.workload,
            engine: &question.engine.name,
            rate,
            availability_percent: question.availability,
            options: &options,
            rejected: &rejected,
            assumptions: &question.assumptions,
        });
        write_atomically(host, path, page.as_bytes())?;
        host.say(format_args!("wrote {}", path.display()));
    }
    if common.json {
        let list: Vec<_> = options.iter().map(option_json).collect();
        let rejected: Vec<_> =
            rejected.iter().map(|(what, why)| json!({ "accelerator": what, "why": why })).collect();
        host.json(&json!({
            "schema": 1, "kind": "serving", "model": question.model.name, "rate_rps": rate,
            "availability_percent": question.availability, "engine": question.engine.name,
            "weights": quantization.dense.name(), "kv": quantization.kv.name(), "workload": question.workload.name,
            "options": list, "rejected": rejected, "assumptions": question.assumptions,
        }))?;
    } else {
        host.print(text(&question, &options, &rejected))?;
    }
    if options.is_empty() {
        let why =
            rejected.first().map_or_else(|| "nothing was compared".to_owned(), |(n, w)| format!("{n}: {w}"));
        return Err(Failure::Infeasible {
            message: format!("no accelerator carries the rate within the promises; {why}"),
            hint: "a looser --slo, fewer bits (--precision fp8), or other --accelerators".to_owned(),
        });
    }
    Ok(())
}

fn option_json(s: &ServingSize) -> serde_json::Value {
    json!({
        "other": s.other.as_ref().map(|o| json!({
            "deployment": render::json::layout(&o.layout), "accelerators": o.accelerators, "usd_per_hour": o.usd_per_hour,
            "rate_rps_per_replica": o.rate_per_unit, "spare_replicas": o.spare_replicas, "kilowatts": o.kilowatts,
        })),
        "accelerator": s.accelerator,
        "accelerators": s.accelerators,
        "needed": s.needed,
        "spare_replicas": s.spare_replicas,
        "deployment": render::json::layout(&s.layout),
        "pools": s.pools,
        "token_budget": s.token_budget,
        "accelerators_per_replica": s.unit_accelerators,
        "rate_rps_per_replica": s.rate_per_unit,
        "load": s.load,
        "price_per_gpu_hour": s.price_per_gpu_hour,
        "usd_per_hour": s.usd_per_hour,
        "usd_per_million_output_tokens": s.usd_per_million_tokens,
        "kilowatts": s.kilowatts,
        "energy_j_per_output_token": s.joule_per_token,
        "measured": s.measured,
        "replica_at_its_highest_rate": render::json::report(&s.report),
    })
}

/// What is needed and what stands by.
fn needed(size: &ServingSize) -> String {
    match (size.pools, &size.layout) {
        (Some(p), _) => format!(
            "{} for prompts and {} for answers needed, {} and {} spare",
            counted(p.prefill.into(), "instance", "instances"),
            p.decode,
            p.prefill_spares,
            p.decode_spares
        ),
        (None, Layout::Pools(_)) => format!(
            "{} (instances for prompts + for answers) needed and {} spare",
            counted(size.needed.replicas.into(), "unit of pools", "units of pools"),
            size.spare_replicas
        ),
        (None, Layout::Replicas(_)) => {
            let replicas = counted(size.needed.replicas.into(), "replica", "replicas");
            format!("{replicas} needed and {} spare", size.spare_replicas)
        }
    }
}

/// The answer as a table of at most 100 columns.
fn text(question: &Question, options: &[ServingSize], rejected: &[(String, String)]) -> String {
    let mut out = String::new();
    let (input, output) = question.workload.mean_lengths();
    let promises: Vec<String> = question.workload.tenants.first().map_or_else(Vec::new, |t| {
        t.slo
            .promises
            .iter()
            .map(|p| format!("{} p{} < {} ms", p.metric.name(), three(p.percentile), three(p.limit_ms)))
            .collect()
    });
    let mut say = |line: &str| {
        out.push_str(&wrap(line, 100, "  "));
        out.push('\n');
    };
    say(&format!(
        "{}: {} requests/s of {} tokens in and {} out on average, {}, engine {}",
        question.model.name,
        three(question.rate),
        grouped(input.round() as u64),
        grouped(output.round() as u64),
        promises.join(", "),
        question.engine.name,
    ));
    let assumed: Vec<String> =
        question.assumptions.iter().map(|a| format!("{} {} ({})", a.name, a.value, a.why)).collect();
    if !assumed.is_empty() {
        say(&format!("assumed: {}", assumed.join("; ")));
    }
    let columns = [
        ("accelerator", Left),
        ("GPUs", Right),
        ("spare", Right),
        ("load%", Right),
        ("$/hour", Right),
        ("$/Mtok", Right),
        ("kW", Right),
        ("J/token", Right),
        ("TTFT p95", Right),
        ("TPOT p95", Right),
        ("deployment", Left),
    ];
    let mut table = Table::new(&columns);
    for s in options {
        let spare = s.accelerators - s.needed.accelerators;
        table.row([
            s.accelerator.clone(),
            grouped(u64::from(s.accelerators)),
            grouped(u64::from(spare)),
            format!("{:.0}", s.load * 100.0),
            three(s.usd_per_hour),
            three(s.usd_per_million_tokens),
            three(s.kilowatts),
            three(s.joule_per_token),
            three(s.report.ttft_ms.p95),
            three(s.report.tpot_ms.p95),
            short_layout_label(&s.layout),
        ]);
    }
    if !options.is_empty() {
        out.push('\n');
        out.push_str(&table.render_within(100));
    }
    let mut say = |line: &str| {
        out.push_str(&wrap(line, 100, "  "));
        out.push('\n');
    };
    if let Some(best) = options.first() {
        say("");
        say(&format!(
            "cheapest: {} x {} at ${} an hour, {} so that enough are up {} % of the time (a failure in 50,700 GPU hours, {} \
             hours to repair)",
            grouped(u64::from(best.accelerators)),
            best.accelerator,
            three(best.usd_per_hour),
            needed(best),
            question.availability,
            REPAIR_HOURS,
        ));
        say(
            "GPUs include spares; load: the rate over what the rented replicas carry; TTFT and TPOT in ms of a replica at its \
             highest rate; prices are assumptions of the order of list prices unless a cluster file gives them",
        );
    }
    for s in options {
        if let Some(other) = &s.other {
            say(&format!(
                "{}: {} would take {} and ${} an hour",
                s.accelerator,
                short_layout_label(&other.layout),
                counted(u64::from(other.accelerators), "GPU", "GPUs"),
                three(other.usd_per_hour),
            ));
        }
    }
    for s in options.iter().filter(|s| !s.measured) {
        say(&format!(
            "{}: some kernel laws were measured on another accelerator and transferred",
            s.accelerator
        ));
    }
    for (name, why) in rejected {
        say(&format!("not possible: {name}: {why}"));
    }
    out
}
