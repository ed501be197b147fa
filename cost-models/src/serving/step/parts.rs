//! Parts of a step by themselves, for techniques that arrange them differently.

use super::{KINDS, Lane, PromptChunk, StepCost};

impl StepCost {
    /// Latency (seconds) and rate (bytes a second) of one rank's scale-up links.
    pub fn scale_up_link(&self) -> (f64, f64) {
        self.pieces.link
    }

    /// Accelerator seconds of the attention of prompt chunks over all layers.
    pub fn prompt_attention(&self, chunks: &[PromptChunk]) -> f64 {
        self.prompt_seconds(chunks).0
    }

    /// Accelerator seconds of decoding attention of a batch over all layers.
    pub fn decode_attention(&self, sequences: u32, context: &[u64; KINDS]) -> f64 {
        self.decode_seconds(&Lane { decoding: sequences, context: *context, chunks: &[] })
    }

    /// Seconds of the output layer for the last tokens of `sequences`.
    pub fn output_layer(&self, sequences: u32) -> f64 {
        self.head.at(sequences)
    }

    /// Seconds of a step in which each of `sequences` runs `queries` new tokens against its cache (verification of
    /// drafts): matrices see all tokens, the cache is read once per sequence, arithmetic on it is done per token, every
    /// token gets logits. With one query it is a decoding step of one lane.
    pub fn verify(&self, sequences: u32, queries: u32, context: &[u64; KINDS]) -> f64 {
        let step = self.decode_run(sequences).seconds(context);
        if queries <= 1 || sequences == 0 {
            return step;
        }
        let pieces = &*self.pieces;
        let tokens = sequences.saturating_mul(queries);
        let arithmetic: f64 = pieces
            .kinds
            .iter()
            .zip(context)
            .map(|(k, c)| {
                let width = if k.core.latent {
                    2 * k.core.cache_elements
                } else {
                    k.core.head_dim + k.core.head_dim_v
                };
                let flops = 2.0 * (k.core.q_heads * width) as f64;
                k.core.layers * f64::from(queries) * *c as f64 * flops / pieces.rates.half
            })
            .sum();
        let reads: f64 = pieces
            .kinds
            .iter()
            .zip(context)
            .map(|(k, c)| {
                k.core.layers * *c as f64 * k.core.cache_elements as f64 * k.kv_size / pieces.rates.bandwidth
            })
            .sum();
        let p = &self.parameters;
        let states = if pieces.shape.states.is_empty() {
            0.0
        } else {
            self.state_seconds(f64::from(sequences), f64::from(tokens), 0.0)
        };
        let gpu = self.local.at(tokens)
            + self.head.at(tokens)
            + self.shared.at(tokens)
            + states
            + self.decode_attention(sequences, context).max(arithmetic)
            + self.idle()
            + self.hops(tokens);
        let gpu = super::overlapped(gpu, self.overlap()).max(self.floor(sequences, tokens > p.graph_tokens));
        let roofline = reads
            + pieces.roofline_local.at(tokens)
            + pieces.roofline_head.at(tokens)
            + pieces.roofline_shared.at(tokens);
        let host = (p.step_us + p.sequence_us * f64::from(sequences)) * 1e-6;
        // More tokens are never faster than fewer.
        (gpu.max(roofline) + host).max(step)
    }
}
