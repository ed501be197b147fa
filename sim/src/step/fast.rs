//! Bound, step time and memory of a plan from shared costs: the evaluations of a search.
//!
//! [`StepModel::step_bound`] is L0, [`StepModel::step_seconds`] the value that [`StepModel::predict`] gives at L1
//! (tested to be the same bits), [`StepModel::peak_bytes`] the closed-form memory.

use super::SimError;
use super::chunk::{ChunkTimes, chunk_times};
use super::data_parallel::{exposed_gather, exposed_reduction};
use super::energy::step_energy;
use super::mesh::{MeshCosts, StageCosts};
use super::predict::{Prepared, StepModel, costs, mean_stage};
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
        // Per stage: passes that the gradient chain waits for, weight passes, and forward time for hiding gathers.
        let mut busy = [(0.0f64, 0.0f64, 0.0f64, 0.0f64); MOST_STAGES];
        if stages > MOST_STAGES {
            return 0.0;
        }
        for (c, (&class, &stage)) in mesh.class_of.iter().zip(&mesh.stage_of).enumerate() {
            let times = &classes[usize::from(class)];
            let b = &mut busy[stage as usize];
            let next_elsewhere = c < last && mesh.stage_of[c + 1] != stage;
            let previous_elsewhere = c > 0 && mesh.stage_of[c - 1] != stage;
            let sends = f64::from(u8::from(next_elsewhere)) + f64::from(u8::from(previous_elsewhere));
            b.0 += times.forward.time + times.backward.time + blocked * sends;
            b.1 += times.weight.time;
            b.2 += times.forward.time;
            b.3 += times.backward.time + times.weight.time;
        }
        let (mut down, mut up) = (0.0f64, 0.0f64);
        let mut pipeline = 0.0f64;
        let mut reduced = 0.0f64;
        let mut gathered = 0.0f64;
        for (stage, &(chain, weight, forward, backward)) in busy[..stages].iter().enumerate() {
            let reduction = &mesh.reductions[stage];
            let (exposed, slowed) = exposed_reduction(reduction, backward, self.stack);
            // The last send of a stage delays nobody but itself.
            let own = down + m * (chain + weight) - blocked;
            pipeline = pipeline.max(own).max(down + m * chain - blocked + up);
            reduced = reduced.max(own + exposed + slowed);
            let (exposed, slowed) = exposed_gather(reduction, forward, self.stack);
            gathered = gathered.max(exposed + slowed);
            let first = &classes[usize::from(mesh.class_of[stage])];
            down += first.forward.time + p2p;
            up += first.backward.time + p2p;
        }
        // Rounding to picoseconds of every pass may make the simulated time shorter than the sum of floats.
        let passes = 2.0 * m * mesh.class_of.len() as f64 + 4.0 * stages as f64;
        let rounded = f64::max(pipeline, reduced) - passes * 1e-12;
        let tail = mesh.optimizer + self.stack.host.per_step.0;
        ((rounded + gathered + tail) * (1.0 + self.straggler(plan)) * (1.0 - 1e-12)).max(0.0)
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
        let (after, _, _) = self.after_pipeline(&prepared, &result);
        let unscaled = after + mesh.optimizer + self.stack.host.per_step.0;
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
