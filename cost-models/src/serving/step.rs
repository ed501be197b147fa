//! The cost of one engine step of a deployment.
//!
//! A step runs every lane's batch through all layers: decoding sequences (one token each) and prompt chunks. Lanes are
//! attention copies that share their experts, or batches in different pipeline stages; the slowest lane sets the step.
//!
//! Linear layers, experts, small kernels and collectives depend on the tokens only: they are tabled once per
//! deployment on a grid of token counts and interpolated. Attention follows from the real lengths.

use super::engine::{EngineParameters, EngineProfile};
use super::kernels::Datasheet;
use super::tables::Lookup;
use crate::{CostModel, ProfileLibrary, stacks};
use psim_hardware::{Cluster, DType, GroupShape, Node};
use psim_models::Model;
use psim_models::serving::lower::ServingShape;
use psim_models::serving::{Deployment, lower};

mod attention;
mod decode_run;
mod experts;
mod linear;
mod network;
mod parts;
mod pricing;
mod table;

use attention::Kind;
pub use decode_run::DecodeRun;
use pricing::Pricing;
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
    shape: ServingShape,
    parameters: EngineParameters,
    kinds: Vec<Kind>,
    rates: Datasheet,
    /// Everything that follows a lane's own tokens.
    local: Table,
    /// Experts and their exchange, by the tokens of all lanes of attention copies.
    shared: Table,
    /// The output layer, by the sequences that end a step with a token.
    head: Table,
    roofline_local: Table,
    roofline_shared: Table,
    roofline_head: Table,
    lanes: u32,
    stages: u32,
    stage_hop: (f64, f64),
    /// Latency (seconds) and rate (bytes a second) of one rank's scale-up links.
    link: (f64, f64),
    cache_bytes: f64,
    own_laws: bool,
    sigma: f64,
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
        let (parameters, _) = engine.on(&node.accelerator.name);
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
        let shape = lower(model, deployment)?;
        if shape.attention.len() > KINDS {
            return Err(StepCostError::Kinds(shape.attention.len()));
        }
        let accelerator = &node.accelerator;
        let lookup = Lookup::new(accelerator);
        let mut stack = library
            .stack(stacks::DEFAULT_TRAINING)
            .cloned()
            .or_else(|| library.stacks().next().cloned())
            .ok_or(StepCostError::NoStack)?;
        // The engine's own factors replace the training stack's.
        for factor in [
            &mut stack.efficiency.gemm,
            &mut stack.efficiency.attention,
            &mut stack.efficiency.memory,
            &mut stack.efficiency.network,
            &mut stack.efficiency.grouped_gemm,
        ] {
            *factor = 1.0;
        }
        let costs = CostModel::new(cluster, node, &stack, library);
        let half = accelerator.peak(DType::Bf16).or(accelerator.peak(DType::Fp16)).map_or(1e12, |f| f.0);
        let rates = Datasheet { half, peak: half, bandwidth: accelerator.memory_bandwidth.0 };
        let pricing = Pricing {
            costs: &costs,
            lookup: &lookup,
            library: &engine.library,
            rates,
            p: parameters,
            four_bit: accelerator.peak(DType::Fp4).map(|f| f.0),
            eight_bit: accelerator.peak(DType::Fp8).map(|f| f.0),
            d: *deployment,
            tp: GroupShape::place(cluster, node, deployment.tp, 1),
            all: GroupShape::place(cluster, node, deployment.tp * deployment.attention_dp, 1),
        };
        let fill = accelerator.memory.as_f64() * engine.memory_share - engine.reserve_gib * 1024f64.powi(3);
        let cache_bytes = fill - shape.weight_bytes;
        if cache_bytes <= 0.0 {
            let gib = 1024f64.powi(3);
            return Err(StepCostError::Memory { need_gib: shape.weight_bytes / gib, have_gib: fill / gib });
        }
        let mut own_laws = true;
        let mut sigma: f64 = 0.0;
        let kinds: Vec<Kind> =
            shape.attention.iter().map(|core| pricing.kind(core, &mut own_laws, &mut sigma)).collect();
        let local = Table::new(|t| pricing.local(&shape, t));
        let shared = Table::new(|t| pricing.shared(&shape, t));
        let head = Table::new(|t| pricing.head(&shape, t));
        let roofline_local = Table::new(|t| pricing.roofline(&shape, t, false));
        let roofline_head = Table::new(|t| pricing.roofline(&shape, t, true));
        let roofline_shared = Table::new(|t| pricing.roofline_experts(&shape, t));
        let link = node.scale_up.bandwidth.0.max(1e9);
        let crosses = deployment.tp * deployment.pp > node.scale_up.domain.max(1);
        let hop = if crosses {
            let rate = node.nics.rate.0 * f64::from(node.nics.count) / f64::from(node.accelerators.max(1));
            (cluster.fabric.latency.0 + 10e-6, 2.0 * shape.hidden as f64 / rate.max(1e8))
        } else {
            (node.scale_up.latency.0 + 10e-6, 2.0 * shape.hidden as f64 / link)
        };
        Ok(Self {
            lanes: deployment.lanes(),
            stages: deployment.pp,
            stage_hop: hop,
            link: (node.scale_up.latency.0 + 10e-6, link),
            shape,
            parameters,
            kinds,
            rates,
            local,
            shared,
            head,
            roofline_local,
            roofline_shared,
            roofline_head,
            cache_bytes,
            own_laws,
            sigma,
        })
    }

    /// The parts of a step.
    pub fn shape(&self) -> &ServingShape {
        &self.shape
    }

    /// The engine's numbers.
    pub fn parameters(&self) -> &EngineParameters {
        &self.parameters
    }

    /// Bytes for the cache on one accelerator.
    pub fn cache_bytes(&self) -> f64 {
        self.cache_bytes
    }

    /// Attention kinds with a window or a selection: what they read at most.
    pub fn reads_at_most(&self) -> impl Iterator<Item = Option<u64>> + '_ {
        self.kinds.iter().map(|k| k.core.reads_at_most)
    }

    /// Every attention law was measured on this accelerator.
    pub fn own_laws(&self) -> bool {
        self.own_laws
    }

    /// Standard deviation of the logarithmic error of the kernel laws.
    pub fn sigma(&self) -> f64 {
        self.sigma
    }

    /// Batches in flight in a replica.
    pub fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Accelerator time of one lane without experts, and its roofline.
    fn lane(&self, lane: &Lane<'_>) -> LaneTime {
        let prompt_tokens: u32 = lane.chunks.iter().map(|c| c.tokens).sum();
        let tokens = lane.decoding + prompt_tokens;
        if tokens == 0 {
            return LaneTime::default();
        }
        let ends = lane.decoding + lane.chunks.len() as u32;
        let (prompt, prompt_roofline) =
            if lane.chunks.is_empty() { (0.0, 0.0) } else { self.prompt_seconds(lane.chunks) };
        let attention = self.decode_seconds(lane) + prompt;
        let states = if self.shape.states.is_empty() {
            0.0
        } else {
            self.state_seconds(f64::from(lane.decoding) + lane.chunks.len() as f64, f64::from(prompt_tokens))
        };
        let decode_roofline: f64 = self
            .kinds
            .iter()
            .zip(lane.context)
            .map(|(k, c)| {
                k.core.layers * c as f64 * k.core.cache_elements as f64 * k.kv_size / self.rates.bandwidth
            })
            .sum();
        let linear = self.local.at(tokens) + self.head.at(ends);
        LaneTime {
            tokens,
            gpu: linear + attention + states,
            roofline: self.roofline_local.at(tokens)
                + self.roofline_head.at(ends)
                + prompt_roofline
                + decode_roofline,
        }
    }

    /// Passing activations from stage to stage.
    fn hops(&self, tokens: u32) -> f64 {
        f64::from(self.stages.saturating_sub(1)) * (self.stage_hop.0 + self.stage_hop.1 * f64::from(tokens))
    }

    /// Seconds of a step in which the lanes do this; the host's part is in it.
    pub fn seconds(&self, lanes: &[Lane<'_>]) -> f64 {
        if let [lane] = lanes
            && lane.chunks.is_empty()
            && lane.decoding > 0
        {
            return self.decode_run(lane.decoding).seconds(&lane.context);
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
        let copies = (self.lanes / self.stages.max(1)).max(1);
        let expert_tokens = if copies > 1 {
            all_tokens.div_ceil(busy.min(f64::from(self.stages)).max(1.0) as u32).max(slowest.tokens)
        } else {
            slowest.tokens
        };
        let p = &self.parameters;
        let mut gpu = slowest.gpu + self.shared.at(expert_tokens);
        let roofline = slowest.roofline + self.roofline_shared.at(expert_tokens);
        if self.stages > 1 {
            // With `busy` batches in flight each stage waits for the others where the overlap is not ideal.
            let serial = (sum - slowest.gpu).max(0.0);
            gpu += (1.0 - p.pipeline) * serial;
            gpu += self.hops(slowest.tokens);
        }
        gpu += f64::from(self.shape.layers) * p.layer_us * 1e-6;
        if prompts > 0 || slowest.tokens > p.graph_tokens {
            gpu = gpu.max(f64::from(self.shape.layers) * p.eager_layer_us * 1e-6);
        }
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
        worst.roofline + self.roofline_shared.at(worst.tokens)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct LaneTime {
    tokens: u32,
    gpu: f64,
    roofline: f64,
}
