//! Single engine steps of a deployment against their roofline: why a deployment is as fast as it is.

use super::{ApartFigures, DetailError, FeedForwardApart, ServingRequest};
use psim_cost_models::serving::{KINDS, Lane, PromptChunk, StepCost};
use psim_models::serving::Deployment;
use serde::Serialize;

/// A step of decoding sequences of the workload's mean length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DecodePoint {
    /// Sequences of one copy of the attention.
    pub batch: u32,
    /// Milliseconds of the step.
    pub step_ms: f64,
    /// Milliseconds that datasheet rates allow.
    pub roofline_ms: f64,
    /// Tokens a second that one user sees.
    pub tokens_per_s_per_user: f64,
    /// Tokens a second per accelerator.
    pub tokens_per_s_per_gpu: f64,
}

/// A step of one prompt and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PromptPoint {
    /// Tokens of the prompt.
    pub tokens: u32,
    /// Milliseconds of the step.
    pub step_ms: f64,
    /// Milliseconds that datasheet rates allow.
    pub roofline_ms: f64,
    /// Prompt tokens a second per accelerator.
    pub tokens_per_s_per_gpu: f64,
}

/// Steps of a deployment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Steps {
    /// Decoding at growing batches, up to what the cache or the engine allows.
    pub decode: Vec<DecodePoint>,
    /// Prompts of growing length.
    pub prompts: Vec<PromptPoint>,
    /// Sequences of the workload's mean whole length that the cache of one copy of the attention holds.
    pub fit: u32,
    /// Most sequences that the engine runs at once in one copy of the attention.
    pub engine_limit: u32,
    /// Mean tokens in the cache of a decoding sequence.
    pub context: f64,
    /// GiB of weights on one accelerator.
    pub weights_gib: f64,
    /// GiB for the cache on one accelerator.
    pub cache_gib: f64,
    /// How the two sides meet, where feed-forward layers are apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart: Option<ApartFigures>,
}

/// Prices single steps on the nodes of a group of the cluster.
///
/// # Errors
/// A deployment that does not fit the model or the memory.
pub fn steps(
    request: &ServingRequest<'_>,
    group: usize,
    deployment: &Deployment,
) -> Result<Steps, DetailError> {
    let node = request.node(group);
    let cost =
        StepCost::new(request.model, deployment, request.cluster, node, request.engine, request.library)?;
    Ok(of_cost(request, deployment, &cost, deployment.accelerators_per_replica()))
}

/// Prices single steps of replicas whose feed-forward layers lie on accelerators of their own.
///
/// # Errors
/// A deployment that does not fit the model or the memory; a cluster that has no room for it.
pub fn steps_apart(
    request: &ServingRequest<'_>,
    group: usize,
    deployment: &Deployment,
    apart: &FeedForwardApart,
) -> Result<Steps, DetailError> {
    if let Some(what) = apart.fault(request.model, deployment, false) {
        return Err(DetailError::Together { key: "attention_ffn", what });
    }
    let cost = apart.cost(request, deployment, group)?;
    let accelerators = deployment.accelerators_per_replica() + apart.accelerators();
    let mut found = of_cost(request, deployment, &cost, accelerators);
    found.apart = apart.figures(request, &cost);
    Ok(found)
}

/// Single steps by their prices.
fn of_cost(
    request: &ServingRequest<'_>,
    deployment: &Deployment,
    cost: &StepCost,
    accelerators: u32,
) -> Steps {
    let (input, output) = request.workload.mean_lengths();
    let context = input + output / 2.0;
    let whole = cost.shape().sequence_bytes((input + output).max(1.0) as u64).max(1.0);
    let lane_bytes = cost.cache_bytes() / f64::from(deployment.pp.max(1));
    let fit = (lane_bytes / whole).floor().min(f64::from(u32::MAX)) as u32;
    let most = fit.min(request.engine.max_sequences);
    let lanes = cost.lanes().max(1) as usize;
    let accelerators = f64::from(accelerators);
    let mut batches: Vec<u32> =
        std::iter::successors(Some(1u32), |b| b.checked_mul(4)).take_while(|b| *b < most).collect();
    if most > 0 {
        batches.push(most);
    }
    let decode = batches
        .into_iter()
        .map(|batch| {
            let mut read = [0; KINDS];
            for (slot, limit) in read.iter_mut().zip(cost.reads_at_most()) {
                let tokens = limit.map_or(context, |w| context.min(w as f64));
                *slot = (f64::from(batch) * tokens) as u64;
            }
            let all = vec![Lane { decoding: batch, context: read, chunks: &[] }; lanes];
            let step = cost.seconds(&all);
            DecodePoint {
                batch,
                step_ms: step * 1e3,
                roofline_ms: cost.roofline(&all) * 1e3,
                tokens_per_s_per_user: 1.0 / step,
                tokens_per_s_per_gpu: f64::from(batch) * lanes as f64 / step / accelerators,
            }
        })
        .collect();
    let prompts = [128u32, 512, 2048, 8192]
        .into_iter()
        .map(|tokens| {
            let chunks = [PromptChunk { tokens, before: 0 }];
            let lane = [Lane { decoding: 0, context: [0; KINDS], chunks: &chunks }];
            let step = cost.seconds(&lane);
            PromptPoint {
                tokens,
                step_ms: step * 1e3,
                roofline_ms: cost.roofline(&lane) * 1e3,
                tokens_per_s_per_gpu: f64::from(tokens) / step / accelerators,
            }
        })
        .collect();
    let gib = 1024f64.powi(3);
    Steps {
        decode,
        prompts,
        fit,
        engine_limit: request.engine.max_sequences,
        context,
        weights_gib: cost.shape().weight_bytes / gib,
        cache_gib: cost.cache_bytes() / gib,
        apart: None,
    }
}
