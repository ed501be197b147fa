//! Bound, step time and memory of a plan from shared costs: the evaluations of a search.
//!
//! [`StepModel::step_bound`] is L0, [`StepModel::step_seconds`] the value that [`StepModel::predict`] gives at L1
//! (tested to be the same bits), [`StepModel::peak_bytes`] the closed-form memory.

use super::SimError;
use super::chunk::{ChunkTimes, chunk_times};
use super::energy::step_energy;
use super::mesh::{MeshCosts, Prepared, StageCosts};
use super::model::{StepModel, is_split};
use super::predict::{costs, mean_stage};
use super::program::spec;
use crate::pipeline::PipelineSim;
use psim_hardware::Bytes;
use psim_models::memory;
use psim_models::plan::Plan;

impl StepModel<'_> {
    /// L0: no schedule of the plan's passes is faster.
    ///
    /// Every stage waits for the first micro-batch to come down, does all its work, and the gradient of its last
    /// micro-batch travels back up; its gradients are then reduced. Weight gradients that a schedule splits off may
    /// run while that gradient travels.
    pub fn step_bound(&self, shared: &StageCosts, mesh: &MeshCosts, plan: &Plan) -> f64 {
        let classes = self.class_times(shared, mesh, plan);
        let p2p = self.boundary_seconds(plan, &shared.shape, &mesh.groups);
        let stages = plan.pp.max(1) as usize;
        let m = f64::from(plan.micro_batches().max(1));
        let blocked = if self.stack.overlap.p2p { 0.0 } else { p2p };
        let last = mesh.class_of.len().saturating_sub(1);
        // Per stage: passes that the gradient chain waits for, weight passes, and passes that a reduction may hide
        // behind.
        let mut busy = [(0.0f64, 0.0f64, 0.0f64); MOST_STAGES];
        if stages > MOST_STAGES {
            return 0.0;
        }
        for (c, (&class, &stage)) in mesh.class_of.iter().zip(&mesh.stage_of).enumerate() {
            let times = &classes[usize::from(class)];
            let b = &mut busy[stage as usize];
            let next_elsewhere = c < last && mesh.stage_of[c + 1] != stage;
            let previous_elsewhere = c > 0 && mesh.stage_of[c - 1] != stage;
            let sends = f64::from(u8::from(next_elsewhere)) + f64::from(u8::from(previous_elsewhere));
            b.0 += times.forward.floor + times.backward.floor + blocked * sends;
            b.1 += times.weight.floor;
            b.2 += times.backward.floor + times.weight.floor;
        }
        // Parameters that a stage must have gathered before its first layer; the host's part of a pass needs none.
        let head = |stage: usize| {
            let r = &mesh.reductions[stage];
            if self.stack.overlap.param_gather {
                (r.gather / r.buckets - self.stack.host.per_micro_batch.0 / 2.0).max(0.0)
            } else {
                r.gather
            }
        };
        // Where stages run on into the next step, none waits for another at the ends of the step.
        let runs_on = is_split(plan.schedule);
        let (mut down, mut up) = (0.0f64, 0.0f64);
        let mut bound = 0.0f64;
        for (stage, &(chain, weight, window)) in busy[..stages].iter().enumerate() {
            let reduction = &mesh.reductions[stage];
            let start = if runs_on { head(stage) } else { f64::max(head(stage), head(0) + down) };
            // The last send of a stage delays nobody but itself.
            let own = start + m * (chain + weight) - blocked;
            // Gradients leave during the last backward pass of their chunk at the earliest, the last bucket behind it.
            let exposed = if !self.stack.overlap.grad_reduce {
                reduction.reduce
            } else {
                let bucket = reduction.reduce / reduction.buckets;
                if plan.vpp > 1 { bucket } else { f64::max(bucket, reduction.reduce - window) }
            };
            bound = bound.max(own + exposed);
            if !runs_on {
                bound = bound.max(start + m * chain - blocked + up);
            }
            let first = &classes[usize::from(mesh.class_of[stage])];
            down += first.forward.floor + p2p;
            up += first.backward.floor + p2p;
        }
        // Rounding to picoseconds of every task may make the simulated time shorter than the sum of floats.
        let tasks =
            2.0 * m * mesh.class_of.len() as f64 + 64.0 * (stages as f64 + mesh.layout_layers() as f64);
        let tail = mesh.tied + mesh.optimizer + self.stack.host.per_step.0;
        ((bound - tasks * 1e-12 + tail) * (1.0 + self.straggler(plan)) * (1.0 - 1e-9)).max(0.0)
    }

    /// The step time that [`StepModel::predict`] gives at L1, in seconds. `sim` keeps its buffers between calls.
    ///
    /// # Errors
    /// When the schedule cannot run.
    pub fn step_seconds(
        &self,
        shared: &StageCosts,
        mesh: &MeshCosts,
        plan: &Plan,
        sim: &mut PipelineSim,
    ) -> Result<f64, SimError> {
        let prepared = self.prepare(plan, shared, mesh);
        let costs = costs(&prepared, self.stack.overlap.p2p);
        let result = sim.run(&spec(plan), &costs).map_err(|e| SimError::Schedule(e.to_string()))?;
        let (after, _, _) = self.after_pipeline(plan, &prepared, &result);
        let unscaled = after + mesh.tied + mesh.optimizer + self.stack.host.per_step.0;
        Ok(unscaled * (1.0 + self.straggler(plan)))
    }

    /// Joules of one step that takes `step` seconds, facility overhead included. Never falls when `step` grows.
    pub fn step_joules(&self, shared: &StageCosts, mesh: &MeshCosts, plan: &Plan, step: f64) -> f64 {
        let prepared = self.prepare(plan, shared, mesh);
        let (mean, _) = mean_stage(plan, &prepared);
        step_energy(self.cluster, &self.cost, &mean, step, plan.world())
    }

    /// Peak memory of the fullest stage in closed form, equal to [`StepModel::peak_memory`].
    pub fn peak_bytes(&self, shared: &StageCosts, mesh: &MeshCosts, plan: &Plan) -> Bytes {
        let mut shape = shared.shape.clone();
        shape.groups = mesh.groups;
        // Where the stages in between differ, or the schedule fills late stages, no stage can be left out.
        mesh.heavy_stages
            .iter()
            .map(|&s| memory::stage_ledger(self.model, plan, &mesh.layout, &shape, self.stack, s).total())
            .max()
            .unwrap_or_default()
    }

    /// Times of one micro-batch in every distinct kind of chunk.
    fn class_times(&self, shared: &StageCosts, mesh: &MeshCosts, plan: &Plan) -> Vec<ChunkTimes> {
        mesh.classes
            .iter()
            .map(|c| chunk_times(c, &shared.layers, plan, self.stack, mesh.gatherings.as_ref(), mesh.split))
            .collect()
    }

    /// Joins what the mesh and the micro-batch share.
    pub(super) fn prepare<'m>(&self, plan: &Plan, shared: &StageCosts, mesh: &'m MeshCosts) -> Prepared<'m> {
        let classes = self.class_times(shared, mesh, plan);
        let chunks = mesh.class_of.iter().map(|&c| classes[usize::from(c)]).collect();
        let mut shape = shared.shape.clone();
        shape.groups = mesh.groups;
        let p2p = self.boundary_seconds(plan, &shape, &mesh.groups);
        Prepared { shape, mesh, chunks, p2p }
    }
}

/// Stages that the bound keeps on the stack; deeper pipelines are not pruned.
const MOST_STAGES: usize = 256;
