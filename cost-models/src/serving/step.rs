//! The cost of one engine step of a deployment.
//!
//! A step runs every lane's batch through all layers: decoding sequences (one token each) and prompt chunks. Lanes are
//! attention copies that share their experts, or batches in different pipeline stages; the slowest lane sets the step.
//!
//! Linear layers, experts, small kernels and collectives depend on the tokens only: they are tabled once per
//! deployment on a grid of token counts and interpolated. Attention follows from the real lengths.

use super::engine::{EngineParameters, EngineProfile};
use crate::ProfileLibrary;
use psim_hardware::{Cluster, Node};
use psim_models::Model;
use psim_models::serving::Deployment;
use psim_models::serving::lower::ServingShape;
use std::sync::Arc;

mod apart;
mod attention;
mod decode_run;
mod decode_table;
mod drafting;
mod experts;
mod lanes_run;
mod linear;
mod nano;
mod network;
mod parts;
mod pieces;
mod pricing;
mod resources;
mod sparse;
mod table;

pub use apart::Crossing;
pub use decode_run::DecodeRun;
pub use drafting::Drafting;
pub use lanes_run::LanesRun;
pub use nano::NanoPlan;
pub use pieces::{PricedStep, StepPieces};
use resources::Arrangement;
pub use resources::{Share, StepResources, Work};
use table::Table;

/// Largest number of different attention kinds in one model.
pub const KINDS: usize = 4;

/// Why a step cannot be priced.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StepCostError {
    /// The deployment does not fit the model.
    #[error(transparent)]
    Deployment(#[from] psim_models::serving::deployment::DeploymentError),
    /// More attention kinds than are tracked.
    #[error("the model has {0} kinds of attention, at most 4 are tracked")]
    Kinds(usize),
    /// The profile library holds no software stack at all.
    #[error("the profile library is empty")]
    NoStack,
    /// The weights leave no room for a cache.
    #[error(
        "weights need {need_gib:.1} GiB of the {have_gib:.1} GiB that the engine may fill on each accelerator"
    )]
    Memory {
        /// Needed by the weights, GiB per accelerator.
        need_gib: f64,
        /// Available, GiB per accelerator.
        have_gib: f64,
    },
    /// The feed-forward instances cannot be priced.
    #[error("feed-forward instances: {0}")]
    FeedForward(Box<Self>),
}

/// A chunk of a prompt in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptChunk {
    /// Tokens of the chunk.
    pub tokens: u32,
    /// Tokens in the cache before it.
    pub before: u32,
}

/// What one lane does in a step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Lane<'a> {
    /// Decoding sequences.
    pub decoding: u32,
    /// Tokens that those read from the cache, per attention kind (windows applied), new tokens included.
    pub context: [u64; KINDS],
    /// Prompt chunks.
    pub chunks: &'a [PromptChunk],
}

/// Prices the steps of one deployment.
#[derive(Debug, Clone)]
pub struct StepCost {
    pieces: Arc<StepPieces>,
    parameters: EngineParameters,
    /// Everything that follows a lane's own tokens.
    local: Table,
    /// Experts and their exchange, by the tokens of all lanes of attention copies.
    shared: Table,
    /// The output layer, by the sequences that end a step with a token.
    head: Table,
    /// Steps run otherwise than kernel after kernel on the whole accelerator.
    arrangement: Arrangement,
    /// Drafts of the model's own extra layers.
    drafting: Option<Drafting>,
    /// The drafts come from elsewhere: steps verify them and run no passes that draft.
    given: bool,
    /// Feed-forward layers on accelerators of their own.
    apart: Option<Arc<apart::Apart>>,
}

/// What is left of kernels timed alone, in seconds, when `overlap` of it hides behind their neighbours: never less than
/// half.
fn overlapped(gpu: f64, overlap: f64) -> f64 {
    (gpu - overlap).max(0.5 * gpu)
}

/// Tokens of the longest chunk.
fn longest(chunks: &[PromptChunk]) -> f64 {
    f64::from(chunks.iter().map(|c| c.tokens).max().unwrap_or(0))
}

impl StepCost {
    /// Prepares a deployment of a model on the nodes of a cluster under an engine.
    ///
    /// # Errors
    /// A deployment that does not fit the model; weights that do not fit the memory.
    pub fn new(
        model: &Model,
        deployment: &Deployment,
        cluster: &Cluster,
        node: &Node,
        engine: &EngineProfile,
        library: &ProfileLibrary,
    ) -> Result<Self, StepCostError> {
        let experts = model.is_moe().then_some(deployment.quantization.experts);
        let parameters = engine.numbers(&node.accelerator.name, experts);
        Self::with_parameters(model, deployment, cluster, node, engine, parameters, library)
    }

    /// As [`StepCost::new`] with other numbers than the engine's own.
    ///
    /// # Errors
    /// As [`StepCost::new`].
    pub fn with_parameters(
        model: &Model,
        deployment: &Deployment,
        cluster: &Cluster,
        node: &Node,
        engine: &EngineProfile,
        parameters: EngineParameters,
        library: &ProfileLibrary,
    ) -> Result<Self, StepCostError> {
        let pieces = StepPieces::new(model, deployment, cluster, node, engine, parameters, library)?;
        Ok(Self::from_pieces(Arc::new(pieces), parameters))
    }

    /// Puts tabled pieces together under an engine's numbers. Those that shape the pieces themselves
    /// ([`StepPieces::fits`]) are the ones that they were made with.
    pub fn from_pieces(pieces: Arc<StepPieces>, mut parameters: EngineParameters) -> Self {
        let others = f64::from(pieces.shape.deployment.accelerators_per_replica().saturating_sub(1));
        let handing = 1.0 + parameters.worker * others;
        parameters.step_us *= handing;
        parameters.sequence_us *= handing;
        parameters.prompt_us *= handing;
        let p = &parameters;
        let local = Table::sum(&[
            (&pieces.products, 1.0 / p.gemm),
            (&pieces.arithmetic, p.arithmetic),
            (&pieces.small, 1.0),
            (&pieces.launches, p.small),
            (&pieces.casts, p.cast),
            (&pieces.reduces, 1.0 / p.all_reduce),
        ]);
        let shared = Table::sum(&[
            (&pieces.experts, 1.0 / p.moe),
            (&pieces.expert_arithmetic, p.moe_arithmetic),
            (&pieces.exchanges, 1.0 / p.all_reduce),
        ]);
        let head = Table::sum(&[(&pieces.head, 1.0 / p.gemm), (&pieces.sampling, 1.0)]);
        Self {
            pieces,
            parameters,
            local,
            shared,
            head,
            arrangement: Arrangement::Plain,
            drafting: None,
            given: false,
            apart: None,
        }
    }

    /// The parts of a step.
    pub fn shape(&self) -> &ServingShape {
        &self.pieces.shape
    }

    /// The engine's numbers.
    pub fn parameters(&self) -> &EngineParameters {
        &self.parameters
    }

    /// Bytes for the cache on one accelerator.
    pub fn cache_bytes(&self) -> f64 {
        self.pieces.cache_bytes * self.drafting.map_or(1.0, |d| d.cache)
    }

    /// Attention kinds with a window or a selection: what they read at most.
    pub fn reads_at_most(&self) -> impl Iterator<Item = Option<u64>> + '_ {
        self.pieces.kinds.iter().map(|k| k.core.reads_at_most)
    }

    /// Every attention law was measured on this accelerator.
    pub fn own_laws(&self) -> bool {
        self.pieces.own_laws
    }

    /// Standard deviation of the logarithmic error of the kernel laws.
    pub fn sigma(&self) -> f64 {
        self.pieces.sigma
    }

    /// Batches in flight in a replica.
    pub fn lanes(&self) -> u32 {
        self.pieces.lanes
    }

    /// Accelerator time of one lane without experts, and its roofline.
    fn lane(&self, lane: &Lane<'_>) -> LaneTime {
        let prompt_tokens: u32 = lane.chunks.iter().map(|c| c.tokens).sum();
        let verified = lane.decoding.saturating_mul(self.queries());
        let tokens = verified + prompt_tokens;
        if tokens == 0 {
            return LaneTime::default();
        }
        let ends = verified + lane.chunks.len() as u32;
        let (prompt, prompt_roofline) =
            if lane.chunks.is_empty() { (0.0, 0.0) } else { self.prompt_seconds(lane.chunks) };
        let attention = self.decode_seconds(lane) + prompt;
        let states = if self.pieces.shape.states.is_empty() {
            0.0
        } else {
            let scanned = prompt_tokens + verified - lane.decoding;
            let sequences = f64::from(lane.decoding) + lane.chunks.len() as f64;
            self.state_seconds(sequences, f64::from(scanned), longest(lane.chunks))
        };
        let decode_roofline: f64 = self
            .pieces
            .kinds
            .iter()
            .zip(lane.context)
            .map(|(k, c)| {
                k.core.layers * c as f64 * k.core.cache_elements as f64 * k.kv_size
                    / self.pieces.rates.bandwidth
            })
            .sum();
        let copies = (self.pieces.lanes / self.pieces.stages.max(1)).max(1);
        let linear = self.local.at(tokens) + self.head.at(ends) + self.draft_seconds(lane.decoding, copies);
        LaneTime {
            tokens,
            gpu: linear + attention + states,
            roofline: self.pieces.roofline_local.at(tokens)
                + self.pieces.roofline_head.at(ends)
                + prompt_roofline
                + decode_roofline,
        }
    }

    /// Lanes that have anything to do, at most two.
    fn busy<'a>(&self, lanes: &[Lane<'a>]) -> Vec<Lane<'a>> {
        lanes.iter().filter(|l| l.decoding > 0 || !l.chunks.is_empty()).take(2).copied().collect()
    }

    /// A step of prompts only, run in batches of `most` tokens that follow one another through the stages.
    fn pipelined_prompts(&self, lane: &Lane<'_>, most: u32) -> LaneTime {
        let mut total = LaneTime::default();
        let mut batches = 0u32;
        for chunk in lane.chunks {
            let mut done = 0;
            while done < chunk.tokens {
                let tokens = most.min(chunk.tokens - done);
                let part = [PromptChunk { tokens, before: chunk.before + done }];
                let time = self.lane(&Lane { chunks: &part, ..Lane::default() });
                total.gpu += time.gpu + self.shared.at(tokens);
                total.roofline += time.roofline + self.pieces.roofline_shared.at(tokens);
                total.tokens += tokens;
                done += tokens;
                batches += 1;
            }
        }
        // The first batch fills the pipeline, the others follow one stage behind.
        let fill =
            f64::from(batches + self.pieces.stages - 1) / f64::from(batches * self.pieces.stages).max(1.0);
        LaneTime { gpu: total.gpu * fill, roofline: total.roofline * fill, ..total }
    }

    /// Seconds that kernels of a step hide behind their neighbours.
    fn overlap(&self) -> f64 {
        let p = &self.parameters;
        (self.pieces.kernels + p.cast * self.pieces.cast_kernels) * p.overlap_us * 1e-6
    }

    /// Seconds of a pass over all layers in which no kernel runs: gaps between kernels, ranks that wait for one another.
    fn idle(&self) -> f64 {
        let p = &self.parameters;
        let pieces = &*self.pieces;
        let gaps = f64::from(pieces.shape.layers) * p.layer_us + pieces.shape.moe_layers * p.moe_us;
        (gaps + pieces.collectives * p.reduce_us) * 1e-6
    }

    /// Least accelerator time of a step: the host's own loop runs beside it, and without a graph so do the launches.
    fn floor(&self, decoding: u32, eager: bool) -> f64 {
        let p = &self.parameters;
        let looping = p.loop_us + p.loop_sequence_us * f64::from(decoding);
        let launches = if eager { f64::from(self.pieces.shape.layers) * p.eager_layer_us } else { 0.0 };
        looping.max(launches) * 1e-6
    }

    /// Passing activations from stage to stage.
    fn hops(&self, tokens: u32) -> f64 {
        f64::from(self.pieces.stages.saturating_sub(1))
            * (self.pieces.stage_hop.0 + self.pieces.stage_hop.1 * f64::from(tokens))
    }

    /// Seconds of a step in which the lanes do this; the host's part is in it.
    pub fn seconds(&self, lanes: &[Lane<'_>]) -> f64 {
        if let Some(apart) = &self.apart {
            return self.apart_seconds(apart, lanes);
        }
        if let (false, [lane]) = (self.plain(), lanes) {
            return self.arranged_seconds(lane);
        }
        if let [lane] = lanes
            && lane.chunks.is_empty()
            && lane.decoding > 0
        {
            return self.decode_run(lane.decoding).seconds(&lane.context);
        }
        if let Some(most) = self.pieces.micro_batch
            && let [only] = self.busy(lanes).as_slice()
            && only.decoding == 0
        {
            let p = &self.parameters;
            let time = self.pipelined_prompts(only, most);
            let batches = f64::from(time.tokens.div_ceil(most));
            let gpu = time.gpu + batches * self.idle();
            return gpu.max(time.roofline) + (p.step_us + p.prompt_us * only.chunks.len() as f64) * 1e-6;
        }
        let mut slowest = LaneTime::default();
        let mut all_tokens = 0;
        let (mut decoding, mut prompts) = (0u32, 0usize);
        let mut sum = 0.0;
        for lane in lanes {
            let time = self.lane(lane);
            all_tokens += time.tokens;
            decoding = decoding.max(lane.decoding);
            prompts = prompts.max(lane.chunks.len());
            sum += time.gpu;
            if time.gpu > slowest.gpu {
                slowest = time;
            }
        }
        if all_tokens == 0 {
            return 0.0;
        }
        let busy = lanes.iter().filter(|l| l.decoding > 0 || !l.chunks.is_empty()).count().max(1) as f64;
        // Experts see the tokens of all attention copies, but only their own batch of a pipeline.
        let copies = (self.pieces.lanes / self.pieces.stages.max(1)).max(1);
        let expert_tokens = if copies > 1 {
            all_tokens.div_ceil(busy.min(f64::from(self.pieces.stages)).max(1.0) as u32).max(slowest.tokens)
        } else {
            slowest.tokens
        };
        let p = &self.parameters;
        let mut gpu = slowest.gpu + self.shared.at(expert_tokens);
        let roofline = slowest.roofline + self.pieces.roofline_shared.at(expert_tokens);
        if self.pieces.stages > 1 {
            // With `busy` batches in flight each stage waits for the others where the overlap is not ideal.
            let serial = (sum - slowest.gpu).max(0.0);
            gpu += (1.0 - p.pipeline) * serial;
            gpu += self.hops(slowest.tokens);
        }
        gpu += self.idle();
        let eager = prompts > 0 || slowest.tokens / self.queries() > p.graph_tokens;
        gpu = overlapped(gpu, self.overlap()).max(self.floor(decoding, eager));
        let host = p.step_us + p.sequence_us * f64::from(decoding) + p.prompt_us * prompts as f64;
        gpu.max(roofline) + host * 1e-6
    }

    /// Lower bound of a step: datasheet rates on the flops and bytes that cannot be avoided, no host, no network.
    pub fn roofline(&self, lanes: &[Lane<'_>]) -> f64 {
        let mut worst = LaneTime::default();
        for lane in lanes {
            let time = self.lane(lane);
            if time.roofline > worst.roofline {
                worst = time;
            }
        }
        let own = worst.roofline + self.pieces.roofline_shared.at(worst.tokens);
        self.apart.as_ref().map_or(own, |apart| own.max(apart.roofline(lanes)))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct LaneTime {
    tokens: u32,
    gpu: f64,
    roofline: f64,
}
