//! Launch files of serving engines for a deployment, with the benchmark that checks them.

use super::simulate::Case;
use super::{ServingJob, deployment};
use crate::Host;
use crate::failure::Failure;
use crate::files::{make_directory, write_atomically};
use crate::inputs::{CommonArguments, JobArguments};
use psim_cost_models::serving::EngineProfile;
use psim_models::serving::Deployment;
use psim_planner::serving::{Arrangement, Layout, Served, ServingPlan, Split};
use psim_reports::launch::LaunchFile;
use psim_reports::launch::serving::{self, ServingEngine, ServingLaunch, SplitLaunch};
use psim_sim::serving::Router;
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

/// Writes `deployment.toml` and the files of every engine that can express it.
pub(crate) fn write_all(
    job: &ServingJob,
    chosen: &Chosen,
    directory: &Path,
    host: &mut Host<'_>,
) -> Result<Vec<String>, Failure> {
    make_directory(host, directory)?;
    let own =
        deployment::to_toml(&chosen.deployment, &job.engine, chosen.engine.token_budget, chosen.router)?;
    let mut written = vec![put(directory, "deployment.toml", &own, host)?];
    let launch = ServingLaunch {
        model: &job.model,
        cluster: &job.cluster,
        workload: &job.workload,
        engine: &chosen.engine,
        deployment: &chosen.deployment,
    };
    let made = ServingEngine::ALL.into_iter().map(|engine| serving::emit(engine, &launch));
    written.extend(put_all(made, directory, host)?);
    Ok(written)
}

/// Writes `split.toml`, the deployment file of a split into pools.
pub(crate) fn write_split(
    job: &ServingJob,
    split: &Split,
    directory: &Path,
    host: &mut Host<'_>,
) -> Result<Vec<String>, Failure> {
    make_directory(host, directory)?;
    let text = deployment::split_to_toml(split, &job.cluster, &job.engine)?;
    let mut written = vec![put(directory, "split.toml", &text, host)?];
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
    let written = match &case.served.layout {
        Layout::Replicas(d) => {
            let chosen = Chosen {
                deployment: *d,
                engine: case.job.engine.clone(),
                router: case.served.options.router,
            };
            write_all(&case.job, &chosen, directory, host)?
        }
        Layout::Pools(split) => write_split(&case.job, split, directory, host)?,
    };
    if common.json {
        host.json(&json!({ "schema": 1, "written": written }))?;
    }
    Ok(())
}
