//! `psim simulate`: predicts one plan.

use crate::Host;
use crate::failure::Failure;
use crate::files::{read_text, write_atomically};
use crate::inputs::job::read_plan;
use crate::inputs::{CommonArguments, Job, JobArguments};
use crate::number::{grouped, seconds};
use crate::render::prediction::{as_json, header, must_fit, text};
use crate::render::switched;
use crate::serving;
use clap::{Args, ValueEnum};
use psim_hardware::SourceError;
use psim_hardware::source_error::{MAX_FILE_BYTES, find_key};
use psim_models::Plan;
use psim_planner::rules::{self, Facts};
use psim_reports::{plan_label, trace};
use psim_sim::step::{Ranks, SimError, StepModel};
use psim_sim::{Level, StepPrediction};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Depth of simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Depth {
    /// Closed-form lower bound
    L0,
    /// Pipeline events
    L1,
    /// Operators on the streams of representative ranks
    L2,
    /// Every data-parallel replica with the parts and speeds of its own ranks
    L3,
}

/// Arguments of `psim simulate`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    job: JobArguments,
    /// Plan file (TOML): schema = 1, tp, pp, dp, micro_batch, global_batch …; of serving a deployment: replicas, tp …
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// Depth of simulation
    #[arg(long, value_enum, default_value_t = Depth::L2)]
    level: Depth,
    /// Spread of the ranks' speeds, the standard deviation of their logarithm, such as 0.02 (level l3; drawn from --seed)
    #[arg(long, value_name = "FRACTION", value_parser = spread)]
    spread: Option<f64>,
    /// Write a self-contained HTML report (serving)
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Write the timeline of the step, or of the requests served, as Chrome trace JSON (open it at ui.perfetto.dev)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArguments,
}

fn spread(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=0.5).contains(&value) => Ok(value),
        _ => Err(format!("`{text}` is not a fraction from 0 to 0.5")),
    }
}

/// Reads plan and job; the plan's batch is the job's.
pub(crate) fn load(
    job: &JobArguments,
    common: &CommonArguments,
    plan: &Path,
    host: &Host<'_>,
) -> Result<(Job, Plan), Failure> {
    let plan = read_plan(host, plan)?;
    let with_batch =
        JobArguments { global_batch: Some((plan.global_batch, plan.global_batch)), ..job.clone() };
    if let Some((low, high)) = job.global_batch.filter(|b| *b != (plan.global_batch, plan.global_batch)) {
        let given = if low == high { low.to_string() } else { format!("{low}..{high}") };
        return Err(Failure::input(
            format!("--global-batch {given} contradicts the plan's global_batch {}", plan.global_batch),
            "leave --global-batch out, or change the plan",
        ));
    }
    let with_batch =
        JobArguments { precision: Some(job.precision.unwrap_or(plan.precision.into())), ..with_batch };
    let job = with_batch.load(common, host)?;
    let plan = Plan { precision: job.precision, ..plan };
    Ok((job, plan))
}

/// A simulation error at the key of the plan file that caused it.
pub(crate) fn located(error: &SimError, file: &Path, host: &Host<'_>) -> Failure {
    let key = match error {
        SimError::TooManyRanks { .. } => "tp",
        SimError::Zero { name } => name,
        SimError::Batch { .. } => "global_batch",
        SimError::ExpertMesh { .. } => "ep",
        SimError::Layout(_) => "pp",
        SimError::Schedule(_) => "schedule",
        SimError::Level(_) | SimError::Absurd(_) => "",
    };
    let hint = match error {
        SimError::TooManyRanks { .. } => {
            "make tp · pp · dp · cp at most the accelerators, or take a larger cluster"
        }
        SimError::Batch { .. } => "make global_batch a multiple of dp · micro_batch",
        SimError::ExpertMesh { .. } => "make ep · etp divide tp · cp · dp",
        SimError::Layout(_) => "use fewer stages or chunks, or give stage_layers",
        SimError::Schedule(_) => "another schedule, or other pp, vpp and micro-batches",
        SimError::Level(_) => "use --level l0, l1 or l2",
        SimError::Zero { .. } | SimError::Absurd(_) => "check the number",
    };
    let shown = file.display().to_string();
    let text = read_text(host, file, "plan", MAX_FILE_BYTES).unwrap_or_default();
    match find_key(&text, key).filter(|_| !key.is_empty()) {
        Some(span) => SourceError::at(&shown, &text, &span, error.to_string(), hint).into(),
        None => Failure::input_at(error.to_string(), shown, hint),
    }
}

/// Predicts a plan of a job, with remarks on what is unusual about it.
pub(crate) fn predict(
    job: &Job,
    plan: &Plan,
    level: Level,
    timeline: bool,
) -> Result<StepPrediction, SimError> {
    let software = &job.software;
    let model = StepModel::new(&job.model, &job.workload, &job.cluster, &software.stack, &software.library);
    Ok(remarked(model.predict(plan, level, timeline)?, job, plan))
}

/// The prediction with remarks on its plan.
fn remarked(mut prediction: StepPrediction, job: &Job, plan: &Plan) -> StepPrediction {
    prediction.notes.extend(remarks(job, plan));
    prediction
}

/// What the planner would refuse about a given plan, and what it leaves idle.
fn remarks(job: &Job, plan: &Plan) -> Vec<String> {
    let facts = Facts { may_idle: true, ..Facts::new(&job.model, &job.cluster, job.workload.seq_len) };
    let broken = rules::ALL.iter().filter(|rule| !rule.permits(&facts, plan));
    let mut remarks: Vec<String> = broken
        .map(|rule| {
            format!("the planner would refuse this plan ({}): {}", rule.name(), rule.explain(&facts, plan))
        })
        .collect();
    let all = job.cluster.accelerators();
    if plan.world() < all {
        remarks.push(format!(
            "{} of the {} accelerators stay idle: the price is of all, energy and rates per GPU are of the {} that work",
            grouped(u64::from(all - plan.world())),
            grouped(u64::from(all)),
            grouped(u64::from(plan.world()))
        ));
    }
    remarks
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    if serving::is_serving(host, arguments.job.workload.as_deref())? {
        if arguments.level != Depth::L2 {
            return Err(Failure::input(
                "serving is simulated step by step, there is no other --level",
                "leave --level out",
            ));
        }
        let (trace, page) = (arguments.trace.as_deref(), arguments.report.as_deref());
        return serving::run_simulate(&arguments.job, &arguments.common, &arguments.plan, trace, page, host);
    }
    if arguments.report.is_some() {
        return Err(Failure::input(
            "--report of one training plan is not built",
            "`psim plan --report` writes the page of the best plan",
        ));
    }
    if arguments.spread.is_some() && arguments.level != Depth::L3 {
        return Err(Failure::input("--spread is of single ranks", "add --level l3"));
    }
    let (job, plan) = load(&arguments.job, &arguments.common, &arguments.plan, host)?;
    let level = match arguments.level {
        Depth::L0 => return bound(&job, &plan, arguments, host),
        Depth::L1 => Level::L1,
        Depth::L2 => Level::L2,
        Depth::L3 => Level::L3,
    };
    let traced = arguments.trace.is_some();
    let predicted = match arguments.spread {
        Some(spread) => {
            let software = &job.software;
            StepModel::new(&job.model, &job.workload, &job.cluster, &software.stack, &software.library)
                .predict_ranks(&plan, Ranks { spread, seed: arguments.common.seed }, traced)
                .map(|prediction| remarked(prediction, &job, &plan))
        }
        None => predict(&job, &plan, level, traced),
    };
    let prediction = predicted.map_err(|e| located(&e, &arguments.plan, host))?;
    if let (Some(path), Some(timeline)) = (&arguments.trace, &prediction.timeline) {
        let about = json!({ "model": job.model.name, "cluster": job.cluster.name, "plan": plan_label(&plan),
                            "step_time_s": prediction.step_time.value });
        write_atomically(host, path, trace::chrome(timeline, &about).as_bytes())?;
        host.say(format_args!(
            "wrote {} ({} spans; open it at ui.perfetto.dev)",
            path.display(),
            timeline.spans.len()
        ));
    }
    let falls = switched::falls(&job, &plan, &prediction)?;
    if arguments.common.json {
        let mut document = as_json(&job, &plan, &prediction, &falls);
        document["schema"] = json!(1);
        host.json(&document)?;
    } else {
        host.print(header(&job))?;
        host.line("")?;
        host.print(text(&job, &plan, &prediction, &falls))?;
    }
    must_fit(&prediction, host)
}

/// L0: the bound alone.
fn bound(job: &Job, plan: &Plan, arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    if arguments.trace.is_some() {
        return Err(Failure::input(
            "--level l0 is a formula and has no timeline",
            "use --level l1 or l2 with --trace",
        ));
    }
    let software = &job.software;
    let model = StepModel::new(&job.model, &job.workload, &job.cluster, &software.stack, &software.library);
    let value = model
        .check(plan)
        .and_then(|()| model.lower_bound(plan, &model.layer_times(plan)))
        .map_err(|e| located(&e, &arguments.plan, host))?;
    if arguments.common.json {
        return host.json(
            &json!({ "schema": 1, "level": "l0", "model": job.model.name, "cluster": job.cluster.name,
                                  "plan": plan, "step_time_s": { "low": value } }),
        );
    }
    host.print(header(job))?;
    host.line(format!(
        "plan: {}\nthe step takes at least {} (closed form, level l0)",
        plan_label(plan),
        seconds(value)
    ))
}
