//! What an instance can carry at most, in closed form: no queue, every step full.
//!
//! A prefill instance cannot take prompts faster than its steps, filled to the token budget, compute them. A decode
//! instance that keeps the promised time per token runs at most the batch whose step still keeps it, and so emits at
//! most batch / step tokens a second. Lengths are taken at their mean, which is at most what a mix costs (attention
//! grows faster than the length). Used to order and to prune; a plan is never reported above them.

use psim_cost_models::serving::{EngineProfile, KINDS, Lane, PromptChunk, StepCost};
use psim_models::serving::{Metric, ServingWorkload};

/// Prompts a second of one prefill instance.
pub fn prefill_rate(cost: &StepCost, engine: &EngineProfile, input: f64) -> f64 {
    let input = input.round().max(1.0) as u32;
    let budget = engine.token_budget.max(1);
    let stages = f64::from(cost.shape().deployment.pp.max(1));
    let copies = cost.shape().deployment.attention_dp.max(1) as usize;
    let seconds = |chunks: &[PromptChunk]| {
        let lanes: Vec<Lane<'_>> = (0..copies).map(|_| Lane { chunks, ..Lane::default() }).collect();
        cost.seconds(&lanes)
    };
    let whole = PromptChunk { tokens: input, before: 0 };
    let mut prompts = vec![whole; (budget / input).max(1) as usize];
    let full = prompts.len() as f64 / seconds(&prompts);
    prompts.truncate(1);
    let one = 1.0 / seconds(&prompts);
    full.max(one) * stages * copies as f64
}

/// The largest batch of one lane whose step stays below `limit` seconds, with the step's seconds.
fn largest_batch(cost: &StepCost, context: f64, most: u32, limit: f64) -> (u32, f64) {
    let lanes = cost.lanes().max(1) as usize;
    let kinds: Vec<Option<u64>> = cost.reads_at_most().collect();
    let step = |batch: u32| {
        let mut reads = [0u64; KINDS];
        for (slot, window) in reads.iter_mut().zip(&kinds) {
            let length = window.map_or(context, |w| context.min(w as f64));
            *slot = (f64::from(batch) * length) as u64;
        }
        let lane = Lane { decoding: batch, context: reads, chunks: &[] };
        cost.seconds(&vec![lane; lanes])
    };
    let (mut low, mut high) = (0, most.max(1) + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if step(middle) <= limit { low = middle } else { high = middle }
    }
    (low, if low == 0 { f64::INFINITY } else { step(low) })
}

/// Requests a second of one decode instance within the promised time per token; 0 where one sequence breaks it.
pub fn decode_rate(cost: &StepCost, engine: &EngineProfile, workload: &ServingWorkload) -> f64 {
    let (input, output) = workload.mean_lengths();
    let limit = workload
        .tenants
        .iter()
        .filter_map(|t| {
            let tpot = t.slo.promises.iter().filter(|p| p.metric == Metric::Tpot && p.percentile >= 50.0);
            tpot.map(|p| p.limit_ms * 1e-3).reduce(f64::min)
        })
        // Every tenant must keep its own; the loosest bounds them all.
        .fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.max(b))));
    let all_promise = workload.tenants.iter().all(|t| t.slo.limit_ms(Metric::Tpot).is_some());
    // Half of the requests may lie above their own median: a tenth covers the spread of the steps.
    let limit = if all_promise { limit.map_or(f64::INFINITY, |l| 1.1 * l) } else { f64::INFINITY };
    // A sequence holds its prompt at least, half of its answer on average.
    let held = cost.shape().sequence_bytes((input + output / 2.0) as u64).max(1.0);
    let pp = f64::from(cost.shape().deployment.pp.max(1));
    let fits = (cost.cache_bytes() / pp / held).floor().clamp(0.0, 1e6) as u32;
    if fits == 0 {
        return 0.0;
    }
    let (batch, step) = largest_batch(cost, input + output / 2.0, fits.min(engine.max_sequences), limit);
    if batch == 0 {
        return 0.0;
    }
    f64::from(batch * cost.lanes().max(1)) / (step * (output - 1.0).max(1.0))
}
