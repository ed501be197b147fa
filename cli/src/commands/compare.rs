//! `psim compare`: two plans side by side, or a plan and a measurement, term by term.

use super::simulate::{load, located, predict};
use crate::Host;
use crate::failure::Failure;
use crate::inputs::{CommonArguments, Job, JobArguments};
use crate::number::{seconds, three};
use crate::render::switched;
use crate::serving;
use crate::table::{Align::Left, Align::Right, Table};
use clap::Args;
use psim_hardware::profile::stack::MECHANISMS;
use psim_models::Plan;
use psim_models::flops::{forward_flops_full_attention, forward_flops_per_sequence};
use psim_reports::plan_label;
use psim_sim::{Level, StepPrediction};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `psim compare`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("against").required(true).args(["to_plan", "measured_step_time", "measured_tflops"]))]
pub(crate) struct Arguments {
    #[command(flatten)]
    job: JobArguments,
    /// Plan file (TOML)
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// The other plan
    #[arg(long, value_name = "FILE")]
    to_plan: Option<PathBuf>,
    /// Cluster of the other plan [default: the same]
    #[arg(long, value_name = "FILE|NAME", requires = "to_plan")]
    to_cluster: Option<String>,
    /// Software stack of the other plan [default: the same]
    #[arg(long, value_name = "NAME|FILE", requires = "to_plan")]
    to_stack: Option<String>,
    /// Change a value of the other plan's software stack, after every --set (repeatable)
    #[arg(long = "to-set", value_name = "KEY=VALUE", requires = "to_plan")]
    to_settings: Vec<String>,
    /// A measured step time, such as 4.52s
    #[arg(long, value_name = "TIME", value_parser = step_time)]
    measured_step_time: Option<f64>,
    /// A measured rate in model TFLOP/s per accelerator (causal attention counted as half)
    #[arg(long, value_name = "TFLOPS", value_parser = positive)]
    measured_tflops: Option<f64>,
    #[command(flatten)]
    common: CommonArguments,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(format!("`{text}` is not a positive number")),
    }
}

fn step_time(text: &str) -> Result<f64, String> {
    let time: psim_hardware::Seconds =
        text.parse().map_err(|e: psim_hardware::units::UnitError| e.to_string())?;
    if time.0 > 0.0 { Ok(time.0) } else { Err("a step takes more than 0 s".to_owned()) }
}

/// One side: accelerator-microseconds per token, so that clusters of any size compare.
fn per_token(job: &Job, plan: &Plan, seconds: f64) -> f64 {
    let tokens = f64::from(plan.global_batch) * job.workload.seq_len as f64;
    seconds * f64::from(plan.world()) / tokens * 1e6
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    if serving::is_serving(host, arguments.job.workload.as_deref())? {
        return of_serving(arguments, host);
    }
    let (job, plan) = load(&arguments.job, &arguments.common, &arguments.plan, host)?;
    let first = predict(&job, &plan, Level::L2, false).map_err(|e| located(&e, &arguments.plan, host))?;
    match &arguments.to_plan {
        Some(path) => {
            let (other, common) = other_side(arguments);
            let (other_job, other_plan) = load(&other, &common, path, host)?;
            let second =
                predict(&other_job, &other_plan, Level::L2, false).map_err(|e| located(&e, path, host))?;
            two_plans((&job, &plan, &first), (&other_job, &other_plan, &second), arguments.common.json, host)
        }
        None => measurement(arguments, (&job, &plan, &first), host),
    }
}

/// The flags of the other plan.
fn other_side(arguments: &Arguments) -> (JobArguments, CommonArguments) {
    let (mut job, mut common) = (arguments.job.clone(), arguments.common.clone());
    if let Some(cluster) = &arguments.to_cluster {
        job.cluster.clone_from(cluster);
    }
    if arguments.to_stack.is_some() {
        common.stack.clone_from(&arguments.to_stack);
    }
    common.settings.extend(arguments.to_settings.iter().cloned());
    (job, common)
}

/// Two deployments under the same traffic.
fn of_serving(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    let Some(to_plan) = &arguments.to_plan else {
        return Err(Failure::input(
            "a measured step time or rate belongs to training, and the workload is traffic",
            "compare two deployments with --to-plan; `psim validate` scores measured rows",
        ));
    };
    let (job, common) = other_side(arguments);
    let a = (&arguments.job, &arguments.common, arguments.plan.as_path());
    serving::run_compare(a, (&job, &common, to_plan), host)
}

type Side<'a> = (&'a Job, &'a Plan, &'a StepPrediction);

/// Model TFLOP/s per accelerator with attention counted as the whole square of scores, the way Megatron-LM prints them.
fn whole_square((job, _, prediction): Side<'_>) -> f64 {
    let stack = &job.software.stack;
    let half = forward_flops_per_sequence(&job.model, &job.workload, stack);
    let whole = forward_flops_full_attention(&job.model, &job.workload, stack);
    prediction.model_tflops_per_gpu * if half > 0.0 { whole / half } else { 1.0 }
}

/// Terms of both sides, each found by taking its mechanism out; they sum to the totals.
fn differences(a: Side<'_>, b: Side<'_>) -> Result<Vec<(&'static str, f64, f64)>, Failure> {
    let falls = [switched::falls(a.0, a.1, a.2)?, switched::falls(b.0, b.1, b.2)?];
    let names = [switched::PEAK, switched::BEYOND].into_iter().chain(MECHANISMS.iter().rev().map(|m| m.term));
    let of = |side: usize, term: &str| {
        let (job, plan, _) = [a, b][side];
        let seconds = falls[side].iter().find(|f| f.term == term).map_or(0.0, |f| f.seconds);
        per_token(job, plan, seconds)
    };
    Ok(names
        .map(|term| (term, of(0, term), of(1, term)))
        .filter(|(_, x, y)| *x != 0.0 || *y != 0.0)
        .collect())
}

fn two_plans(a: Side<'_>, b: Side<'_>, as_json: bool, host: &mut Host<'_>) -> Result<(), Failure> {
    let terms = differences(a, b)?;
    let total = (terms.iter().map(|t| t.1).sum::<f64>(), terms.iter().map(|t| t.2).sum::<f64>());
    let side = |s: Side<'_>| -> Value {
        json!({ "plan": s.1, "cluster": s.0.cluster.name, "stack": s.0.software.stack.name,
                "set": s.0.software.settings, "full_attention_tflops_per_gpu": whole_square(s),
                "step_time_s": s.2.step_time, "mfu": s.2.mfu, "model_tflops_per_gpu": s.2.model_tflops_per_gpu,
                "tokens_per_s_per_gpu": s.2.tokens_per_s_per_gpu, "fits": s.2.fits })
    };
    if as_json {
        let rows: Vec<Value> = terms
            .iter()
            .map(|(term, x, y)| json!({ "term": term, "a_gpu_us_per_token": x, "b_gpu_us_per_token": y, "difference": y - x }))
            .collect();
        return host.json(&json!({ "schema": 1, "model": a.0.model.name, "a": side(a), "b": side(b), "terms": rows,
                                  "total": { "a": total.0, "b": total.1, "difference": total.1 - total.0 } }));
    }
    for (name, s) in [("A", a), ("B", b)] {
        host.line(format!(
            "{name}: {} on {} ({}): step {}, {} TFLOP/s per GPU ({} as Megatron-LM counts), MFU {:.1} %{}",
            plan_label(s.1),
            s.0.cluster.name,
            s.0.software.stack.name,
            seconds(s.2.step_time.value),
            three(s.2.model_tflops_per_gpu),
            three(whole_square(s)),
            s.2.mfu,
            if s.2.fits { "" } else { ", DOES NOT FIT in memory" }
        ))?;
    }
    let columns = [
        ("GPU-microseconds per token", Left),
        ("A", Right),
        ("B", Right),
        ("B - A", Right),
        ("of the gap", Right),
    ];
    let mut table = Table::new(&columns);
    let gap = total.1 - total.0;
    let mut rows = terms.clone();
    rows.sort_by(|x, y| (y.2 - y.1).abs().total_cmp(&(x.2 - x.1).abs()));
    for (term, x, y) in rows.into_iter().chain([("total", total.0, total.1)]) {
        let share = if gap == 0.0 { String::new() } else { format!("{:.1} %", (y - x) / gap * 100.0) };
        table.row([
            term.to_owned(),
            three(x),
            three(y),
            format!("{}{}", if y > x { "+" } else { "" }, three(y - x)),
            share,
        ]);
    }
    host.line("")?;
    host.print(table.render())
}

fn measurement(arguments: &Arguments, a: Side<'_>, host: &mut Host<'_>) -> Result<(), Failure> {
    let (job, plan, prediction) = a;
    let predicted = prediction.step_time.value;
    let measured = match (arguments.measured_step_time, arguments.measured_tflops) {
        (Some(time), _) => time,
        (None, Some(rate)) => predicted * prediction.model_tflops_per_gpu / rate,
        (None, None) => {
            return Err(Failure::input(
                "nothing to compare with",
                "give --to-plan, --measured-step-time or --measured-tflops",
            ));
        }
    };
    let error = (predicted - measured) / measured;
    let inside = measured >= prediction.step_time.low && measured <= prediction.step_time.high;
    if arguments.common.json {
        return host.json(
            &json!({ "schema": 1, "model": job.model.name, "cluster": job.cluster.name, "plan": plan,
            "predicted_step_time_s": prediction.step_time, "measured_step_time_s": measured, "error": error,
            "inside_interval": inside, "waterfall": switched::falls(job, plan, prediction)? }),
        );
    }
    host.print(crate::render::prediction::header(job))?;
    host.line(format!("plan: {}\n", plan_label(plan)))?;
    host.print(switched::text(&switched::falls(job, plan, prediction)?))?;
    let word = if inside { "inside" } else { "OUTSIDE" };
    host.line(format!(
        "\npredicted {} ({} to {}), measured {}: {:+.1} %, {word} the 80 % interval",
        seconds(predicted),
        seconds(prediction.step_time.low),
        seconds(prediction.step_time.high),
        seconds(measured),
        error * 100.0
    ))
}
