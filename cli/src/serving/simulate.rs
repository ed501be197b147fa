//! `psim simulate` and `psim explain` with a serving workload: one deployment under its traffic.

use super::{ServingJob, deployment, render};
use crate::Host;
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::inputs::{CommonArguments, JobArguments};
use psim_cost_models::serving::StepCostError;
use psim_hardware::SourceError;
use psim_hardware::source_error::{MAX_FILE_BYTES, find_key};
use psim_models::serving::deployment::DeploymentError;
use psim_planner::serving::{DetailError, ServingDetail, detail, steps};
use psim_reports::{ServingPage, serving_label, serving_page, trace};
use serde_json::json;
use std::path::Path;

/// Points of the timeline of a trace or a page.
const SAMPLES: usize = 4000;

/// Loads job and deployment; the file's engine and limits count unless `--stack` says otherwise.
fn load(
    job: &JobArguments,
    common: &CommonArguments,
    plan: &Path,
    host: &Host<'_>,
) -> Result<(ServingJob, deployment::Deployed), Failure> {
    let deployed = deployment::read(host, plan)?;
    let quantization = Some(deployed.deployment.quantization);
    let mut job = ServingJob::load(job, common, deployed.engine.as_deref(), quantization, host)?;
    let (have, need) = (job.cluster.accelerators(), deployed.deployment.accelerators());
    if need > have {
        return Err(at_key(
            plan,
            "replicas",
            format!("the deployment needs {need} accelerators, {} has {have}", job.cluster.name),
            "fewer replicas or ranks, or a larger cluster",
            host,
        ));
    }
    let engine = &mut job.engine;
    engine.max_sequences = deployed.max_sequences.unwrap_or(engine.max_sequences);
    engine.token_budget = deployed.token_budget.unwrap_or(engine.token_budget);
    engine.memory_share = deployed.memory_share.unwrap_or(engine.memory_share);
    Ok((job, deployed))
}

/// A failure at a key of the deployment file.
fn at_key(file: &Path, key: &str, message: String, hint: &str, host: &Host<'_>) -> Failure {
    let shown = file.display().to_string();
    let text = crate::files::read_text(host, file, "deployment", MAX_FILE_BYTES).unwrap_or_default();
    match find_key(&text, key) {
        Some(span) => SourceError::at(&shown, &text, &span, message, hint).into(),
        None => Failure::input_at(message, shown, hint),
    }
}

/// Runs the deployment.
fn serve(
    job: &ServingJob,
    deployed: &deployment::Deployed,
    samples: usize,
    file: &Path,
    host: &Host<'_>,
) -> Result<ServingDetail, Failure> {
    let options = psim_sim::serving::FleetOptions { samples, ..deployed.options };
    detail(&job.request(), &deployed.deployment, options).map_err(|e| refuse(&e, file, host))
}

/// Why a deployment is not simulated, at the key of the file that caused it.
fn refuse(error: &DetailError, file: &Path, host: &Host<'_>) -> Failure {
    match error {
        DetailError::Cost(StepCostError::Memory { .. }) => Failure::Infeasible {
            message: error.to_string(),
            hint: "more tensor-parallel ranks, fewer bits (weights = \"fp8\"), or a larger accelerator"
                .to_owned(),
        },
        DetailError::Cost(StepCostError::Deployment(inner)) => {
            let (key, hint) = match inner {
                DeploymentError::Heads { .. } => ("tp", "take a tp that divides the heads"),
                DeploymentError::Experts { .. } => ("ep", "take an ep that divides tp · attention_dp"),
                DeploymentError::Stages { .. } => ("pp", "use fewer stages"),
                _ => ("tp", "check the number"),
            };
            at_key(file, key, error.to_string(), hint, host)
        }
        DetailError::Cost(_) => Failure::input(error.to_string(), "another model or --profile"),
        DetailError::Run(_) => Failure::input(error.to_string(), "check the workload"),
    }
}

/// Nothing was answered: every request is longer than the cache.
fn must_answer(found: &ServingDetail) -> Result<(), Failure> {
    if found.report.requests > 0 {
        return Ok(());
    }
    Err(Failure::Infeasible {
        message: format!("all {} requests are longer than the cache of a replica", found.report.refused),
        hint: "more ranks, fewer bits for weights or cache, or shorter requests".to_owned(),
    })
}

/// Runs `psim simulate`.
pub(crate) fn run(
    job: &JobArguments,
    common: &CommonArguments,
    plan: &Path,
    trace_file: Option<&Path>,
    page: Option<&Path>,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    let (job, deployed) = load(job, common, plan, host)?;
    let samples = if trace_file.is_some() || page.is_some() { SAMPLES } else { 0 };
    let found = serve(&job, &deployed, samples, plan, host)?;
    if let Some(path) = trace_file {
        let about = json!({ "model": job.model.name, "cluster": job.cluster.name, "workload": job.workload.name,
                            "deployment": serving_label(&deployed.deployment) });
        write_atomically(host, path, trace::serving(&found.run, &about).as_bytes())?;
        host.say(format_args!("wrote {} (open it at ui.perfetto.dev)", path.display()));
    }
    if let Some(path) = page {
        let text = serving_page(&ServingPage {
            model: &job.model,
            cluster: &job.cluster,
            workload: &job.workload,
            engine: &job.engine.name,
            objective: "goodput",
            report: None,
            detail: Some(&found),
            assumptions: &job.assumptions,
        });
        write_atomically(host, path, text.as_bytes())?;
        host.say(format_args!("wrote {}", path.display()));
    }
    if common.json {
        host.json(&json!({
            "schema": 1,
            "kind": "serving",
            "question": render::question_json(&job),
            "deployment": render::deployment_json(&deployed.deployment),
            "accelerators": deployed.deployment.accelerators(),
            "cache_tokens_per_replica": found.cache_tokens.is_finite().then_some(found.cache_tokens),
            "measured": found.measured,
            "report": render::report_json(&found.report),
        }))?;
    } else {
        host.print(render::header(&job))?;
        host.print(render::deployment_line(&found, deployed.options.router))?;
        host.line("")?;
        host.print(render::figures(&found.report))?;
    }
    must_answer(&found)
}

/// Runs `psim explain`: where a decoding step and a prompt of this deployment spend their time.
pub(crate) fn explain(
    job: &JobArguments,
    common: &CommonArguments,
    plan: &Path,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    let (job, deployed) = load(job, common, plan, host)?;
    let found = steps(&job.request(), &deployed.deployment).map_err(|e| refuse(&e, plan, host))?;
    if common.json {
        return host.json(&json!({
            "schema": 1,
            "kind": "serving",
            "question": render::question_json(&job),
            "deployment": render::deployment_json(&deployed.deployment),
            "steps": found,
        }));
    }
    host.print(render::header(&job))?;
    host.line(format!("deployment: {}\n", serving_label(&deployed.deployment)))?;
    host.print(render::steps(&found, &job.engine.name))
}
