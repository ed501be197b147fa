//! Scenarios of serving runs: one or two runs of an engine under traffic, and a figure of their reports.
//!
//! ```toml
//! measure = "ratio"            # or "value": the first run's figure alone
//! metric = "requests_per_s"    # see `figure`
//! [base]                       # what all runs share
//! model = "llama2-70b"
//! accelerator = "A100-SXM-80GB"
//! tp = 4
//! engine = "vllm-2024"
//! workload = """…"""           # a serving workload
//! [[run]]                      # the technique
//! policy = "splitfuse"
//! [[run]]                      # what it is compared with
//! ```
//!
//! A run with `sweep = [1, 2, 4]` is done once per number, which stands where the workload says `$n`; the best figure
//! counts.

use super::runs;
use crate::serving::{
    AdapterMode, AdapterOptions, Autoscale, CacheTier, CoServing, FleetOptions, Preemption, Router,
    ServingInput, ServingReport, ServingRun, SwapOptions, simulate as serve,
};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::{EngineProfile, Policy, StepCost, engine};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_hardware::{Bytes, BytesPerSec, Seconds};
use psim_models::presets;
use psim_models::serving::workload::parse_workload;
use psim_models::serving::{Deployment, NumberFormat, Quantization, Traffic};
use serde::Deserialize;
use std::collections::BTreeMap;

/// One run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    model: String,
    accelerator: String,
    engine: String,
    #[serde(default = "one")]
    tp: u32,
    #[serde(default = "one")]
    pp: u32,
    #[serde(default = "one")]
    replicas: u32,
    format: Option<String>,
    /// Batching policy in place of the engine's own.
    policy: Option<String>,
    max_sequences: Option<u32>,
    token_budget: Option<u32>,
    block_tokens: Option<u32>,
    /// The cache is cut to this many tokens.
    cache_tokens: Option<f64>,
    /// Numbers of the engine by name.
    #[serde(default)]
    parameters: BTreeMap<String, f64>,
    router: Option<String>,
    workload: String,
    #[serde(default = "seed")]
    seed: u64,
    /// Numbers for `$n` in the workload.
    #[serde(default)]
    sweep: Vec<f64>,
    /// Steps between changes of priority.
    priority_steps: Option<u32>,
    swap: Option<Swap>,
    adapters: Option<Adapters>,
    co_serving: Option<Tuning>,
    /// Host memory and disk.
    #[serde(default)]
    tiers: Vec<Tier>,
    /// Steps are cut into nano-batches.
    nano_batches: Option<Nano>,
    /// What `effective_requests_per_s` asks of each request.
    reading: Option<Reading>,
    /// Replicas come and go, up to all of them.
    autoscale: Option<Autoscale>,
}

/// A service level of reading speeds (DeepSpeed-FastGen, effective throughput).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reading {
    /// The first token comes within the prompt's tokens over this rate.
    prompt_tokens_per_s: f64,
    /// The exponential mean of the gaps stays below one over this rate.
    tokens_per_s: f64,
    /// Span of that mean.
    span: u32,
}

/// The step that nano-batches are planned for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nano {
    /// Tokens of a step.
    tokens: u32,
    /// Sequences that decode in it.
    decoding: u32,
    /// Cached tokens of each.
    context: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Swap {
    /// Rate of the link, bytes a second.
    link: f64,
    group_blocks: u32,
    copy_us: f64,
    asynchronous: bool,
    reuse: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Adapters {
    rank: f64,
    /// One adapter at a time, instead of all in one pool.
    #[serde(default)]
    one_at_a_time: bool,
    /// Rates, bytes a second.
    link: f64,
    read: f64,
    /// Launches of the gathered kernels in one layer, microseconds.
    launch_us_per_layer: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tuning {
    step_ms: f64,
    most_tokens: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tier {
    gib: u64,
    rate: f64,
}

fn one() -> u32 {
    1
}

fn seed() -> u64 {
    7
}

/// Simulates the runs of a file and takes the figure.
///
/// # Errors
/// What is wrong with the file, or why a run is impossible.
pub(super) fn simulate(file: &toml::Table) -> Result<f64, String> {
    runs::compare(file, |run: &Run, metric| run.best(metric))
}

impl Reading {
    /// Share of the requests that keep it.
    fn kept(&self, run: &ServingRun, traffic: &Traffic) -> f64 {
        let good = run.outcomes.iter().zip(&traffic.requests).filter(|(o, r)| {
            let first = (o.first_token - o.sent).0 as f64 * 1e-12;
            let slowest = o.slowest.0 as f64 * 1e-12;
            !o.refused
                && first <= f64::from(r.input) / self.prompt_tokens_per_s
                && slowest < 1.0 / self.tokens_per_s
        });
        good.count() as f64 / traffic.requests.len().max(1) as f64
    }
}

impl Run {
    fn best(&self, metric: &str) -> Result<f64, String> {
        if self.sweep.is_empty() {
            return self.figure(metric, &self.workload);
        }
        let mut best = f64::NEG_INFINITY;
        for n in &self.sweep {
            best = best.max(self.figure(metric, &self.workload.replace("$n", &n.to_string()))?);
        }
        Ok(best)
    }

    /// A figure of one run; `…_per_accelerator` divides it by the accelerators.
    fn figure(&self, metric: &str, workload: &str) -> Result<f64, String> {
        let (run, report, traffic) = self.serve(workload)?;
        if let ("effective_requests_per_s", Some(level)) = (metric, &self.reading) {
            return Ok(report.requests_per_s * level.kept(&run, &traffic));
        }
        match metric.strip_suffix("_per_accelerator") {
            Some(whole) => {
                let accelerators = f64::from(self.tp * self.pp * self.replicas);
                Ok(figure(whole, &run, &report, &traffic)? / accelerators)
            }
            None => figure(metric, &run, &report, &traffic),
        }
    }

    fn options(&self, layers: f64, hidden: f64) -> Result<FleetOptions, String> {
        let router = self.router.as_deref().map_or(Ok(Router::default()), Router::parse)?;
        let mut options = FleetOptions { router, ..FleetOptions::default() };
        options.priority_steps = self.priority_steps.unwrap_or(options.priority_steps);
        options.pace = self.reading.as_ref().map(|r| r.span);
        options.autoscale = self.autoscale;
        if let Some(swap) = &self.swap {
            options.preemption = Preemption::Swap(BytesPerSec(swap.link));
            options.swap = SwapOptions {
                group_blocks: swap.group_blocks,
                copy: Seconds(swap.copy_us * 1e-6),
                asynchronous: swap.asynchronous,
                reuse: swap.reuse,
            };
        }
        if let Some(a) = &self.adapters {
            // q, k, v and o, two matrices each, in 16 bits.
            let bytes = layers * 4.0 * 2.0 * a.rank * hidden * 2.0 / f64::from(self.tp);
            options.adapters = Some(AdapterOptions {
                mode: if a.one_at_a_time { AdapterMode::OneAtATime } else { AdapterMode::Unified },
                bytes: Bytes(bytes as u64),
                link: BytesPerSec(a.link),
                read: BytesPerSec(a.read),
                launches: Seconds(layers * a.launch_us_per_layer * 1e-6),
            });
        }
        if let Some(t) = &self.co_serving {
            options.co_serving =
                Some(CoServing { step: Seconds(t.step_ms * 1e-3), most_tokens: t.most_tokens });
        }
        if self.tiers.len() > options.tiers.len() {
            return Err("there are two tiers, host memory and disk".to_owned());
        }
        for (slot, tier) in options.tiers.iter_mut().zip(&self.tiers) {
            *slot = Some(CacheTier { capacity: Bytes(tier.gib << 30), rate: BytesPerSec(tier.rate) });
        }
        Ok(options)
    }

    fn serve(&self, workload: &str) -> Result<(ServingRun, ServingReport, Traffic), String> {
        let format = match &self.format {
            Some(name) => NumberFormat::parse(name).ok_or(format!("`{name}` is not a number format"))?,
            None => NumberFormat::Bf16,
        };
        let model = presets::find(&self.model).map_err(|e| e.to_string())?;
        let deployment = Deployment {
            tp: self.tp,
            pp: self.pp,
            replicas: self.replicas,
            ..Deployment::tensor_parallel(self.tp, Quantization::uniform(format))
        };
        let ranks = self.tp * self.pp;
        let cluster = homogeneous(&self.accelerator, ranks.max(8), &HomogeneousOptions::default())
            .map_err(|e| e.to_string())?;
        let node = cluster.first_node();
        let mut engine = self.engine()?;
        let (mut parameters, _) = engine.on(&node.accelerator.name);
        for (name, value) in &self.parameters {
            if !parameters.set(name, *value) {
                return Err(format!("`{name}` is not a number of an engine"));
            }
        }
        let library = ProfileLibrary::built_in();
        let price = |engine: &EngineProfile| {
            StepCost::with_parameters(&model, &deployment, &cluster, node, engine, parameters, &library)
                .map_err(|e| e.to_string())
        };
        let mut cost = price(&engine)?;
        if let Some(tokens) = self.cache_tokens {
            let spare = cost.cache_bytes() - tokens * cost.shape().kv_bytes_per_token;
            if spare < 0.0 {
                return Err(format!("{tokens} tokens of cache do not fit"));
            }
            engine.reserve_gib += spare / 1024f64.powi(3);
            cost = price(&engine)?;
        }
        if let Some(nano) = &self.nano_batches {
            cost = cost.with_nano_batches(nano.tokens, nano.decoding, nano.context);
            if cost.nano_plan().is_none() {
                return Err("nano-batches are built for engines with one lane".to_owned());
            }
        }
        let workload = parse_workload("workload", workload, &mut |_| Err("no files here".to_owned()))
            .map_err(|e| e.to_string())?;
        let traffic = Traffic::generate(&workload, self.seed);
        let options = self.options(f64::from(cost.shape().layers), cost.shape().hidden as f64)?;
        let input = ServingInput {
            cost: &cost,
            engine: &engine,
            traffic: &traffic,
            replicas: self.replicas,
            options,
        };
        let run = serve(&input).map_err(|e| e.to_string())?;
        let levels: Vec<_> = workload.tenants.iter().map(|t| t.slo.clone()).collect();
        let report = ServingReport::new(&run, &traffic, &levels);
        Ok((run, report, traffic))
    }

    fn engine(&self) -> Result<EngineProfile, String> {
        let mut profile = engine::find(&self.engine)
            .ok_or_else(|| {
                let known: Vec<&str> = engine::engines().iter().map(|e| e.name.as_str()).collect();
                format!("`{}` is not an engine; known: {}", self.engine, known.join(", "))
            })?
            .clone();
        if let Some(policy) = &self.policy {
            profile.policy = Policy::parse(policy)?;
        }
        profile.max_sequences = self.max_sequences.unwrap_or(profile.max_sequences);
        profile.token_budget = self.token_budget.unwrap_or(profile.token_budget);
        profile.block_tokens = self.block_tokens.unwrap_or(profile.block_tokens);
        Ok(profile)
    }
}

/// Prompt and answer tokens a second between the ends of the first and the third quarter of the requests: without the
/// filling and draining of a run that starts all at once.
fn middle_tokens_per_s(run: &ServingRun, traffic: &Traffic) -> f64 {
    let mut ends: Vec<(u64, u64)> = run
        .outcomes
        .iter()
        .zip(&traffic.requests)
        .map(|(o, r)| (o.finish.0, u64::from(r.input) + u64::from(r.output)))
        .collect();
    ends.sort_unstable();
    let (first, last) = (ends.len() / 4, 3 * ends.len() / 4);
    let Some(middle) = ends.get(first..=last) else { return 0.0 };
    let tokens: u64 = middle.iter().skip(1).map(|(_, tokens)| tokens).sum();
    let seconds = (ends[last].0 - ends[first].0) as f64 * 1e-12;
    tokens as f64 / seconds.max(1e-12)
}

/// A figure of a run by name.
pub(super) fn figure(
    name: &str,
    run: &ServingRun,
    report: &ServingReport,
    traffic: &Traffic,
) -> Result<f64, String> {
    let percentiles = match name.split('_').next() {
        Some("ttft") => Some(report.ttft_ms),
        Some("tpot") => Some(report.tpot_ms),
        Some("itl") => Some(report.itl_ms),
        Some("e2e") => Some(report.e2e_ms),
        _ => None,
    };
    if let (Some(p), Some((_, which))) = (percentiles, name.split_once('_')) {
        return Ok(match which {
            "mean" => p.mean,
            "p50" => p.p50,
            "p90" => p.p90,
            "p95" => p.p95,
            "p99" => p.p99,
            "max" => p.max,
            _ => return Err(format!("`{name}` is not a figure")),
        });
    }
    Ok(match name {
        "seconds" => report.seconds,
        "requests_per_s" => report.requests_per_s,
        "output_tokens_per_s" => report.output_tokens_per_s,
        "total_tokens_per_s" => report.output_tokens_per_s + report.input_tokens_per_s,
        "middle_tokens_per_s" => middle_tokens_per_s(run, traffic),
        "goodput" => report.goodput,
        "good_share" => report.good_share,
        "cache_hits" => report.cache_hits,
        "steps" => run.steps as f64,
        "replica_seconds" => run.replica_seconds,
        "tuned_tokens_per_s" => run.extra.tuned_tokens / report.seconds,
        "moved_bytes" => run.extra.moved_bytes as f64,
        _ => return Err(format!("`{name}` is not a figure")),
    })
}
