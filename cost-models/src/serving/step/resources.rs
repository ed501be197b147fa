//! A step by the resources that it uses: arithmetic, memory, links, host. For techniques that run operators beside each
//! other or on a part of an accelerator (nano-batches, partitions of the multiprocessors).

use super::nano::NanoPlan;
use super::{KINDS, Lane, StepCost, overlapped};
use serde::{Deserialize, Serialize};

/// How the kernels of a step run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) enum Arrangement {
    /// One after another on the whole accelerator.
    #[default]
    Plain,
    /// Cut into nano-batches.
    Nano(NanoPlan),
    /// One after another on a share of the multiprocessors.
    Shared(Share),
}

/// Operators of one class.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Work {
    /// Seconds on the whole accelerator.
    pub seconds: f64,
    /// Seconds of their arithmetic alone at the datasheet's rate.
    pub compute: f64,
    /// Seconds of their bytes alone at the datasheet's rate.
    pub memory: f64,
}

impl Work {
    /// Seconds with a share of the arithmetic and a share of the memory's rate. The distance to the roofline is kept:
    /// t · max(compute / c, memory / m) / max(compute, memory).
    pub fn on(&self, compute: f64, memory: f64) -> f64 {
        let whole = self.compute.max(self.memory);
        if whole <= 0.0 {
            return self.seconds / compute.min(memory).max(1e-3);
        }
        self.seconds * (self.compute / compute.max(1e-3)).max(self.memory / memory.max(1e-3)) / whole
    }

    /// Share of the memory's rate that it takes while it runs on the whole accelerator.
    pub fn traffic(&self) -> f64 {
        if self.seconds > 0.0 { (self.memory / self.seconds).min(1.0) } else { 0.0 }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            seconds: self.seconds + other.seconds,
            compute: self.compute + other.compute,
            memory: self.memory + other.memory,
        }
    }
}

/// A share of an accelerator's multiprocessors, and of what its memory gives to them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Of the arithmetic, above 0 and at most 1.
    pub compute: f64,
    /// Of the memory's rate, above 0 and at most 1.
    pub memory: f64,
}

impl Share {
    /// The whole accelerator.
    pub const WHOLE: Self = Self { compute: 1.0, memory: 1.0 };

    /// A share `x` of the multiprocessors, where a share `saturation` of them can draw the memory's whole rate.
    pub fn of_multiprocessors(x: f64, saturation: f64) -> Self {
        let x = x.clamp(1e-3, 1.0);
        Self { compute: x, memory: (x / saturation.clamp(1e-3, 1.0)).min(1.0) }
    }
}

/// A step of one lane by resource, seconds. Without gaps and host it is what the kernels take one after another.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct StepResources {
    /// Matrix products of all layers.
    pub products: Work,
    /// The output layer.
    pub head: Work,
    /// Routed experts.
    pub experts: Work,
    /// Attention of prompts.
    pub prompt: Work,
    /// Attention of decoding sequences.
    pub decode: Work,
    /// Kernels bound by memory: norms, activations, sampling, states.
    pub small: f64,
    /// All-reduces, exchanges, hops between stages.
    pub network: f64,
    /// Idle between kernels, over all layers.
    pub gaps: f64,
    /// Kernels hidden behind their neighbours.
    pub hidden: f64,
    /// Least accelerator time: the host's own loop, launches.
    pub floor: f64,
    /// Host time that the accelerator waits for.
    pub host: f64,
}

impl StepResources {
    /// Kernels one after another, as [`StepCost::seconds`] has it.
    pub fn in_turn(&self) -> f64 {
        self.on(Share::WHOLE)
    }

    /// The same on a share of the accelerator. Links, gaps and host do not follow the share.
    pub fn on(&self, share: Share) -> f64 {
        let (c, m) = (share.compute, share.memory);
        let kernels = [self.products, self.head, self.experts, self.prompt, self.decode];
        let work: f64 = kernels.iter().map(|w| w.on(c, m)).sum();
        let gpu = work + self.small / m.max(1e-3) + self.network + self.gaps;
        overlapped(gpu, self.hidden).max(self.floor) + self.host
    }

    /// Mean share of the memory's rate while the step runs on the whole accelerator.
    pub fn traffic(&self) -> f64 {
        let kernels = [self.products, self.head, self.experts, self.prompt, self.decode];
        let bytes: f64 = kernels.iter().map(|w| w.memory).sum::<f64>() + self.small;
        (bytes / self.in_turn().max(1e-12)).min(1.0)
    }
}

impl StepCost {
    /// The resources of a step of a deployment with one lane.
    pub fn resources(&self, lane: &Lane<'_>) -> StepResources {
        let (p, pieces) = (&self.parameters, &*self.pieces);
        let prompt_tokens: u32 = lane.chunks.iter().map(|c| c.tokens).sum();
        let tokens = lane.decoding + prompt_tokens;
        if tokens == 0 {
            return StepResources::default();
        }
        let ends = lane.decoding + lane.chunks.len() as u32;
        let states = if pieces.shape.states.is_empty() {
            0.0
        } else {
            self.state_seconds(
                f64::from(lane.decoding) + lane.chunks.len() as f64,
                f64::from(prompt_tokens),
                super::longest(lane.chunks),
            )
        };
        let eager = prompt_tokens > 0 || tokens > p.graph_tokens;
        let host =
            p.step_us + p.sequence_us * f64::from(lane.decoding) + p.prompt_us * lane.chunks.len() as f64;
        StepResources {
            products: self.linear_work(
                tokens,
                false,
                pieces.products.at(tokens) / p.gemm + p.arithmetic * pieces.arithmetic.at(tokens),
            ),
            head: self.linear_work(ends, true, pieces.head.at(ends) / p.gemm),
            experts: self.expert_work(
                tokens,
                pieces.experts.at(tokens) / p.moe + p.moe_arithmetic * pieces.expert_arithmetic.at(tokens),
            ),
            prompt: self.prompt_work(lane),
            decode: self.decode_work(lane),
            small: p.small * pieces.launches.at(tokens)
                + pieces.small.at(tokens)
                + p.cast * pieces.casts.at(tokens)
                + pieces.sampling.at(ends)
                + states,
            network: (pieces.reduces.at(tokens) + pieces.exchanges.at(tokens)) / p.all_reduce
                + self.hops(tokens),
            gaps: self.idle(),
            hidden: self.overlap(),
            floor: self.floor(lane.decoding, eager),
            host: host * 1e-6,
        }
    }

    fn linear_work(&self, tokens: u32, head: bool, seconds: f64) -> Work {
        let pieces = &*self.pieces;
        let of = pieces.shape.linears.iter().filter(|l| l.last_token_only == head);
        let mut work = Work { seconds, ..Work::default() };
        for l in of {
            let weights = (l.n * l.k) as f64;
            work.compute += l.layers * 2.0 * f64::from(tokens) * weights / pieces.peak(l.format);
            work.memory += l.layers * weights * l.format.weight_bits() / 8.0 / pieces.rates.bandwidth;
        }
        work
    }

    fn expert_work(&self, tokens: u32, seconds: f64) -> Work {
        let pieces = &*self.pieces;
        let mut work = Work { seconds, ..Work::default() };
        for e in &pieces.shape.experts {
            let share = e.local as f64 / e.experts.max(1) as f64;
            let parameters = (e.matrices * e.hidden * e.inner) as f64;
            let draws = f64::from(tokens) * e.top_k as f64;
            let touched = e.local as f64 * (1.0 - (1.0 - 1.0 / e.experts.max(1) as f64).powf(draws));
            let rows = draws * share;
            work.compute += e.layers * 2.0 * rows * parameters / pieces.peak(e.format);
            work.memory +=
                e.layers * touched * parameters * e.format.weight_bits() / 8.0 / pieces.rates.bandwidth;
        }
        work
    }

    fn prompt_work(&self, lane: &Lane<'_>) -> Work {
        if lane.chunks.is_empty() {
            return Work::default();
        }
        let pieces = &*self.pieces;
        let mut work = Work { seconds: self.prompt_seconds(lane.chunks).0, ..Work::default() };
        for kind in &pieces.kinds {
            for chunk in lane.chunks {
                let (flops, bytes) = kind.chunk(chunk);
                work = work.plus(Work {
                    seconds: 0.0,
                    compute: kind.core.layers * flops / pieces.rates.half,
                    memory: kind.core.layers * bytes / pieces.rates.bandwidth,
                });
            }
        }
        work
    }

    fn decode_work(&self, lane: &Lane<'_>) -> Work {
        let pieces = &*self.pieces;
        let mut work = Work { seconds: self.decode_seconds(lane), ..Work::default() };
        for (kind, context) in pieces.kinds.iter().zip(lane.context) {
            let width = if kind.core.latent {
                2 * kind.core.cache_elements
            } else {
                kind.core.head_dim + kind.core.head_dim_v
            };
            let read = kind.core.layers * context as f64;
            work.compute += read * 2.0 * (kind.core.q_heads * width) as f64 / pieces.rates.half;
            work.memory += read * kind.core.cache_elements as f64 * kind.kv_size / pieces.rates.bandwidth;
        }
        work
    }

    /// Seconds of a step on a share of the accelerator's multiprocessors (one lane), never below the roofline of that
    /// share's arithmetic.
    pub fn seconds_on(&self, lane: &Lane<'_>, share: Share) -> f64 {
        self.resources(lane).on(share).max(self.roofline(std::slice::from_ref(lane)))
    }

    /// Kernels run one after another on the whole accelerator.
    pub fn plain(&self) -> bool {
        self.arrangement == Arrangement::Plain && self.apart.is_none()
    }

    /// The same deployment on a share of the multiprocessors of its accelerators (deployments with one lane).
    #[must_use]
    pub fn on_share(&self, share: Share) -> Self {
        let arrangement = if self.lanes() == 1 { Arrangement::Shared(share) } else { Arrangement::Plain };
        Self { arrangement, ..self.clone() }
    }

    pub(super) fn arranged_seconds(&self, lane: &Lane<'_>) -> f64 {
        match &self.arrangement {
            Arrangement::Plain => self.resources(lane).in_turn(),
            Arrangement::Nano(plan) => self.nano_seconds(lane, plan),
            Arrangement::Shared(share) => self.seconds_on(lane, *share),
        }
    }

    /// Seconds of the experts of one rank for so many tokens of all attention copies.
    pub fn experts_of(&self, tokens: u32) -> f64 {
        self.pieces.experts.at(tokens) / self.parameters.moe
    }

    /// Tokens read from the cache by a decoding batch of `sequences` with a mean of `context` tokens, per kind.
    pub fn reads(&self, sequences: u32, context: u64) -> [u64; KINDS] {
        let mut reads = [0; KINDS];
        for (slot, most) in reads.iter_mut().zip(self.reads_at_most()) {
            *slot = u64::from(sequences) * most.map_or(context, |w| context.min(w));
        }
        reads
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProfileLibrary;
    use crate::serving::{PromptChunk, engine};
    use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
    use psim_models::presets;
    use psim_models::serving::{Deployment, NumberFormat, Quantization};

    fn cost(model: &str, gpu: &str, tp: u32) -> StepCost {
        let cluster = homogeneous(gpu, 8, &HomogeneousOptions::default()).unwrap();
        let d = Deployment::tensor_parallel(tp, Quantization::uniform(NumberFormat::Bf16));
        let engine = engine::find("trtllm-0.10").unwrap();
        let model = presets::find(model).unwrap();
        StepCost::new(&model, &d, &cluster, cluster.first_node(), engine, &ProfileLibrary::built_in())
            .unwrap()
    }

    #[test]
    fn the_parts_are_the_step() {
        for (model, gpu, tp) in [("llama2-70b", "A100-SXM-80GB", 8), ("gpt-oss-20b", "H100-SXM-80GB", 1)] {
            let cost = cost(model, gpu, tp);
            let chunks = [PromptChunk { tokens: 700, before: 300 }];
            for (decoding, chunks) in [(64, &[][..]), (300, &chunks[..]), (0, &chunks[..])] {
                let lane = Lane { decoding, context: cost.reads(decoding, 900), chunks };
                let (parts, step) = (cost.resources(&lane).in_turn(), cost.seconds(&[lane]));
                assert!((parts / step - 1.0).abs() < 1e-9, "{model} {decoding}: {parts} {step}");
                // Half the multiprocessors are never faster, and never more than twice as slow.
                let half = cost.seconds_on(&lane, Share::of_multiprocessors(0.5, 0.5));
                assert!(half >= step * (1.0 - 1e-9) && half <= 2.0 * step, "{half} {step}");
            }
            // Decoding keeps its speed on half of them, a prompt does not.
            let decode = Lane { decoding: 32, context: cost.reads(32, 900), chunks: &[] };
            let prompt = Lane { chunks: &chunks, ..Lane::default() };
            let slower = |lane: &Lane<'_>| {
                cost.seconds_on(lane, Share::of_multiprocessors(0.5, 0.5)) / cost.seconds(&[*lane])
            };
            assert!(
                slower(&decode) < 1.05 && slower(&prompt) > 1.1,
                "{} {}",
                slower(&decode),
                slower(&prompt)
            );
        }
    }

    #[test]
    fn nano_batches_pay_where_all_resources_are_busy() {
        let cost = cost("llama2-70b", "A100-SXM-80GB", 8);
        let cut = cost.with_nano_batches(2048, 1024, 768);
        let chunks = [PromptChunk { tokens: 1024, before: 0 }];
        let lane = Lane { decoding: 1024, context: cost.reads(1024, 768), chunks: &chunks };
        let (whole, parts) = (cost.seconds(&[lane]), cut.seconds(&[lane]));
        let r = cost.resources(&lane);
        println!("plan {:?}: {whole} -> {parts}; {r:?}", cut.nano_plan());
        assert!(parts < whole, "{parts} {whole}");
        // Never faster than its products alone.
        assert!(parts > r.products.seconds && parts >= cost.roofline(&[lane]));
        // One sequence gains nothing.
        let one = Lane { decoding: 1, context: cost.reads(1, 768), chunks: &[] };
        assert!((cut.seconds(&[one]) / cost.seconds(&[one]) - 1.0).abs() < 1e-9);
    }
}
