//! One deployment under the workload's own traffic: what a person is shown of it.

mod dealt;
mod partitioned;
mod pools;
pub(in crate::serving) mod speculative;
#[cfg(test)]
mod tests;

use super::energy::{Activity, Energy, joules};
use super::{ApartFigures, Arrangement, ArrangementFigures, Layout, Served, ServingRequest};
use psim_cost_models::serving::{StepCost, StepCostError};
use psim_models::serving::{Deployment, ServiceLevel, ServingShape, Traffic};
use psim_sim::serving::{
    DisaggregatedError, Sample, ServingError, ServingInput, ServingReport, ServingRun, simulate,
};
use serde::Serialize;

/// Why a deployment cannot be simulated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DetailError {
    /// It cannot be priced.
    #[error(transparent)]
    Cost(#[from] StepCostError),
    /// It cannot be run.
    #[error(transparent)]
    Run(#[from] ServingError),
    /// The pools cannot be run.
    #[error(transparent)]
    Pools(#[from] DisaggregatedError),
    /// The draft model cannot be priced.
    #[error("draft model {name}: {error}")]
    Draft {
        /// Its name.
        name: String,
        /// Why.
        error: StepCostError,
    },
    /// The nodes have no room for what lives outside the accelerators.
    #[error("{0}")]
    Crowded(String),
    /// Two things that are not simulated together.
    #[error("{what}")]
    Together {
        /// Key of one of them in a deployment file.
        key: &'static str,
        /// Which two.
        what: String,
    },
}

/// What the pools of a split did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PoolFigures {
    /// Mean milliseconds from the end of a prompt to its cache being there.
    pub transfer_ms: f64,
    /// Bytes moved.
    pub bytes: f64,
    /// Caches that found no decode memory when they were ready.
    pub held_back: u64,
    /// Share of the time for which prefill instances worked.
    pub prefill_busy: f64,
    /// The same of decode instances.
    pub decode_busy: f64,
}

/// What speculation did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SpeculationFigures {
    /// Rounds of drafting and verifying, summed over sequences.
    pub rounds: u64,
    /// Mean tokens of a round, the target's own one included.
    pub tokens_per_round: f64,
}

/// A simulated deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct ServingDetail {
    /// Layout.
    pub layout: Layout,
    /// The pools of a split.
    pub pools: Option<PoolFigures>,
    /// Speculation, where there is some.
    pub speculation: Option<SpeculationFigures>,
    /// How kernels shared the accelerators, where they did not run in turn.
    pub arrangement: Option<ArrangementFigures>,
    /// How the two sides of a step met, where feed-forward layers were apart.
    pub apart: Option<ApartFigures>,
    /// Figures of all replicas together.
    pub report: ServingReport,
    /// Requests and answers.
    pub traffic: Traffic,
    /// Outcome of every request, histogram of gaps, timeline.
    pub run: ServingRun,
    /// Bytes for the cache on one accelerator (of a split in the decode pool).
    pub cache_bytes: f64,
    /// Tokens of the cache of one replica, all its copies of the attention together.
    pub cache_tokens: f64,
    /// Power and energy.
    pub energy: Energy,
    /// US dollars an hour for the accelerators that were switched on, on average.
    pub usd_per_hour: f64,
    /// Every kernel law was measured on this accelerator.
    pub measured: bool,
}

impl ServingDetail {
    /// Timeline points.
    pub fn samples(&self) -> &[Sample] {
        &self.run.samples
    }

    /// US dollars for a million generated tokens of the run.
    pub fn usd_per_million_tokens(&self) -> f64 {
        self.usd_per_hour / 3600.0 / self.report.output_tokens_per_s.max(1e-12) * 1e6
    }
}

/// Tokens of the cache of one instance: `bytes` on an accelerator for sequences of this shape.
pub(super) fn cache_tokens(bytes: f64, shape: &ServingShape) -> f64 {
    // Bytes of a long sequence over its length: windows and states make short ones dearer.
    const LONG: u64 = 4096;
    let per_token = shape.sequence_bytes(LONG) / LONG as f64;
    let copies = f64::from(shape.deployment.attention_dp);
    if per_token > 0.0 { bytes / per_token * copies } else { f64::INFINITY }
}

/// The service level of every tenant.
fn levels(request: &ServingRequest<'_>) -> Vec<ServiceLevel> {
    request.workload.tenants.iter().map(|t| t.slo.clone()).collect()
}

/// Serves the workload as it is on a deployment.
///
/// # Errors
/// A deployment that does not fit the model, the memory or the cluster; traffic without requests; what is not simulated
/// together.
pub fn detail(request: &ServingRequest<'_>, served: &Served) -> Result<ServingDetail, DetailError> {
    let together = |key: &'static str, what: String| Err(DetailError::Together { key, what });
    let key = served.arrangement.key();
    let shared = served.arrangement != Arrangement::InTurn;
    let deployment = match &served.layout {
        Layout::Pools(_) if served.experts_outside.is_some() => {
            let what = "experts outside the accelerators in pools of their own is not built";
            return together("expert_offload", what.to_owned());
        }
        Layout::Pools(_) if served.apart.is_some() => {
            let what = "attention and feed-forward apart in pools of their own is not built";
            return together("attention_ffn", what.to_owned());
        }
        Layout::Pools(_) if shared => {
            return together(key, format!("`{key}` in pools of their own is not built"));
        }
        Layout::Pools(split) => return pools::detail(request, split, served),
        Layout::Replicas(deployment) => deployment,
    };
    let outside = served.experts_outside.as_ref();
    if outside.is_some() && (shared || served.speculation.is_some() || served.redundant.is_some()) {
        let what = "experts outside the accelerators together with speculation, redundant copies or a partition is not built";
        return together("expert_offload", what.to_owned());
    }
    if let Some(apart) = &served.apart {
        let beside =
            shared || served.speculation.is_some() || served.redundant.is_some() || outside.is_some();
        if let Some(fault) = apart.fault(request.model, deployment, beside) {
            return together("attention_ffn", fault);
        }
    }
    if shared && served.speculation.is_some() {
        return together(key, format!("`{key}` together with speculation is not built"));
    }
    if shared && deployment.lanes() > 1 {
        let what = format!("`{key}` is built for replicas without pipeline stages and attention copies");
        return together(key, what);
    }
    let engine;
    let mut request = *request;
    if let Some(redundant) = &served.redundant {
        if let Some(fault) = redundant.fault(request.model, deployment) {
            return together("redundant_experts", fault);
        }
        let accelerator = &request.node(served.group).accelerator.name;
        engine = redundant.on(request.engine, accelerator, request.model, deployment);
        request.engine = &engine;
    }
    let outside_engine;
    let mut copied;
    let mut served = served;
    if let Some(outside) = outside {
        if let Some(fault) = outside.fault(request.model, deployment) {
            return together("expert_offload", fault);
        }
        if let Some(copies) = outside.copies(request.model, deployment) {
            let caches = served.options.tiers[0].map_or(0.0, |t| t.capacity.as_f64());
            let node = request.node(served.group);
            if let Some(what) = outside.crowded(deployment, node, &copies, caches) {
                return Err(DetailError::Crowded(what));
            }
            outside_engine = outside.on(request.engine, deployment, &copies);
            request.engine = &outside_engine;
            copied = served.clone();
            copied.options.expert_offload = Some(copies);
            served = &copied;
        }
    }
    match (&served.speculation, served.arrangement) {
        (Some(speculation), _) => speculative::detail(&request, deployment, speculation, served),
        (None, Arrangement::Partitioned(cut)) => partitioned::detail(&request, deployment, cut, served),
        (None, _) => replicas(&request, deployment, served),
    }
}

/// The deployment with nano-batches cut for its fullest step: the token budget, prompts and answers in proportion to the
/// workload's lengths, as many answers as the engine and the cache allow.
fn nano_batches(request: &ServingRequest<'_>, cost: &StepCost) -> StepCost {
    let (input, output) = request.workload.mean_lengths();
    let budget = f64::from(request.engine.token_budget.max(1));
    let context = input + output / 2.0;
    let held = cost.shape().sequence_bytes(context as u64).max(1.0);
    let most = (cost.cache_bytes() / held).min(f64::from(request.engine.max_sequences));
    let decoding = (budget * output / (input + output).max(1.0)).min(most).max(1.0);
    let tokens = (decoding * (input + output) / output.max(1.0)).min(budget).max(decoding);
    cost.with_nano_batches(tokens.round() as u32, decoding.round() as u32, context as u64)
}

fn replicas(
    request: &ServingRequest<'_>,
    deployment: &Deployment,
    served: &Served,
) -> Result<ServingDetail, DetailError> {
    let node = request.node(served.group);
    let mut cost = match &served.apart {
        Some(apart) => apart.cost(request, deployment, served.group)?,
        None => {
            StepCost::new(request.model, deployment, request.cluster, node, request.engine, request.library)?
        }
    };
    if served.arrangement == Arrangement::NanoBatches {
        cost = nano_batches(request, &cost);
    }
    let traffic = Traffic::generate(request.workload, request.seed);
    let input = ServingInput {
        cost: &cost,
        engine: request.engine,
        traffic: &traffic,
        replicas: deployment.replicas,
        options: served.options,
    };
    let run = simulate(&input)?;
    let mut found = finish(request, (deployment, served.group), &cost, run, traffic);
    found.arrangement = cost.nano_plan().map(ArrangementFigures::NanoBatches);
    if let Some(apart) = &served.apart {
        found.apart = apart.figures(request, &cost);
        apart.add(request, (deployment, served.group), &mut found);
    }
    Ok(found)
}

/// Figures of a run of equal replicas.
fn finish(
    request: &ServingRequest<'_>,
    (deployment, group): (&Deployment, usize),
    cost: &StepCost,
    run: ServingRun,
    traffic: Traffic,
) -> ServingDetail {
    let node = request.node(group);
    let report = ServingReport::new(&run, &traffic, &levels(request));
    // Replicas that come and go are paid while they are there; others from the first request to the last token.
    let whole = run.end.seconds().0.max(f64::MIN_POSITIVE);
    let mean_replicas = run.replica_seconds / whole;
    let instance_seconds = mean_replicas * report.seconds;
    let activity =
        Activity { instance_seconds, busy: run.busy, prompt_tokens: run.computed_prompt_tokens as f64 };
    let spent = joules(request.model, request.cluster, node, deployment, &activity);
    let each = f64::from(deployment.accelerators_per_replica());
    ServingDetail {
        layout: Layout::Replicas(*deployment),
        pools: None,
        speculation: None,
        arrangement: None,
        apart: None,
        energy: Energy::of(spent, report.seconds, run.generated_tokens as f64),
        usd_per_hour: mean_replicas * each * node.price_per_gpu_hour,
        cache_bytes: cost.cache_bytes(),
        cache_tokens: cache_tokens(cost.cache_bytes(), cost.shape()),
        measured: cost.own_laws(),
        report,
        run,
        traffic,
    }
}
