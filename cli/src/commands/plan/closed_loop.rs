//! `psim plan … --execute-top K`: runs the best plans on this machine, learns from what they took, ranks again.
//!
//! Every executed plan goes to a journal before the next one starts, so a killed loop goes on where it stopped; the
//! residual profile appears whole or not at all.

use super::SearchArguments;
use super::labels::{canonical, labels};
use crate::Host;
use crate::commands::execute::in_fp32;
use crate::failure::Failure;
use crate::files::{read_text, write_back};
use crate::inputs::Job;
use crate::machine::{MAX_RANKS, Place, hinted};
use crate::number::grouped;
use crate::progress::Bar;
use crate::table::{Align, Table, wrap};
use clap::Args;
use psim_calibration::measure::DeviceChoice;
use psim_calibration::measure::journal::{Header, Journal, crc32};
use psim_executor::execute::{ExecuteDevice, ExecuteRequest, RankMode, execute};
use psim_executor::network::Network;
use psim_executor::predict::{Basis, predict};
use psim_models::Plan;
use psim_reports::plan_label;
use psim_sim::residual::{Observation, PhaseFactors, RESIDUAL_SCHEMA, Residuals};
use psim_sim::step::StepProgram;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Plans that are ranked for the machine: the planner's best, of which many may need what the executor does not run.
const CANDIDATES: u32 = 60;
/// Longest residual file that is read.
const MAX_RESIDUAL_BYTES: usize = 16 << 20;

/// Flags of the closed loop.
#[derive(Debug, Args)]
pub(crate) struct LoopArguments {
    /// Run the best K plans on --device, compare, learn, rank again
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=50))]
    pub(super) execute_top: Option<u32>,
    /// Where --execute-top runs them
    #[arg(long, value_name = "cpu|cuda:N", default_value = "cpu", requires = "execute_top")]
    pub(super) device: DeviceChoice,
    /// What earlier runs on this machine say beside predictions: read, updated and written by --execute-top
    #[arg(long, value_name = "FILE", default_value = "psim-residuals.toml", requires = "execute_top")]
    pub(super) residuals: PathBuf,
    /// Steps that --execute-top times per plan, after one that warms up; of serving plans, runs of the requests
    #[arg(long, value_name = "N", default_value_t = 4, requires = "execute_top", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) steps: u32,
}

impl LoopArguments {
    pub(super) fn wanted(&self) -> bool {
        self.execute_top.is_some()
    }
}

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

/// A line of the loop's journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Entry {
    /// What the loop decided to run, best first.
    Chosen(Vec<Plan>),
    /// One of them ran.
    Ran(Box<Ran>),
}

/// Everything that predicting and running a plan needs.
struct Bench<'a> {
    job: &'a Job,
    place: &'a Place,
    steps: u32,
    seed: u64,
}

impl Bench<'_> {
    /// Seconds of a step with the given factors.
    fn predict(&self, plan: &Plan, factors: PhaseFactors) -> Result<f64, Failure> {
        let cluster = self.place.cluster(plan.world());
        let basis = Basis {
            cluster: &cluster,
            stack: &self.place.stack,
            library: &self.place.library,
            sharing: &self.place.sharing,
            factors,
        };
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
        let basis = Basis {
            cluster: &cluster,
            stack: &self.place.stack,
            library: &self.place.library,
            sharing: &self.place.sharing,
            factors: PhaseFactors::default(),
        };
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
pub(super) fn run(
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
    let ranks = job.cluster.accelerators();
    if ranks > MAX_RANKS {
        return Err(Failure::input(
            format!("the cluster has {ranks} accelerators; at most {MAX_RANKS} rank threads are started"),
            "name a smaller cluster, such as the one that `psim calibrate` writes",
        ));
    }
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
    let before = load_residuals(&arguments.residuals, &place.accelerator, host)?;
    let report = super::search(&job, &search, host)?;
    if let Some(why) = &report.infeasible {
        return Err(super::infeasible(why));
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
    let top = arguments.execute_top.unwrap_or(1) as usize;
    let question = fingerprint(&job, &place, arguments, &search)?;
    let (rans, resumed, mut journal) = execute_top(arguments, &bench, &ranked, top, question, &before, host)?;

    let mut after = before.clone();
    rans.iter().for_each(|ran| after.add(ran.observation.clone()));
    let text = toml::to_string(&after).map_err(Failure::defect)?;
    write_back(host, &arguments.residuals, text.as_bytes())?;
    journal.finish().map_err(|e| Failure::input(e.to_string(), "check the free space"))?;
    let again = bench.rank(&plans, &after)?;
    let answer = Answer { rans, resumed, before: ranked, after: again, found };
    if search.common.json {
        return host.json(&answer.json(&job, arguments));
    }
    host.print(answer.text(&job, &place, arguments))
}

/// Runs what the loop chose and has not run yet.
fn execute_top(
    arguments: &LoopArguments,
    bench: &Bench<'_>,
    ranked: &[(Plan, f64)],
    top: usize,
    question: u32,
    residuals: &Residuals,
    host: &Host<'_>,
) -> Result<(Vec<Ran>, usize, Journal<Entry>), Failure> {
    let path = journal_path(&host.path(&arguments.residuals), question);
    let header = Header::new(&format!("closed loop {question:08x}"));
    let journal_failed = |e: psim_calibration::measure::MeasureError| {
        hinted(&e.to_string(), "remove the journal to start anew")
    };
    let (mut journal, entries) = Journal::<Entry>::open(&path, &header).map_err(journal_failed)?;
    let mut chosen: Option<Vec<Plan>> = None;
    let mut rans: Vec<Ran> = Vec::new();
    for entry in entries {
        match entry {
            Entry::Chosen(plans) => chosen = Some(plans),
            Entry::Ran(ran) => rans.push(*ran),
        }
    }
    let chosen = match chosen {
        Some(plans) => plans,
        None => {
            let plans: Vec<Plan> = ranked.iter().take(top).map(|(plan, _)| plan.clone()).collect();
            journal.append(&Entry::Chosen(plans.clone())).map_err(journal_failed)?;
            plans
        }
    };
    let resumed = rans.len();
    let bar = Bar::new(host.progress);
    for (done, plan) in chosen.iter().enumerate() {
        if rans.iter().any(|r| r.observation.plan == *plan) {
            continue;
        }
        bar.show(&plan_label(plan), done as f64 / chosen.len() as f64);
        let ran = bench.run(plan, residuals, question)?;
        journal.append(&Entry::Ran(Box::new(ran.clone()))).map_err(journal_failed)?;
        rans.push(ran);
    }
    bar.finish();
    Ok((rans, resumed, journal))
}

/// `residuals.toml.1a2b3c4d.journal`.
pub(super) fn journal_path(residuals: &Path, question: u32) -> PathBuf {
    let mut name = residuals.as_os_str().to_owned();
    name.push(format!(".{question:08x}.journal"));
    PathBuf::from(name)
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

pub(super) fn load_residuals(path: &Path, machine: &str, host: &Host<'_>) -> Result<Residuals, Failure> {
    if !host.path(path).exists() {
        return Ok(Residuals::new(machine));
    }
    let shown = path.display().to_string();
    let text = read_text(host, path, "residual profile", MAX_RESIDUAL_BYTES)?;
    let hint = "choose another --residuals FILE, or remove it to start anew";
    let found: Residuals = toml::from_str(&text).map_err(|e| {
        Failure::input_at(format!("this is no residual profile: {}", e.message()), shown.clone(), hint)
    })?;
    if found.schema != RESIDUAL_SCHEMA {
        let message =
            format!("schema {} of a residual profile, this program knows {RESIDUAL_SCHEMA}", found.schema);
        return Err(Failure::input_at(message, shown, hint));
    }
    if found.machine != machine {
        let message = format!("it belongs to `{}`, this machine is `{machine}`", found.machine);
        return Err(Failure::input_at(message, shown, hint));
    }
    if !found.sound() {
        return Err(Failure::input_at("an observation has a factor that is no positive number", shown, hint));
    }
    Ok(found)
}

/// Outcome of the loop.
struct Answer {
    rans: Vec<Ran>,
    resumed: usize,
    before: Vec<(Plan, f64)>,
    after: Vec<(Plan, f64)>,
    found: usize,
}

/// A plan and its predicted step time, seconds.
type Ranked = (Plan, f64);

impl Answer {
    /// What each plan of the answer is called: the ranked ones, and those that an interrupted loop ran.
    fn names(&self) -> Vec<(Plan, String)> {
        let mut plans: Vec<Plan> = self.before.iter().map(|(plan, _)| plan.clone()).collect();
        for ran in &self.rans {
            if !plans.contains(&ran.observation.plan) {
                plans.push(ran.observation.plan.clone());
            }
        }
        let labels = labels(&plans);
        plans.into_iter().zip(labels).collect()
    }

    fn winners(&self) -> Option<(&Ranked, &Ranked)> {
        self.before.first().zip(self.after.first())
    }

    fn json(&self, job: &Job, arguments: &LoopArguments) -> serde_json::Value {
        let names = self.names();
        let name = |plan: &Plan| name_of(&names, plan);
        let list = |plans: &[(Plan, f64)]| -> Vec<_> {
            let one = |(plan, step): &(Plan, f64)| json!({ "label": name(plan), "plan": plan, "predicted_s": step });
            plans.iter().take(10).map(one).collect()
        };
        let changed = self.winners().map(|(a, b)| a.0 != b.0);
        json!({
            "schema": 1, "model": job.model.name, "ranks": job.cluster.accelerators(), "executed": self.rans,
            "resumed": self.resumed, "ranking_before": list(&self.before), "ranking_after": list(&self.after),
            "winner_changed": changed, "winner_before": self.before.first().map(|b| name(&b.0)),
            "winner_after": self.after.first().map(|a| name(&a.0)), "residuals": arguments.residuals,
        })
    }

    fn text(&self, job: &Job, place: &Place, arguments: &LoopArguments) -> String {
        let ranks = match place.device {
            ExecuteDevice::Cpu => {
                format!("{} rank threads, {} cores", job.cluster.accelerators(), place.sharing.cores)
            }
            ExecuteDevice::Cuda(index) => format!("cuda:{index}"),
        };
        let mut out = format!(
            "{} on {ranks} ({}); prediction from: {}\n",
            job.model.name, place.accelerator, place.origin,
        );
        if let Some(note) = &place.note {
            out.push_str(&format!("{}\n", wrap(&format!("note: {note}"), 100, "  ")));
        }
        out.push_str(&format!(
            "{} of the planner's {} best plans run here; executed {} of them{}\n\n",
            grouped(self.before.len() as u64),
            grouped(self.found as u64),
            self.rans.len(),
            if self.resumed > 0 {
                format!(" ({} before this loop was interrupted)", self.resumed)
            } else {
                String::new()
            },
        ));
        let names = self.names();
        let right = Align::Right;
        let mut table = Table::new(&[
            ("plan", Align::Left),
            ("stage", right),
            ("phase", Align::Left),
            ("measured ms", right),
            ("predicted ms", right),
            ("error %", right),
        ]);
        let mut row = |name: String, stage: String, phase: &str, measured: f64, predicted: f64| {
            let error = if measured > 1e-9 {
                format!("{:+.0}", (predicted / measured - 1.0) * 100.0)
            } else {
                String::new()
            };
            let ms = |s: f64| format!("{:.2}", s * 1e3);
            table.row([name, stage, phase.to_owned(), ms(measured), ms(predicted), error]);
        };
        for ran in &self.rans {
            let o = &ran.observation;
            row(name_of(&names, &o.plan), String::new(), "step", o.measured, ran.predicted_before_s);
            for p in &ran.phases {
                row(String::new(), p.stage.to_string(), &p.phase, p.measured_s, p.predicted_s);
            }
        }
        out.push_str(&table.render());
        let mut ranking = Table::new(&[
            ("ranked again", Align::Left),
            ("predicted ms", right),
            ("before ms", right),
            ("was", right),
        ]);
        for (plan, step) in self.after.iter().take(5) {
            let at = self.before.iter().position(|(p, _)| p == plan);
            let old = at.and_then(|i| self.before.get(i)).map_or(0.0, |b| b.1);
            let was = at.map_or(String::new(), |i| format!("#{}", i + 1));
            ranking.row([
                name_of(&names, plan),
                format!("{:.2}", step * 1e3),
                format!("{:.2}", old * 1e3),
                was,
            ]);
        }
        out.push('\n');
        out.push_str(&ranking.render());
        if let Some((first, last)) = self.winners() {
            let sentence = if first.0 == last.0 {
                format!("the winner stays: {}", name_of(&names, &first.0))
            } else {
                format!(
                    "the winner changed: {} instead of {}",
                    name_of(&names, &last.0),
                    name_of(&names, &first.0)
                )
            };
            out.push_str(&format!("{sentence}\n"));
        }
        out.push_str(&format!("updated {}\n", arguments.residuals.display()));
        out
    }
}

fn name_of(names: &[(Plan, String)], plan: &Plan) -> String {
    names.iter().find(|(p, _)| p == plan).map_or_else(|| plan_label(plan), |(_, name)| name.clone())
}
