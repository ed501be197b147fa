//! What a step is put together from: tables of one deployment that hardly depend on an engine's numbers.

use super::attention::Kind;
use super::pricing::{Pricing, peak};
use super::sparse::Part;
use super::table::Table;
use super::{KINDS, StepCostError};
use crate::serving::engine::{EngineParameters, EngineProfile};
use crate::serving::kernels::Datasheet;
use crate::serving::tables::Lookup;
use crate::{CostModel, ProfileLibrary, stacks};
use psim_hardware::{Accelerator, Cluster, DType, GroupShape, Node};
use psim_models::Model;
use psim_models::serving::lower::{AttentionCore, ServingShape};
use psim_models::serving::{Deployment, NumberFormat, lower};

/// Tables of one deployment before an engine's efficiencies.
#[derive(Debug, Clone)]
pub struct StepPieces {
    pub(super) shape: ServingShape,
    pub(super) kinds: Vec<Kind>,
    pub(super) rates: Datasheet,
    /// Matrix rates of four and eight bits, flop/s, where the part has them.
    narrow: (Option<f64>, Option<f64>),
    pub(super) products: Table,
    /// Dense products at the peak rate, arithmetic alone; the output layer left out.
    pub(super) arithmetic: Table,
    /// The same of fused experts.
    pub(super) expert_arithmetic: Table,
    /// What memory-bound kernels move.
    pub(super) small: Table,
    /// Their launches.
    pub(super) launches: Table,
    pub(super) reduces: Table,
    /// Casts of activations to the formats of narrow products.
    pub(super) casts: Table,
    pub(super) experts: Table,
    pub(super) exchanges: Table,
    pub(super) head: Table,
    pub(super) sampling: Table,
    pub(super) roofline_local: Table,
    pub(super) roofline_shared: Table,
    pub(super) roofline_head: Table,
    /// Kernels of a step, casts left out.
    pub(super) kernels: f64,
    /// Kernels that cast activations.
    pub(super) cast_kernels: f64,
    /// Collectives of a step.
    pub(super) collectives: f64,
    pub(super) lanes: u32,
    pub(super) stages: u32,
    pub(super) stage_hop: (f64, f64),
    /// Latency (seconds) and rate (bytes a second) of one rank's scale-up links.
    pub(super) link: (f64, f64),
    pub(super) cache_bytes: f64,
    pub(super) own_laws: bool,
    pub(super) sigma: f64,
    /// Tokens of the batches that prompts run in.
    pub(super) micro_batch: Option<u32>,
    /// Every prompt token attends by itself through the kernel of decoding.
    pub(super) rows: bool,
    /// `kv_reuse`, `expert_imbalance` and `expert_rows` that they were made with.
    shaped_by: [f64; 3],
}

/// Engine numbers that shape the tables themselves.
fn shaping(p: &EngineParameters) -> [f64; 3] {
    [p.kv_reuse, p.expert_imbalance, p.expert_rows]
}

/// Prices of the parts of a step, seconds.
#[derive(Clone, Copy)]
pub struct PricedStep<'a> {
    /// Everything that follows the tokens of the step, attention excepted, over all layers.
    pub tokens: &'a dyn Fn(f64) -> f64,
    /// Everything that follows the sequences that get a token.
    pub ends: &'a dyn Fn(f64) -> f64,
    /// Attention of one layer in which so many tokens, of prompts or decoding, read so many cached tokens each.
    pub attention: &'a dyn Fn(&AttentionCore, f64, f64) -> f64,
    /// Bytes of an element of the cache.
    pub kv_size: f64,
    /// Tokens that the cache holds.
    pub cache_tokens: f64,
    /// Standard deviation of the logarithmic error of the prices.
    pub sigma: f64,
}

impl StepPieces {
    /// Tables a deployment of a model on the nodes of a cluster under an engine.
    ///
    /// # Errors
    /// A deployment that does not fit the model; weights that do not fit the memory.
    pub fn new(
        model: &Model,
        deployment: &Deployment,
        cluster: &Cluster,
        node: &Node,
        engine: &EngineProfile,
        parameters: EngineParameters,
        library: &ProfileLibrary,
    ) -> Result<Self, StepCostError> {
        Self::of_shape(lower(model, deployment)?, cluster, node, engine, parameters, library)
    }

    /// The same for a shape that is a part of a model only.
    pub(super) fn of_shape(
        shape: ServingShape,
        cluster: &Cluster,
        node: &Node,
        engine: &EngineProfile,
        parameters: EngineParameters,
        library: &ProfileLibrary,
    ) -> Result<Self, StepCostError> {
        let deployment = &shape.deployment.clone();
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
            &mut stack.efficiency.permute,
        ] {
            *factor = 1.0;
        }
        // Engines run all experts in one kernel.
        stack.host.expert_launches = 0.0;
        let costs = CostModel::new(cluster, node, &stack, library);
        let half = accelerator.peak(DType::Bf16).or(accelerator.peak(DType::Fp16)).map_or(1e12, |f| f.0);
        let rates = Datasheet { half, peak: half, bandwidth: accelerator.memory_bandwidth.0 };
        let (four_bit, eight_bit) =
            (accelerator.peak(DType::Fp4).map(|f| f.0), accelerator.peak(DType::Fp8).map(|f| f.0));
        let pricing = Pricing {
            costs: &costs,
            lookup: &lookup,
            library: &engine.library,
            rates,
            p: parameters,
            four_bit,
            eight_bit,
            part: Part::new(accelerator, four_bit.is_some(), eight_bit),
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
        let kernels = shape.linears.iter().map(|l| l.layers).sum::<f64>()
            + shape.small_kernels
            + shape.attention.iter().map(|a| a.layers).sum::<f64>()
            + 2.0 * shape.experts.iter().map(|e| e.layers).sum::<f64>()
            + shape.all_reduces;
        Ok(Self {
            products: Table::new(|t| pricing.products(&shape, t)),
            arithmetic: Table::new(|t| pricing.arithmetic(&shape, t)),
            expert_arithmetic: Table::new(|t| pricing.expert_arithmetic(&shape, t)),
            small: Table::new(|t| pricing.small(&shape, t)),
            launches: Table::new(|_| pricing.small_launches(&shape)),
            reduces: Table::new(|t| shape.all_reduces * pricing.all_reduce(t, shape.hidden)),
            casts: Table::new(|t| pricing.casts(&shape, t).1),
            cast_kernels: pricing.casts(&shape, 1.0).0,
            collectives: shape.all_reduces + 2.0 * shape.exchanges,
            experts: Table::new(|t| pricing.experts(&shape, t)),
            exchanges: Table::new(|t| pricing.exchange(&shape, t)),
            head: Table::new(|t| pricing.head(&shape, t)),
            sampling: Table::new(|t| pricing.sampling(&shape, t)),
            kernels,
            lanes: deployment.lanes(),
            stages: deployment.pp,
            stage_hop: hop,
            link: (node.scale_up.latency.0 + 10e-6, link),
            shape,
            kinds,
            rates,
            narrow: (pricing.four_bit, pricing.eight_bit),
            roofline_local,
            roofline_head,
            roofline_shared,
            cache_bytes,
            own_laws,
            sigma,
            micro_batch: engine.prompt_micro_batch.filter(|m| *m > 0),
            rows: false,
            shaped_by: shaping(&parameters),
        })
    }

    /// Tables steps whose parts somebody else prices: an engine with kernels of its own, measured on its machine.
    ///
    /// # Errors
    /// A deployment that does not fit the model; more kinds of attention than are tracked.
    pub fn priced(
        model: &Model,
        deployment: &Deployment,
        accelerator: &Accelerator,
        step: &PricedStep<'_>,
    ) -> Result<Self, StepCostError> {
        let shape = lower(model, deployment)?;
        if shape.attention.len() > KINDS {
            return Err(StepCostError::Kinds(shape.attention.len()));
        }
        let peak = accelerator.peak.values().map(|p| p.0).fold(1.0, f64::max);
        let rates = Datasheet { half: peak, peak, bandwidth: accelerator.memory_bandwidth.0 };
        let price =
            |core| Kind::rows(core, rates, step.kv_size, |rows, each| (step.attention)(core, rows, each));
        let nothing = || Table::new(|_| 0.0);
        Ok(Self {
            kinds: shape.attention.iter().map(price).collect(),
            rates,
            narrow: (None, None),
            products: Table::new(step.tokens),
            head: Table::new(step.ends),
            arithmetic: nothing(),
            expert_arithmetic: nothing(),
            small: nothing(),
            launches: nothing(),
            reduces: nothing(),
            casts: nothing(),
            experts: nothing(),
            exchanges: nothing(),
            sampling: nothing(),
            // The prices are at least their own rooflines.
            roofline_local: nothing(),
            roofline_shared: nothing(),
            roofline_head: nothing(),
            kernels: 0.0,
            cast_kernels: 0.0,
            collectives: 0.0,
            lanes: deployment.lanes(),
            stages: deployment.pp,
            stage_hop: (0.0, 0.0),
            link: (0.0, accelerator.memory_bandwidth.0),
            cache_bytes: step.cache_tokens * shape.kv_bytes_per_token,
            shape,
            own_laws: true,
            sigma: step.sigma,
            micro_batch: None,
            rows: true,
            shaped_by: shaping(&EngineParameters::default()),
        })
    }

    /// Matrix rate of a format, flop/s.
    pub(super) fn peak(&self, format: NumberFormat) -> f64 {
        peak(format, self.rates.half, self.narrow)
    }

    /// Other numbers may be put on these tables: those that shape the tables are the same.
    pub fn fits(&self, parameters: &EngineParameters) -> bool {
        self.shaped_by == shaping(parameters)
    }
}
