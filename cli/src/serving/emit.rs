//! Launch files of serving engines for a deployment, with the benchmark that checks them.

use super::{ServingJob, deployment};
use crate::Host;
use crate::failure::Failure;
use crate::files::{make_directory, write_atomically};
use psim_models::serving::Deployment;
use psim_reports::launch::serving::{self, ServingEngine, ServingLaunch};
use psim_sim::serving::Router;
use std::path::Path;

/// Writes `deployment.toml` and the files of every engine that can express it.
pub(crate) fn write_all(
    job: &ServingJob,
    chosen: &Deployment,
    router: Router,
    directory: &Path,
    host: &mut Host<'_>,
) -> Result<Vec<String>, Failure> {
    make_directory(host, directory)?;
    let mut written = Vec::new();
    let mut put = |name: &str, contents: &str, host: &mut Host<'_>| -> Result<(), Failure> {
        let path = directory.join(name);
        write_atomically(host, &path, contents.as_bytes())?;
        host.say(format_args!("wrote {}", path.display()));
        written.push(path.display().to_string());
        Ok(())
    };
    put("deployment.toml", &deployment::to_toml(chosen, &job.engine.name, router)?, host)?;
    let launch = ServingLaunch {
        model: &job.model,
        cluster: &job.cluster,
        workload: &job.workload,
        engine: &job.engine,
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
