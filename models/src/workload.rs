//! What must be done: a training job.

use serde::{Deserialize, Serialize};

/// A training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingWorkload {
    /// Tokens per sequence.
    pub seq_len: u64,
    /// Sequences per step.
    pub global_batch: u32,
    /// Tokens of the whole job.
    #[serde(default)]
    pub tokens: Option<f64>,
    /// Mean length of the documents packed into one sequence with a block-diagonal mask; `None`: one document.
    #[serde(default)]
    pub packed_length: Option<u64>,
    /// Low-rank adapters: only they have gradients and optimizer state.
    #[serde(default)]
    pub lora_rank: Option<u64>,
    /// Ratio of the most loaded expert rank to the mean (1: forced balance).
    #[serde(default = "balanced")]
    pub expert_imbalance: f64,
    /// Token-drop capacity factor; `None` is dropless.
    #[serde(default)]
    pub capacity_factor: Option<f64>,
}

fn balanced() -> f64 {
    1.0
}
