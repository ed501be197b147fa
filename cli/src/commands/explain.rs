//! `psim explain`: a waterfall from the datasheet peak to what one plan achieves.

use super::plan::{Goal, SearchArguments, answer};
use super::simulate::{load, located, predict};
use crate::Host;
use crate::failure::Failure;
use crate::inputs::{CommonArguments, Job, JobArguments};
use crate::number::three;
use crate::render::prediction::{as_json, header, must_fit};
use crate::render::switched;
use crate::serving;
use crate::table::wrap;
use clap::Args;
use psim_models::Plan;
use psim_reports::plan_label;
use psim_sim::{Level, StepPrediction};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `psim explain`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    job: JobArguments,
    /// Plan file (TOML) [default: the best plan of the search, as `psim plan` finds it]
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArguments,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    if serving::is_serving(host, arguments.job.workload.as_deref())? {
        return serving::explain(&arguments.job, &arguments.common, arguments.plan.as_deref(), host);
    }
    let (job, plan, prediction) = match &arguments.plan {
        Some(file) => {
            let (job, plan) = load(&arguments.job, &arguments.common, file, host)?;
            let prediction = predict(&job, &plan, Level::L2, false).map_err(|e| located(&e, file, host))?;
            (job, plan, prediction)
        }
        None => winner(arguments, host)?,
    };
    let chosen = if arguments.plan.is_some() { "given" } else { "the winner of the search" };
    let falls = switched::falls(&job, &plan, &prediction)?;
    if arguments.common.json {
        let mut document = as_json(&job, &plan, &prediction, &falls);
        document["schema"] = json!(1);
        document["plan_from"] = json!(chosen);
        return host.json(&document);
    }
    host.print(header(&job))?;
    host.line(format!(
        "plan ({chosen}): {}\n\n{} TFLOP/s per GPU achieved of the datasheet peak (MFU {:.1} %):\n",
        plan_label(&plan),
        three(prediction.model_tflops_per_gpu),
        prediction.mfu
    ))?;
    host.print(switched::text(&falls))?;
    host.line(format!("\n{}", wrap(switched::HOW_TO_READ, 100, "")))?;
    for note in &prediction.notes {
        host.line(wrap(&format!("note: {note}"), 100, "  "))?;
    }
    must_fit(&prediction, host)
}

/// Searches for the best plan, and predicts it.
fn winner(arguments: &Arguments, host: &Host<'_>) -> Result<(Job, Plan, StepPrediction), Failure> {
    let search = SearchArguments {
        job: arguments.job.clone(),
        objective: Some(Goal::Time),
        top: 1,
        speculation: None,
        common: arguments.common.clone(),
    };
    let (job, report) = answer(&search, host)?;
    match report.plans.into_iter().next() {
        Some(best) => {
            let prediction = predict(&job, &best.plan, Level::L2, false)
                .map_err(|e| Failure::input(e.to_string(), "give --plan"))?;
            Ok((job, best.plan, prediction))
        }
        None => Err(Failure::Infeasible {
            message: "no plan is feasible, so there is none to explain".to_owned(),
            hint: "`psim plan` with the same arguments says why; or give --plan".to_owned(),
        }),
    }
}
