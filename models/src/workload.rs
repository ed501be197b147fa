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

impl Default for TrainingWorkload {
    /// Pre-training at 8,192 tokens with a global batch of 512 sequences (4 Mi tokens), balanced experts.
    fn default() -> Self {
        Self {
            seq_len: 8192,
            global_batch: 512,
            tokens: None,
            packed_length: None,
            lora_rank: None,
            expert_imbalance: 1.0,
            capacity_factor: None,
        }
    }
}

fn balanced() -> f64 {
    1.0
}
