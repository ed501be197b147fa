//! `psim explain`: a waterfall from the datasheet peak to what one plan achieves.

use super::simulate::{load, located, predict};
use crate::Host;
use crate::failure::Failure;
use crate::inputs::{CommonArguments, JobArguments};
use crate::number::three;
use crate::render::prediction::{as_json, header};
use crate::render::waterfall;
use crate::serving;
use crate::table::wrap;
use clap::Args;
use psim_reports::plan_label;
use psim_sim::Level;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `psim explain`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    job: JobArguments,
    /// Plan file (TOML)
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    #[command(flatten)]
    common: CommonArguments,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    if serving::is_serving(host, arguments.job.workload.as_deref())? {
        return serving::explain(&arguments.job, &arguments.common, &arguments.plan, host);
    }
    let (job, plan) = load(&arguments.job, &arguments.common, &arguments.plan, host)?;
    let prediction =
        predict(&job, &plan, Level::L2, false).map_err(|e| located(&e, &arguments.plan, host))?;
    if arguments.common.json {
        let mut document = as_json(&job, &plan, &prediction);
        document["schema"] = json!(1);
        document["waterfall"] = json!(waterfall::falls(&prediction));
        return host.json(&document);
    }
    host.print(header(&job))?;
    host.line(format!(
        "plan: {}\n\n{} TFLOP/s per GPU achieved of the datasheet peak (MFU {:.1} %):\n",
        plan_label(&plan),
        three(prediction.model_tflops_per_gpu),
        prediction.mfu
    ))?;
    host.print(waterfall::text(&prediction))?;
    let text = "Each line is what is left when the term is added to those above; the losses sum to the gap. Switch one \
                mechanism with --set (such as --set overlap.tp=true) to see its effect alone.";
    host.line(format!("\n{}", wrap(text, 100, "")))
}
