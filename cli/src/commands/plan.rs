//! `psim plan`: the best plans for a model on a cluster.

mod execute_top;

use crate::Host;
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::inputs::{CommonArguments, Job, JobArguments};
use crate::progress::Bar;
use crate::render::{plans, prediction::header};
use crate::serving;
use clap::{Args, ValueEnum};
use psim_planner::request::DEFAULT_TOP;
use psim_planner::{Infeasible, Objective, PlanError, PlanReport, PlanRequest};
use psim_reports::plan_label;
use std::path::{Path, PathBuf};

/// What is optimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Goal {
    /// Time of the job
    Time,
    /// Money per token
    Cost,
    /// Energy per token
    Energy,
    /// Useful time: failures, restarts and checkpoints included; of serving requests within the promises
    Goodput,
    /// Lowest peak memory among plans at most 10 % slower than the fastest
    Memory,
}

impl From<Goal> for Objective {
    fn from(goal: Goal) -> Self {
        match goal {
            Goal::Time => Self::Time,
            Goal::Cost => Self::Cost,
            Goal::Energy => Self::Energy,
            Goal::Goodput => Self::Goodput,
            Goal::Memory => Self::Memory,
        }
    }
}

/// The question of `psim plan` and `psim report`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SearchArguments {
    #[command(flatten)]
    pub(crate) job: JobArguments,
    /// What is optimised [default: time; of serving goodput]
    #[arg(long, value_enum)]
    pub(crate) objective: Option<Goal>,
    /// Plans shown
    #[arg(long, value_name = "K", default_value_t = DEFAULT_TOP as u32, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) top: u32,
    /// Serving: search with drafted tokens too; a file with a [speculation] table as in a deployment file, whose `tokens`
    /// are found where it does not give them
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) speculation: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: CommonArguments,
}

/// Arguments of `psim plan`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    search: SearchArguments,
    /// Write a self-contained HTML report
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Write launch files of the best plan for the usual frameworks into a directory
    #[arg(long, value_name = "DIR")]
    emit: Option<PathBuf>,
    #[command(flatten)]
    closed_loop: execute_top::LoopArguments,
}

/// Loads the job and searches.
pub(crate) fn answer(arguments: &SearchArguments, host: &Host<'_>) -> Result<(Job, PlanReport), Failure> {
    if arguments.speculation.is_some() {
        return Err(Failure::input(
            "--speculation belongs to serving, and the workload is training",
            "give a --workload of requests",
        ));
    }
    let job = arguments.job.load(&arguments.common, host)?;
    let report = search(&job, arguments, host)?;
    Ok((job, report))
}

/// Searches for the plans of a job.
pub(super) fn search(job: &Job, arguments: &SearchArguments, host: &Host<'_>) -> Result<PlanReport, Failure> {
    let software = &job.software;
    let mut request =
        PlanRequest::new(&job.model, &job.cluster, &job.workload, &software.stack, &software.library);
    request.global_batch = Some(job.global_batch);
    request.objective = arguments.objective.unwrap_or(Goal::Time).into();
    request.top = arguments.top as usize;
    request.precision = vec![job.precision];
    request.assumptions.clone_from(&job.assumptions);
    let bar = Bar::new(host.progress);
    let found = arguments.common.on_threads(|| psim_planner::plan(&request, &bar))?;
    bar.finish();
    found.map_err(|error| match error {
        PlanError::Question { what, hint } => Failure::input(what, hint),
        PlanError::Cancelled => Failure::input("the search was cancelled", "run it again"),
    })
}

/// Writes the HTML report, with the timeline of the best plan.
pub(crate) fn write_report(
    job: &Job,
    report: &PlanReport,
    path: &Path,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    let mut report = report.clone();
    if let Some(best) = report.plans.first_mut() {
        // The search keeps no timelines; a plan it ranked can be simulated again.
        if let Ok(prediction) = super::simulate::predict(job, &best.plan, best.level, true) {
            best.prediction.timeline = prediction.timeline;
        }
    }
    write_atomically(host, path, psim_reports::plan_page(&report).as_bytes())?;
    host.say(format_args!("wrote {}", path.display()));
    Ok(())
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    if serving::is_serving(host, arguments.search.job.workload.as_deref())? {
        if arguments.closed_loop.wanted() {
            describes_elsewhere(arguments)?;
            return execute_top::serving::run(&arguments.closed_loop, &arguments.search, host);
        }
        let (page, directory) = (arguments.report.as_deref(), arguments.emit.as_deref());
        return serving::run_plan(&arguments.search, page, directory, false, host);
    }
    if arguments.closed_loop.wanted() {
        describes_elsewhere(arguments)?;
        return execute_top::training::run(&arguments.closed_loop, &arguments.search, host);
    }
    let (job, report) = answer(&arguments.search, host)?;
    if let Some(path) = &arguments.report {
        write_report(&job, &report, path, host)?;
    }
    if let (Some(directory), Some(best)) = (&arguments.emit, report.plans.first()) {
        super::emit::write_all(&job, &best.plan, directory, None, host)?;
    }
    if arguments.search.common.json {
        host.json(&report)?;
    } else {
        host.print(header(&job))?;
        host.line("")?;
        host.print(plans::text(&report))?;
    }
    match &report.infeasible {
        Some(why) => Err(infeasible(why)),
        None => Ok(()),
    }
}

/// Refuses outputs that say nothing of plans that run here.
fn describes_elsewhere(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.report.is_some() || arguments.emit.is_some() {
        return Err(Failure::input(
            "--execute-top runs plans here; --report and --emit describe them for elsewhere",
            "give --report and --emit to a `psim plan` without --execute-top",
        ));
    }
    Ok(())
}

/// Exit code 1, with the nearest change as the hint.
fn infeasible(why: &Infeasible) -> Failure {
    let largest = why.constraints.first().map_or_else(
        || "no candidate".to_owned(),
        |k| {
            format!(
                "`{}` removed most candidates ({}), for example: {}",
                k.constraint, k.candidates, k.example
            )
        },
    );
    let hint = match why.nearest.first() {
        Some(near) => {
            let plan = near.plan.as_ref().map(|p| format!(" (then {})", plan_label(p))).unwrap_or_default();
            format!("{}{plan}", near.change)
        }
        None => "a larger cluster, a smaller model, shorter sequences, or another global batch".to_owned(),
    };
    Failure::Infeasible { message: format!("no plan is feasible: {largest}"), hint }
}
