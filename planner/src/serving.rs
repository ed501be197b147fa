//! Serving: which layout carries the most requests within the service level, and how many accelerators a rate needs.
//!
//! A candidate layout is simulated on one replica at rising rates until a promise breaks; replicas behind a router
//! multiply that rate. [`plan_disaggregated`] does the same for units of prefill and decode instances. So the best rate
//! never falls when accelerators are added.

mod apart;
mod arrangement;
pub mod bounds;
mod candidates;
mod detail;
mod device_steps;
mod disaggregated;
pub mod energy;
mod experts_outside;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod laws;
mod layout;
mod rank;
mod replica;
mod search;
mod search_speculative;
pub mod size;
pub mod steps;
mod trial;

pub use apart::{ApartFigures, FeedForwardApart};
pub use arrangement::{Arrangement, ArrangementFigures, RedundantExperts};
pub use detail::{DetailError, PoolFigures, ServingDetail, SpeculationFigures, detail};
pub use device_steps::{DevicePoint, DeviceSteps, DeviceStepsError, device_steps};
pub use disaggregated::{DisaggregatedPlan, DisaggregatedReport, plan_disaggregated};
pub use experts_outside::ExpertsOutside;
pub use layout::{Drafts, Layout, PoolLayout, Served, Speculation, Split};
pub use rank::{Needed, mark_pareto};
pub use search::{plan_serving, plan_serving_priced};
pub use search_speculative::{SpeculativePlan, SpeculativeSplit, plan_speculative, plan_speculative_splits};
pub use size::{PoolSizes, ServingSize, size_all};
pub use steps::{Steps, steps, steps_apart};

use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::EngineProfile;
use psim_hardware::{Cluster, Node};
use psim_models::Model;
use psim_models::serving::{Deployment, Quantization, ServingWorkload};
use psim_sim::serving::{ServingError, ServingReport};
use serde::Serialize;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct ServingRequest<'a> {
    /// Model.
    pub model: &'a Model,
    /// Machines.
    pub cluster: &'a Cluster,
    /// Engine.
    pub engine: &'a EngineProfile,
    /// Traffic with service levels; rates are scaled.
    pub workload: &'a ServingWorkload,
    /// Number formats.
    pub quantization: Quantization,
    /// Profiles.
    pub library: &'a ProfileLibrary,
    /// Requests of one simulation; more narrow the percentiles. 400 is a good start.
    pub requests: u32,
    /// Seed of the traffic.
    pub seed: u64,
}

impl ServingRequest<'_> {
    /// The nodes of a group of the cluster; of the first where there is no such group.
    pub fn node(&self, group: usize) -> &Node {
        self.cluster.groups.get(group).map_or(self.cluster.first_node(), |g| &g.node)
    }
}

/// Why nothing can be planned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ServingPlanError {
    /// No layout runs at all, with the reason of each.
    #[error("no layout of {model} runs on {accelerator}: {}", reasons.join("; "))]
    Infeasible {
        /// Model.
        model: String,
        /// Accelerator.
        accelerator: String,
        /// Reasons, one a layout.
        reasons: Vec<String>,
    },
    /// The workload is a closed loop, which has no rate to search for.
    #[error("a closed loop has no rate to plan for; describe the traffic by its arrivals")]
    ClosedLoop,
    /// Pools for prompts and answers under static batches.
    #[error(transparent)]
    Parted(#[from] ServingError),
    /// A rate that is not above zero.
    #[error("the rate must be a number above zero, not {0}")]
    Rate(f64),
}

/// One layout at the highest rate that keeps the service level.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServingPlan {
    /// Layout; `replicas` fill the cluster's nodes of their kind, or are as many as a rate needs.
    pub deployment: Deployment,
    /// Group of the cluster's nodes on which it lies, from 0.
    pub group: usize,
    /// Accelerator of those nodes.
    pub accelerator: String,
    /// US dollars for one of them and an hour.
    pub price_per_gpu_hour: f64,
    /// Tokens of a step at most that carried the most requests: the engine's own budget, or less.
    pub token_budget: u32,
    /// Accelerators in use.
    pub accelerators: u32,
    /// Requests a second that one replica carries within the service level; 0 where even a trickle breaks it.
    pub rate_per_replica: f64,
    /// Requests a second of all replicas.
    pub rate: f64,
    /// The same per accelerator.
    pub rate_per_accelerator: f64,
    /// Generated tokens a second per accelerator at that rate.
    pub tokens_per_s_per_accelerator: f64,
    /// Generated tokens a second that one user sees.
    pub tokens_per_s_per_user: f64,
    /// US dollars for a million generated tokens at that rate.
    pub usd_per_million_tokens: f64,
    /// Joules for a generated token at that rate, hosts and facility included.
    pub joule_per_token: f64,
    /// No other plan has both more tokens per accelerator and more per user.
    pub pareto: bool,
    /// The simulation of one replica at that rate.
    pub report: ServingReport,
    /// Every kernel law was measured on this accelerator.
    pub measured: bool,
}

/// Plans, best rate first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServingPlanReport {
    /// Plans.
    pub plans: Vec<ServingPlan>,
    /// Layouts that do not run, with the reason.
    pub rejected: Vec<(String, String)>,
    /// Layouts considered.
    pub searched: usize,
    /// Layouts over several nodes that carry no more than smaller ones, by their bounds or at the smaller ones' rate.
    pub pruned: usize,
}
