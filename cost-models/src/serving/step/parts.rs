//! Parts of a step by themselves, for techniques that arrange them differently.

use super::{PromptChunk, StepCost};

impl StepCost {
    /// Latency (seconds) and rate (bytes a second) of one rank's scale-up links.
    pub fn scale_up_link(&self) -> (f64, f64) {
        self.pieces.link
    }

    /// Accelerator seconds of the attention of prompt chunks over all layers.
    pub fn prompt_attention(&self, chunks: &[PromptChunk]) -> f64 {
        self.prompt_seconds(chunks).0
    }
}
