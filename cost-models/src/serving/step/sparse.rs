//! Attention of latents to chosen tokens (DeepSeek's sparse attention, GLM-5) in FlashMLA, which vLLM and SGLang run it in.
//!
//! Its kernels want 64 query heads on Hopper and 128 on Blackwell: engines pad fewer with zeros, so that splitting the heads
//! over ranks saves no arithmetic (`required_padding` in SGLang's `nsa_backend.py` and vLLM's `flashmla_sparse.py`). All
//! `index_topk` places are multiplied, those that a short sequence leaves empty included.

use super::super::kernels::Datasheet;
use super::PromptChunk;
use psim_hardware::Accelerator;
use psim_models::serving::lower::AttentionCore;

/// Share of the 16-bit peak in prompts: 640 TFLOP/s on H800, 1,450 on B200 (README of FlashMLA).
const PROMPT_COMPUTE: f64 = 0.645;
/// Rate of decoding over an 8-bit cache, flop/s: 410 TFLOP/s on Hopper, 350 on Blackwell (README of FlashMLA).
const DECODE_RATES: [f64; 2] = [410e12, 350e12];
/// Share of the 8-bit peak of the indexer's scores, as DeepGEMM reaches in products
/// ([`super::super::kernels::MoeLaw::seconds_contiguous`]).
const SCORE_COMPUTE: f64 = 0.62;
/// Passes over the scores in 32 bits: written, read by the choice.
const SCORE_BYTES: f64 = 8.0;

/// The kernels on an accelerator, for one kind of attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sparse {
    /// Tokens that a query is multiplied with.
    selected: f64,
    /// Flops of a query and one chosen token, padding included.
    flops: f64,
    prompt_rate: f64,
    decode_rate: f64,
    /// Flops of the indexer for a query and one token before it.
    score_flops: f64,
    score_rate: f64,
    bandwidth: f64,
}

impl Sparse {
    /// The kernels, where the engine's library and the accelerator have them.
    pub(super) fn new(core: &AttentionCore, library: &str, part: &Part, rates: Datasheet) -> Option<Self> {
        let selected = core.reads_at_most.filter(|_| core.latent)? as f64;
        let blackwell = part.flash_mla.filter(|_| matches!(library, "sglang" | "vllm"))?;
        let least = if blackwell { 128.0 } else { 64.0 };
        let heads = (core.q_heads as f64 / least).ceil() * least;
        // Scores over latent and rotary part, values over the latent: the cache holds both.
        let width = 2.0 * core.cache_elements as f64 - ROTARY;
        Some(Self {
            selected,
            flops: 2.0 * heads * width,
            prompt_rate: PROMPT_COMPUTE * rates.half,
            decode_rate: DECODE_RATES[usize::from(blackwell)],
            score_flops: 2.0 * (core.indexer_heads * core.indexer_elements) as f64,
            score_rate: SCORE_COMPUTE * part.eight_bit.unwrap_or(rates.half),
            bandwidth: rates.bandwidth,
        })
    }

    /// Seconds of one layer in which so many sequences decode over an 8-bit cache.
    pub(super) fn decode(&self, sequences: f64) -> f64 {
        sequences * self.selected * self.flops / self.decode_rate
    }

    /// Seconds of one layer for a chunk: `None` where all tokens are read, which dense kernels do (`index_topk` is the
    /// engines' limit).
    pub(super) fn prompt(&self, chunk: &PromptChunk) -> Option<f64> {
        let (n, before) = (f64::from(chunk.tokens), f64::from(chunk.before));
        if before + n <= self.selected {
            return None;
        }
        let pairs = n * (before + (n + 1.0) / 2.0);
        let scores = pairs * (self.score_flops / self.score_rate + SCORE_BYTES / self.bandwidth);
        let scores = if self.score_flops > 0.0 { scores } else { 0.0 };
        Some(n * self.selected * self.flops / self.prompt_rate + scores)
    }
}

/// Width of the rotary part of a latent in all models that have one.
const ROTARY: f64 = 64.0;

/// What decides which kernels run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// FlashMLA runs on it; true on Blackwell.
    pub(super) flash_mla: Option<bool>,
    pub(super) eight_bit: Option<f64>,
}

impl Part {
    pub(super) fn new(accelerator: &Accelerator, four_bit: bool, eight_bit: Option<f64>) -> Self {
        // Data-centre parts from Hopper on: those of workstations have no such kernels.
        let nvidia = accelerator.vendor.eq_ignore_ascii_case("nvidia");
        let stacked = accelerator.memory_type.to_ascii_uppercase().starts_with("HBM");
        Self { flash_mla: (nvidia && stacked && eight_bit.is_some()).then_some(four_bit), eight_bit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_hardware::DType;
    use psim_hardware::catalogue::accelerator;
    use psim_models::presets;
    use psim_models::serving::{Deployment, NumberFormat, Quantization, lower};

    fn sparse(gpu: &str, library: &str, tp: u32) -> Option<Sparse> {
        let model = presets::find("deepseek-v3.2").unwrap();
        let d = Deployment::tensor_parallel(tp, Quantization::uniform(NumberFormat::Fp8Block));
        let core = lower(&model, &d).unwrap().attention[0];
        let part = accelerator(gpu).unwrap();
        let rate = |t: DType| part.peak(t).map(|f| f.0);
        let half = rate(DType::Bf16).unwrap();
        let rates = Datasheet { half, peak: half, bandwidth: part.memory_bandwidth.0 };
        Sparse::new(&core, library, &Part::new(part, rate(DType::Fp4).is_some(), rate(DType::Fp8)), rates)
    }

    #[test]
    fn split_heads_save_no_arithmetic_below_the_padding() {
        let long = PromptChunk { tokens: 8192, before: 0 };
        let on = |gpu, tp| sparse(gpu, "sglang", tp).unwrap();
        // 128 heads: whole on one rank, 16 of 64 or 128 on each of eight.
        assert_eq!(on("B200-SXM", 1).prompt(&long), on("B200-SXM", 8).prompt(&long));
        let [one, eight] = [1, 8].map(|tp| on("H200-SXM-141GB", tp).decode(4.0));
        assert!((one / eight - 2.0).abs() < 1e-9);
        // By hand, B200: 8,192 · 2,048 · 2 · 128 · 1,088 flop at 1,451 TFLOP/s are 3.22 ms; scores of 64 heads of 128:
        // 33.6 M pairs, 16,384 flop each at 2,790 TFLOP/s, 0.20 ms, and 268 MB, 0.03 ms.
        let seconds = on("B200-SXM", 8).prompt(&long).unwrap();
        assert!((seconds * 1e3 / 3.45 - 1.0).abs() < 0.03, "{seconds}");
        assert_eq!(on("B200-SXM", 8).prompt(&PromptChunk { tokens: 2048, before: 0 }), None);
    }

    #[test]
    fn other_libraries_and_parts_have_kernels_of_their_own() {
        assert!(sparse("B200-SXM", "trtllm", 8).is_none());
        assert!(sparse("MI300X", "vllm", 8).is_none());
        assert!(sparse("RTX-PRO-6000-Server", "sglang", 8).is_none());
    }
}
