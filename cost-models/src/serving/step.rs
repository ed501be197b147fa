//! The cost of one engine step of a deployment.
//!
//! A step runs every lane's batch through all layers: decoding sequences (one token each) and prompt chunks. Lanes are
//! attention copies that share their experts, or batches in different pipeline stages; the slowest lane sets the step.
//!
//! Linear layers, experts, small kernels and collectives depend on the tokens only: they are tabled once per
//! deployment on a grid of token counts and interpolated. Attention follows from the real lengths.

use super::engine::{EngineParameters, EngineProfile};
use super::kernels::{Datasheet, DecodeLaw, MoeCall, MoeLaw, PromptLaw};
use super::reduce::ReduceCurve;
use super::tables::Lookup;
use crate::{CostModel, ProfileLibrary, stacks};
use psim_hardware::{Cluster, DType, GroupShape, Node, Scaling};
use psim_models::Model;
use psim_models::operator::{CollectiveKind, GemmRole, MemoryClass};
use psim_models::serving::lower::{AttentionCore, Experts, Linear, ServingShape};
use psim_models::serving::{Deployment, NumberFormat, lower};

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

/// Token counts of the table: exact up to 8, then four an octave.
fn grid() -> Vec<u32> {
    let mut out: Vec<u32> = (1..=8).collect();
    let mut octave = 8u32;
    while octave < 65_536 {
        out.extend([octave / 4 * 5, octave / 4 * 6, octave / 4 * 7, octave * 2]);
        octave *= 2;
    }
    out
}

/// A function of token counts, tabled.
#[derive(Debug, Clone, PartialEq)]
struct Table {
    tokens: Vec<u32>,
    seconds: Vec<f64>,
}

impl Table {
    fn new(f: impl Fn(f64) -> f64) -> Self {
        let tokens = grid();
        let seconds = tokens.iter().map(|t| f(f64::from(*t))).collect();
        Self { tokens, seconds }
    }

    /// Between two points on their chord, which lies above every convex bound that holds at the points; beyond the
    /// last in proportion, which does too.
    fn at(&self, tokens: u32) -> f64 {
        if tokens == 0 {
            return 0.0;
        }
        if tokens <= 8 {
            return self.seconds[tokens as usize - 1];
        }
        let last = self.tokens.len() - 1;
        if tokens >= self.tokens[last] {
            return self.seconds[last] * f64::from(tokens) / f64::from(self.tokens[last]);
        }
        // Octave by leading zeros, then the quarter inside it.
        let octave = 31 - tokens.leading_zeros();
        let quarter = (tokens >> (octave - 2)) & 3;
        let i = 7 + 4 * (octave as usize - 3) + quarter as usize;
        let (t0, t1) = (f64::from(self.tokens[i]), f64::from(self.tokens[i + 1]));
        let share = (f64::from(tokens) - t0) / (t1 - t0);
        self.seconds[i] + share * (self.seconds[i + 1] - self.seconds[i])
    }
}

#[derive(Debug, Clone, Copy)]
struct Kind {
    core: AttentionCore,
    decode: DecodeLaw,
    prompt: PromptLaw,
    prompt_rates: Datasheet,
    /// Bytes read per cached token, reuse of heads applied.
    bytes_per_token: f64,
    /// Bytes of the indexer per cached token.
    index_bytes: f64,
    /// Flops per cached token and query.
    decode_flops: f64,
    blocks_per_sequence: f64,
    kv_size: f64,
}

/// A run of decoding steps of one lane whose batch does not change: all that does not depend on the cache is summed.
#[derive(Debug, Clone, Copy)]
pub struct DecodeRun {
    kinds: [RunKind; KINDS],
    used: usize,
    /// Everything but attention, seconds.
    base: f64,
    base_roofline: f64,
    /// Launch floor of steps without a captured graph.
    floor: f64,
    host: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct RunKind {
    layers: f64,
    launch: f64,
    /// Fourth power of the block term.
    block4: f64,
    /// Fourth power of the seconds of memory and arithmetic per token of context.
    per_token4: f64,
    index: f64,
    roofline: f64,
}

impl DecodeRun {
    /// Seconds of the step that reads this many cached tokens per attention kind.
    pub fn seconds(&self, context: &[u64; KINDS]) -> f64 {
        let (mut attention, mut roofline) = (0.0, self.base_roofline);
        for (kind, context) in self.kinds[..self.used].iter().zip(context) {
            let c = *context as f64;
            let c2 = c * c;
            let work = (kind.block4 + c2 * c2 * kind.per_token4).sqrt().sqrt();
            attention += kind.layers * (kind.launch + work) + c * kind.index;
            roofline += c * kind.roofline;
        }
        (self.base + attention).max(self.floor).max(roofline) + self.host
    }
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

    /// Accelerator time of decoding attention of one lane.
    fn decode_seconds(&self, lane: &Lane<'_>) -> f64 {
        if lane.decoding == 0 {
            return 0.0;
        }
        let mut total = 0.0;
        for (kind, context) in self.kinds.iter().zip(lane.context) {
            let context = context as f64;
            let bytes = context * kind.bytes_per_token;
            let flops = context * kind.decode_flops;
            let blocks = f64::from(lane.decoding) * kind.blocks_per_sequence;
            let one = kind.decode.seconds(self.rates, blocks, bytes, flops) / self.parameters.decode;
            total += kind.core.layers * one;
        }
        total + self.indexer_seconds(lane)
    }

    /// Reading the indexer keys of sparse attention: all tokens, whatever is selected.
    fn indexer_seconds(&self, lane: &Lane<'_>) -> f64 {
        self.kinds
            .iter()
            .zip(lane.context)
            .map(|(k, context)| k.core.layers * context as f64 * k.index_bytes / (0.5 * self.rates.bandwidth))
            .sum()
    }

    /// Accelerator time of the attention of prompt chunks.
    fn prompt_seconds(&self, chunks: &[PromptChunk]) -> (f64, f64) {
        let (mut total, mut roofline) = (0.0, 0.0);
        for kind in &self.kinds {
            let mut work = 0.0;
            for chunk in chunks {
                let (flops, bytes) = kind.chunk(chunk);
                let length = f64::from(chunk.tokens + chunk.before);
                work += kind.prompt.work_seconds(kind.prompt_rates, flops, length, bytes);
                roofline += kind.core.layers
                    * (flops / kind.prompt_rates.peak).max(bytes / kind.prompt_rates.bandwidth);
            }
            // One launch holds all chunks.
            let launch = if chunks.is_empty() { 0.0 } else { kind.prompt.launch_us * 1e-6 };
            total += kind.core.layers * (work + launch) / self.parameters.prompt;
        }
        (total, roofline)
    }

    /// Bytes of state read and written by sequences of constant-state layers, as time.
    fn state_seconds(&self, sequences: f64, prompt_tokens: f64) -> f64 {
        self.shape
            .states
            .iter()
            .map(|s| {
                let traffic = 2.0 * sequences * s.state_bytes / (0.6 * self.rates.bandwidth);
                let scan = prompt_tokens * s.flops_per_token / (0.2 * self.rates.half);
                s.layers * (traffic + scan)
            })
            .sum()
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

    /// Prepares steps in which one lane of a replica with a single lane decodes `decoding` sequences.
    pub fn decode_run(&self, decoding: u32) -> DecodeRun {
        let p = &self.parameters;
        let mut kinds = [RunKind::default(); KINDS];
        for (slot, kind) in kinds.iter_mut().zip(&self.kinds) {
            let memory = kind.bytes_per_token / (self.rates.bandwidth * kind.decode.memory);
            let compute = kind.decode_flops / (self.rates.half * kind.decode.compute);
            let block = f64::from(decoding) * kind.blocks_per_sequence * kind.decode.block_ns * 1e-9;
            *slot = RunKind {
                layers: kind.core.layers / p.decode,
                launch: kind.decode.launch_us * 1e-6,
                block4: block.powi(4),
                per_token4: memory.powi(4) + compute.powi(4),
                index: kind.core.layers * kind.index_bytes / (0.5 * self.rates.bandwidth),
                roofline: kind.core.layers * kind.core.cache_elements as f64 * kind.kv_size
                    / self.rates.bandwidth,
            };
        }
        let states =
            if self.shape.states.is_empty() { 0.0 } else { self.state_seconds(f64::from(decoding), 0.0) };
        let layers = f64::from(self.shape.layers);
        let eager = decoding > p.graph_tokens;
        DecodeRun {
            kinds,
            used: self.kinds.len(),
            base: self.local.at(decoding)
                + self.head.at(decoding)
                + self.shared.at(decoding)
                + states
                + layers * p.layer_us * 1e-6
                + self.hops(decoding),
            base_roofline: self.roofline_local.at(decoding)
                + self.roofline_head.at(decoding)
                + self.roofline_shared.at(decoding),
            floor: if eager { layers * p.eager_layer_us * 1e-6 } else { 0.0 },
            host: (p.step_us + p.sequence_us * f64::from(decoding)) * 1e-6,
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

impl Kind {
    /// Flops (causal part, window applied) and bytes of one chunk in one layer.
    fn chunk(&self, chunk: &PromptChunk) -> (f64, f64) {
        let (n, before) = (f64::from(chunk.tokens), f64::from(chunk.before));
        let pairs = match self.core.reads_at_most {
            None => n * (before + (n + 1.0) / 2.0),
            Some(w) => {
                let w = w as f64;
                // Tokens at positions below the window see all before them, later ones the window.
                let start = before.min(w);
                let end = (before + n).min(w);
                let rising = (end - start) * (start + end + 1.0) / 2.0;
                rising + (n - (end - start)) * w
            }
        };
        let width = (self.core.head_dim + self.core.head_dim_v) as f64;
        let q = self.core.q_heads as f64;
        let flops = 2.0 * pairs * q * width;
        let keys = match self.core.reads_at_most {
            Some(w) => (before + n).min(w as f64 + n),
            None => before + n,
        };
        let bytes = 2.0 * n * q * width + keys * self.core.cache_elements as f64 * self.kv_size;
        (flops, bytes)
    }
}

/// What tables are built from.
struct Pricing<'a> {
    costs: &'a CostModel,
    lookup: &'a Lookup,
    library: &'a str,
    rates: Datasheet,
    p: EngineParameters,
    four_bit: Option<f64>,
    eight_bit: Option<f64>,
    d: Deployment,
    tp: GroupShape,
    all: GroupShape,
}

impl Pricing<'_> {
    fn kind(&self, core: &AttentionCore, own: &mut bool, sigma: &mut f64) -> Kind {
        let kv = self.d.quantization.kv;
        let kv_size = kv.size();
        let decode = self.lookup.decode(self.library, kv.bits(), core.latent);
        // Prompt attention runs in eight bits where cache and matrices both are, as the engines do on such parts.
        let eight = kv.bits() <= 8 && self.eight_bit.is_some() && self.library == "trtllm" && !core.latent;
        let prompt = self.lookup.prompt(self.library, eight, core.latent);
        *own = *own && decode.own && prompt.own;
        *sigma = sigma.max(decode.law.sigma).max(prompt.law.sigma);
        let peak = if eight { self.eight_bit.unwrap_or(self.rates.half) } else { self.rates.half };
        let group = if core.latent { 1.0 } else { core.q_heads as f64 / core.kv_heads.max(1) as f64 };
        let rereads = group.powf(1.0 - self.p.kv_reuse);
        let decode_flops = if core.latent {
            2.0 * core.q_heads as f64 * (core.cache_elements + core.cache_elements) as f64
        } else {
            2.0 * core.q_heads as f64 * (core.head_dim + core.head_dim_v) as f64
        };
        Kind {
            core: *core,
            decode: decode.law,
            prompt: prompt.law,
            prompt_rates: Datasheet { peak, ..self.rates },
            bytes_per_token: core.cache_elements as f64 * kv_size * rereads,
            index_bytes: core.indexer_elements as f64,
            decode_flops,
            blocks_per_sequence: if core.latent {
                (core.q_heads as f64 / 64.0).ceil()
            } else {
                core.kv_heads as f64
            },
            kv_size,
        }
    }

    fn peak(&self, format: NumberFormat) -> f64 {
        let eight = self.eight_bit.unwrap_or(self.rates.half);
        match format {
            NumberFormat::Bf16 | NumberFormat::W8a16 | NumberFormat::W4a16 => self.rates.half,
            NumberFormat::Fp8 | NumberFormat::Fp8Block | NumberFormat::Int8 | NumberFormat::W4a8 => eight,
            NumberFormat::Nvfp4 => self.four_bit.unwrap_or(self.rates.half),
            NumberFormat::Mxfp4 => {
                if self.four_bit.is_some() {
                    eight
                } else {
                    self.rates.half
                }
            }
            NumberFormat::Q4km => eight,
        }
    }

    fn linear(&self, l: &Linear, tokens: f64) -> f64 {
        let dense = |dtype, scaling| {
            self.costs.gemm(tokens as u64, l.n, l.k, 1, dtype, scaling, 2.0, GemmRole::Forward).time.0
        };
        let seconds = match l.format {
            NumberFormat::Bf16 => dense(DType::Bf16, Scaling::None),
            NumberFormat::Fp8 if self.eight_bit.is_some() => dense(DType::Fp8, Scaling::Tensor),
            NumberFormat::Fp8Block if self.eight_bit.is_some() => dense(DType::Fp8, Scaling::Block128),
            NumberFormat::Nvfp4 if self.four_bit.is_some() => dense(DType::Fp4, Scaling::MicroBlock),
            NumberFormat::Int8 => dense(DType::Int8, Scaling::Tensor),
            // Weight-only: fewer bytes, 16-bit arithmetic.
            format => {
                let found = self.lookup.weight_only(match format {
                    NumberFormat::W8a16 | NumberFormat::Fp8 | NumberFormat::Fp8Block => "w8a16",
                    _ => "w4a16",
                });
                let weights = (l.n * l.k) as f64 * format.weight_bits() / 8.0;
                let bytes = weights + 2.0 * tokens * (l.n + l.k) as f64;
                let flops = 2.0 * tokens * (l.n * l.k) as f64;
                found.law.seconds(self.rates, flops, bytes)
            }
        };
        seconds / self.p.gemm
    }

    fn local(&self, shape: &ServingShape, tokens: f64) -> f64 {
        let linears: f64 = shape
            .linears
            .iter()
            .filter(|l| !l.last_token_only)
            .map(|l| l.layers * self.linear(l, tokens))
            .sum();
        let kernels = shape.small_kernels.round().max(1.0);
        let bytes = shape.small_bytes_per_token * tokens;
        let small = self.costs.memory(MemoryClass::Norm, bytes as u64, kernels as u32, 0.0).time.0;
        linears + small + shape.all_reduces * self.all_reduce(tokens, shape.hidden)
    }

    fn head(&self, shape: &ServingShape, tokens: f64) -> f64 {
        let linear: f64 =
            shape.linears.iter().filter(|l| l.last_token_only).map(|l| self.linear(l, tokens)).sum();
        // Logits are gathered over the ranks and sampled.
        let logits: f64 =
            shape.linears.iter().filter(|l| l.last_token_only).map(|l| (l.n * 2) as f64 * tokens).sum();
        let gather = if self.d.tp > 1 {
            let bytes = logits * f64::from(self.d.tp);
            self.costs.collective(CollectiveKind::AllGather, bytes as u64, &self.tp).time.0
        } else {
            0.0
        };
        let sampling = 4.0 * logits * f64::from(self.d.tp) / (0.5 * self.rates.bandwidth);
        linear + gather + sampling
    }

    fn all_reduce(&self, tokens: f64, hidden: u64) -> f64 {
        let bytes = 2.0 * tokens * hidden as f64;
        let nccl = || self.costs.collective(CollectiveKind::AllReduce, bytes as u64, &self.tp).time.0;
        let curve = |library: &str| -> Option<(&'static ReduceCurve, bool)> {
            if self.tp.is_local() { self.lookup.all_reduce(library, self.d.tp) } else { None }
        };
        let seconds = match curve(self.library) {
            Some((curve, own)) => {
                let custom = curve.seconds(bytes);
                match (own, curve_of(&curve_nccl(self, self.d.tp), bytes)) {
                    // Engines switch to the library's own all-reduce where it is faster.
                    (true, Some(other)) => custom.min(other),
                    _ => custom,
                }
            }
            None => nccl(),
        };
        seconds / self.p.all_reduce
    }

    /// Experts of one rank and the exchange of their inputs, for the tokens of all attention copies.
    fn shared(&self, shape: &ServingShape, tokens: f64) -> f64 {
        let mut total = 0.0;
        for e in &shape.experts {
            let law = self.moe_law(e.format, tokens);
            total += e.layers * law.0.seconds(law.1, &self.call(e, tokens)) / self.p.moe;
        }
        if shape.exchanges > 0.0 {
            // Gathered to every rank before, reduced and scattered after (the default of the engines on one node).
            let bytes = (2.0 * tokens * shape.hidden as f64) as u64;
            let gather = self.costs.collective(CollectiveKind::AllGather, bytes, &self.all).time.0;
            let scatter = self.costs.collective(CollectiveKind::ReduceScatter, bytes, &self.all).time.0;
            total += shape.exchanges * (gather + scatter) / self.p.all_reduce;
        }
        total
    }

    fn call(&self, e: &Experts, tokens: f64) -> MoeCall {
        let draws = tokens * e.top_k as f64;
        let spread = e.local as f64 / e.experts.max(1) as f64;
        let imbalance = if self.d.ep > 1 { self.p.expert_imbalance } else { 1.0 };
        let touched = MoeCall::touched(e.local as f64, e.experts as f64, draws);
        MoeCall {
            rows: (draws * spread * imbalance).max(1.0),
            touched: (touched * imbalance).min(e.local as f64).max(1.0f64.min(draws)),
            parameters: (e.matrices * e.hidden * e.inner) as f64,
            weight_bytes: e.format.weight_bits() / 8.0,
            hidden: e.hidden as f64,
        }
    }

    fn moe_law(&self, format: NumberFormat, tokens: f64) -> (MoeLaw, Datasheet) {
        let formats: &[&str] = match format {
            NumberFormat::Bf16 => &["bf16"],
            NumberFormat::Fp8 | NumberFormat::Int8 => &["fp8", "fp8-block", "bf16"],
            NumberFormat::Fp8Block => &["fp8-block", "fp8", "bf16"],
            NumberFormat::Nvfp4 if tokens <= 64.0 => &["nvfp4-low-latency", "nvfp4", "fp8", "bf16"],
            NumberFormat::Nvfp4 => &["nvfp4", "fp8", "bf16"],
            NumberFormat::Mxfp4 => &["mxfp4", "nvfp4", "w4a16", "bf16"],
            _ => &["w4a16", "mxfp4", "bf16"],
        };
        let law = self.lookup.moe(self.library, formats).law;
        (law, Datasheet { peak: self.peak(format), ..self.rates })
    }

    /// Least time of the matrix products of one rank.
    fn roofline(&self, shape: &ServingShape, tokens: f64, head: bool) -> f64 {
        let one = |l: &Linear| {
            let flops = 2.0 * tokens * (l.n * l.k) as f64;
            let bytes = (l.n * l.k) as f64 * l.format.weight_bits() / 8.0;
            l.layers * (flops / self.peak(l.format)).max(bytes / self.rates.bandwidth)
        };
        shape.linears.iter().filter(|l| l.last_token_only == head).map(one).sum()
    }

    fn roofline_experts(&self, shape: &ServingShape, tokens: f64) -> f64 {
        let one = |e: &Experts| {
            let share = e.local as f64 / e.experts.max(1) as f64;
            let rows = tokens * e.top_k as f64 * share;
            let parameters = (e.matrices * e.hidden * e.inner) as f64;
            // A token may meet the same experts as all others: only its own top-k must be read.
            let least = (e.top_k as f64 * share).min(e.local as f64);
            let bytes = least * parameters * e.format.weight_bits() / 8.0;
            let flops = 2.0 * rows * parameters;
            e.layers * (flops / self.peak(e.format)).max(bytes / self.rates.bandwidth)
        };
        shape.experts.iter().map(one).sum()
    }
}

fn curve_nccl(pricing: &Pricing<'_>, ranks: u32) -> Option<&'static ReduceCurve> {
    pricing.lookup.all_reduce("nccl", ranks).map(|c| c.0).filter(|c| c.library == "nccl")
}

fn curve_of(curve: &Option<&'static ReduceCurve>, bytes: f64) -> Option<f64> {
    curve.map(|c| c.seconds(bytes))
}
