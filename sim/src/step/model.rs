//! The job that plans are priced for: a model, a workload, a cluster and a stack.

use psim_cost_models::{CostModel, ProfileLibrary};
use psim_hardware::profile::StackProfile;
use psim_hardware::{Cluster, Node};
use psim_models::flops::forward_flops_per_sequence;
use psim_models::plan::Schedule;
use psim_models::{Model, TrainingWorkload};

/// A model, a workload, a cluster and a stack, ready to price plans.
#[derive(Debug, Clone)]
pub struct StepModel<'a> {
    pub(super) model: &'a Model,
    pub(super) workload: &'a TrainingWorkload,
    pub(super) cluster: &'a Cluster,
    pub(super) node: &'a Node,
    pub(super) stack: &'a StackProfile,
    pub(super) cost: CostModel,
    /// Forward flops of one sequence, causal half.
    flops_per_sequence: f64,
    /// Costs on every kind of node of a mixed cluster, in its order; empty where all nodes are alike.
    parts: Vec<CostModel>,
}

impl<'a> StepModel<'a> {
    /// Binds the inputs; a mixed cluster is priced by its slowest node.
    pub fn new(
        model: &'a Model,
        workload: &'a TrainingWorkload,
        cluster: &'a Cluster,
        stack: &'a StackProfile,
        library: &ProfileLibrary,
    ) -> Self {
        let node = cluster.slowest_node();
        let cost = CostModel::new(cluster, node, stack, library);
        let flops_per_sequence = forward_flops_per_sequence(model, workload, stack);
        let on = |group: &psim_hardware::NodeGroup| CostModel::new(cluster, &group.node, stack, library);
        let parts = if cluster.is_mixed() { cluster.groups.iter().map(on).collect() } else { Vec::new() };
        Self { model, workload, cluster, node, stack, cost, flops_per_sequence, parts }
    }

    /// The same job priced on one kind of node of a mixed cluster.
    pub(super) fn on_part(&self, group: usize) -> Self {
        let node = self.cluster.groups.get(group).map_or(self.node, |g| &g.node);
        let cost = self.parts.get(group).unwrap_or(&self.cost).clone();
        Self { node, cost, parts: Vec::new(), ..self.clone() }
    }

    /// The cost model in use.
    pub fn cost(&self) -> &CostModel {
        &self.cost
    }

    /// Forward flops of one sequence (causal half of attention).
    pub fn flops_per_sequence(&self) -> f64 {
        self.flops_per_sequence
    }
}

/// Schedules that run weight gradients apart.
pub(super) fn is_split(schedule: Schedule) -> bool {
    matches!(schedule, Schedule::ZbH1 | Schedule::ZbH2 | Schedule::ZbV)
}

/// How the speeds of ranks differ.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Ranks {
    /// Standard deviation of the logarithm of a rank's compute time; 0: equal parts are equally fast.
    pub spread: f64,
    /// Seed of the draw; every rank has a stream of its own, so that a rank keeps its speed in another plan.
    pub seed: u64,
}
