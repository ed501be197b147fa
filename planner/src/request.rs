//! The question that [`crate::plan`] answers.

use crate::result::{Assumption, Objective};
use crate::space::SearchSpace;
use psim_cost_models::ProfileLibrary;
use psim_hardware::Cluster;
use psim_hardware::profile::StackProfile;
use psim_models::plan::Precision;
use psim_models::{Model, TrainingWorkload};

/// Default workload: tokens per sequence.
pub const DEFAULT_SEQ_LEN: u64 = 8192;
/// Default workload: tokens per step (4 Mi).
pub const DEFAULT_BATCH_TOKENS: u64 = 4 << 20;
/// Default workload: tokens in all.
pub const DEFAULT_TOKENS: f64 = 15e12;
/// Plans shown when nothing is said.
pub const DEFAULT_TOP: usize = 10;

/// A planning question.
#[derive(Debug, Clone)]
pub struct PlanRequest<'a> {
    /// What is trained.
    pub model: &'a Model,
    /// Where.
    pub cluster: &'a Cluster,
    /// Sequence length, tokens and data; its global batch is used where no range is given.
    pub workload: &'a TrainingWorkload,
    /// Smallest and largest global batch, sequences, for the throughput curve.
    pub global_batch: Option<(u32, u32)>,
    /// Software stack, release applied.
    pub stack: &'a StackProfile,
    /// Measured profiles.
    pub library: &'a ProfileLibrary,
    /// What is optimised.
    pub objective: Objective,
    /// Plans wanted.
    pub top: usize,
    /// Arithmetic formats to try.
    pub precision: Vec<Precision>,
    /// The space; `None`: everything a practitioner would try.
    pub space: Option<SearchSpace>,
    /// Also find the plans that no other beats in time, memory and cost at once.
    pub pareto: bool,
    /// Look for the nearest feasible change when nothing fits.
    pub advice: bool,
    /// Defaults that the caller took, for the report.
    pub assumptions: Vec<Assumption>,
}

impl<'a> PlanRequest<'a> {
    /// A question with defaults for everything but the inputs.
    pub fn new(
        model: &'a Model,
        cluster: &'a Cluster,
        workload: &'a TrainingWorkload,
        stack: &'a StackProfile,
        library: &'a ProfileLibrary,
    ) -> Self {
        Self {
            model,
            cluster,
            workload,
            global_batch: None,
            stack,
            library,
            objective: Objective::Time,
            top: DEFAULT_TOP,
            precision: vec![Precision::Bf16],
            space: None,
            pareto: true,
            advice: true,
            assumptions: Vec::new(),
        }
    }

    /// Pre-training when nothing is said: 8,192 tokens, 4 Mi tokens per step, 15 T tokens; with what was assumed.
    pub fn default_workload() -> (TrainingWorkload, Vec<Assumption>) {
        let global_batch = (DEFAULT_BATCH_TOKENS / DEFAULT_SEQ_LEN) as u32;
        let workload = TrainingWorkload {
            seq_len: DEFAULT_SEQ_LEN,
            global_batch,
            tokens: Some(DEFAULT_TOKENS),
            packed_length: None,
            lora_rank: None,
            expert_imbalance: 1.0,
            capacity_factor: None,
        };
        let assumed = |name: &str, value: String, why: &str| Assumption {
            name: name.to_owned(),
            value,
            why: why.to_owned(),
        };
        let assumptions = vec![
            assumed(
                "sequence length",
                format!("{DEFAULT_SEQ_LEN} tokens"),
                "pre-training of Llama 3; --seq-len",
            ),
            assumed(
                "global batch",
                format!("{global_batch} sequences (4 Mi tokens)"),
                "first stage of Llama 3 405B; --global-batch",
            ),
            assumed("token budget", "15 T tokens".to_owned(), "Llama 3; --tokens"),
            assumed("precision", "bf16".to_owned(), "the format most runs are published in; --precision"),
        ];
        (workload, assumptions)
    }
}

/// Why a question has no answer (an infeasible question has one: see [`crate::PlanReport::infeasible`]).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The question itself is malformed.
    #[error("{what}")]
    Question {
        /// What is wrong, requested against allowed.
        what: String,
        /// What to do.
        hint: String,
    },
    /// The search was cancelled.
    #[error("the search was cancelled")]
    Cancelled,
}

impl From<crate::search::Cancelled> for PlanError {
    fn from(_: crate::search::Cancelled) -> Self {
        Self::Cancelled
    }
}
