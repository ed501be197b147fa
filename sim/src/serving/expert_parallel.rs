//! Decoding with experts spread over many nodes: every rank has its own sequences and attention, a few experts with
//! redundant copies of the hot ones, and two all-to-alls in each layer (DeepSeek's deployments, SGLang on 96 H100,
//! CloudMatrix384).
//!
//! Per layer a rank runs its attention and shared experts, sends its tokens to the ranks of their experts (dispatch),
//! runs its experts for the tokens of all, and sends the results back (combine). The step waits for the busiest rank of
//! experts: with redundant copies that is [`ExpertLoads::balanced`]. Two micro-batches hide the wire behind computation:
//! a layer takes 2 · max(computation, wire) of a half. Drafts of a prediction head are verified in the same step.

use super::balance::ExpertLoads;
use psim_cost_models::serving::{Lane, StepCost};
use serde::{Deserialize, Serialize};

/// One all-to-all: seconds = latency + bytes a rank sends / rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllToAll {
    /// Seconds of an empty one.
    pub latency: f64,
    /// Bytes a second that one rank sends.
    pub rate: f64,
    /// Bytes of one element on the wire.
    pub element: f64,
}

impl AllToAll {
    /// Seconds for so many tokens of `hidden` elements to `copies` ranks each.
    pub fn seconds(&self, tokens: f64, hidden: f64, copies: f64) -> f64 {
        self.latency + tokens * hidden * copies * self.element / self.rate.max(1.0)
    }
}

/// A decode deployment.
#[derive(Debug, Clone, Copy)]
pub struct LargeExpertParallel<'a> {
    /// Prices of a rank: a deployment with attention copies whose experts per rank are those of this one, without an
    /// imbalance of its own (`expert_imbalance = 1`).
    pub cost: &'a StepCost,
    /// Ranks of experts.
    pub ranks: u32,
    /// Copies of experts beyond one each.
    pub redundant: u32,
    /// How often experts are chosen.
    pub loads: &'a ExpertLoads,
    /// Tokens to their experts.
    pub dispatch: AllToAll,
    /// Results back.
    pub combine: AllToAll,
    /// Two micro-batches run through each layer.
    pub overlap: bool,
    /// Drafted tokens that are verified with each, and the chance of each.
    pub drafts: (u32, f64),
}

/// A decoding step of such a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LargeStep {
    /// Seconds.
    pub seconds: f64,
    /// Seconds of computation, host included.
    pub computation: f64,
    /// Seconds of both all-to-alls.
    pub wire: f64,
    /// Busiest over mean rank of experts.
    pub imbalance: f64,
    /// Tokens of a sequence in the step.
    pub tokens: f64,
    /// Tokens a second and rank.
    pub rate: f64,
}

impl LargeExpertParallel<'_> {
    /// Computation of a part of the batch, over all layers, without head and host; and its all-to-alls.
    fn part(&self, sequences: f64, context: u64, imbalance: f64) -> (f64, f64) {
        let queries = f64::from(self.drafts.0 + 1);
        let rows = (sequences * queries).round().max(1.0) as u32;
        let whole = sequences.round().max(1.0) as u32;
        let shape = self.cost.shape();
        let copies = f64::from(shape.deployment.attention_dp.max(1));
        let caches = Lane { decoding: whole, context: self.cost.reads(whole, context), chunks: &[] };
        let lane = Lane { decoding: rows, ..caches };
        let resources = self.cost.resources(&lane);
        // The cache is read once for all queries of a sequence; arithmetic is done for each.
        let decode = self.cost.resources(&caches).decode;
        let least = decode.compute.max(decode.memory).max(1e-12);
        let attention = decode.seconds * decode.memory.max(queries * decode.compute) / least;
        // Experts see the tokens of all ranks; the priced deployment has fewer ranks with as many experts each.
        let experts = self.cost.experts_of((f64::from(rows) * copies).round() as u32) * imbalance;
        let computation = resources.products.seconds + attention + resources.small + experts + resources.gaps;
        let top_k = shape.experts.first().map_or(0.0, |e| e.top_k as f64);
        let layers: f64 = shape.experts.iter().map(|e| e.layers).sum();
        let (tokens, hidden) = (f64::from(rows), shape.hidden as f64);
        let wire = layers
            * (self.dispatch.seconds(tokens, hidden, top_k) + self.combine.seconds(tokens, hidden, top_k));
        (computation, wire)
    }

    /// A step with `sequences` on each rank and a mean of `context` cached tokens.
    pub fn step(&self, sequences: u32, context: u64) -> LargeStep {
        let imbalance = self.loads.balanced(self.ranks as usize, self.redundant as usize);
        let rows = sequences * (self.drafts.0 + 1);
        let ends = self.cost.resources(&Lane { decoding: rows, ..Lane::default() });
        let outside = ends.head.seconds + ends.host;
        let (computation, wire) = self.part(f64::from(sequences), context, imbalance);
        let in_turn = computation + wire;
        let layers = if self.overlap && sequences >= 2 {
            let (half, half_wire) = self.part(f64::from(sequences) / 2.0, context, imbalance);
            (2.0 * half.max(half_wire)).min(in_turn)
        } else {
            in_turn
        };
        let (drafts, chance) = self.drafts;
        let tokens = (0..=drafts).map(|i| chance.powi(i as i32)).sum::<f64>();
        let seconds = layers + outside;
        LargeStep {
            seconds,
            computation: computation + outside,
            wire,
            imbalance,
            tokens,
            rate: f64::from(sequences) * tokens / seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::tests::cost;
    use psim_cost_models::serving::EngineProfile;
    use psim_models::serving::{Deployment, NumberFormat, Quantization};

    fn priced() -> StepCost {
        let mut engine: EngineProfile = psim_cost_models::serving::engine::find("sglang").unwrap().clone();
        engine.accelerator.clear();
        engine.parameters.expert_imbalance = 1.0;
        let q =
            Quantization { kv: psim_hardware::DType::Bf16, ..Quantization::uniform(NumberFormat::Fp8Block) };
        let d = Deployment { attention_dp: 64, ep: 64, ..Deployment::tensor_parallel(1, q) };
        cost("deepseek-v3", "H100-SXM-80GB", d, &engine)
    }

    #[test]
    fn overlap_copies_and_drafts_do_what_they_say() {
        let cost = priced();
        let even = ExpertLoads::uniform(256);
        let skewed = ExpertLoads::zipf(256, 0.6, 1);
        let link = AllToAll { latency: 20e-6, rate: 44e9, element: 1.0 };
        let base = LargeExpertParallel {
            cost: &cost,
            ranks: 64,
            redundant: 0,
            loads: &even,
            dispatch: link,
            combine: AllToAll { element: 2.0, ..link },
            overlap: false,
            drafts: (0, 0.0),
        };
        let plain = base.step(128, 2000);
        // 128 tokens of 7,168 elements to 8 experts: 7.3 MB and 14.7 MB a layer, in 58 layers.
        let by_hand = 58.0 * (40e-6 + 3.0 * 128.0 * 7168.0 * 8.0 / 44e9);
        assert!((plain.wire / by_hand - 1.0).abs() < 1e-9, "{} {by_hand}", plain.wire);
        assert!((plain.seconds - plain.computation - plain.wire).abs() < 1e-9);
        assert!((plain.imbalance - 1.0).abs() < 1e-9);
        let hidden = LargeExpertParallel { overlap: true, ..base }.step(128, 2000);
        assert!(hidden.seconds < plain.seconds && hidden.seconds > 0.45 * plain.seconds);
        // Redundant copies even out skewed loads.
        let skew = LargeExpertParallel { loads: &skewed, ..base };
        let mended = LargeExpertParallel { redundant: 64, ..skew };
        let (worse, better) = (skew.step(128, 2000), mended.step(128, 2000));
        assert!(worse.seconds > better.seconds && better.seconds >= plain.seconds);
        assert!(worse.imbalance > better.imbalance);
        // A draft that is taken at 70 % yields 1.7 tokens for a step that is dearer, but not twice.
        let drafted = LargeExpertParallel { drafts: (1, 0.7), ..base }.step(32, 2000);
        let single = base.step(32, 2000);
        assert!((drafted.tokens - 1.7).abs() < 1e-12);
        assert!(drafted.seconds > single.seconds && drafted.seconds < 2.0 * single.seconds);
        // More sequences a rank: slower steps, more tokens.
        assert!(base.step(256, 2000).rate > plain.rate && base.step(256, 2000).seconds > plain.seconds);
    }
}
