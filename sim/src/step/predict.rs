//! From a plan to a prediction.

use super::chunk::{ChunkTimes, Gathering, Gatherings};
use super::mesh::{Prepared, StageCosts};
use super::model::{Ranks, StepModel, is_split};
use super::program::{StepProgram, spec};
use super::{LayerTimes, Pass, SimError};
use crate::pipeline::{ChunkCost, PipelineCosts, PipelineResult, PipelineSim};
use crate::prediction::{Level, StepPrediction};
use psim_hardware::{DType, GroupShape, Seconds, Time};
use psim_models::layout::block_of;
use psim_models::lowering::{Groups, Shape};
use psim_models::operator::CollectiveKind;
use psim_models::plan::{Plan, Schedule, Sharding};

/// Largest size accepted for any degree or batch; beyond it is a typing error.
const ABSURD: u32 = 1 << 24;
/// Weights of a layer that are gathered one by one: queries, keys and values together, output, both of the network.
const LAYER_WEIGHTS: f64 = 4.0;

impl StepModel<'_> {
    /// Checks sizes that every depth relies on.
    ///
    /// # Errors
    /// The first rule that the plan breaks.
    pub fn check(&self, plan: &Plan) -> Result<(), SimError> {
        for (name, value) in plan.sizes() {
            if value == 0 {
                return Err(SimError::Zero { name });
            }
            if value > ABSURD {
                return Err(SimError::Absurd(format!(
                    "`{name}` = {value} is beyond anything buildable ({ABSURD})"
                )));
            }
        }
        let (tp, pp, dp, cp) = (plan.tp, plan.pp, plan.dp, plan.cp);
        let needed = [tp, pp, dp, cp].iter().fold(1u64, |a, &b| a.saturating_mul(u64::from(b)));
        let available = self.cluster.accelerators();
        if needed > u64::from(available) {
            return Err(SimError::TooManyRanks { tp, pp, dp, cp, needed, available });
        }
        let unit = u64::from(dp) * u64::from(plan.micro_batch);
        if !u64::from(plan.global_batch).is_multiple_of(unit) {
            let (global_batch, micro_batch) = (plan.global_batch, plan.micro_batch);
            return Err(SimError::Batch { global_batch, dp, micro_batch, unit });
        }
        let ranks = u64::from(tp) * u64::from(cp) * u64::from(dp);
        let unit = u64::from(plan.ep) * u64::from(plan.etp);
        if !ranks.is_multiple_of(unit) {
            return Err(SimError::ExpertMesh { ep: plan.ep, etp: plan.etp, unit, tp, cp, dp, ranks });
        }
        Ok(())
    }

    /// The shape of one rank's work under a plan.
    pub fn shape(&self, plan: &Plan) -> Shape {
        let mut groups = Groups::place(plan, self.cluster, self.node);
        // Groups of one rank exchange nothing; the sizes of the work stay those of the plan.
        let alone = GroupShape { ranks: 1, per_domain: 1, per_node: 1, stride: 1, level: 0 };
        let without = self.stack.without;
        for (out, group) in [
            (without.tp, &mut groups.tp),
            (without.cp, &mut groups.cp),
            (without.ep, &mut groups.ep),
            (without.ep, &mut groups.etp),
        ] {
            if out {
                *group = alone;
            }
        }
        Shape::new(plan, self.workload, self.stack, groups)
    }

    /// Prices every kind of layer. Plans that agree in tp, cp, ep, etp, micro-batch, sequence parallelism, context
    /// exchange, precision, dp (where it moves the expert group) and split schedule share the result.
    pub fn layer_times(&self, plan: &Plan) -> LayerTimes {
        let shape = self.shape(plan);
        LayerTimes::new(self.model, &shape, &self.cost, self.stack, self.peak(plan), is_split(plan.schedule))
    }

    /// Datasheet peak of the plan's GEMM format (bf16 or fp16 where the part lacks it).
    pub fn peak(&self, plan: &Plan) -> f64 {
        let accelerator = &self.node.accelerator;
        let peak = |d| accelerator.peak(d).map(|p| p.0);
        peak(plan.precision.gemm())
            .or_else(|| peak(DType::Bf16))
            .or_else(|| peak(DType::Fp16))
            .or_else(|| peak(DType::Fp32))
            .unwrap_or(1e12)
    }

    /// Mean peak of the parts that run the plan, flop/s: what utilisation is a share of.
    pub(super) fn mean_peak(&self, plan: &Plan) -> f64 {
        if !self.cluster.is_mixed() {
            return self.peak(plan);
        }
        let (mut left, mut sum) = (plan.world(), 0.0);
        for (index, group) in self.cluster.groups.iter().enumerate() {
            let ranks = left.min(group.count * group.node.accelerators);
            sum += f64::from(ranks) * self.on_part(index).peak(plan);
            left -= ranks;
        }
        sum / f64::from(plan.world() - left).max(1.0)
    }

    /// Seconds to send one micro-batch's activations to the next stage.
    pub(super) fn boundary_seconds(&self, plan: &Plan, shape: &Shape, groups: &Groups) -> f64 {
        if plan.pp <= 1 || self.stack.without.pp {
            return 0.0;
        }
        let tokens = shape.base.size() * (shape.tokens * self.model.hidden) as f64;
        // Every tensor-parallel rank sends its own part. Without sequence parallelism the receivers gather the parts
        // again inside the node (Narayanan et al. 2021, section 4.1).
        let part = (tokens / shape.tp as f64).ceil() as u64;
        // A V keeps two chunks going in opposite directions: their transfers leave in one batch, with one
        // synchronisation for both (fused communication of the zero-bubble runtime).
        let batched = if plan.schedule == Schedule::ZbV { 0.5 } else { 1.0 };
        let sync = if self.stack.overlap.p2p { 0.0 } else { batched * self.stack.host.p2p_sync.0 };
        let send = sync + self.cost.collective(CollectiveKind::SendRecv, part, &groups.pp).time.0;
        if shape.tp > 1 && !shape.sequence_parallel {
            send + self.cost.collective(CollectiveKind::AllGather, tokens.ceil() as u64, &groups.tp).time.0
        } else {
            send
        }
    }

    /// The replicas of a hybrid shard group.
    pub(super) fn replica_group(&self, plan: &Plan, shape: &Shape) -> Option<GroupShape> {
        let (all, shard) = (shape.groups.dp.ranks, shape.groups.shard.ranks);
        (plan.sharding == Sharding::Parameters && shard < all)
            .then(|| GroupShape::place(self.cluster, self.node, all / shard, plan.tp * shard))
    }

    /// Gather and scatter times of each kind of layer under FSDP.
    pub(super) fn gatherings(&self, plan: &Plan, shape: &Shape) -> Gatherings {
        let tp = shape.tp as f64;
        let base = shape.base.size();
        let wire = self.stack.states.gradient_wire;
        // fp8 primary weights travel as they are multiplied; narrower formats are made from them on arrival.
        let narrow = shape.gemm.size().clamp(1.0, base);
        let gathered = if self.stack.overlap.narrow_gather { narrow } else { base };
        let shard = shape.groups.shard;
        let expert_group = shape.groups.edp;
        let time = |kind, bytes: f64, group: &GroupShape| {
            if bytes <= 0.0 { 0.0 } else { self.cost.collective(kind, bytes.ceil() as u64, group).time.0 }
        };
        let slices = self.stack.host.per_slice.0 * f64::from(shard.ranks);
        let both = |dense: f64, expert: f64, weights: f64| Gathering {
            gather: time(CollectiveKind::AllGather, gathered * dense, &shard)
                + time(CollectiveKind::AllGather, gathered * expert, &expert_group)
                + weights * slices,
            scatter: time(CollectiveKind::ReduceScatter, wire * dense, &shard)
                + time(CollectiveKind::ReduceScatter, wire * expert, &expert_group)
                + weights * slices,
        };
        let block = |kind| {
            block_of(self.model, kind).map_or_else(Gathering::default, |b| {
                let p = b.parameters(self.model.hidden, self.model.norm);
                let split = p.dense_split();
                let dense = split.sharded as f64 / tp + split.replicated as f64;
                both(dense, p.experts as f64 / (shape.ep * shape.etp) as f64, LAYER_WEIGHTS)
            })
        };
        use psim_models::layout::LayerKind;
        let head = self.model.head_parameters() as f64 / tp;
        Gatherings {
            layers: (0..self.model.kinds.len()).map(|k| block(LayerKind::Decoder(k as u16))).collect(),
            encoder: block(LayerKind::Encoder),
            embedding: both(self.model.embedding_parameters() as f64 / tp, 0.0, 1.0),
            head: both(head, 0.0, if head > 0.0 { 1.0 } else { 0.0 }),
            again: plan.sharding == Sharding::Parameters,
        }
    }

    /// L0 bound of the step time, seconds: see [`StepModel::step_bound`].
    ///
    /// # Errors
    /// As [`StepModel::predict`].
    pub fn lower_bound(&self, plan: &Plan, layers: &LayerTimes) -> Result<f64, SimError> {
        let shared = StageCosts { shape: self.shape(plan), layers: layers.clone() };
        Ok(self.step_bound(&shared, &self.mesh_costs(plan)?, plan))
    }

    /// Relative growth from jitter: per doubling of the nodes taking part.
    pub(super) fn straggler(&self, plan: &Plan) -> f64 {
        let nodes = f64::from(plan.world()) / f64::from(self.node.accelerators.max(1));
        self.stack.efficiency.straggler * nodes.max(1.0).log2()
    }

    /// Predicts one step.
    ///
    /// # Errors
    /// [`SimError`] as described at [`super::predict_step`].
    pub fn predict(&self, plan: &Plan, level: Level, timeline: bool) -> Result<StepPrediction, SimError> {
        self.check(plan)?;
        if level == Level::L3 {
            return self.predict_ranks(plan, Ranks::default(), timeline);
        }
        let layers = self.layer_times(plan);
        self.predict_with(plan, &layers, level, timeline)
    }

    /// As [`StepModel::predict`] with layer times at hand (see [`StepModel::layer_times`]).
    ///
    /// # Errors
    /// As [`StepModel::predict`].
    pub fn predict_with(
        &self,
        plan: &Plan,
        layers: &LayerTimes,
        level: Level,
        timeline: bool,
    ) -> Result<StepPrediction, SimError> {
        if level == Level::L3 {
            return self.predict(plan, level, timeline);
        }
        self.predict_order(plan, layers, level, timeline, None)
    }

    /// Predicts one step that runs `program`, with the timeline.
    ///
    /// # Errors
    /// As [`StepModel::predict`].
    pub fn predict_program(
        &self,
        plan: &Plan,
        level: Level,
        program: &StepProgram,
    ) -> Result<StepPrediction, SimError> {
        self.check(plan)?;
        self.predict_order(plan, &self.layer_times(plan), level, true, Some(program))
    }

    fn predict_order(
        &self,
        plan: &Plan,
        layers: &LayerTimes,
        level: Level,
        timeline: bool,
        program: Option<&StepProgram>,
    ) -> Result<StepPrediction, SimError> {
        if level == Level::L3 {
            return Err(SimError::Level(level));
        }
        self.check(plan)?;
        let mesh = self.mesh_costs(plan)?;
        let shared = StageCosts { shape: self.shape(plan), layers: layers.clone() };
        let mut prepared = self.prepare(plan, &shared, &mesh);
        let deep = if level >= Level::L2 { Some(self.deepen(plan, &mut prepared)?) } else { None };
        if self.stack.without.imbalance {
            let mean = mean_chunk(&prepared);
            prepared.chunks.iter_mut().for_each(|chunk| *chunk = mean);
        }
        let prepared = prepared;
        let spec = spec(plan);
        let mut costs = costs(&prepared, self.stack.overlap.p2p);
        if level >= Level::L2 {
            costs.memory = self.chunk_memory(plan, &prepared);
        }
        let costs = costs;
        let mut sim = PipelineSim::new();
        let failed = |e: crate::pipeline::PipelineError| SimError::Schedule(e.to_string());
        let (result, timeline) = if let Some(StepProgram { spec, order }) = program {
            let (result, timeline) = sim.run_order_with_timeline(spec, &costs, order).map_err(failed)?;
            (result, Some(timeline))
        } else if timeline {
            let (result, timeline) = sim.run_with_timeline(&spec, &costs).map_err(failed)?;
            (result, Some(timeline))
        } else {
            (sim.run(&spec, &costs).map_err(failed)?, None)
        };
        let vocabulary = vocabulary_is_spread(plan);
        let result = if vocabulary {
            self.vocabulary_passes(plan, layers, &prepared).map_err(failed)?
        } else {
            result
        };
        let full = self.stack.without.bubble;
        let step = |result: &PipelineResult| {
            let busiest = || result.stages.iter().map(|stage| stage.busy).max().unwrap_or_default();
            if full { busiest() } else { result.step(plan.schedule) }.seconds().0
        };
        let makespan = step(&result);
        let without_p2p = if prepared.p2p > 0.0 {
            let free = PipelineCosts { p2p: Time::ZERO, ..costs.clone() };
            step(&sim.run(&spec, &free).map_err(failed)?)
        } else {
            makespan
        };
        let (mean, even) = mean_stage(plan, &prepared);
        let even_costs = PipelineCosts { p2p: Time::ZERO, chunks: even, ..costs.clone() };
        let balanced = step(&sim.run(&spec, &even_costs).map_err(failed)?);

        let (after, dp_exposed, contention) = match &deep {
            Some(deep) if !vocabulary && deep.has_events(&prepared) => {
                let events = self.events(plan, deep, &prepared, &costs, program, &mut sim)?;
                let pipeline = result.step(plan.schedule).seconds().0;
                // The events hold every pass that the pipeline's own run has timed: they end with it or later.
                let after = events.end - pipeline;
                let slowed = events.slowed.min(after.max(0.0));
                (events.end, after - slowed, slowed)
            }
            _ => self.after_pipeline(plan, &prepared, &result),
        };
        let after = if full { makespan + dp_exposed + contention } else { after };
        let mut breakdown = mean.parts.into_breakdown();
        breakdown.pp_exposed = Seconds((makespan - without_p2p).max(0.0));
        breakdown.imbalance = Seconds((without_p2p - balanced).max(0.0));
        let covered = mean.parts.total() + breakdown.pp_exposed.0 + breakdown.imbalance.0;
        breakdown.bubble = Seconds((makespan - covered).max(0.0));
        breakdown.dp_exposed += Seconds(dp_exposed + prepared.mesh.tied);
        breakdown.contention += Seconds(contention);
        breakdown.optimizer = Seconds(prepared.mesh.optimizer);
        breakdown.fixed = Seconds(self.stack.host.per_step.0);
        let unscaled = after + prepared.mesh.tied + prepared.mesh.optimizer + self.stack.host.per_step.0;
        breakdown.straggler = Seconds(unscaled * self.straggler(plan));
        // Rounding of clamped terms goes to the bubble so that the parts sum to the step.
        let value = unscaled * (1.0 + self.straggler(plan));
        breakdown.bubble += Seconds(value) - breakdown.total();
        self.report(plan, level, &prepared, &result, &mean, breakdown, value, timeline)
    }
}

/// Vocabulary passes run on every stage (they need one chunk per stage and fused backward passes).
pub(super) fn vocabulary_is_spread(plan: &Plan) -> bool {
    plan.vocabulary_parallel && plan.pp > 1 && plan.vpp == 1 && !is_split(plan.schedule)
}

fn chunk_cost(c: &ChunkTimes) -> ChunkCost {
    ChunkCost {
        forward: Time::from(Seconds(c.forward.time)),
        backward_input: Time::from(Seconds(c.backward.time)),
        backward_weight: Time::from(Seconds(c.weight.time)),
    }
}

pub(super) fn costs(prepared: &Prepared<'_>, p2p_overlap: bool) -> PipelineCosts {
    PipelineCosts {
        chunks: prepared.chunks.iter().map(chunk_cost).collect(),
        p2p: Time::from(Seconds(prepared.p2p)),
        p2p_overlap,
        ..PipelineCosts::default()
    }
}

/// Passes of a chunk that does the mean work.
fn mean_chunk(prepared: &Prepared<'_>) -> ChunkTimes {
    let share = 1.0 / prepared.chunks.len().max(1) as f64;
    let mut even = ChunkTimes::default();
    for c in &prepared.chunks {
        even.forward = even.forward.plus(&c.forward, share);
        even.backward = even.backward.plus(&c.backward, share);
        even.weight = even.weight.plus(&c.weight, share);
    }
    even
}

/// Work of the mean stage over the whole step, and chunk costs that spread all work evenly.
pub(super) fn mean_stage(plan: &Plan, prepared: &Prepared<'_>) -> (Pass, Vec<ChunkCost>) {
    let n = prepared.chunks.len().max(1);
    let even = mean_chunk(prepared);
    let per_stage = f64::from(plan.vpp) * f64::from(plan.micro_batches().max(1));
    let mean = Pass::default().plus(&even.total(), per_stage);
    (mean, vec![chunk_cost(&even); n])
}
