//! From a step time to the number that is minimised.

use crate::capacity::failures::FailureModel;
use crate::result::Objective;
use psim_hardware::{Cluster, Time};
use psim_models::Plan;

/// Turns times into scores; lower is better. A score never falls when the time grows, so that a bound on the time is a
/// bound on the score.
#[derive(Debug, Clone, PartialEq)]
pub struct Scorer {
    /// Objective.
    pub objective: Objective,
    /// Tokens per sequence.
    pub seq_len: u64,
    /// Price of one accelerator for one hour, US dollars.
    pub price_per_gpu_hour: f64,
    /// Accelerators per node: rented as a whole.
    pub per_node: u32,
    /// Failures, for goodput.
    pub failures: FailureModel,
    /// Bytes of one checkpoint.
    pub checkpoint_bytes: f64,
}

impl Scorer {
    /// Scores plans on `cluster`.
    pub fn new(objective: Objective, cluster: &Cluster, seq_len: u64, parameters: u64) -> Self {
        Self {
            objective,
            seq_len,
            price_per_gpu_hour: cluster.price_per_hour() / f64::from(cluster.accelerators().max(1)),
            per_node: cluster.first_node().accelerators.max(1),
            failures: FailureModel::of(cluster),
            checkpoint_bytes: FailureModel::checkpoint_bytes(parameters),
        }
    }

    /// Tokens of one step.
    pub fn tokens(&self, plan: &Plan) -> f64 {
        f64::from(plan.global_batch) * self.seq_len as f64
    }

    /// Accelerators paid for: whole nodes.
    pub fn paid(&self, plan: &Plan) -> u32 {
        plan.world().div_ceil(self.per_node) * self.per_node
    }

    /// Seconds per token.
    pub fn time_per_token(&self, plan: &Plan, step: Time) -> f64 {
        step.seconds().0 / self.tokens(plan)
    }

    /// US dollars per 10⁹ tokens.
    pub fn cost_per_btok(&self, plan: &Plan, step_seconds: f64) -> f64 {
        f64::from(self.paid(plan)) * self.price_per_gpu_hour / 3600.0 * step_seconds / self.tokens(plan) * 1e9
    }

    /// The score of a step of `step` and `joules`. [`Objective::Memory`] ranks by time here; the search limits it.
    pub fn score(&self, plan: &Plan, step: Time, joules: f64) -> f64 {
        match self.objective {
            Objective::Time | Objective::Memory => self.time_per_token(plan, step),
            Objective::Cost => self.cost_per_btok(plan, step.seconds().0),
            Objective::Energy => joules / self.tokens(plan),
            Objective::Goodput => {
                let useful = self.failures.goodput(plan.world(), self.checkpoint_bytes).useful_share;
                self.time_per_token(plan, step) / useful
            }
        }
    }
}
