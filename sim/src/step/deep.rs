//! L2 of one plan: operator-level passes in place of the summed ones, and operator-level ends of the step.

use super::SimError;
use super::mesh::Prepared;
use super::model::StepModel;
use super::operators::{LayerWorks, Passes, Place, Unit, units};
use super::program::StepProgram;
use super::stages::{Events, Step, is_quiet, simulate};
use crate::pipeline::{PipelineCosts, PipelineSim};
use crate::stream::TaskClass;
use psim_hardware::GroupShape;
use psim_models::layout::block_of;
use psim_models::plan::Plan;

/// Works and layers of a plan's chunks, by class of chunk.
pub(super) struct Deep {
    works: LayerWorks,
    units: Vec<Vec<Unit>>,
    weights: Vec<Vec<f64>>,
}

fn class_of(group: &GroupShape) -> TaskClass {
    if group.is_local() { TaskClass::Local } else { TaskClass::Communication }
}

fn failed(error: impl std::fmt::Display) -> SimError {
    SimError::Schedule(error.to_string())
}

impl Deep {
    /// The ends of the step need events: something is reduced or gathered there, and not around every layer.
    pub(super) fn has_events(&self, prepared: &Prepared<'_>) -> bool {
        prepared.mesh.gatherings.is_none() && !is_quiet(&prepared.mesh.reductions)
    }
}

impl StepModel<'_> {
    /// Replaces the times of every chunk by those of the operator-level simulation.
    pub(super) fn deepen(&self, plan: &Plan, prepared: &mut Prepared<'_>) -> Result<Deep, SimError> {
        self.deepen_with(plan, prepared, true)
    }

    /// As [`StepModel::deepen`]; without `fold` every layer is simulated.
    pub(super) fn deepen_with(
        &self,
        plan: &Plan,
        prepared: &mut Prepared<'_>,
        fold: bool,
    ) -> Result<Deep, SimError> {
        let mesh = prepared.mesh;
        let shape = &prepared.shape;
        let peak = self.peak(plan);
        let works = LayerWorks::new(self.model, shape, &self.cost, self.stack, peak, mesh.split);
        let units: Vec<Vec<Unit>> =
            mesh.classes.iter().map(|c| units(c, plan, self.stack, mesh.gatherings.as_ref())).collect();
        let deep = Deep { works, weights: units.iter().map(|u| self.weights(u, prepared)).collect(), units };
        let passes = self.passes(plan, &deep, prepared);
        let mut of_class: Vec<Option<super::chunk::ChunkTimes>> = vec![None; mesh.classes.len()];
        for (chunk, &class) in prepared.chunks.iter_mut().zip(&mesh.class_of) {
            let class = usize::from(class);
            let times = match of_class[class] {
                Some(times) => times,
                None => passes.chunk_times(&deep.units[class], chunk, fold).map_err(failed)?,
            };
            of_class[class] = Some(times);
            *chunk = times;
        }
        Ok(deep)
    }

    fn passes<'d>(&'d self, plan: &'d Plan, deep: &'d Deep, prepared: &Prepared<'_>) -> Passes<'d> {
        Passes {
            works: &deep.works,
            plan,
            stack: self.stack,
            split: prepared.mesh.split,
            shard_class: class_of(&prepared.shape.groups.shard),
            sends_leave_domain: !prepared.shape.groups.pp.is_local(),
        }
    }

    /// Trainable parameters per rank of every unit, up to a factor.
    fn weights(&self, units: &[Unit], prepared: &Prepared<'_>) -> Vec<f64> {
        let shape = &prepared.shape;
        let tp = shape.tp as f64;
        let of = |place| match place {
            Place::Embedding => self.model.embedding_parameters() as f64 / tp,
            Place::Head => self.model.head_parameters() as f64 / tp,
            Place::Layer(kind) => block_of(self.model, kind).map_or(0.0, |block| {
                let p = block.parameters(self.model.hidden, self.model.norm);
                let split = p.dense_split();
                split.sharded as f64 / tp
                    + split.replicated as f64
                    + p.experts as f64 / (shape.ep * shape.etp) as f64
            }),
        };
        units.iter().map(|u| of(u.place)).collect()
    }

    /// The ends of the step, event by event.
    pub(super) fn events(
        &self,
        plan: &Plan,
        deep: &Deep,
        prepared: &Prepared<'_>,
        costs: &PipelineCosts,
        program: Option<&StepProgram>,
        sim: &mut PipelineSim,
    ) -> Result<Events, SimError> {
        self.events_with(plan, deep, prepared, costs, program, sim, false)
    }

    /// As [`StepModel::events`]; `in_full` simulates every operator of every micro-batch.
    #[expect(clippy::too_many_arguments, reason = "one call, all distinct")]
    pub(super) fn events_with(
        &self,
        plan: &Plan,
        deep: &Deep,
        prepared: &Prepared<'_>,
        costs: &PipelineCosts,
        program: Option<&StepProgram>,
        sim: &mut PipelineSim,
        in_full: bool,
    ) -> Result<Events, SimError> {
        let alone = [vec![1.0; plan.pp.max(1) as usize]];
        let step = Step { program, in_full, ..self.step_of(plan, deep, prepared, costs, &alone) };
        simulate(&step, sim).map_err(failed)
    }

    /// As [`StepModel::events`] for replicas that differ in the compute time of their stages.
    pub(super) fn rank_events(
        &self,
        plan: &Plan,
        deep: &Deep,
        prepared: &Prepared<'_>,
        costs: &PipelineCosts,
        sim: &mut PipelineSim,
        replicas: &[Vec<f64>],
    ) -> Result<Events, SimError> {
        simulate(&self.step_of(plan, deep, prepared, costs, replicas), sim).map_err(failed)
    }

    /// The step in the order of its schedule, folded.
    fn step_of<'d>(
        &'d self,
        plan: &'d Plan,
        deep: &'d Deep,
        prepared: &'d Prepared<'_>,
        costs: &'d PipelineCosts,
        replicas: &'d [Vec<f64>],
    ) -> Step<'d> {
        Step {
            plan,
            passes: self.passes(plan, deep, prepared),
            units: &deep.units,
            weights: &deep.weights,
            prepared,
            costs,
            overlap: self.stack.overlap,
            reduce_class: class_of(&prepared.shape.groups.dp),
            program: None,
            in_full: false,
            replicas,
        }
    }
}
