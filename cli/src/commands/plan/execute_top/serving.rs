//! The loop over serving plans: serves the workload's requests with the best plans on this machine, learns from what their
//! steps took, ranks again.
//!
//! The executor's own engine runs: rank threads, a paged cache, chunked prompts, continuous batching, replicas in turn.
//! Plans are ranked by the rate of requests that they carry within the promises, by the planner's search over step costs
//! from the machine's profile; the requests that run are the workload's own.

mod answer;

use super::super::SearchArguments;
use super::journal::{self, Question};
use super::ranking::Rankings;
use super::{LoopArguments, ranks_here, residuals};
use crate::Host;
use crate::failure::Failure;
use crate::machine::{Machine, hinted};
use crate::serving::ServingJob;
use answer::Answer;
use psim_calibration::measure::journal::crc32;
use psim_calibration::measure::{DeviceChoice, threads_stack};
use psim_executor::serving::{
    Clock, ServeBasis, ServeRequest, ServeRun, ServeSettings, StepPrice, engine_profile, learn, predict,
    price_steps, serve, step_cost,
};
use psim_hardware::profile::StackProfile;
use psim_kernels::cpu::CpuDevice;
use psim_models::plan::Precision;
use psim_models::serving::{NumberFormat, Quantization, ServingWorkload, Traffic};
use psim_planner::serving::{ServingPlanError, ServingRequest, plan_serving_priced};
use psim_sim::residual::{Residuals, ServingFactors, ServingLayout, ServingObservation};
use psim_sim::serving::ServingRun;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Sequences at once that are tried.
const SEQUENCES: [u32; 3] = [4, 16, 32];
/// Tokens of a step that are tried.
const TOKENS: [u32; 2] = [64, 256];
/// Tokens of a page of the cache.
const PAGE: usize = 16;
/// Requests of one simulation of the search.
const SEARCH_REQUESTS: u32 = 160;
/// Requests that are served for real: about so many seconds of the workload's own rate, within bounds.
const SERVED: (f64, f64, f64) = (5.0, 12.0, 64.0);

/// One phase of a served plan: means over its requests or steps, seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Phase {
    phase: String,
    measured_s: f64,
    predicted_s: f64,
}

/// A plan that served the requests.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ran {
    observation: ServingObservation,
    requests: usize,
    /// Largest over smallest mean time per token of the runs, less one.
    spread: f64,
    phases: Vec<Phase>,
}

impl journal::Ran for Ran {
    type Plan = ServingLayout;

    fn plan(&self) -> &ServingLayout {
        &self.observation.layout
    }
}

/// A layout and the requests a second that it carries within the promises.
type Ranked = (ServingLayout, f64);

/// Everything that predicting and running a plan needs.
struct Bench<'a> {
    job: &'a ServingJob,
    machine: &'a Machine,
    stack: StackProfile,
    requests: Vec<ServeRequest>,
    /// Most tokens of a request, prompt and answer.
    longest: usize,
    ranks: u32,
    runs: u32,
}

impl Bench<'_> {
    fn settings(&self, layout: &ServingLayout, runs: bool) -> ServeSettings {
        let sequences = layout.sequences as usize;
        ServeSettings {
            tp: layout.tp as usize,
            replicas: layout.replicas as usize,
            page: PAGE,
            // Room for every sequence at its longest: what a step may take decides, not the cache.
            pages: sequences * self.longest.div_ceil(PAGE),
            tokens: layout.tokens as usize,
            sequences,
            seed: self.job.seed,
            scores: false,
            clock: Clock::Wall,
            warm_up: runs,
        }
    }

    fn with_basis<R>(
        &self,
        layout: &ServingLayout,
        factors: ServingFactors,
        work: impl FnOnce(ServeBasis<'_>) -> R,
    ) -> R {
        let cluster = self.machine.cluster(layout.tp);
        work(ServeBasis {
            cluster: &cluster,
            stack: &self.stack,
            library: &self.machine.library,
            facts: &self.machine.facts,
            factors,
        })
    }

    /// Every layout that the engine runs with the rate that it carries within the promises, best first.
    fn rank(&self, residuals: &Residuals) -> Result<Vec<Ranked>, Failure> {
        let cluster = self.machine.cluster(self.ranks);
        let mut ranked: Vec<Ranked> = Vec::new();
        for sequences in SEQUENCES {
            for tokens in TOKENS {
                let layout = |tp: u32| ServingLayout { tp, replicas: self.ranks / tp, sequences, tokens };
                let engine = engine_profile(&self.settings(&layout(1), false));
                let request = ServingRequest {
                    model: &self.job.model,
                    cluster: &cluster,
                    engine: &engine,
                    workload: &self.job.workload,
                    quantization: Quantization::uniform(NumberFormat::Bf16),
                    library: &self.machine.library,
                    requests: SEARCH_REQUESTS,
                    seed: self.job.seed,
                };
                let found = plan_serving_priced(&request, &|deployment| {
                    if deployment.pp > 1 || deployment.attention_dp > 1 || deployment.ep > 1 {
                        return Err("the executor serves on tensor-parallel ranks".to_owned());
                    }
                    if !self.ranks.is_multiple_of(deployment.tp) {
                        return Err(format!("tp {} does not divide {} ranks", deployment.tp, self.ranks));
                    }
                    let layout = layout(deployment.tp);
                    let factors = residuals.serving_factors(&self.job.model.name, &layout);
                    self.with_basis(&layout, factors, |basis| {
                        step_cost(&self.job.model, &self.settings(&layout, false), basis)
                            .map_err(|e| e.to_string())
                    })
                });
                let report = found.map_err(|error| match error {
                    ServingPlanError::Infeasible { reasons, .. } => Failure::input(
                        format!(
                            "the executor serves {} in no layout: {}",
                            self.job.model.name,
                            reasons.join("; ")
                        ),
                        "name a dense model whose heads the ranks divide",
                    ),
                    other => crate::serving::plan_failure(&other),
                })?;
                ranked.extend(report.plans.iter().map(|p| (layout(p.deployment.tp), p.rate)));
            }
        }
        // Of plans that carry the same, the one with the smaller limits, then the planner's order.
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Ok(ranked)
    }

    /// The simulated run of the requests.
    fn simulated(&self, layout: &ServingLayout, factors: ServingFactors) -> Result<ServingRun, Failure> {
        self.with_basis(layout, factors, |basis| {
            predict(&self.job.model, &self.requests, &self.settings(layout, true), basis)
                .map_err(|e| hinted(&e.to_string(), "this is a defect of psim: the planner chose the plan"))
        })
    }

    /// Serves the requests again and again; the observation is relative to the prediction without residuals.
    fn run(&self, layout: &ServingLayout, residuals: &Residuals, question: u32) -> Result<Ran, Failure> {
        let settings = self.settings(layout, true);
        let runs: Vec<ServeRun> = (0..self.runs)
            .map(|_| serve(&self.job.model, &self.requests, &settings, |_| Ok(CpuDevice::new())))
            .collect::<Result<_, _>>()
            .map_err(|e| hinted(&e.to_string(), "change the workload or the model"))?;
        let factors = residuals.serving_factors(&self.job.model.name, layout);
        let price = |factors| {
            self.with_basis(layout, factors, |basis| {
                runs.iter()
                    .map(|run| price_steps(&self.job.model, &settings, basis, &run.steps))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(Failure::defect)
            })
        };
        let (plain, known) = (price(ServingFactors::default())?, price(factors)?);
        let simulated = self.simulated(layout, factors)?;
        let mut phases = answer::requests(&runs, &simulated);
        phases.extend(answer::steps(&runs, &known));
        let pairs: Vec<(f64, StepPrice)> = runs
            .iter()
            .zip(&plain)
            .flat_map(|(run, prices)| run.steps.iter().map(|s| s.seconds).zip(prices.iter().copied()))
            .collect();
        let ServingLayout { tp, replicas, sequences, tokens } = layout;
        Ok(Ran {
            observation: ServingObservation {
                id: format!("{question:08x} tp {tp} x{replicas} sequences {sequences} tokens {tokens}"),
                model: self.job.model.name.clone(),
                factors: learn(&pairs),
                measured: pairs.iter().map(|p| p.0).sum(),
                predicted: pairs.iter().map(|p| p.1.total()).sum(),
                layout: *layout,
            },
            requests: self.requests.len(),
            spread: answer::spread(&runs),
            phases,
        })
    }
}

/// Refuses what the executor's engine does not do.
fn supported(search: &SearchArguments, arguments: &LoopArguments) -> Result<(), Failure> {
    if arguments.device != DeviceChoice::Cpu {
        return Err(Failure::input(
            "serving plans run on the CPU here",
            "leave --device out; `kernels/cuda/check-on-gpu.sh` runs the serving loop on a GPU",
        ));
    }
    if search.common.stack.is_some() {
        return Err(Failure::input(
            "--stack names an engine, and the executor's own engine runs here",
            "leave --stack out",
        ));
    }
    let precision = search.job.precision.map(crate::inputs::job::Format::training).transpose()?;
    if precision.is_some_and(|p| p != Precision::Fp32) || search.job.kv_precision.is_some() {
        return Err(Failure::input(
            "the CPU serves in fp32, weights and cache",
            "leave --precision and --kv-precision out",
        ));
    }
    Ok(())
}

/// Refuses traffic that the engine would not serve as it is meant.
fn plain(workload: &ServingWorkload) -> Result<(), Failure> {
    for tenant in &workload.tenants {
        let what = [
            ("conversations", tenant.sessions.is_some()),
            ("adapters", tenant.adapters.is_some()),
            ("a shared prefix", tenant.prefix.is_some()),
        ];
        if let Some((what, _)) = what.iter().find(|(_, is)| *is) {
            return Err(Failure::input(
                format!("tenant `{}` has {what}; the executor serves plain requests", tenant.name),
                "describe the requests by their lengths",
            ));
        }
    }
    Ok(())
}

/// The first requests of the workload's own traffic, with tokens.
fn requests(job: &ServingJob) -> Vec<ServeRequest> {
    let (seconds, least, most) = SERVED;
    let count = (job.workload.rate().unwrap_or(0.0) * seconds).clamp(least, most).ceil() as usize;
    let mut workload = job.workload.clone();
    for tenant in &mut workload.tenants {
        tenant.requests = Some(tenant.requests.map_or(count as u32, |n| n.min(count as u32)));
    }
    let vocabulary = job.model.vocab.clamp(1, 1 << 24) as u32;
    let mut state = job.seed | 1;
    let mut token = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as u32 % vocabulary
    };
    let traffic = Traffic::generate(&workload, job.seed);
    let first = traffic.requests.first().map_or(0.0, |r| r.arrival.seconds().0);
    traffic
        .requests
        .iter()
        .take(count)
        .map(|r| ServeRequest {
            arrival: r.arrival.seconds().0 - first,
            prompt: (0..r.input.max(1)).map(|_| token()).collect(),
            output: r.output.max(1) as usize,
        })
        .collect()
}

/// Runs the loop.
pub(in super::super) fn run(
    arguments: &LoopArguments,
    search: &SearchArguments,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    supported(search, arguments)?;
    let unset = crate::inputs::CommonArguments { settings: Vec::new(), ..search.common.clone() };
    let job = ServingJob::load(&search.job, &unset, None, host)?;
    plain(&job.workload)?;
    let ranks = ranks_here(job.cluster.accelerators())?;
    let machine = Machine::load(&search.common, &job.library, host)?;
    let requests = requests(&job);
    let longest = requests.iter().map(|r| r.prompt.len() + r.output).max().unwrap_or(1);
    let stack =
        if search.common.settings.is_empty() { threads_stack() } else { machine.stack(&search.common)? };
    let bench =
        Bench { job: &job, machine: &machine, stack, requests, longest, ranks, runs: arguments.steps };
    let before = residuals::load(&arguments.residuals, &machine.accelerator.name, host)?;
    let ranked = search.common.on_threads(|| bench.rank(&before))??;
    if ranked.iter().all(|r| r.1 <= 0.0) {
        return Err(Failure::Infeasible {
            message: "no layout keeps the promises on this machine, not even for a single request".to_owned(),
            hint: "a looser service level or a smaller model".to_owned(),
        });
    }
    let fingerprint = fingerprint(&bench, arguments, search)?;
    let question = Question { title: "serving loop", fingerprint, residuals: &arguments.residuals };
    let best = ranked.iter().take(arguments.top()).map(|r| r.0);
    let run = |layout: &ServingLayout| bench.run(layout, &before, fingerprint);
    let mut executed = journal::execute(&question, best, answer::label, run, host)?;

    let mut after = before.clone();
    executed.rans.iter().for_each(|ran: &Ran| after.add_serving(ran.observation.clone()));
    residuals::save(&after, &arguments.residuals, host)?;
    executed.finish()?;
    let again = search.common.on_threads(|| bench.rank(&after))??;
    let answer = Answer { executed, rankings: Rankings { before: ranked, after: again } };
    if search.common.json {
        return host.json(&answer.json(&bench, arguments));
    }
    host.print(answer.text(&bench, arguments))
}

/// Names the question, so that a killed loop is continued by the same question only.
fn fingerprint(
    bench: &Bench<'_>,
    arguments: &LoopArguments,
    search: &SearchArguments,
) -> Result<u32, Failure> {
    let requests: Vec<_> = bench.requests.iter().map(|r| (r.arrival, r.prompt.len(), r.output)).collect();
    let question = json!({
        "serving": true, "model": bench.job.model, "requests": requests, "ranks": bench.ranks,
        "levels": bench.job.workload.tenants.iter().map(|t| format!("{:?}", t.slo)).collect::<Vec<_>>(),
        "machine": bench.machine.accelerator.name, "top": arguments.execute_top, "runs": arguments.steps,
        "seed": search.common.seed, "settings": search.common.settings,
    });
    Ok(crc32(serde_json::to_string(&question).map_err(Failure::defect)?.as_bytes()))
}
