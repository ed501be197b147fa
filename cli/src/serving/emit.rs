//! Launch files of serving engines for a deployment, with the benchmark that checks them.

use super::simulate::Case;
use super::{ServingJob, deployment};
use crate::Host;
use crate::failure::Failure;
use crate::files::{make_directory, write_atomically};
use crate::inputs::{CommonArguments, JobArguments};
use psim_cost_models::serving::{EngineProfile, Policy};
use psim_models::serving::Deployment;
use psim_planner::serving::{Arrangement, Layout, Served, ServingPlan, Split};
use psim_reports::launch::LaunchFile;
use psim_reports::launch::serving::{self, ServingEngine, ServingLaunch, SplitLaunch};
use psim_sim::serving::{Preemption, Router};
use serde_json::json;
use std::path::Path;

/// Replicas that are to be launched.
#[derive(Debug)]
pub(crate) struct Chosen {
    deployment: Deployment,
    engine: EngineProfile,
    router: Router,
}

impl Chosen {
    /// A plan of the search.
    pub(crate) fn of(job: &ServingJob, plan: &ServingPlan, router: Router) -> Self {
        let engine = EngineProfile { token_budget: plan.token_budget, ..job.engine.clone() };
        Self { deployment: plan.deployment, engine, router }
    }
}

/// Writes a file and says so.
fn put(directory: &Path, name: &str, contents: &str, host: &mut Host<'_>) -> Result<String, Failure> {
    let path = directory.join(name);
    write_atomically(host, &path, contents.as_bytes())?;
    host.say(format_args!("wrote {}", path.display()));
    Ok(path.display().to_string())
}

/// Writes the files that each engine can express; one that several share is written once.
fn put_all(
    made: impl IntoIterator<Item = Result<Vec<LaunchFile>, psim_reports::launch::LaunchError>>,
    directory: &Path,
    host: &mut Host<'_>,
) -> Result<Vec<String>, Failure> {
    let mut written: Vec<String> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for files in made {
        match files {
            Ok(files) => {
                for file in files {
                    if !names.contains(&file.name) {
                        written.push(put(directory, &file.name, &file.contents, host)?);
                        names.push(file.name);
                    }
                }
            }
            Err(error) => host.say(format_args!("skipped: {error}")),
        }
    }
    Ok(written)
}

/// What was changed on the command line and has no place in a deployment file, as a remark at its top.
fn with_settings(job: &ServingJob, text: &str) -> String {
    let settings: Vec<String> = job.settings.iter().map(|s| format!(" --set {s}")).collect();
    match settings.as_slice() {
        [] => text.to_owned(),
        list => format!("# Predicted with{}: give it again.\n{text}", list.concat()),
    }
}

/// A policy that none of the three engines has.
fn foreign(engine: &EngineProfile) -> Option<&'static str> {
    match engine.policy {
        Policy::Static => Some("static batches"),
        Policy::Orca => Some("Orca's whole reservations"),
        Policy::Flover => Some("Flover's temporal fusion"),
        Policy::FastSwitch => Some("fair priorities"),
        Policy::PrefillPriority
        | Policy::ChunkedPrefill
        | Policy::SplitFuse
        | Policy::Radix
        | Policy::InflightNoEvict
        | Policy::SLora
        | Policy::FlexLlm => None,
    }
}

/// Writes `deployment.toml` of a plan of the search and the files of every engine that can express it.
pub(crate) fn write_all(
    job: &ServingJob,
    chosen: &Chosen,
    directory: &Path,
    host: &mut Host<'_>,
) -> Result<Vec<String>, Failure> {
    let engine = (job.engine_name.as_str(), &job.engine);
    let own = deployment::to_toml(&chosen.deployment, engine, chosen.engine.token_budget, chosen.router)?;
    write_deployment(job, chosen, &own, directory, host)
}

/// The same with the text of the deployment file.
fn write_deployment(
    job: &ServingJob,
    chosen: &Chosen,
    own: &str,
    directory: &Path,
    host: &mut Host<'_>,
) -> Result<Vec<String>, Failure> {
    make_directory(host, directory)?;
    let mut written = vec![put(directory, "deployment.toml", &with_settings(job, own), host)?];
    if let Some(what) = foreign(&chosen.engine) {
        host.say(format_args!("skipped: vLLM, SGLang and TensorRT-LLM, which do not run {what}"));
        return Ok(written);
    }
    let launch = ServingLaunch {
        model: &job.model,
        cluster: &job.cluster,
        workload: &job.workload,
        engine: &chosen.engine,
        deployment: &chosen.deployment,
        router: chosen.router,
    };
    let made = ServingEngine::ALL.into_iter().map(|engine| serving::emit(engine, &launch));
    written.extend(put_all(made, directory, host)?);
    Ok(written)
}

/// Writes `split.toml`, the deployment file of a split into pools that the search found.
pub(crate) fn write_split(
    job: &ServingJob,
    split: &Split,
    directory: &Path,
    host: &mut Host<'_>,
) -> Result<Vec<String>, Failure> {
    let text = deployment::split_to_toml(split, &job.cluster, &job.engine_name)?;
    write_pools(job, split, &text, directory, host)
}

/// The same with the text of the deployment file.
fn write_pools(
    job: &ServingJob,
    split: &Split,
    text: &str,
    directory: &Path,
    host: &mut Host<'_>,
) -> Result<Vec<String>, Failure> {
    make_directory(host, directory)?;
    let mut written = vec![put(directory, "split.toml", &with_settings(job, text), host)?];
    if let Some(what) = foreign(&job.engine) {
        host.say(format_args!("skipped: vLLM, SGLang and TensorRT-LLM, which do not run {what}"));
        return Ok(written);
    }
    let launch = SplitLaunch {
        model: &job.model,
        cluster: &job.cluster,
        workload: &job.workload,
        engine: &job.engine,
        split,
    };
    let made = ServingEngine::ALL.into_iter().map(|engine| serving::emit_split(engine, &launch));
    written.extend(put_all(made, directory, host)?);
    Ok(written)
}

/// What runs beside the replicas and has no place in the launch files.
fn beside(served: &Served) -> Option<&'static str> {
    let options = &served.options;
    if served.speculation.is_some() {
        Some("speculation")
    } else if options.autoscale.is_some() {
        Some("autoscaling")
    } else if options.tiers.iter().any(Option::is_some) {
        Some("caches kept in host memory")
    } else if options.adapters.is_some() {
        Some("adapters")
    } else if served.experts_outside.is_some() {
        Some("experts outside the accelerators")
    } else if served.apart.is_some() {
        Some("feed-forward layers on accelerators of their own")
    } else if served.arrangement != Arrangement::InTurn {
        Some("an overlap of kernels or a partition")
    } else if served.redundant.is_some() {
        Some("redundant experts")
    } else if options.co_serving.is_some() {
        Some("fine-tuning beside inference")
    } else if matches!(options.preemption, Preemption::Swap(_)) {
        Some("caches swapped to host memory")
    } else {
        None
    }
}

/// Runs `psim emit` with a serving workload: launch files of a deployment file.
pub(crate) fn run(
    job: &JobArguments,
    common: &CommonArguments,
    plan: &Path,
    directory: &Path,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    let case = Case::load(job, common, plan, host)?;
    // What cannot be simulated cannot be launched either.
    case.run(0)?;
    if let Some(what) = beside(&case.served) {
        return Err(Failure::input(
            format!(
                "launch files with {what} are not written: an engine started without it would not be what was predicted"
            ),
            "emit the deployment without it, and add the engine's own options",
        ));
    }
    let own = case.file.kept(common.stack.as_deref())?;
    let written = match &case.served.layout {
        Layout::Replicas(d) => {
            let chosen = Chosen {
                deployment: *d,
                engine: case.job.engine.clone(),
                router: case.served.options.router,
            };
            write_deployment(&case.job, &chosen, &own, directory, host)?
        }
        Layout::Pools(split) => write_pools(&case.job, split, &own, directory, host)?,
    };
    if common.json {
        host.json(&json!({ "schema": 1, "written": written }))?;
    }
    Ok(())
}
