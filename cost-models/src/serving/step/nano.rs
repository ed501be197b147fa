//! Nano-batches (NanoFlow, Zhu et al., OSDI 2025, sections 4 and 5): the batch of a step is cut in two, and operators of
//! the two halves that are bound by different resources run at the same time on one accelerator.
//!
//! The two halves go through the layers as two chains: products before attention, attention, products behind it,
//! all-reduce, feed-forward, all-reduce. Products, memory-bound kernels and links each run one operator at a time.
//! While a product runs, a memory-bound kernel is given a share of the multiprocessors and so is a collective; the
//! product keeps the rest, and what the others reach with their share is the curve of [`reached`]. Smaller
//! products read every weight twice and fill their tiles worse: that is in the tables.

use super::resources::{Arrangement, StepResources, Work};
use super::{KINDS, Lane, PromptChunk, StepCost};
use serde::{Deserialize, Serialize};

/// How a step is cut and what the shares are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NanoPlan {
    /// Share of the tokens in the first nano-batch.
    pub first: f64,
    /// Share of the multiprocessors of a memory-bound kernel beside a product.
    pub memory: f64,
    /// Share of the multiprocessors of a collective beside a product.
    pub network: f64,
}

/// What a kernel bound by memory reaches of its own speed with a share of the multiprocessors beside a product, and a
/// collective (straight between the points). The numbers are ours: NanoFlow measures such curves on an A100 and says that
/// a fifth of a product's speed buys more than a fifth of a memory-bound kernel's, but no table of its points was at hand.
const MEMORY: [(f64, f64); 6] = [(0.0, 0.0), (0.1, 0.2), (0.2, 0.3), (0.8, 0.85), (0.9, 0.95), (1.0, 1.0)];
const NETWORK: [(f64, f64); 6] = [(0.0, 0.0), (0.1, 0.3), (0.2, 0.5), (0.8, 0.9), (0.9, 1.0), (1.0, 1.0)];

/// A curve of [`MEMORY`] or [`NETWORK`] at a share.
fn reached(curve: &[(f64, f64)], share: f64) -> f64 {
    let share = share.clamp(0.0, 1.0);
    let pairs = curve.windows(2);
    for pair in pairs {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        if share <= x1 {
            return y0 + (y1 - y0) * (share - x0) / (x1 - x0);
        }
    }
    1.0
}

/// Resources of operators, as indices.
const PRODUCT: usize = 0;
const CACHE: usize = 1;
const LINK: usize = 2;

/// Operators that may run at the same time, each with its resource; the next stage of a chain starts when all are done.
type Stage = Vec<(usize, f64)>;

/// Seconds of running two chains of stages for so many rounds.
fn run(chains: &[Vec<Stage>], rounds: usize, plan: &NanoPlan) -> f64 {
    let beside = [1.0, reached(&MEMORY, plan.memory), reached(&NETWORK, plan.network)];
    // Open operators of each chain: (resource, seconds left at full speed); and the stage that they belong to.
    let mut at = vec![0usize; chains.len()];
    let load = |chain: usize, stage: usize| -> Stage { chains[chain][stage % chains[chain].len()].clone() };
    let mut open: Vec<Stage> = (0..chains.len()).map(|c| load(c, 0)).collect();
    // Which operator each resource works on: (chain, place in its stage).
    let mut working: [Option<(usize, usize)>; 3] = [None; 3];
    let mut now = 0.0;
    loop {
        for (chain, stage) in open.iter_mut().enumerate() {
            while stage.iter().all(|(_, left)| *left <= 1e-15) {
                at[chain] += 1;
                if at[chain] >= rounds * chains[chain].len() {
                    stage.clear();
                    break;
                }
                *stage = load(chain, at[chain]);
            }
        }
        if open.iter().all(Vec::is_empty) {
            return now;
        }
        // A free resource takes the open operator of the chain that is furthest behind.
        for (resource, slot) in working.iter_mut().enumerate() {
            let busy = slot.is_some_and(|(c, i)| open[c].get(i).is_some_and(|o| o.1 > 1e-15));
            if !busy {
                *slot = (0..open.len())
                    .filter_map(|c| {
                        let i = open[c].iter().position(|(r, left)| *r == resource && *left > 1e-15)?;
                        Some((at[c], c, i))
                    })
                    .min()
                    .map(|(_, c, i)| (c, i));
            }
        }
        let products = working[PRODUCT].is_some();
        let mut rates = [1.0; 3];
        if products {
            let taken = if working[CACHE].is_some() { plan.memory } else { 0.0 }
                + if working[LINK].is_some() { plan.network } else { 0.0 };
            rates = [(1.0 - taken).max(0.05), beside[CACHE].max(0.01), beside[LINK].max(0.01)];
        }
        let step = working
            .iter()
            .zip(rates)
            .filter_map(|(slot, rate)| slot.map(|(c, i)| open[c][i].1 / rate))
            .fold(f64::INFINITY, f64::min);
        if !step.is_finite() {
            return now;
        }
        now += step;
        for (slot, rate) in working.iter_mut().zip(rates) {
            if let Some((c, i)) = *slot {
                open[c][i].1 -= step * rate;
                if open[c][i].1 <= 1e-15 {
                    open[c][i].1 = 0.0;
                    *slot = None;
                }
            }
        }
    }
}

impl StepCost {
    /// The same deployment with steps cut into nano-batches. The plan is the best for a step of `tokens`, of which
    /// `decoding` sequences decode with a mean of `context` cached tokens each.
    ///
    /// Only deployments with one lane (no pipeline, no attention copies) have such steps.
    #[must_use]
    pub fn with_nano_batches(&self, tokens: u32, decoding: u32, context: u64) -> Self {
        let prompt = tokens.saturating_sub(decoding);
        let chunks = [PromptChunk { tokens: prompt, before: 0 }];
        let lane = Lane {
            decoding,
            context: self.reads(decoding, context),
            chunks: if prompt > 0 { &chunks } else { &[] },
        };
        let mut best: Option<(f64, NanoPlan)> = None;
        for first in [0.25, 0.3125, 0.375, 0.4375, 0.5] {
            for memory in [0.1, 0.2, 0.3, 0.4] {
                for network in [0.1, 0.2, 0.3, 0.4] {
                    let plan = NanoPlan { first, memory, network };
                    let seconds = self.cut_seconds(&lane, &plan);
                    if best.is_none_or(|(least, _)| seconds < least) {
                        best = Some((seconds, plan));
                    }
                }
            }
        }
        let plan = best.map(|(_, plan)| plan).filter(|_| self.lanes() == 1);
        Self { arrangement: plan.map_or(Arrangement::Plain, Arrangement::Nano), ..self.clone() }
    }

    /// How steps are cut, where they are.
    pub fn nano_plan(&self) -> Option<NanoPlan> {
        match self.arrangement {
            Arrangement::Nano(plan) => Some(plan),
            _ => None,
        }
    }

    /// Seconds of a step of one lane: cut, or whole where that is faster.
    pub(super) fn nano_seconds(&self, lane: &Lane<'_>, plan: &NanoPlan) -> f64 {
        let whole = self.resources(lane).in_turn();
        let seconds = if lane.decoding + lane.chunks.len() as u32 >= 2 {
            whole.min(self.cut_seconds(lane, plan))
        } else {
            whole
        };
        seconds.max(self.roofline(std::slice::from_ref(lane)))
    }

    /// Seconds of a step that is cut.
    fn cut_seconds(&self, lane: &Lane<'_>, plan: &NanoPlan) -> f64 {
        let whole = self.resources(lane);
        let shape = self.shape();
        let layers = f64::from(shape.layers.max(1));
        let cut = |share: f64| {
            let part = |n: u32| ((f64::from(n) * share).round() as u32).min(n);
            let mut context = [0; KINDS];
            for (slot, all) in context.iter_mut().zip(lane.context) {
                *slot = (all as f64 * share).round() as u64;
            }
            let chunks: Vec<PromptChunk> = lane
                .chunks
                .iter()
                .map(|c| PromptChunk { tokens: part(c.tokens), before: c.before })
                .filter(|c| c.tokens > 0)
                .collect();
            let half = Lane { decoding: part(lane.decoding), context, chunks: &chunks };
            // Attention does the same work whichever half a row is in.
            let resources = self.resources(&half);
            let prompt = Work { seconds: whole.prompt.seconds * share, ..whole.prompt };
            StepResources { prompt, ..resources }
        };
        let (before, behind, forward) = self.product_shares();
        let reduces = if shape.all_reduces > 0.0 { shape.all_reduces / layers } else { 1.0 };
        let chain = |r: &StepResources| -> Vec<Stage> {
            let product = r.products.seconds / layers;
            let link = r.network / layers / reduces.max(1.0);
            let small = r.small / layers / 2.0;
            let mut chain = vec![
                vec![(PRODUCT, product * before)],
                vec![(CACHE, r.decode.seconds / layers), (PRODUCT, r.prompt.seconds / layers)],
                vec![(PRODUCT, product * behind)],
                vec![(LINK, link)],
                vec![(CACHE, small)],
                vec![(PRODUCT, product * forward + r.experts.seconds / layers)],
            ];
            if reduces > 1.0 {
                chain.push(vec![(LINK, link)]);
            }
            chain.push(vec![(CACHE, small)]);
            chain
        };
        let (a, b) = (cut(plan.first), cut(1.0 - plan.first));
        let chains = [chain(&a), chain(&b)];
        let (two, six) = (run(&chains, 2, plan), run(&chains, 6, plan));
        let kernels = two + (layers - 2.0).max(0.0) * (six - two) / 4.0;
        // The output layer and the sampling run once, over both halves.
        let gpu = kernels + whole.head.seconds + whole.gaps;
        super::overlapped(gpu, whole.hidden).max(whole.floor) + whole.host
    }

    /// Shares of the products' time before attention, behind it, and in feed-forward layers, by their arithmetic.
    fn product_shares(&self) -> (f64, f64, f64) {
        let mut sums = [0.0f64; 3];
        for l in self.shape().linears.iter().filter(|l| !l.last_token_only) {
            let place = match l.name {
                "output" | "output-down" | "output-up" => 1,
                "up" | "down" => 2,
                _ => 0,
            };
            sums[place] += l.layers * (l.n * l.k) as f64;
        }
        let all = sums.iter().sum::<f64>().max(1.0);
        (sums[0] / all, sums[1] / all, sums[2] / all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: NanoPlan = NanoPlan { first: 0.5, memory: 0.2, network: 0.2 };

    #[test]
    fn one_chain_runs_in_turn() {
        let chain = vec![vec![(PRODUCT, 1.0)], vec![(CACHE, 0.5)], vec![(LINK, 0.25)]];
        assert!((run(&[chain], 3, &PLAN) - 5.25).abs() < 1e-9);
    }

    #[test]
    fn two_chains_by_hand() {
        // The second half has nothing to do: the first runs alone.
        let chain = vec![vec![(PRODUCT, 1.0)], vec![(CACHE, 0.3)]];
        let none = vec![vec![(PRODUCT, 0.0)]];
        assert!((run(&[chain.clone(), none], 1, &PLAN) - 1.3).abs() < 1e-9);
        // Both: product A 1; then cache A beside product B. The cache needs 0.3 / 0.3 = 1 at its share, in which the
        // product does 0.8; the other 0.2 alone; then cache B alone 0.3: 1 + 1 + 0.2 + 0.3.
        assert!((run(&[chain.clone(), chain], 1, &PLAN) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn curves_are_those_of_the_table() {
        for (x, y) in MEMORY {
            assert!((reached(&MEMORY, x) - y).abs() < 1e-12);
        }
        assert!((reached(&NETWORK, 0.5) - 0.7).abs() < 1e-12);
    }
}
