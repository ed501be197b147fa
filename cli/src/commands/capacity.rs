//! `psim capacity`: which accelerators, how many, for how long, at what price.

use crate::Host;
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::inputs::job::{DEFAULT_BATCH_TOKENS, DEFAULT_SEQUENCE, Format, parse_format, parse_length};
use crate::inputs::{CommonArguments, cluster, model};
use crate::number::{grouped, parse_count, parse_days, parse_dollars, parse_range, short, three};
use crate::progress::Bar;
use crate::serving::{ServingCapacityArguments, run_capacity};
use crate::table::{Align::Left, Align::Right, Table, wrap};
use clap::Args;
use psim_hardware::catalogue::{self, HomogeneousOptions};
use psim_models::TrainingWorkload;
use psim_models::arch::Position;
use psim_models::plan::Precision;
use psim_planner::capacity::{CapacityRequest, Offer, capacity, default_offers};
use psim_planner::{Assumption, CapacityReport, PlanError};
use psim_reports::plan_label;
use std::path::{Path, PathBuf};

/// Arguments of `psim capacity`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Model: a preset (`psim show models`) or the path of a Hugging Face config.json
    #[arg(long, value_name = "NAME|config.json")]
    model: String,
    /// Training: tokens of the whole job, such as 15T
    #[arg(long, value_name = "N", value_parser = parse_count, required_unless_present = "rate", conflicts_with = "rate")]
    tokens: Option<f64>,
    /// Must be done within this time, such as 30d
    #[arg(long, value_name = "TIME", value_parser = parse_days)]
    by: Option<f64>,
    /// Must not cost more than this, such as 5M$
    #[arg(long, value_name = "DOLLARS", value_parser = parse_dollars)]
    budget: Option<f64>,
    /// Accelerator types to rent (any number of each); default: the usual ones
    #[arg(long = "accelerator", visible_alias = "accelerators", value_name = "NAME", value_delimiter = ',')]
    accelerators: Vec<String>,
    /// Clusters that exist, as files or built-in names (repeatable)
    #[arg(long = "cluster", value_name = "FILE|NAME", value_delimiter = ',')]
    clusters: Vec<String>,
    /// Most accelerators of one type
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    most: u32,
    /// Sequences per step, or a range of them of which each option takes its best [default: 4 Mi tokens]
    #[arg(long, value_name = "N|A..B", value_parser = parse_range)]
    global_batch: Option<(u32, u32)>,
    /// Tokens per sequence [default: 8192]
    #[arg(long, value_name = "N", value_parser = parse_length)]
    seq_len: Option<u64>,
    /// Arithmetic [default: bf16]
    #[arg(long, value_name = "P", value_parser = parse_format)]
    precision: Option<Format>,
    /// Write a self-contained HTML report
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    serving: ServingCapacityArguments,
    #[command(flatten)]
    common: CommonArguments,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    let Some(tokens) = arguments.tokens else {
        return run_serving(arguments, host);
    };
    let model = model::load(host, &arguments.model)?;
    let software = arguments.common.software(host)?;
    let mut assumptions = Vec::new();
    let mut assume = |name: &str, value: String, why: &str| {
        assumptions.push(Assumption { name: name.to_owned(), value, why: why.to_owned() });
    };
    let rows = match model.position {
        Position::Learned(rows) => rows,
        _ => u64::MAX,
    };
    let seq_len = arguments.seq_len.unwrap_or_else(|| {
        let length = DEFAULT_SEQUENCE.min(rows);
        assume("sequence length", format!("{} tokens", grouped(length)), "usual in pre-training; --seq-len");
        length
    });
    if seq_len > rows {
        return Err(Failure::input(
            format!(
                "sequences of {seq_len} tokens, but `{}` has a position table of {rows} rows",
                model.name
            ),
            format!("use --seq-len {rows} or less"),
        ));
    }
    let global_batch = match arguments.global_batch {
        Some((low, _)) => low,
        None => {
            let batch = u32::try_from((DEFAULT_BATCH_TOKENS / seq_len).max(1)).unwrap_or(u32::MAX);
            assume(
                "global batch",
                format!("{} sequences (4 Mi tokens)", grouped(u64::from(batch))),
                "usual in pre-training; --global-batch",
            );
            batch
        }
    };
    if !software.stack_chosen {
        assume("software stack", software.stack.name.clone(), "the newest Megatron-Core; --stack");
    }
    let given = arguments.precision.map(Format::training).transpose()?;
    let precision = given.unwrap_or_else(|| {
        assume("precision", "bf16".to_owned(), "usual in pre-training; --precision");
        Precision::Bf16
    });
    let workload = TrainingWorkload {
        seq_len,
        global_batch,
        tokens: Some(tokens),
        packed_length: None,
        lora_rank: None,
        expert_imbalance: 1.0,
        capacity_factor: None,
    };
    let request = CapacityRequest {
        model: &model,
        workload: &workload,
        global_batch: arguments.global_batch,
        stack: &software.stack,
        library: &software.library,
        precision: vec![precision],
        deadline_days: arguments.by,
        budget_usd: arguments.budget,
        offers: offers(arguments, host)?,
        most_accelerators: arguments.most,
        assumptions,
    };
    let bar = Bar::new(host.progress);
    let answer = arguments.common.on_threads(|| capacity(&request, &bar))?;
    bar.finish();
    let report = answer.map_err(|error| match error {
        PlanError::Question { what, hint } => Failure::input(what, hint),
        PlanError::Cancelled => Failure::input("the search was cancelled", "run it again"),
    })?;
    finish(&report, arguments.report.as_deref(), arguments.common.json, host)
}

/// The question of serving, with `--rate`.
fn run_serving(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    let of_training = [
        ("--by", arguments.by.is_some()),
        ("--budget", arguments.budget.is_some()),
        ("--global-batch", arguments.global_batch.is_some()),
        ("--seq-len", arguments.seq_len.is_some()),
    ];
    if let Some((flag, _)) = of_training.iter().find(|(_, given)| *given) {
        return Err(Failure::input(
            format!("{flag} belongs to training, and --rate asks about serving"),
            "leave it out; `psim capacity --help` says which flag belongs to which question",
        ));
    }
    let machines = (arguments.accelerators.as_slice(), arguments.clusters.as_slice());
    let (common, page) = (&arguments.common, arguments.report.as_deref());
    run_capacity(&arguments.model, &arguments.serving, common, arguments.precision, machines, page, host)
}

/// What may be rented: named types and clusters, else the usual types.
fn offers(arguments: &Arguments, host: &Host<'_>) -> Result<Vec<Offer>, Failure> {
    let mut offers = Vec::new();
    for name in &arguments.accelerators {
        let part = catalogue::accelerator(name).map_err(|e| Failure::input(e.to_string(), e.hint()))?;
        offers.push(Offer::Type { name: part.name.clone(), options: HomogeneousOptions::default() });
    }
    for name in &arguments.clusters {
        offers.push(Offer::Fixed(Box::new(cluster::load(host, name)?)));
    }
    Ok(if offers.is_empty() { default_offers() } else { offers })
}

/// Prints and writes the answer.
fn finish(
    report: &CapacityReport,
    page: Option<&Path>,
    json: bool,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    if let Some(path) = page {
        write_atomically(host, path, psim_reports::capacity_page(report).as_bytes())?;
        host.say(format_args!("wrote {}", path.display()));
    }
    if json {
        host.json(report)?;
    } else {
        host.print(text(report))?;
    }
    if report.options.iter().any(|o| o.meets) {
        return Ok(());
    }
    let (message, hint) = match report.options.first() {
        None => (
            report
                .rejected
                .first()
                .map_or_else(|| "nothing is feasible".to_owned(), |(name, why)| format!("{name}: {why}")),
            "a larger --most, other --accelerator types, or a smaller model".to_owned(),
        ),
        Some(near) => (
            format!(
                "no option meets the limits; {} x {}: {}",
                near.rented,
                near.accelerator,
                near.misses.join("; ")
            ),
            "a later deadline, a larger budget, or a larger --most".to_owned(),
        ),
    };
    Err(Failure::Infeasible { message, hint })
}

/// The answer as a table of at most 100 columns.
fn text(report: &CapacityReport) -> String {
    let limits: Vec<String> = [
        report.deadline_days.map(|d| format!("within {} days", three(d))),
        report.budget_usd.map(|b| format!("for at most ${}", short(b))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut out = format!("{} on {} tokens {}\n", report.model, short(report.tokens), limits.join(" and "));
    let assumed: Vec<String> =
        report.assumptions.iter().map(|a| format!("{} {} ({})", a.name, a.value, a.why)).collect();
    if !assumed.is_empty() {
        out.push_str(&wrap(&format!("assumed: {}", assumed.join("; ")), 100, "  "));
        out.push('\n');
    }
    let columns = [
        ("accelerator", Left),
        ("rented", Right),
        ("days", Right),
        ("$", Right),
        ("MWh", Right),
        ("MFU%", Right),
        ("useful%", Right),
        ("fails", Right),
        ("meets", Left),
        ("plan", Left),
    ];
    let mut table = Table::new(&columns);
    for option in report.options.iter().take(24) {
        table.row([
            option.accelerator.clone(),
            grouped(u64::from(option.rented)),
            three(option.days),
            short(option.cost_usd),
            three(option.energy_mwh),
            format!("{:.1}", option.plan.mfu),
            format!("{:.1}", option.failures.goodput * 100.0),
            three(option.failures.failures),
            if option.meets { "yes" } else { "no" }.to_owned(),
            plan_label(&option.plan.plan),
        ]);
    }
    out.push('\n');
    out.push_str(&table.render_within(100));
    if let Some(best) = report.recommended.and_then(|i| report.options.get(i)) {
        let line = format!(
            "recommended: {} x {} for {} days at ${} ({} of it spares), {}; {}",
            grouped(u64::from(best.rented)),
            best.accelerator,
            three(best.days),
            short(best.cost_usd),
            grouped(u64::from(best.rented - best.accelerators.min(best.rented))),
            plan_label(&best.plan.plan),
            best.plan.bound_by.sentence,
        );
        out.push_str(&format!("\n{}\n", wrap(&line, 100, "  ")));
    }
    for (name, why) in &report.rejected {
        out.push_str(&wrap(&format!("not possible: {name}: {why}"), 100, "  "));
        out.push('\n');
    }
    out.push_str("prices are assumptions of the order of list prices unless a cluster file gives them\n");
    out
}
