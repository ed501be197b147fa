//! Attention of a step: decoding against the cache, prompt chunks, sparse indexers and constant-state mixers.

use super::super::kernels::{Datasheet, DecodeLaw, PromptLaw};
use super::decode_table::DecodeTable;
use super::pricing::Pricing;
use super::sparse::Sparse;
use super::{Lane, PromptChunk, StepCost};
use crate::gemm::overlap;
use crate::grid::Residual;
use psim_models::serving::lower::AttentionCore;

/// Seconds a token by which the chunks of one prompt follow one another under the delta rule, however few the heads: 0.338
/// ms for 8,192 tokens of 8 heads, 0.424 of 16 (Triton kernels of flash-linear-attention on B200; flashinfer-ai/flashinfer
/// pull request 3001).
const DELTA_TOKEN: f64 = 40e-9;
/// Bytes at the full rate of the memory that a token of one head stands for in those kernels: 0.653 ms for 8,192 tokens of
/// 48 heads, 3.27 ms for 65,536 in eight prompts of 32, at 8 TB/s (the same, and pull request 3902).
const DELTA_BYTES: f64 = 12_800.0;

/// One kind of attention of the model under an engine's kernels.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    pub(super) core: AttentionCore,
    /// Decoding in one layer by sequences and tokens read by each.
    pub(super) decode: DecodeTable,
    prompt: PromptLaw,
    prompt_residual: Residual,
    prompt_rates: Datasheet,
    /// Bytes of the indexer per cached token.
    pub(super) index_bytes: f64,
    /// Query heads of a group.
    group: f64,
    pub(super) kv_size: f64,
    /// Kernels for chosen tokens.
    sparse: Option<Sparse>,
}

impl Kind {
    /// A kind whose only kernel is priced by `seconds(query tokens, cached tokens read by each)` for one layer.
    pub(super) fn rows(
        core: &AttentionCore,
        rates: Datasheet,
        kv_size: f64,
        seconds: impl Fn(f64, f64) -> f64,
    ) -> Self {
        Self {
            core: *core,
            decode: DecodeTable::new(seconds),
            prompt: PromptLaw { launch_us: 0.0, compute: 1.0, half_length: 0.0, memory: 1.0, sigma: 0.0 },
            prompt_residual: Residual::default(),
            prompt_rates: rates,
            index_bytes: 0.0,
            group: 1.0,
            kv_size,
            sparse: None,
        }
    }

    /// Tokens that the tokens of a chunk read, summed (causal part, window applied).
    fn pairs(&self, chunk: &PromptChunk) -> f64 {
        let (n, before) = (f64::from(chunk.tokens), f64::from(chunk.before));
        match self.core.reads_at_most {
            None => n * (before + (n + 1.0) / 2.0),
            Some(w) => {
                let w = w as f64;
                // Tokens at positions below the window see all before them, later ones the window.
                let start = before.min(w);
                let end = (before + n).min(w);
                let rising = (end - start) * (start + end + 1.0) / 2.0;
                rising + (n - (end - start)) * w
            }
        }
    }

    /// Flops (causal part, window applied) and bytes of one chunk in one layer.
    pub(super) fn chunk(&self, chunk: &PromptChunk) -> (f64, f64) {
        let (n, before) = (f64::from(chunk.tokens), f64::from(chunk.before));
        let pairs = self.pairs(chunk);
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
        for (index, (kind, context)) in self.pieces.kinds.iter().zip(lane.context).enumerate() {
            let context = context as f64 * self.stretch();
            let one = kind.decode.row(lane.decoding).seconds(context);
            let arithmetic = context * self.query_seconds(index);
            total += kind.core.layers * (one / self.parameters.decode).max(arithmetic);
        }
        total + self.indexer_seconds(lane)
    }

    /// Reading the indexer keys of sparse attention: all tokens, whatever is selected.
    fn indexer_seconds(&self, lane: &Lane<'_>) -> f64 {
        let rate = 0.5 * self.pieces.rates.bandwidth;
        self.pieces
            .kinds
            .iter()
            .zip(lane.context)
            .map(|(k, context)| k.core.layers * context as f64 * k.index_bytes / rate)
            .sum()
    }

    /// Accelerator time of the attention of prompt chunks, and its roofline.
    pub(super) fn prompt_seconds(&self, chunks: &[PromptChunk]) -> (f64, f64) {
        if self.pieces.rows {
            let tokens = chunks.iter().map(|c| c.tokens).sum();
            let one = |k: &Kind| {
                k.core.layers * k.decode.row(tokens).seconds(chunks.iter().map(|c| k.pairs(c)).sum())
            };
            return (self.pieces.kinds.iter().map(one).sum(), 0.0);
        }
        let (mut total, mut roofline) = (0.0, 0.0);
        for kind in &self.pieces.kinds {
            let (mut work, mut launch, mut chosen) = (0.0, 0.0f64, 0.0);
            for chunk in chunks {
                let (flops, bytes) = kind.chunk(chunk);
                roofline += kind.core.layers
                    * (flops / kind.prompt_rates.peak).max(bytes / kind.prompt_rates.bandwidth);
                if let Some(seconds) = kind.sparse.as_ref().and_then(|s| s.prompt(chunk)) {
                    chosen += seconds;
                    launch = launch.max(kind.prompt.launch_us * 1e-6);
                    continue;
                }
                let length = f64::from(chunk.tokens + chunk.before);
                let heads = kind.core.q_heads as f64 * chunks.len() as f64;
                let factor = kind.prompt_residual.at(PromptLaw::coordinates(length, heads, kind.group)).exp();
                work += factor * kind.prompt.work_seconds(kind.prompt_rates, flops, length, bytes);
                // One launch holds all chunks.
                launch = launch.max(factor * kind.prompt.launch_us * 1e-6);
            }
            // Rates of kernels for chosen tokens are those of the engine's own library.
            total += kind.core.layers * ((work + launch) / self.parameters.prompt + chosen);
        }
        (total, roofline)
    }

    /// Bytes of state read and written by sequences of constant-state layers, as time.
    /// `longest` are the tokens of the longest prompt.
    pub(super) fn state_seconds(&self, sequences: f64, prompt_tokens: f64, longest: f64) -> f64 {
        let rates = self.pieces.rates;
        self.pieces
            .shape
            .states
            .iter()
            .map(|s| {
                let traffic = 2.0 * sequences * s.state_bytes / (0.6 * rates.bandwidth);
                let scan = if s.delta_heads > 0 {
                    // A head of the measured kernels has a state of 128 by 128.
                    let heads = s.state_bytes / (4.0 * 128.0 * 128.0);
                    let moved = prompt_tokens * heads * DELTA_BYTES / rates.bandwidth;
                    overlap(moved, longest * DELTA_TOKEN)
                } else {
                    prompt_tokens * s.flops_per_token / (0.2 * rates.half)
                };
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
        let q_heads = core.q_heads as f64;
        let group = if core.latent { 1.0 } else { q_heads / core.kv_heads.max(1) as f64 };
        let rereads = group.powf(1.0 - self.p.kv_reuse);
        let width = if core.latent {
            (core.cache_elements + core.cache_elements) as f64
        } else {
            (core.head_dim + core.head_dim_v) as f64
        };
        let flops = 2.0 * q_heads * width;
        let bytes = core.cache_elements as f64 * kv_size * rereads;
        let blocks = if core.latent { (q_heads / 64.0).ceil() } else { core.kv_heads as f64 };
        let residual = Residual::new(decode.residual);
        let shared = if core.latent { q_heads } else { group };
        let least = core.cache_elements as f64 * kv_size / self.rates.bandwidth;
        let sparse = Sparse::new(core, self.library, &self.part, self.rates);
        // Caches in 16 bits are read by other kernels, without padding.
        let padded = sparse.filter(|_| kv.bits() <= 8);
        let decode = DecodeTable::new(|sequences, length| {
            let read = sequences * length;
            let law: DecodeLaw = decode.law;
            let seconds = law.seconds(self.rates, sequences * blocks, read * bytes, read * flops);
            let point = DecodeLaw::coordinates(sequences * blocks, length, shared);
            let seconds = (seconds * residual.at(point).exp()).max(read * least);
            seconds.max(padded.map_or(0.0, |s| s.decode(sequences)))
        });
        Kind {
            core: *core,
            decode,
            prompt: prompt.law,
            prompt_residual: Residual::new(prompt.residual),
            prompt_rates: Datasheet { peak, ..self.rates },
            index_bytes: core.indexer_elements as f64,
            group,
            kv_size,
            sparse,
        }
    }
}
