//! Runs of decoding steps of several lanes with unchanged batches: as [`StepCost::seconds`] prices them, bit for bit, with
//! all that does not depend on the cache looked up once.

use super::decode_run::straight_steps;
use super::decode_table::DecodeRow;
use super::{KINDS, StepCost, overlapped};

/// A run of decoding steps in which no lane's batch changes.
#[derive(Debug, Clone)]
pub struct LanesRun<'a> {
    cost: &'a StepCost,
    lanes: Vec<LaneRun<'a>>,
    /// Tokens of all lanes over the batches that the experts see at once.
    together: Option<u32>,
    /// Sequences of the fullest lane.
    decoding: u32,
    idle: f64,
    overlap: f64,
    stretch: f64,
}

/// A lane that decodes.
#[derive(Debug, Clone, Copy)]
struct LaneRun<'a> {
    /// Place among all lanes.
    index: usize,
    tokens: u32,
    linear: f64,
    states: f64,
    kinds: [Option<RunKind<'a>>; KINDS],
    roofline: [f64; 2],
}

#[derive(Debug, Clone, Copy)]
struct RunKind<'a> {
    row: DecodeRow<'a>,
    layers: f64,
    /// Least seconds of a layer per token that is read, with drafts.
    arithmetic: f64,
    index_bytes: f64,
    /// Layers, elements and bytes of what is read.
    elements: f64,
    size: f64,
}

impl StepCost {
    /// Prepares steps in which the lanes decode so many sequences each; `None` where nothing decodes, or where steps run
    /// otherwise than kernel after kernel.
    pub fn lanes_run(&self, decoding: &[u32]) -> Option<LanesRun<'_>> {
        if !self.plain() || decoding.len() < 2 {
            return None;
        }
        let pieces = &*self.pieces;
        let copies = (pieces.lanes / pieces.stages.max(1)).max(1);
        let lanes: Vec<LaneRun<'_>> = decoding
            .iter()
            .enumerate()
            .filter(|(_, n)| **n > 0)
            .map(|(index, &n)| {
                let tokens = n.saturating_mul(self.queries());
                let mut kinds = [None; KINDS];
                for (at, (slot, kind)) in kinds.iter_mut().zip(&pieces.kinds).enumerate() {
                    *slot = Some(RunKind {
                        row: kind.decode.row(n),
                        layers: kind.core.layers,
                        arithmetic: self.query_seconds(at),
                        index_bytes: kind.index_bytes,
                        elements: kind.core.cache_elements as f64,
                        size: kind.kv_size,
                    });
                }
                let states = if pieces.shape.states.is_empty() {
                    0.0
                } else {
                    self.state_seconds(f64::from(n), f64::from(tokens - n), 0.0)
                };
                let linear = self.local.at(tokens) + self.head.at(tokens) + self.draft_seconds(n, copies);
                let roofline = [pieces.roofline_local.at(tokens), pieces.roofline_head.at(tokens)];
                LaneRun { index, tokens, linear, states, kinds, roofline }
            })
            .collect();
        if lanes.is_empty() {
            return None;
        }
        let all: u32 = lanes.iter().map(|l| l.tokens).sum();
        let busy = lanes.len().max(1) as f64;
        let together = (copies > 1).then(|| all.div_ceil(busy.min(f64::from(pieces.stages)).max(1.0) as u32));
        Some(LanesRun {
            cost: self,
            together,
            decoding: decoding.iter().copied().max().unwrap_or(0),
            idle: self.idle(),
            overlap: self.overlap(),
            stretch: self.stretch(),
            lanes,
        })
    }
}

impl LanesRun<'_> {
    /// Steps over which no table of any lane bends, from one that reads what `lane(i)` gives, with what it reads more each
    /// step.
    pub fn straight(&self, lane: impl Fn(usize) -> ([u64; KINDS], [u32; KINDS])) -> u64 {
        let of = |l: &LaneRun<'_>| {
            let (context, growth) = lane(l.index);
            let kinds = l.kinds.iter().flatten().zip(context).zip(growth);
            kinds.map(|((k, c), g)| straight_steps(&k.row, self.stretch, c, g)).min().unwrap_or(u64::MAX)
        };
        self.lanes.iter().map(of).min().unwrap_or(u64::MAX)
    }

    /// Seconds of the step in which lane `i` reads `context(i)` cached tokens per attention kind.
    pub fn seconds(&self, context: impl Fn(usize) -> [u64; KINDS]) -> f64 {
        let (cost, pieces) = (self.cost, &*self.cost.pieces);
        let p = &cost.parameters;
        let rate = 0.5 * pieces.rates.bandwidth;
        let (mut slowest, mut longest, mut sum) = (None, 0.0, 0.0);
        for lane in &self.lanes {
            let read = context(lane.index);
            let (mut kernels, mut indexer) = (0.0, 0.0);
            for (kind, read) in lane.kinds.iter().flatten().zip(read) {
                let real = read as f64 * self.stretch;
                kernels += kind.layers * (kind.row.seconds(real) / p.decode).max(real * kind.arithmetic);
                indexer += kind.layers * read as f64 * kind.index_bytes / rate;
            }
            let gpu = lane.linear + (kernels + indexer) + lane.states;
            sum += gpu;
            if gpu > longest {
                (slowest, longest) = (Some((lane, read)), gpu);
            }
        }
        let (tokens, mut roofline) = slowest.map_or((0, 0.0), |(lane, read)| {
            let cache: f64 = lane
                .kinds
                .iter()
                .flatten()
                .zip(read)
                .map(|(k, c)| k.layers * c as f64 * k.elements * k.size / pieces.rates.bandwidth)
                .sum();
            // In the order of a single step, so that the sums agree to the last bit.
            (lane.tokens, lane.roofline[0] + lane.roofline[1] + 0.0 + cache)
        });
        let experts = self.together.map_or(tokens, |all| all.max(tokens));
        let mut gpu = longest + cost.shared.at(experts);
        roofline += pieces.roofline_shared.at(experts);
        if pieces.stages > 1 {
            gpu += (1.0 - p.pipeline) * (sum - longest).max(0.0);
            gpu += cost.hops(tokens);
        }
        gpu += self.idle;
        let eager = tokens / cost.queries() > p.graph_tokens;
        gpu = overlapped(gpu, self.overlap).max(cost.floor(self.decoding, eager));
        gpu.max(roofline) + (p.step_us + p.sequence_us * f64::from(self.decoding) + p.prompt_us * 0.0) * 1e-6
    }
}
