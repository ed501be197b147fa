//! Launch files of serving engines for a deployment, with the benchmark that checks them.

use super::{ServingJob, deployment};
use crate::Host;
use crate::failure::Failure;
use crate::files::{make_directory, write_atomically};
use psim_cost_models::serving::EngineProfile;
use psim_planner::serving::ServingPlan;
use psim_reports::launch::serving::{self, ServingEngine, ServingLaunch};
use psim_sim::serving::Router;
use std::path::Path;

/// Writes `deployment.toml` and the files of every engine that can express it.
pub(crate) fn write_all(
    job: &ServingJob,
    plan: &ServingPlan,
    router: Router,
    directory: &Path,
    host: &mut Host<'_>,
) -> Result<Vec<String>, Failure> {
    make_directory(host, directory)?;
    let chosen = &plan.deployment;
    let engine = EngineProfile { token_budget: plan.token_budget, ..job.engine.clone() };
    let mut written = Vec::new();
    let mut put = |name: &str, contents: &str, host: &mut Host<'_>| -> Result<(), Failure> {
        let path = directory.join(name);
        write_atomically(host, &path, contents.as_bytes())?;
        host.say(format_args!("wrote {}", path.display()));
        written.push(path.display().to_string());
        Ok(())
    };
    put("deployment.toml", &deployment::to_toml(chosen, &job.engine, plan.token_budget, router)?, host)?;
    let launch = ServingLaunch {
        model: &job.model,
        cluster: &job.cluster,
        workload: &job.workload,
        engine: &engine,
        deployment: chosen,
    };
    for engine in ServingEngine::ALL {
        match serving::emit(engine, &launch) {
            Ok(files) => {
                for file in files {
                    put(&file.name, &file.contents, host)?;
                }
            }
            Err(error) => host.say(format_args!("skipped: {error}")),
        }
    }
    Ok(written)
}
