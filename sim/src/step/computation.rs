//! What a rank computes in a step, without what it communicates: the yardstick of one rank run alone.

use super::mesh::StageCosts;
use super::{Pass, SimError, StepModel};
use psim_models::Plan;

/// Seconds of computation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Computation {
    /// Per model chunk: one micro-batch forward, backward (or its input gradient), and separate weight gradient.
    pub chunks: Vec<[f64; 3]>,
    /// The optimizer step of the fullest stage.
    pub optimizer: f64,
}

/// A pass without exposed communication and without what communication beside it slows down.
fn alone(pass: &Pass) -> f64 {
    let p = &pass.parts;
    pass.time - p.tp - p.cp - p.ep - p.dp - p.contention
}

impl StepModel<'_> {
    /// Computation of a plan's passes.
    ///
    /// # Errors
    /// As [`StepModel::predict`].
    pub fn computation(&self, plan: &Plan) -> Result<Computation, SimError> {
        self.check(plan)?;
        let mesh = self.mesh_costs(plan)?;
        let shared = StageCosts { shape: self.shape(plan), layers: self.layer_times(plan) };
        let prepared = self.prepare(plan, &shared, &mesh);
        let chunks =
            prepared.chunks.iter().map(|c| [&c.forward, &c.backward, &c.weight].map(alone)).collect();
        Ok(Computation { chunks, optimizer: mesh.optimizer })
    }
}
