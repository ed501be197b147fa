//! `psim emit`: launch files of training frameworks for a plan, of serving engines for a deployment.

use super::simulate::{load, located, predict};
use crate::Host;
use crate::failure::Failure;
use crate::files::{make_directory, write_atomically};
use crate::inputs::{CommonArguments, Job, JobArguments};
use crate::render::prediction::must_fit;
use crate::serving;
use clap::{Args, ValueEnum};
use psim_models::Plan;
use psim_reports::launch::{self, Framework, LaunchJob};
use psim_sim::Level;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Framework to write for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// Megatron-LM / Megatron-Core command line
    Megatron,
    /// NeMo: a Megatron-Bridge recipe
    Nemo,
    /// torchtitan TOML (0.2.2)
    Torchtitan,
}

impl From<Target> for Framework {
    fn from(target: Target) -> Self {
        match target {
            Target::Megatron => Self::Megatron,
            Target::Nemo => Self::Nemo,
            Target::Torchtitan => Self::Torchtitan,
        }
    }
}

/// Arguments of `psim emit`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    job: JobArguments,
    /// Plan file (TOML)
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// Directory to write into (made if absent)
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// One framework [default: all that can express the plan]
    #[arg(long, value_enum)]
    framework: Option<Target>,
    #[command(flatten)]
    common: CommonArguments,
}

/// Writes the files of one framework, or of all that can express the plan, and `plan.toml` beside them.
pub(crate) fn write_all(
    job: &Job,
    plan: &Plan,
    directory: &Path,
    only: Option<Framework>,
    host: &mut Host<'_>,
) -> Result<Vec<String>, Failure> {
    make_directory(host, directory)?;
    let launch_job = LaunchJob {
        model: &job.model,
        cluster: &job.cluster,
        workload: &job.workload,
        plan,
        stack: &job.software.stack,
    };
    let mut written = Vec::new();
    let mut put = |name: &str, contents: &str, host: &mut Host<'_>| -> Result<(), Failure> {
        let path = directory.join(name);
        write_atomically(host, &path, contents.as_bytes())?;
        host.say(format_args!("wrote {}", path.display()));
        written.push(path.display().to_string());
        Ok(())
    };
    let text = toml::to_string(plan).map_err(Failure::defect)?;
    put("plan.toml", &format!("schema = 1\n{text}"), host)?;
    for framework in Framework::ALL {
        if only.is_some_and(|wanted| wanted != framework) {
            continue;
        }
        match launch::emit(framework, &launch_job) {
            Ok(files) => {
                for file in files {
                    put(&file.name, &file.contents, host)?;
                }
            }
            Err(error) if only.is_some() => {
                return Err(Failure::Infeasible {
                    message: error.to_string(),
                    hint: "another --framework, or a plan without it".to_owned(),
                });
            }
            Err(error) => host.say(format_args!("skipped: {error}")),
        }
    }
    Ok(written)
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    if serving::is_serving(host, arguments.job.workload.as_deref())? {
        if arguments.framework.is_some() {
            return Err(Failure::input(
                "--framework names a framework of training, and the workload is traffic",
                "leave it out: files of vLLM, SGLang and TensorRT-LLM are written",
            ));
        }
        return serving::run_emit(&arguments.job, &arguments.common, &arguments.plan, &arguments.dir, host);
    }
    let (job, plan) = load(&arguments.job, &arguments.common, &arguments.plan, host)?;
    // A plan that cannot be simulated cannot be launched either: the same checks, the same places.
    let prediction =
        predict(&job, &plan, Level::L1, false).map_err(|e| located(&e, &arguments.plan, host))?;
    must_fit(&prediction, host)?;
    for note in &prediction.notes {
        host.say(format_args!("note: {note}"));
    }
    let written = write_all(&job, &plan, &arguments.dir, arguments.framework.map(Into::into), host)?;
    if arguments.common.json {
        host.json(&json!({ "schema": 1, "written": written }))?;
    }
    Ok(())
}
