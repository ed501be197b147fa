//! Attention of a step: decoding against the cache, prompt chunks, sparse indexers and constant-state mixers.

use super::super::kernels::{Datasheet, DecodeLaw, PromptLaw};
use super::pricing::Pricing;
use super::{Lane, PromptChunk, StepCost};
use psim_models::serving::lower::AttentionCore;

/// One kind of attention of the model under an engine's kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) core: AttentionCore,
    pub(super) decode: DecodeLaw,
    pub(super) prompt: PromptLaw,
    pub(super) prompt_rates: Datasheet,
    /// Bytes read per cached token, reuse of heads applied.
    pub(super) bytes_per_token: f64,
    /// Bytes of the indexer per cached token.
    pub(super) index_bytes: f64,
    /// Flops per cached token and query.
    pub(super) decode_flops: f64,
    pub(super) blocks_per_sequence: f64,
    pub(super) kv_size: f64,
}

impl Kind {
    /// Flops (causal part, window applied) and bytes of one chunk in one layer.
    pub(super) fn chunk(&self, chunk: &PromptChunk) -> (f64, f64) {
        let (n, before) = (f64::from(chunk.tokens), f64::from(chunk.before));
        let pairs = match self.core.reads_at_most {
            None => n * (before + (n + 1.0) / 2.0),
            Some(w) => {
                let w = w as f64;
                // Tokens at positions below the window see all before them, later ones the window.
                let start = before.min(w);
                let end = (before + n).min(w);
                let rising = (end - start) * (start + end + 1.0) / 2.0;
                rising + (n - (end - start)) * w
            }
        };
        let width = (self.core.head_dim + self.core.head_dim_v) as f64;
        let q = self.core.q_heads as f64;
        let flops = 2.0 * pairs * q * width;
        let keys = match self.core.reads_at_most {
            Some(w) => (before + n).min(w as f64 + n),
            None => before + n,
        };
        let bytes = 2.0 * n * q * width + keys * self.core.cache_elements as f64 * self.kv_size;
        (flops, bytes)
    }
}

impl StepCost {
    /// Accelerator time of decoding attention of one lane.
    pub(super) fn decode_seconds(&self, lane: &Lane<'_>) -> f64 {
        if lane.decoding == 0 {
            return 0.0;
        }
        let mut total = 0.0;
        for (kind, context) in self.kinds.iter().zip(lane.context) {
            let context = context as f64;
            let bytes = context * kind.bytes_per_token;
            let flops = context * kind.decode_flops;
            let blocks = f64::from(lane.decoding) * kind.blocks_per_sequence;
            let one = kind.decode.seconds(self.rates, blocks, bytes, flops) / self.parameters.decode;
            total += kind.core.layers * one;
        }
        total + self.indexer_seconds(lane)
    }

    /// Reading the indexer keys of sparse attention: all tokens, whatever is selected.
    fn indexer_seconds(&self, lane: &Lane<'_>) -> f64 {
        self.kinds
            .iter()
            .zip(lane.context)
            .map(|(k, context)| k.core.layers * context as f64 * k.index_bytes / (0.5 * self.rates.bandwidth))
            .sum()
    }

    /// Accelerator time of the attention of prompt chunks.
    pub(super) fn prompt_seconds(&self, chunks: &[PromptChunk]) -> (f64, f64) {
        let (mut total, mut roofline) = (0.0, 0.0);
        for kind in &self.kinds {
            let mut work = 0.0;
            for chunk in chunks {
                let (flops, bytes) = kind.chunk(chunk);
                let length = f64::from(chunk.tokens + chunk.before);
                work += kind.prompt.work_seconds(kind.prompt_rates, flops, length, bytes);
                roofline += kind.core.layers
                    * (flops / kind.prompt_rates.peak).max(bytes / kind.prompt_rates.bandwidth);
            }
            // One launch holds all chunks.
            let launch = if chunks.is_empty() { 0.0 } else { kind.prompt.launch_us * 1e-6 };
            total += kind.core.layers * (work + launch) / self.parameters.prompt;
        }
        (total, roofline)
    }

    /// Bytes of state read and written by sequences of constant-state layers, as time.
    pub(super) fn state_seconds(&self, sequences: f64, prompt_tokens: f64) -> f64 {
        self.shape
            .states
            .iter()
            .map(|s| {
                let traffic = 2.0 * sequences * s.state_bytes / (0.6 * self.rates.bandwidth);
                let scan = prompt_tokens * s.flops_per_token / (0.2 * self.rates.half);
                s.layers * (traffic + scan)
            })
            .sum()
    }
}

impl Pricing<'_> {
    pub(super) fn kind(&self, core: &AttentionCore, own: &mut bool, sigma: &mut f64) -> Kind {
        let kv = self.d.quantization.kv;
        let kv_size = kv.size();
        let decode = self.lookup.decode(self.library, kv.bits(), core.latent);
        // Prompt attention runs in eight bits where cache and matrices both are, as the engines do on such parts.
        let eight = kv.bits() <= 8 && self.eight_bit.is_some() && self.library == "trtllm" && !core.latent;
        let prompt = self.lookup.prompt(self.library, eight, core.latent);
        *own = *own && decode.own && prompt.own;
        *sigma = sigma.max(decode.law.sigma).max(prompt.law.sigma);
        let peak = if eight { self.eight_bit.unwrap_or(self.rates.half) } else { self.rates.half };
        let group = if core.latent { 1.0 } else { core.q_heads as f64 / core.kv_heads.max(1) as f64 };
        let rereads = group.powf(1.0 - self.p.kv_reuse);
        let decode_flops = if core.latent {
            2.0 * core.q_heads as f64 * (core.cache_elements + core.cache_elements) as f64
        } else {
            2.0 * core.q_heads as f64 * (core.head_dim + core.head_dim_v) as f64
        };
        Kind {
            core: *core,
            decode: decode.law,
            prompt: prompt.law,
            prompt_rates: Datasheet { peak, ..self.rates },
            bytes_per_token: core.cache_elements as f64 * kv_size * rereads,
            index_bytes: core.indexer_elements as f64,
            decode_flops,
            blocks_per_sequence: if core.latent {
                (core.q_heads as f64 / 64.0).ceil()
            } else {
                core.kv_heads as f64
            },
            kv_size,
        }
    }
}
