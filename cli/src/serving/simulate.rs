//! `psim simulate` and `psim explain` with a serving workload: one deployment under its traffic.

use super::deployment::Deployed;
use super::{ServingJob, deployment, render};
use crate::Host;
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::inputs::{CommonArguments, JobArguments};
use psim_cost_models::serving::StepCostError;
use psim_hardware::device::Device;
use psim_models::serving::Deployment;
use psim_models::serving::deployment::DeploymentError;
use psim_planner::serving::{
    DetailError, Layout, Served, ServingDetail, Steps, detail, device_steps, plan_serving, steps, steps_apart,
};
use psim_reports::{ServingPage, layout_label, serving_label, serving_page, trace};
use psim_sim::serving::FleetOptions;
use serde_json::json;
use std::path::Path;

/// Points of the timeline of a trace or a page.
const SAMPLES: usize = 4000;

/// A job with the deployment that is asked about.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) job: ServingJob,
    pub(super) served: Served,
    pub(super) file: Deployed,
}

impl Case {
    /// Loads job and deployment.
    pub(super) fn load(
        job: &JobArguments,
        common: &CommonArguments,
        plan: &Path,
        host: &Host<'_>,
    ) -> Result<Self, Failure> {
        let file = deployment::read(host, plan)?;
        let job = ServingJob::load(job, common, Some(&file), host)?;
        let served = file.served(&job, host)?;
        Ok(Self { job, served, file })
    }

    /// Runs the deployment under the job's traffic.
    pub(super) fn run(&self, samples: usize) -> Result<ServingDetail, Failure> {
        let options = FleetOptions { samples, ..self.served.options };
        let served = Served { options, ..self.served.clone() };
        let found = detail(&self.job.request(), &served).map_err(|e| self.refuse(&e))?;
        if found.report.requests > 0 {
            return Ok(found);
        }
        Err(Failure::Infeasible {
            message: format!("all {} requests are longer than the cache of a replica", found.report.refused),
            hint: "more ranks, fewer bits for weights or cache, or shorter requests".to_owned(),
        })
    }

    /// Why a deployment is not simulated, at the key of the file that caused it.
    fn refuse(&self, error: &DetailError) -> Failure {
        let at = |key: &str, hint: &str| self.file.at(key, error.to_string(), hint);
        match error {
            DetailError::Cost(StepCostError::FeedForward(inner))
                if matches!(**inner, StepCostError::Memory { .. }) =>
            {
                Failure::Infeasible {
                    message: error.to_string(),
                    hint: "more instances or ranks of them, fewer bits (experts = \"fp8\"), or a larger accelerator"
                        .to_owned(),
                }
            }
            DetailError::Cost(StepCostError::FeedForward(_)) => at("attention_ffn", "other sizes of the instances"),
            DetailError::Cost(StepCostError::Memory { .. }) => Failure::Infeasible {
                message: error.to_string(),
                hint: "more tensor-parallel ranks, fewer bits (weights = \"fp8\"), or a larger accelerator"
                    .to_owned(),
            },
            DetailError::Cost(StepCostError::Deployment(inner)) => match inner {
                DeploymentError::Heads { .. } => at("tp", "take a tp that divides the heads"),
                DeploymentError::Experts { .. } => at("ep", "take an ep that divides tp · attention_dp"),
                DeploymentError::Stages { .. } => at("pp", "use fewer stages"),
                DeploymentError::Zero(key) => at(key, "check the number"),
            },
            DetailError::Cost(_) => Failure::input(error.to_string(), "another model or --profile"),
            DetailError::Crowded(_) => at(
                "expert_offload",
                "fewer replicas on a node, fewer bits (experts = \"fp8\"), nodes with more memory, or tier = \"disk\"",
            ),
            DetailError::Draft { .. } => at("draft_model", "a smaller draft model, or another draft_tp"),
            DetailError::Together { key, .. } => at(key, "leave one of the two out"),
            DetailError::Pools(_) => at("prefill", "other pools, or one pool of replicas"),
            DetailError::Run(_) => Failure::input(error.to_string(), "check the workload"),
        }
    }
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
    let case = Case::load(job, common, plan, host)?;
    let job = &case.job;
    let samples = if trace_file.is_some() || page.is_some() { SAMPLES } else { 0 };
    let found = case.run(samples)?;
    if let Some(path) = trace_file {
        let about = json!({ "model": job.model.name, "cluster": job.cluster.name, "workload": job.workload.name,
                            "deployment": layout_label(&found.layout) });
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
            splits: None,
            detail: Some(&found),
            assumptions: &job.assumptions,
        });
        write_atomically(host, path, text.as_bytes())?;
        host.say(format_args!("wrote {}", path.display()));
    }
    if common.json {
        return host.json(&render::json::simulation(job, &case.served, &found));
    }
    host.print(render::header(job))?;
    host.print(render::deployment_line(&found, &case.served))?;
    host.line("")?;
    host.print(render::figures(&found.report))?;
    host.print(render::price_line(&found))
}

/// Runs `psim explain`: where a decoding step and a prompt of this deployment spend their time; of the best one of the
/// search where none is given.
pub(crate) fn explain(
    arguments: &JobArguments,
    common: &CommonArguments,
    plan: Option<&Path>,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    if let Some(plan) = plan {
        let file = deployment::read(host, plan)?;
        if let Some((device, layout)) = file.device(host)? {
            return explain_device(arguments, common, (&file, &device, &layout), host);
        }
    }
    let (job, layouts) = match plan {
        Some(plan) => {
            let case = Case::load(arguments, common, plan, host)?;
            if case.served.experts_outside.is_some() {
                let message =
                    "steps with copies of experts are not taken apart: they depend on the tokens of the step"
                        .to_owned();
                return Err(case.file.at("expert_offload", message, "`psim simulate` runs them"));
            }
            let layouts: Vec<(&str, usize, Deployment)> = match &case.served.layout {
                Layout::Replicas(d) => vec![("", case.job.group, *d)],
                Layout::Pools(split) => [("prompts", &split.prefill), ("answers", &split.decode)]
                    .map(|(name, p)| (name, p.group, p.deployment))
                    .to_vec(),
            };
            let priced = match (&case.served.apart, layouts.as_slice()) {
                (Some(apart), [(_, group, d)]) => {
                    let found = steps_apart(&case.job.request(), *group, d, apart);
                    vec![("", *d, found.map_err(|e| case.refuse(&e))?)]
                }
                _ => priced(&case.job, &layouts).map_err(|e| case.refuse(&e))?,
            };
            (case.job, priced)
        }
        None => {
            let job = ServingJob::load(arguments, common, None, host)?;
            let found = common.on_threads(|| plan_serving(&job.request()))?;
            let found = found.map_err(|e| super::plan::failure(&e))?;
            let best = found.plans.first().map(|p| ("the best of the search", p.group, p.deployment));
            let priced = priced(&job, best.as_slice());
            let priced = priced.map_err(|e| Failure::input(e.to_string(), "give --plan"))?;
            (job, priced)
        }
    };
    if common.json {
        let sides: Vec<_> = layouts
            .iter()
            .map(|(name, d, steps)| {
                json!({ "role": name, "deployment": render::json::deployment(d), "steps": steps })
            })
            .collect();
        let first = layouts.first();
        return host.json(&json!({
            "schema": 1,
            "kind": "serving",
            "question": render::json::question(&job),
            "deployment": first.map(|(_, d, _)| render::json::deployment(d)),
            "steps": first.map(|(.., steps)| steps),
            "roles": sides,
        }));
    }
    host.print(render::header(&job))?;
    for (name, deployment, found) in &layouts {
        let role = if name.is_empty() { String::new() } else { format!(" ({name})") };
        host.line(format!("deployment{role}: {}\n", serving_label(deployment)))?;
        host.print(render::steps(found, &job.engine.name))?;
    }
    Ok(())
}

/// Decoding steps on a device of several engines.
fn explain_device(
    arguments: &JobArguments,
    common: &CommonArguments,
    (file, device, layout): (&Deployed, &Device, &Deployment),
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    let job = ServingJob::load(arguments, common, Some(file), host)?;
    let found = device_steps(&job.model, layout, device, &job.workload)
        .map_err(|e| file.at("device", e.to_string(), "another device, or another layout"))?;
    if common.json {
        return host.json(&json!({
            "schema": 1, "kind": "serving-device", "model": job.model.name, "deployment": render::json::deployment(layout),
            "workload": job.workload.name, "steps": found,
        }));
    }
    host.print(render::device_steps(&job.model.name, layout, &found))
}

type Priced<'a> = Vec<(&'a str, Deployment, Steps)>;

/// The steps of each layout; errors are of the file.
fn priced<'a>(job: &ServingJob, layouts: &[(&'a str, usize, Deployment)]) -> Result<Priced<'a>, DetailError> {
    layouts.iter().map(|(name, group, d)| Ok((*name, *d, steps(&job.request(), *group, d)?))).collect()
}
