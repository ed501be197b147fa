//! What a search answers: ranked plans, a Pareto set, the throughput curve, or why nothing fits.
//!
//! Field names are the keys of `psim plan --json`; `schema` changes when one changes its meaning.

mod capacity;

pub use capacity::{CapacityOption, CapacityReport, FailureHeadroom};

use psim_hardware::profile::Provenance;
use psim_models::Plan;
use psim_sim::{Breakdown, Estimate, Level, StepPrediction};
use serde::{Deserialize, Serialize};

/// Version of the JSON form of the reports of this crate.
pub const SCHEMA: u32 = 1;

/// What is optimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Time per token of the whole job (the step time when the global batch is fixed).
    #[default]
    Time,
    /// Money per token.
    Cost,
    /// Energy per token.
    Energy,
    /// Useful time per token: failures, restarts and checkpoints included.
    Goodput,
    /// Lowest peak memory among plans at most 10 % slower than the fastest.
    Memory,
}

impl Objective {
    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Cost => "cost",
            Self::Energy => "energy",
            Self::Goodput => "goodput",
            Self::Memory => "memory",
        }
    }
}

/// A default that the person did not choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Assumption {
    /// What was assumed (`sequence length`).
    pub name: String,
    /// Its value (`8192 tokens`).
    pub value: String,
    /// Why this value, and how to change it.
    pub why: String,
}

/// The question as understood: every input, and every default that filled a gap.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Question {
    /// Model name.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// Cluster name.
    pub cluster: String,
    /// Accelerators in it.
    pub accelerators: u32,
    /// Name of the accelerator (of the first group).
    pub accelerator: String,
    /// Tokens per sequence.
    pub seq_len: u64,
    /// Smallest global batch, sequences.
    pub global_batch_min: u32,
    /// Largest global batch, sequences (equal to the smallest when fixed).
    pub global_batch_max: u32,
    /// Tokens of the whole job.
    pub tokens: Option<f64>,
    /// Arithmetic formats searched.
    pub precisions: Vec<&'static str>,
    /// Software stack.
    pub stack: String,
    /// Objective.
    pub objective: Objective,
    /// Plans asked for.
    pub top: usize,
    /// Defaults taken.
    pub assumptions: Vec<Assumption>,
}

/// One term of a breakdown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TermShare {
    /// Name of the term, as in [`Breakdown::terms`].
    pub term: &'static str,
    /// Seconds of the step.
    pub seconds: f64,
    /// Share of the step.
    pub share: f64,
}

impl TermShare {
    /// The terms of a breakdown in waterfall order, zero terms left out.
    pub fn list(breakdown: &Breakdown) -> Vec<Self> {
        let total = breakdown.total().0.max(f64::MIN_POSITIVE);
        breakdown
            .terms()
            .iter()
            .filter(|(_, seconds)| seconds.0 != 0.0)
            .map(|&(term, seconds)| Self { term, seconds: seconds.0, share: seconds.0 / total })
            .collect()
    }
}

/// What holds a plan back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BoundBy {
    /// The largest term beyond ideal compute (`ideal compute` when nothing else takes time).
    pub term: &'static str,
    /// Its share of the step.
    pub share: f64,
    /// Against the next-ranked plan: terms that differ most, seconds (this minus next), largest first.
    pub against_next: Vec<(&'static str, f64)>,
    /// One sentence for a person.
    pub sentence: String,
}

/// A plan with its prediction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankedPlan {
    /// The plan.
    pub plan: Plan,
    /// Time of one step, seconds, with an 80 % interval.
    pub step_time_s: Estimate,
    /// Depth of the prediction.
    pub level: Level,
    /// Tokens per second and accelerator.
    pub tokens_per_s_per_gpu: f64,
    /// Model flops utilisation, percent.
    pub mfu: f64,
    /// Peak memory of the fullest accelerator, 10⁹ bytes.
    pub peak_mem_gb: f64,
    /// Usable memory of one accelerator, 10⁹ bytes.
    pub mem_capacity_gb: f64,
    /// Share of the step in pipeline fill, drain and imbalance.
    pub bubble: f64,
    /// Share of the step in exposed communication.
    pub exposed_comm: f64,
    /// US dollars per 10⁹ tokens; every node with a rank on it is paid for as a whole.
    pub cost_usd_per_btok: f64,
    /// Joules per token, PUE included.
    pub energy_j_per_token: f64,
    /// Days for the token budget, without failures; `None` without a budget.
    pub days: Option<f64>,
    /// What holds it back.
    pub bound_by: BoundBy,
    /// Weakest provenance of the numbers that matter.
    pub provenance: Provenance,
    /// Where the time goes.
    pub breakdown: Vec<TermShare>,
    /// Accelerators of the cluster that the plan leaves idle.
    pub idle_accelerators: u32,
    /// The L1 estimate that ranked it, seconds.
    pub ranked_by_s: f64,
    /// The whole prediction, for reports and traces.
    #[serde(skip)]
    pub prediction: StepPrediction,
}

/// A plan that no other beats in time, memory and cost at once.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParetoPoint {
    /// The plan.
    pub plan: Plan,
    /// Step time, seconds.
    pub step_time_s: f64,
    /// Time per token of the job, seconds (equals the order of step times when the global batch is fixed).
    pub time_per_token_s: f64,
    /// Peak memory, 10⁹ bytes.
    pub peak_mem_gb: f64,
    /// US dollars per 10⁹ tokens.
    pub cost_usd_per_btok: f64,
    /// Depth of the prediction.
    pub level: Level,
    /// Its place in [`PlanReport::plans`], if it is there.
    pub rank: Option<usize>,
}

/// Best plan at one global batch of a range.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ThroughputPoint {
    /// Sequences per step.
    pub global_batch: u32,
    /// Best step time, seconds; `None`: no plan is feasible at this batch.
    pub step_time_s: Option<f64>,
    /// Tokens per second of the whole cluster.
    pub tokens_per_s: f64,
    /// Tokens per second and accelerator.
    pub tokens_per_s_per_gpu: f64,
    /// The plan.
    pub plan: Option<Plan>,
}

/// How sure the ranking is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Optimality {
    /// No candidate of the space is better at the depth shown: bounds and the L1-to-L2 gap exclude the others.
    Proven {
        /// Candidates re-simulated at L2.
        resimulated: usize,
        /// Largest spread between L1 and L2 assumed for the others.
        gap: f64,
    },
    /// Best found; candidates remain that the bounds do not exclude.
    Heuristic {
        /// Candidates re-simulated at L2.
        resimulated: usize,
        /// Candidates that the gap does not exclude.
        remaining: usize,
        /// Why the search stopped.
        reason: String,
    },
}

/// One constraint and how many candidates it alone removed first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KilledBy {
    /// Name of the rule.
    pub constraint: &'static str,
    /// Candidates removed.
    pub candidates: u64,
    /// One example in words, with requested against available.
    pub example: String,
}

/// The smallest change found that makes something feasible.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NearestChange {
    /// What to change, in words (`4 of the 7 accelerators`, `16 nodes instead of 8`).
    pub change: String,
    /// A plan that is feasible after the change.
    pub plan: Option<Plan>,
}

/// Why nothing fits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Infeasible {
    /// Constraints, most candidates killed first.
    pub constraints: Vec<KilledBy>,
    /// Nearest feasible changes, smallest first; empty when none was found within the limits tried.
    pub nearest: Vec<NearestChange>,
}

/// The answer of a search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The question as understood.
    pub question: Question,
    /// Plans, best first.
    pub plans: Vec<RankedPlan>,
    /// Plans that no other beats in time, memory and cost at once, fastest first.
    pub pareto: Vec<ParetoPoint>,
    /// Candidates of the space.
    pub searched: u64,
    /// Candidates removed without simulation: by rules, memory or bound.
    pub pruned: u64,
    /// Candidates simulated at L1.
    pub simulated: u64,
    /// Constraints and how many candidates each removed, most first.
    pub constraints: Vec<KilledBy>,
    /// How sure the ranking is.
    pub optimality: Optimality,
    /// Best plan per global batch, when a range was asked for.
    pub throughput_curve: Vec<ThroughputPoint>,
    /// Set when no plan is feasible.
    pub infeasible: Option<Infeasible>,
}
