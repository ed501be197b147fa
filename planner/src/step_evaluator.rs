//! The step simulator as an [`Evaluator`].

mod parts;
mod uneven;

use crate::evaluator::Evaluator;
use psim_cost_models::ProfileLibrary;
use psim_hardware::profile::StackProfile;
use psim_hardware::{Bytes, Cluster, Seconds, Time};
use psim_models::{Model, Plan, TrainingWorkload};
use psim_sim::pipeline::PipelineSim;
use psim_sim::step::{MeshCosts, StageCosts};
use psim_sim::{Level, StepModel, StepPrediction};
use std::cell::RefCell;

thread_local! {
    /// Buffers of the pipeline simulator; results do not depend on what they held before.
    static PIPELINE: RefCell<PipelineSim> = RefCell::new(PipelineSim::new());
}

/// Prices plans with [`StepModel`].
#[derive(Debug, Clone)]
pub struct StepEvaluator<'a> {
    step: StepModel<'a>,
    model: &'a Model,
    stack: &'a StackProfile,
    cluster: &'a Cluster,
    capacity: Bytes,
}

impl<'a> StepEvaluator<'a> {
    /// Binds a question.
    pub fn new(
        model: &'a Model,
        workload: &'a TrainingWorkload,
        cluster: &'a Cluster,
        stack: &'a StackProfile,
        library: &ProfileLibrary,
    ) -> Self {
        let step = StepModel::new(model, workload, cluster, stack, library);
        // Equal shards must fit the smallest accelerator; time is priced by the slowest.
        let capacity = cluster.groups.iter().map(|g| g.node.accelerator.memory).min().unwrap_or_default();
        Self { step, model, stack, cluster, capacity }
    }

    /// The step model.
    pub fn step_model(&self) -> &StepModel<'a> {
        &self.step
    }
}

fn time(seconds: f64) -> Time {
    Time::from(Seconds(seconds))
}

impl Evaluator for StepEvaluator<'_> {
    type Costs = StageCosts;
    type Mesh = MeshCosts;

    fn mesh(&self, plan: &Plan) -> Result<MeshCosts, String> {
        self.step.mesh_costs(plan).map_err(|e| e.to_string())
    }

    fn costs(&self, plan: &Plan) -> Result<StageCosts, String> {
        self.step.check(plan).map_err(|e| e.to_string())?;
        Ok(self.step.stage_costs(plan))
    }

    fn uneven_layers(&self, costs: &StageCosts, plan: &Plan) -> Option<Vec<u32>> {
        uneven::uneven_layers(self.model, self.stack, self.capacity, costs, plan)
    }

    fn memory(&self, costs: &StageCosts, mesh: &MeshCosts, plan: &Plan) -> Bytes {
        self.step.peak_bytes(costs, mesh, plan)
    }

    fn memory_capacity(&self) -> Bytes {
        self.capacity
    }

    fn l0(&self, costs: &StageCosts, mesh: &MeshCosts, plan: &Plan) -> Time {
        time(self.step.step_bound(costs, mesh, plan))
    }

    fn l1(&self, costs: &StageCosts, mesh: &MeshCosts, plan: &Plan) -> Time {
        PIPELINE.with(|sim| {
            let seconds = match sim.try_borrow_mut() {
                Ok(mut sim) => self.step.step_seconds(costs, mesh, plan, &mut sim),
                Err(_) => self.step.step_seconds(costs, mesh, plan, &mut PipelineSim::new()),
            };
            // A schedule that cannot run never wins; refinement names the cause if nothing else is left.
            seconds.map_or(Time(u64::MAX), time)
        })
    }

    fn energy(&self, costs: &StageCosts, mesh: &MeshCosts, plan: &Plan, step: Time) -> f64 {
        self.step.step_joules(costs, mesh, plan, step.seconds().0)
    }

    fn l2(&self, plan: &Plan) -> Result<StepPrediction, String> {
        self.step.predict(plan, Level::L2, false).map_err(|e| e.to_string())
    }

    /// On a mixed cluster L3, which prices every stage and replica with its own parts; also with the layers dealt by the
    /// pace of the parts, where that is faster.
    fn finalist(&self, plan: &Plan) -> Result<(Plan, StepPrediction), String> {
        if !self.cluster.is_mixed() {
            return Ok((plan.clone(), self.l2(plan)?));
        }
        let deep = |plan: &Plan| self.step.predict(plan, Level::L3, false).map_err(|e| e.to_string());
        let even = deep(plan)?;
        let dealt = parts::by_pace(&self.step, self.model, plan).and_then(|dealt| {
            let prediction = deep(&dealt).ok()?;
            let better = prediction.fits && (!even.fits || prediction.step_time.value < even.step_time.value);
            better.then_some((dealt, prediction))
        });
        Ok(dealt.unwrap_or_else(|| (plan.clone(), even)))
    }

    fn widest_gap(&self, gap: f64) -> f64 {
        if self.cluster.is_mixed() {
            1.0 - (1.0 - gap) * parts::slowest_over_fastest(self.cluster)
        } else {
            gap
        }
    }
}
