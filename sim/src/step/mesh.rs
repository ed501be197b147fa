//! What plans with the same mesh share, whatever their micro-batch and recomputation: layout, reductions, optimizer.
//!
//! A search evaluates thousands of plans on a few hundred meshes; everything that depends on the mesh alone is priced
//! once. The single prediction goes the same way, so that there is one set of formulas.

use super::chunk::{ChunkTimes, Gatherings};
use super::data_parallel::{Reduction, reduction, tied_reduction};
use super::model::{StepModel, is_split};
use super::optimizer::optimizer_step;
use super::{LayerTimes, SimError};
use psim_hardware::GroupShape;
use psim_models::layout::{Chunk, Layout};
use psim_models::lowering::{Groups, Shape};
use psim_models::memory::{self, RankParameters};
use psim_models::plan::{Plan, Sharding};

/// Costs of a mesh: shared by plans that agree in tp, pp, dp, cp, ep, etp, vpp, schedule, sharding, shard group,
/// precision and layers per stage.
#[derive(Debug, Clone)]
pub struct MeshCosts {
    pub(super) groups: Groups,
    pub(super) layout: Layout,
    /// One chunk of every distinct kind.
    pub(super) classes: Vec<Chunk>,
    /// Kind of every chunk.
    pub(super) class_of: Vec<u16>,
    /// Stage of every chunk.
    pub(super) stage_of: Vec<u32>,
    /// Stages that may hold the most memory: all but those equal to an earlier stage, which holds at least as many
    /// micro-batches.
    pub(super) heavy_stages: Vec<u32>,
    pub(super) reductions: Vec<Reduction>,
    /// Summing the gradients of a tied embedding over the first and the last stage.
    pub(super) tied: f64,
    pub(super) optimizer: f64,
    pub(super) gatherings: Option<Gatherings>,
    pub(super) split: bool,
}

impl MeshCosts {
    /// Layers of the model.
    pub(super) fn layout_layers(&self) -> u32 {
        self.layout.chunks.iter().map(Chunk::count).sum()
    }
}

/// Costs of one micro-batch: shared by plans that agree in tp, cp, context exchange, ep, etp, micro-batch, sequence
/// parallelism, precision and in whether the schedule splits the backward pass.
#[derive(Debug, Clone)]
pub struct StageCosts {
    pub(super) shape: Shape,
    pub(super) layers: LayerTimes,
}

impl StageCosts {
    /// Times per kind of layer.
    pub fn layers(&self) -> &LayerTimes {
        &self.layers
    }

    /// Shape of one rank's work; its communicators are those of the plan it was made for.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
}

/// A plan with everything that follows from it before the pipeline runs.
pub(super) struct Prepared<'m> {
    pub(super) shape: Shape,
    pub(super) mesh: &'m MeshCosts,
    pub(super) chunks: Vec<ChunkTimes>,
    pub(super) p2p: f64,
}

impl StepModel<'_> {
    /// Prices every kind of layer for the plans that share this plan's micro-batch shape.
    pub fn stage_costs(&self, plan: &Plan) -> StageCosts {
        StageCosts { shape: self.shape(plan), layers: self.layer_times(plan) }
    }

    /// Prices what the plans on this plan's mesh share.
    ///
    /// # Errors
    /// When the layers cannot be laid out.
    pub fn mesh_costs(&self, plan: &Plan) -> Result<MeshCosts, SimError> {
        let shape = self.shape(plan);
        let layout = Layout::new(self.model, plan)?;
        // Under pipeline parallelism FSDP keeps the gathered parameters between micro-batches.
        let held = plan.pp > 1;
        let gatherings = (plan.sharding == Sharding::Parameters && !held && !self.stack.without.dp)
            .then(|| self.gatherings(plan, &shape));
        let mut classes: Vec<Chunk> = Vec::new();
        let class_of: Vec<u16> = layout
            .chunks
            .iter()
            .map(|chunk| {
                let known = classes.iter().position(|c| c == chunk);
                known.unwrap_or_else(|| {
                    classes.push(chunk.clone());
                    classes.len() - 1
                }) as u16
            })
            .collect();
        let stage_of: Vec<u32> = (0..layout.chunks.len()).map(|c| layout.stage_of(c) as u32).collect();
        let stages = plan.pp.max(1) as usize;
        let mut contents: Vec<Vec<u16>> = vec![Vec::new(); stages];
        for (class, stage) in class_of.iter().zip(&stage_of) {
            contents[*stage as usize].push(*class);
        }
        let mut reductions: Vec<Reduction> = Vec::with_capacity(stages);
        let mut heavy_stages = Vec::new();
        let mut optimizer = 0.0f64;
        let replicas = self.replica_group(plan, &shape);
        let world = GroupShape::place(self.cluster, self.node, plan.world(), 1);
        for stage in 0..stages {
            if let Some(twin) = contents[..stage].iter().position(|c| *c == contents[stage]) {
                let same = reductions[twin];
                reductions.push(same);
                continue;
            }
            heavy_stages.push(stage as u32);
            let parameters: RankParameters = memory::rank_parameters(self.model, &layout, stage, &shape);
            reductions.push(reduction(
                plan,
                &shape,
                self.stack,
                &self.cost,
                &parameters,
                held,
                replicas.as_ref(),
            ));
            optimizer =
                optimizer.max(optimizer_step(plan, &shape, self.stack, &self.cost, &parameters, &world));
        }
        if self.stack.without.optimizer {
            optimizer = 0.0;
        }
        let apart = plan.tp.max(1) * plan.cp.max(1) * plan.dp.max(1) * plan.pp.saturating_sub(1).max(1);
        let ends = GroupShape::place(self.cluster, self.node, 2, apart);
        let mut tied = tied_reduction(self.model, plan, &shape, self.stack, &self.cost, &ends);
        if self.stack.without.dp {
            tied = 0.0;
            reductions.fill(Reduction { buckets: 1.0, ..Reduction::default() });
        }
        let (groups, split) = (shape.groups, is_split(plan.schedule));
        Ok(MeshCosts {
            groups,
            layout,
            classes,
            class_of,
            stage_of,
            heavy_stages,
            reductions,
            tied,
            optimizer,
            gatherings,
            split,
        })
    }
}
