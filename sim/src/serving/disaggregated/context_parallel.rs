//! Context parallelism for prompts: every rank of the group computes an equal share of the tokens of each piece, with
//! the keys and values passed round a ring (Long-VITA, section on inference; ring attention, Liu et al. 2023).
//!
//! With the usual zig-zag order every rank sees the mean of the causal triangle: a piece of n tokens after b cached
//! ones on c ranks costs each rank n/c tokens whose mean context is b + n/2, which is a piece of n/c tokens after
//! b + (n − n/c)/2. Keys and values make c − 1 hops; what the attention of the piece does not hide is exposed.

use psim_cost_models::serving::{Lane, PromptChunk, StepCost};

/// Seconds of a step with these pieces on `ranks` ranks, each holding the whole model (or its `tp` share of it).
pub(super) fn seconds(cost: &StepCost, chunks: &[PromptChunk], ranks: u32) -> f64 {
    let shares: Vec<PromptChunk> = chunks
        .iter()
        .map(|c| {
            let tokens = c.tokens.div_ceil(ranks).max(1);
            PromptChunk { tokens, before: c.before + (c.tokens - tokens) / 2 }
        })
        .collect();
    let compute = cost.seconds(&[Lane { chunks: &shares, ..Lane::default() }]);
    let tokens: f64 = shares.iter().map(|c| f64::from(c.tokens)).sum();
    let hops = f64::from(ranks.saturating_sub(1));
    let shape = cost.shape();
    let layers = f64::from(shape.layers.max(1));
    let (latency, rate) = cost.scale_up_link();
    let ring = hops * (layers * latency + tokens * shape.kv_bytes_per_token / rate);
    compute + (ring - cost.prompt_attention(&shares)).max(0.0)
}
