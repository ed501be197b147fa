//! `psim plan` and `psim report` with a serving workload: the deployments that keep the promises, best first.

use super::{ServingJob, deployment, emit, render};
use crate::Host;
use crate::commands::plan::{Goal, SearchArguments};
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::number::counted;
use psim_cost_models::serving::EngineProfile;
use psim_models::serving::ServingWorkload;
use psim_planner::serving::{
    DisaggregatedReport, Served, ServingDetail, ServingPlanError, ServingPlanReport, ServingRequest, detail,
    mark_pareto, plan_disaggregated, plan_serving, plan_speculative, plan_speculative_splits,
};
use psim_planner::{Assumption, Objective};
use psim_reports::{ServingPage, serving_page};
use psim_sim::serving::{FleetOptions, Router};
use serde_json::json;
use std::path::Path;

/// Requests of the simulation at the workload's own rate, at most.
const MOST_REQUESTS: u32 = 20_000;

/// Points of the timelines of the page.
const SAMPLES: usize = 2000;

/// What is optimised; training's goals that say nothing about traffic are refused.
fn objective(goal: Option<Goal>) -> Result<Objective, Failure> {
    match goal {
        None | Some(Goal::Goodput) => Ok(Objective::Goodput),
        Some(Goal::Cost) => Ok(Objective::Cost),
        Some(Goal::Energy) => Ok(Objective::Energy),
        Some(Goal::Time | Goal::Memory) => Err(Failure::input(
            "a serving plan is ranked by goodput, cost or energy",
            "use --objective goodput (most requests within the promises), cost (cheapest for the workload's rate) or energy \
             (least for a generated token)",
        )),
    }
}

/// A planning error in the words of the command line.
pub(crate) fn failure(error: &ServingPlanError) -> Failure {
    match error {
        ServingPlanError::Infeasible { .. } => Failure::Infeasible {
            message: error.to_string(),
            hint: "a larger cluster, fewer bits (--precision fp8), or a smaller model".to_owned(),
        },
        ServingPlanError::ClosedLoop => Failure::input(
            error.to_string(),
            "simulate a closed loop with `psim simulate`, or give the tenant a `rate`",
        ),
        ServingPlanError::Parted(_) => Failure::input(error.to_string(), "choose another engine: --stack"),
        ServingPlanError::Rate(_) => Failure::input(error.to_string(), "write for example --rate 50rps"),
    }
}

/// The workload with at most so many requests.
fn shortened(workload: &ServingWorkload) -> ServingWorkload {
    let mut out = workload.clone();
    let share = (MOST_REQUESTS / out.tenants.len().max(1) as u32).max(1);
    for tenant in &mut out.tenants {
        tenant.requests = Some(tenant.requests.unwrap_or(share).min(share));
    }
    out
}

/// The best deployment under the workload's own traffic.
fn at_own_rate(job: &ServingJob, report: &ServingPlanReport, samples: usize) -> Option<ServingDetail> {
    let best = report.plans.first()?;
    let workload = shortened(&job.workload);
    let engine = EngineProfile { token_budget: best.token_budget, ..job.engine.clone() };
    let request = ServingRequest { workload: &workload, engine: &engine, ..job.request() };
    let options = FleetOptions { router: Router::LeastLoad, samples, ..FleetOptions::default() };
    let served = Served { group: best.group, ..Served::replicas(best.deployment, options) };
    detail(&request, &served).ok()
}

/// Searches, prints and writes.
pub(crate) fn run(
    arguments: &SearchArguments,
    page: Option<&Path>,
    directory: Option<&Path>,
    quiet: bool,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    let objective = objective(arguments.objective)?;
    let mut job = ServingJob::load(&arguments.job, &arguments.common, None, host)?;
    if job.workload.tenants.iter().any(|t| t.adapters.is_some()) {
        job.assumptions.push(Assumption {
            name: "adapters".to_owned(),
            value: "none".to_owned(),
            why: "a search takes requests for adapters as requests for the base model; simulate a deployment with \
                  [adapters]"
                .to_owned(),
        });
    }
    let speculation = match &arguments.speculation {
        Some(path) => {
            let file = deployment::read(host, path)?;
            Some((file.searched(&job, host)?, file))
        }
        None => None,
    };
    let (found, split) = arguments.common.on_threads(|| {
        let request = job.request();
        let found = plan_serving(&request);
        // What cannot run on one pool may run on two; what cannot be split is no fault of the plan.
        let split: Option<DisaggregatedReport> =
            found.is_ok().then(|| plan_disaggregated(&request).ok()).flatten();
        (found, split)
    })?;
    let mut report = found.map_err(|e| failure(&e))?;
    let drafted = match &speculation {
        Some((speculation, file)) => {
            let found = arguments
                .common
                .on_threads(|| plan_speculative(&job.request(), speculation, &report.plans))?;
            let mut found =
                found.map_err(|e| file.at("speculation", e.to_string(), "plan without --speculation"))?;
            found.truncate(arguments.top as usize);
            let plans = split.as_ref().map_or(&[][..], |s| s.plans.as_slice());
            let splits = arguments
                .common
                .on_threads(|| plan_speculative_splits(&job.request(), speculation, plans))?;
            let splits = splits.map(|mut found| {
                found.truncate(arguments.top as usize);
                found
            });
            Some((found, splits))
        }
        None => None,
    };
    let rate = job.workload.rate();
    let mut split = split;
    mark_pareto(&mut report.plans, split.as_mut().map_or(&mut [][..], |s| s.plans.as_mut_slice()));
    report.rank(objective, rate);
    report.plans.truncate(arguments.top as usize);
    let own = at_own_rate(&job, &report, if page.is_some() { SAMPLES } else { 0 });
    if let Some(path) = page {
        let text = serving_page(&ServingPage {
            model: &job.model,
            cluster: &job.cluster,
            workload: &job.workload,
            engine: &job.engine.name,
            objective: objective.name(),
            report: Some(&report),
            splits: split.as_ref(),
            detail: own.as_ref(),
            assumptions: &job.assumptions,
        });
        write_atomically(host, path, text.as_bytes())?;
        host.say(format_args!("wrote {}", path.display()));
    }
    if let (Some(directory), Some(best)) = (directory, report.plans.first()) {
        let chosen = emit::Chosen::of(&job, best, Router::LeastLoad);
        emit::write_all(&job, &chosen, directory, host)?;
        if let Some(split) = split.as_ref().and_then(|s| s.plans.first()) {
            emit::write_split(&job, &split.split(), directory, host)?;
        }
    }
    if arguments.common.json {
        let plans: Vec<_> = report.plans.iter().map(|p| render::json::plan(p, rate)).collect();
        let rejected: Vec<_> =
            report.rejected.iter().map(|(layout, why)| json!({ "layout": layout, "why": why })).collect();
        host.json(&json!({
            "schema": 1,
            "kind": "serving",
            "question": render::json::question(&job),
            "objective": objective.name(),
            "plans": plans,
            "best_at_the_workloads_rate": own.as_ref().map(|d| render::json::report(&d.report)),
            "split": split.as_ref().map(|s| s.plans.iter().map(render::json::split).collect::<Vec<_>>()),
            "speculation": drafted.as_ref().map(|(plans, _)| plans),
            "speculation_split": drafted.as_ref().and_then(|(_, splits)| splits.as_ref().ok()),
            "rejected": rejected,
            "searched": report.searched,
            "pruned": report.pruned,
        }))?;
    } else if !quiet {
        host.print(render::header(&job))?;
        host.line("")?;
        host.print(render::plan_table(&report.plans, rate, objective))?;
        if let Some(best) = report.plans.first() {
            host.line("")?;
            host.print(render::winner(best))?;
        }
        if let Some(split) = &split {
            host.print(render::split(split, report.plans.first()))?;
        }
        if let (Some((speculation, _)), Some((plans, splits))) = (&speculation, &drafted) {
            host.line(format!("\nwith speculation {}:", speculation.name))?;
            host.print(render::speculative_table(plans))?;
            match splits {
                Ok(splits) if split.is_some() => {
                    host.line(format!("\npools with speculation {}:", speculation.name))?;
                    host.print(render::speculative_split_table(splits))?;
                }
                Ok(_) => {}
                Err(why) => host.line(format!("\npools: {why}"))?,
            }
        }
        if let Some(own) = &own {
            host.line("\nthe best one under the workload's own traffic, all replicas, least-load router:")?;
            host.print(render::figures(&own.report))?;
        }
        let splits = split.as_ref().map_or(String::new(), |s| {
            format!("; {} splits into pools, {} of them simulated", s.searched, s.simulated)
        });
        let pruned = match report.pruned {
            0 => String::new(),
            n => format!(", {n} over several nodes carry no more than smaller ones"),
        };
        host.line(format!(
            "\nsearched {}, {} not run{pruned}{splits}",
            counted(report.searched as u64, "layout", "layouts"),
            counted(report.rejected.len() as u64, "does", "do"),
        ))?;
    }
    if report.plans.iter().all(|p| p.rate_per_replica <= 0.0) {
        return Err(Failure::Infeasible {
            message: "no layout keeps the promises, not even for a single request".to_owned(),
            hint: "a looser service level, a faster accelerator, or fewer bits (--precision fp8)".to_owned(),
        });
    }
    Ok(())
}
