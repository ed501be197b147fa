//! The loop over training plans: steps on rank threads or one GPU.

mod answer;
mod labels;

use super::super::SearchArguments;
use super::journal::{self, Question};
use super::ranking::Rankings;
use super::{LoopArguments, ranks_here, residuals};
use crate::Host;
use crate::commands::execute::in_fp32;
use crate::failure::Failure;
use crate::inputs::Job;
use crate::machine::{Place, hinted};
use answer::Answer;
use labels::canonical;
use psim_calibration::measure::DeviceChoice;
use psim_calibration::measure::journal::crc32;
use psim_executor::execute::{ExecuteRequest, RankMode, execute};
use psim_executor::network::Network;
use psim_executor::predict::{Basis, predict};
use psim_hardware::Cluster;
use psim_models::Plan;
use psim_reports::plan_label;
use psim_sim::residual::{Observation, PhaseFactors, Residuals};
use psim_sim::step::StepProgram;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Plans that are ranked for the machine: the planner's best, of which many may need what the executor does not run.
const CANDIDATES: u32 = 60;

/// One phase of an executed plan, over all stages.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Phase {
    stage: usize,
    phase: String,
    measured_s: f64,
    predicted_s: f64,
}

/// An executed plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ran {
    observation: Observation,
    /// Predicted with what was known before the loop.
    predicted_before_s: f64,
    spread: f64,
    phases: Vec<Phase>,
}

impl journal::Ran for Ran {
    type Plan = Plan;

    fn plan(&self) -> &Plan {
        &self.observation.plan
    }
}

/// Everything that predicting and running a plan needs.
struct Bench<'a> {
    job: &'a Job,
    place: &'a Place,
    steps: u32,
    seed: u64,
}

impl Bench<'_> {
    /// What a prediction on this machine stands on.
    fn basis<'b>(&'b self, cluster: &'b Cluster, factors: PhaseFactors) -> Basis<'b> {
        let Place { stack, library, sharing, .. } = self.place;
        Basis { cluster, stack, library, sharing, factors }
    }

    /// Seconds of a step with the given factors.
    fn predict(&self, plan: &Plan, factors: PhaseFactors) -> Result<f64, Failure> {
        let cluster = self.place.cluster(plan.world());
        let basis = self.basis(&cluster, factors);
        let defect = "this is a defect of psim: the planner chose the plan";
        let program = StepProgram::new(plan).map_err(|e| hinted(&e.to_string(), defect))?;
        predict(&self.job.model, plan, &self.job.workload, &program, basis)
            .map(|p| p.step)
            .map_err(|e| hinted(&e.to_string(), defect))
    }

    fn factors(&self, residuals: &Residuals, plan: &Plan) -> PhaseFactors {
        residuals.factors(&self.job.model.name, plan, self.job.workload.seq_len)
    }

    /// Plans by predicted step, best first; equal ones in the planner's order.
    fn rank(&self, plans: &[Plan], residuals: &Residuals) -> Result<Vec<(Plan, f64)>, Failure> {
        let mut ranked = plans
            .iter()
            .map(|plan| Ok((plan.clone(), self.predict(plan, self.factors(residuals, plan))?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
        Ok(ranked)
    }

    /// Runs a plan; the observation is relative to the prediction without residuals.
    fn run(&self, plan: &Plan, residuals: &Residuals, question: u32) -> Result<Ran, Failure> {
        let cluster = self.place.cluster(plan.world());
        let basis = self.basis(&cluster, PhaseFactors::default());
        let request = ExecuteRequest {
            model: &self.job.model,
            plan,
            workload: &self.job.workload,
            device: self.place.device,
            ranks: RankMode::Threads,
            steps: self.steps,
            seed: self.seed,
            basis: Some(basis),
        };
        let report = execute(&request)
            .map_err(|e| hinted(&e.to_string(), "run `psim execute` with this plan to look closer"))?
            .ok_or_else(|| Failure::defect("rank threads without a report"))?;
        let phases = report
            .phases
            .iter()
            .map(|row| Phase {
                stage: row.stage,
                phase: row.phase.to_owned(),
                measured_s: row.measured,
                predicted_s: row.predicted.unwrap_or(0.0),
            })
            .collect();
        // Labels leave out what plans seldom differ in.
        let whole = crc32(serde_json::to_string(plan).map_err(Failure::defect)?.as_bytes());
        let observation = Observation {
            id: format!("{question:08x} {} {whole:08x}", plan_label(plan)),
            model: self.job.model.name.clone(),
            seq_len: self.job.workload.seq_len,
            factors: report.factors().unwrap_or_default(),
            measured: report.measured,
            predicted: report.predicted.unwrap_or(0.0),
            plan: plan.clone(),
        };
        Ok(Ran {
            observation,
            predicted_before_s: self.predict(plan, self.factors(residuals, plan))?,
            spread: report.spread,
            phases,
        })
    }
}

/// Runs the loop.
pub(in super::super) fn run(
    arguments: &LoopArguments,
    search: &SearchArguments,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    let wanted = match arguments.device {
        DeviceChoice::Cpu => in_fp32(&search.job)?,
        DeviceChoice::Cuda(_) => search.job.clone(),
    };
    let search = SearchArguments { job: wanted, top: search.top.max(CANDIDATES), ..search.clone() };
    let mut job = search.job.load(&search.common, host)?;
    let ranks = ranks_here(job.cluster.accelerators())?;
    let place = match arguments.device {
        DeviceChoice::Cpu => Place::processor(&search.common, &job, host)?,
        DeviceChoice::Cuda(_) if ranks > 1 => {
            return Err(Failure::input(
                format!("the cluster has {ranks} accelerators, and --execute-top runs plans on one GPU"),
                "name a cluster of one GPU, or run a plan with `psim execute --device cuda --ranks nccl`",
            ));
        }
        DeviceChoice::Cuda(index) => Place::gpu(&search.common, &job, index)?,
    };
    job.cluster = place.cluster(ranks);
    job.software.library = place.library.clone();
    if search.common.stack.is_none() {
        job.software.stack = place.stack.clone();
    }
    let before = residuals::load(&arguments.residuals, &place.accelerator, host)?;
    let report = super::super::search(&job, &search, host)?;
    if let Some(why) = &report.infeasible {
        return Err(super::super::infeasible(why));
    }
    let network = Network::new(&job.model).map_err(|e| hinted(&e.to_string(), "another model"))?;
    let found = report.plans.len();
    let plans: Vec<Plan> = report
        .plans
        .into_iter()
        .map(|p| p.plan)
        .filter(|plan| network.check(plan, &job.workload).is_ok())
        .fold(Vec::new(), |mut kept: Vec<Plan>, plan| {
            // Running the same program twice teaches nothing.
            if !kept.iter().any(|k| canonical(k) == canonical(&plan)) {
                kept.push(plan);
            }
            kept
        });
    if plans.is_empty() {
        return Err(Failure::input(
            format!("the executor runs none of the {found} best plans"),
            "`psim execute` with a plan says what it does not run",
        ));
    }
    let bench = Bench { job: &job, place: &place, steps: arguments.steps, seed: search.common.seed };
    let ranked = bench.rank(&plans, &before)?;
    let fingerprint = fingerprint(&job, &place, arguments, &search)?;
    let question = Question { title: "closed loop", fingerprint, residuals: &arguments.residuals };
    let best = ranked.iter().take(arguments.top()).map(|(plan, _)| plan.clone());
    let run = |plan: &Plan| bench.run(plan, &before, fingerprint);
    let mut executed = journal::execute(&question, best, plan_label, run, host)?;

    let mut after = before.clone();
    executed.rans.iter().for_each(|ran: &Ran| after.add(ran.observation.clone()));
    residuals::save(&after, &arguments.residuals, host)?;
    executed.finish()?;
    let rankings = Rankings { after: bench.rank(&plans, &after)?, before: ranked };
    let answer = Answer::new(executed, rankings, found);
    if search.common.json {
        return host.json(&answer.json(&job, arguments));
    }
    host.print(answer.text(&job, &place, arguments))
}

/// Names the question, so that a killed loop is continued by the same question only.
fn fingerprint(
    job: &Job,
    place: &Place,
    arguments: &LoopArguments,
    search: &SearchArguments,
) -> Result<u32, Failure> {
    let question = json!({
        "model": job.model, "workload": job.workload, "batch": job.global_batch,
        "ranks": job.cluster.accelerators(), "machine": place.accelerator, "top": arguments.execute_top,
        "steps": arguments.steps, "seed": search.common.seed, "settings": search.common.settings,
        "objective": format!("{:?}", search.objective),
    });
    Ok(crc32(serde_json::to_string(&question).map_err(Failure::defect)?.as_bytes()))
}
