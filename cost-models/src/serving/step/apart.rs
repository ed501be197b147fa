//! Steps of a replica whose feed-forward layers run on accelerators of their own (MegaScale-Infer, Zhu et al. 2025,
//! sections 4 and 5; Step-3, 2025): the batch is cut into micro-batches that go to and fro.
//!
//! The attention side has its copies, caches and the output layer, the other side the experts (or all feed-forward
//! matrices). A micro-batch is 1/m of every copy's sequences and prompt tokens; each side is priced for what a
//! micro-batch brings it, smaller products with their weights read again for each of them, and [`AttentionFfn`] puts the
//! layers together. Tokens cross to the instances that hold at least one of their experts and come back in 16 bits.

use super::super::attention_ffn::AttentionFfn;
use super::pieces::StepPieces;
use super::{Lane, PromptChunk, StepCost, StepCostError, overlapped};
use crate::ProfileLibrary;
use crate::serving::engine::EngineProfile;
use psim_hardware::{Cluster, DType, Node};
use psim_models::Model;
use psim_models::serving::{Deployment, NumberFormat, lower_apart};
use std::sync::Arc;

/// The way between the two sides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crossing {
    /// Seconds to the first byte.
    pub latency: f64,
    /// Rate of one accelerator of the attention, bytes a second.
    pub attention_rate: f64,
    /// Rate of one accelerator of the feed-forward instances, bytes a second.
    pub feed_forward_rate: f64,
}

/// The other side of a replica.
#[derive(Debug)]
pub(super) struct Apart {
    cost: StepCost,
    crossing: Crossing,
    instances: u32,
    micro_batches: u32,
    /// Bytes of an element on the way there.
    width: f64,
    /// Elements of a token on the way, of a model with experts its `top_k`.
    elements: f64,
    top_k: Option<f64>,
    /// Layers that cross.
    layers: f64,
    /// Shares of the gaps between kernels, attention's first.
    gaps: [f64; 2],
}

impl Apart {
    /// Instances that a token goes to, on average, experts chosen uniformly.
    fn met(&self) -> f64 {
        let n = f64::from(self.instances);
        self.top_k.map_or(1.0, |k| n * (1.0 - (1.0 - 1.0 / n).powf(k)))
    }

    /// Seconds for which the slower side's links carry the tokens of one layer: `of_copy` of the fullest attention copy
    /// of `tp` ranks, `all` of all copies.
    fn wire(&self, of_copy: u32, all: u32, tp: u32) -> f64 {
        // The way back is in 16 bits; both directions are as slow as the wider one.
        let bytes = self.met() * self.elements * self.width.max(2.0);
        let ranks = self.cost.shape().deployment.accelerators_per_replica();
        let sent = bytes * f64::from(of_copy) / (f64::from(tp.max(1)) * self.crossing.attention_rate);
        let taken = bytes * f64::from(all) / (f64::from(ranks.max(1)) * self.crossing.feed_forward_rate);
        sent.max(taken)
    }

    /// Accelerator seconds of one micro-batch of `tokens` of all copies, over all layers.
    fn seconds(&self, tokens: u32, idle: f64) -> f64 {
        let c = &self.cost;
        let dense = tokens.div_ceil(self.instances.max(1));
        let dense = if self.top_k.is_some() { 0.0 } else { c.local.at(dense) };
        overlapped(dense + c.shared.at(tokens) + idle, c.overlap())
    }

    /// Least seconds of the tokens of all lanes.
    pub(super) fn roofline(&self, lanes: &[Lane<'_>]) -> f64 {
        let tokens: u32 = lanes.iter().map(tokens).sum();
        let pieces = &self.cost.pieces;
        let dense = if self.top_k.is_some() { 0 } else { tokens / self.instances.max(1) };
        pieces.roofline_local.at(dense) + pieces.roofline_shared.at(tokens)
    }
}

fn tokens(lane: &Lane<'_>) -> u32 {
    lane.decoding + lane.chunks.iter().map(|c| c.tokens).sum::<u32>()
}

impl StepCost {
    /// Prepares replicas of `attention` whose feed-forward layers lie on `instances` of `ranks` accelerators each, on
    /// `nodes` of the attention and of the feed-forward instances, which micro-batches alternate between.
    ///
    /// # Errors
    /// A deployment that does not fit the model; attention weights that do not fit the memory; the same of the
    /// feed-forward side.
    pub fn apart(
        model: &Model,
        attention: &Deployment,
        (instances, ranks, micro_batches): (u32, u32, u32),
        (cluster, nodes, crossing): (&Cluster, [&Node; 2], Crossing),
        engine: &EngineProfile,
        library: &ProfileLibrary,
    ) -> Result<Self, StepCostError> {
        let (front, behind) = lower_apart(model, attention, (instances, ranks))?;
        let experts = model.is_moe().then_some(attention.quantization.experts);
        let side = |shape, node: &Node| {
            let parameters = engine.numbers(&node.accelerator.name, experts);
            let pieces = StepPieces::of_shape(shape, cluster, node, engine, parameters, library)?;
            Ok::<_, StepCostError>(Self::from_pieces(Arc::new(pieces), parameters))
        };
        let own = side(front, nodes[0])?;
        let cost = side(behind, nodes[1]).map_err(|e| StepCostError::FeedForward(Box::new(e)))?;
        let expert = cost.shape().experts.first().copied();
        let narrow = nodes[0].accelerator.peak(DType::Fp4).is_some();
        let width = match expert.map(|e| e.format) {
            Some(NumberFormat::Nvfp4) if narrow => 0.5 + 1.0 / 16.0,
            Some(NumberFormat::Mxfp4) if narrow => 1.0 + 1.0 / 32.0,
            _ => 2.0,
        };
        let kernels = [own.pieces.kernels, cost.pieces.kernels];
        let all = (kernels[0] + kernels[1]).max(1.0);
        let layers = if expert.is_some() { cost.shape().moe_layers } else { f64::from(model.layers()) };
        let apart = Apart {
            crossing,
            instances,
            micro_batches: micro_batches.max(1),
            width,
            elements: expert.map_or(model.hidden, |e| e.hidden) as f64,
            top_k: expert.map(|e| e.top_k as f64),
            layers: layers.max(1.0),
            gaps: kernels.map(|k| k / all),
            cost,
        };
        Ok(Self { apart: Some(Arc::new(apart)), ..own })
    }

    /// The other side's prices, where feed-forward layers are apart.
    pub fn feed_forward(&self) -> Option<&Self> {
        self.apart.as_ref().map(|a| &a.cost)
    }

    /// Times of a micro-batch in a layer of a step, where feed-forward layers are apart.
    pub fn to_and_fro(&self, lanes: &[Lane<'_>]) -> Option<AttentionFfn> {
        self.apart.as_ref().map(|apart| self.micro_batches(apart, lanes))
    }

    fn micro_batches(&self, apart: &Apart, lanes: &[Lane<'_>]) -> AttentionFfn {
        let fullest = lanes.iter().map(tokens).max().unwrap_or(0);
        let m = apart.micro_batches.min(fullest).max(1);
        let part = |n: u32| n.div_ceil(m);
        let p = &self.parameters;
        let gaps = f64::from(self.pieces.shape.layers) * p.layer_us * 1e-6;
        let idle = |cost: &Self, share: f64| gaps * share + cost.pieces.collectives * p.reduce_us * 1e-6;
        let mut attention = 0.0f64;
        let (mut all, mut most) = (0, 0);
        let mut chunks = Vec::new();
        for lane in lanes {
            chunks.clear();
            chunks
                .extend(lane.chunks.iter().map(|c| PromptChunk { tokens: part(c.tokens), before: c.before }));
            let decoding = part(lane.decoding);
            let micro =
                Lane { decoding, context: lane.context.map(|c| c.div_ceil(u64::from(m))), chunks: &chunks };
            let n = tokens(&micro);
            if n == 0 {
                continue;
            }
            // Attention does the same work whichever micro-batch a row is in.
            let prompt =
                if lane.chunks.is_empty() { 0.0 } else { self.prompt_seconds(lane.chunks).0 / f64::from(m) };
            let states = if self.pieces.shape.states.is_empty() {
                0.0
            } else {
                let scanned: u32 = chunks.iter().map(|c| c.tokens).sum();
                self.state_seconds(
                    f64::from(decoding) + chunks.len() as f64,
                    f64::from(scanned),
                    super::longest(&chunks),
                )
            };
            let gpu = self.local.at(n) + self.decode_seconds(&micro) + prompt + states;
            attention = attention.max(overlapped(gpu + idle(self, apart.gaps[0]), self.overlap()));
            all += n;
            most = most.max(n);
        }
        let layers = apart.layers;
        let wire = apart.wire(most, all, self.pieces.shape.deployment.tp);
        AttentionFfn {
            attention: attention / layers,
            feed_forward: apart.seconds(all, idle(&apart.cost, apart.gaps[1])) / layers,
            crossing: apart.crossing.latency + wire,
            wire,
            layers: layers.round() as u32,
            micro_batches: m,
        }
    }

    /// Seconds of a step of all lanes.
    pub(super) fn apart_seconds(&self, apart: &Apart, lanes: &[Lane<'_>]) -> f64 {
        let (mut fullest, mut ends, mut decoding, mut prompts) = (0, 0, 0, 0);
        for lane in lanes {
            fullest = fullest.max(tokens(lane));
            ends = ends.max(lane.decoding + lane.chunks.len() as u32);
            decoding = decoding.max(lane.decoding);
            prompts = prompts.max(lane.chunks.len());
        }
        if fullest == 0 {
            return 0.0;
        }
        let p = &self.parameters;
        let eager = prompts > 0 || fullest > p.graph_tokens;
        let gpu = self.micro_batches(apart, lanes).step_seconds() + self.head.at(ends);
        let gpu = gpu.max(self.floor(decoding, eager)).max(self.roofline(lanes));
        let host = p.step_us + p.sequence_us * f64::from(decoding) + p.prompt_us * prompts as f64;
        gpu + host * 1e-6
    }
}
