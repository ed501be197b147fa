//! Laws of the serving kernels: launch floor, work per block of threads, memory and arithmetic rates.
//!
//! Each law is a roofline with measured efficiencies and a floor: the terms that overlap inside a kernel are joined by
//! a fourth-power norm, which is within 19 % of their maximum and has no corner. Efficiencies are shares of datasheet
//! rates, at most 1, so no law beats its roofline.

use crate::gemm::overlap;
use serde::{Deserialize, Serialize};

/// Datasheet rates of a part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Datasheet {
    /// Dense 16-bit matrix rate, flop/s.
    pub half: f64,
    /// Matrix rate of the format at hand, flop/s.
    pub peak: f64,
    /// Device memory, bytes/s.
    pub bandwidth: f64,
}

/// Decoding attention: one query token of each sequence against its cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DecodeLaw {
    /// Floor, microseconds.
    pub launch_us: f64,
    /// Time of one (sequence, key/value head) block over the whole part, nanoseconds.
    pub block_ns: f64,
    /// Reached share of memory bandwidth.
    pub memory: f64,
    /// Reached share of the 16-bit matrix rate.
    pub compute: f64,
    /// Standard deviation of ln(measured / predicted).
    pub sigma: f64,
}

impl DecodeLaw {
    /// Coordinates of the residual: blocks (sequences · key/value heads), tokens read by each, query heads of a group.
    pub fn coordinates(blocks: f64, length: f64, group: f64) -> [f64; 3] {
        [blocks, length, group]
    }

    /// Seconds for `blocks` = sequences · key/value heads, `bytes` of cache read and `flops`.
    pub fn seconds(&self, rates: Datasheet, blocks: f64, bytes: f64, flops: f64) -> f64 {
        let memory = bytes / (rates.bandwidth * self.memory);
        let compute = flops / (rates.half * self.compute);
        self.launch_us * 1e-6 + overlap(overlap(memory, compute), blocks * self.block_ns * 1e-9)
    }
}

/// Prompt attention: a chunk of query tokens against the cache before and the chunk itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PromptLaw {
    /// Floor, microseconds.
    pub launch_us: f64,
    /// Reached share of the matrix rate for long chunks.
    pub compute: f64,
    /// Chunk length at which half of that is reached, tokens.
    pub half_length: f64,
    /// Reached share of memory bandwidth.
    pub memory: f64,
    /// Standard deviation of ln(measured / predicted).
    pub sigma: f64,
}

impl PromptLaw {
    /// Coordinates of the residual: tokens of a prompt, query heads over all prompts, query heads of a group.
    pub fn coordinates(length: f64, heads: f64, group: f64) -> [f64; 3] {
        [length, heads, group]
    }

    /// Seconds beyond the floor for `flops` (causal half only) in chunks of `length` tokens that move `bytes`.
    pub fn work_seconds(&self, rates: Datasheet, flops: f64, length: f64, bytes: f64) -> f64 {
        let reached = self.compute * length / (length + self.half_length);
        overlap(flops / (rates.peak * reached.max(1e-6)), bytes / (rates.bandwidth * self.memory))
    }
}

/// Fused experts of one layer on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MoeLaw {
    /// Floor, microseconds.
    pub launch_us: f64,
    /// Reached share of memory bandwidth for expert weights.
    pub memory: f64,
    /// Reached share of the matrix rate.
    pub compute: f64,
    /// Rows that each touched expert is padded by, in the mean.
    pub padding: f64,
    /// Passes over the routed rows in memory (permute, quantise, combine).
    pub passes: f64,
    /// Standard deviation of ln(measured / predicted).
    pub sigma: f64,
}

/// Shape of a fused expert call on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeCall {
    /// Routed rows on this rank.
    pub rows: f64,
    /// Experts on this rank that get a row.
    pub touched: f64,
    /// Parameters of one expert on this rank.
    pub parameters: f64,
    /// Bytes of one parameter.
    pub weight_bytes: f64,
    /// Width that experts read and write.
    pub hidden: f64,
    /// Experts on this rank.
    pub local: f64,
}

/// Fewest experts of a layer whose popularity spreads: routers of a few coarse experts are balanced.
const MANY_EXPERTS: f64 = 32.0;

impl MoeCall {
    /// Experts of `local` that get at least one of `draws` routed rows in a step of an engine.
    ///
    /// Routers are balanced over a corpus, not over the tokens of a step, which resemble one another: how many rows an
    /// expert expects is itself spread. With an exponential spread (deviation equal to the mean, as the hottest expert
    /// of a few hundred then gets some six times the mean) an expert is missed by Poisson draws of mean m with
    /// probability 1 / (1 + m), in place of exp(-m).
    pub fn hit(local: f64, experts: f64, draws: f64) -> f64 {
        if experts < MANY_EXPERTS {
            return Self::touched(local, experts, draws);
        }
        let mean = draws / experts;
        local * mean / (1.0 + mean)
    }

    /// Rows and touched experts of the busiest of `ranks` ranks over the mean rank, each with `local` of `experts` of which a
    /// share `hit` gets some of the `rows` of the mean rank: the greatest of `ranks` sums of exponentially popular experts,
    /// to first order (Gaussian).
    ///
    /// A few coarse experts are drawn alike (an auxiliary loss balances them; Mixtral's shares lie near 1/8 in every domain,
    /// Jiang et al. 2024, section 5): there the rows of a rank scatter as Poisson draws do, by the root of their number.
    pub fn busiest(local: f64, experts: f64, ranks: u32, hit: f64, rows: f64) -> [f64; 2] {
        let greatest = greatest_of(ranks);
        let z = greatest / local.max(1.0).sqrt();
        let missed = ((1.0 - hit) / hit.max(1e-3)).max(0.0).sqrt();
        let spread = if experts < MANY_EXPERTS { greatest / rows.max(1.0).sqrt() } else { z };
        [1.0 + spread, 1.0 + z * missed.min(1.0)]
    }

    /// Coordinates of the residual: routed rows, parameters of an expert, experts on the rank.
    pub fn coordinates(&self) -> [f64; 3] {
        [self.rows, self.parameters, self.local]
    }

    /// Experts of `local` that get at least one of `draws` routed rows spread evenly over `experts`.
    pub fn touched(local: f64, experts: f64, draws: f64) -> f64 {
        local * -((1.0 - 1.0 / experts.max(1.000_001)).ln() * draws).exp_m1()
    }
}

/// Mean of the greatest of `n` standard normal numbers, for powers of two; in between by the logarithm of `n`.
fn greatest_of(n: u32) -> f64 {
    const AT: [f64; 11] = [0.0, 0.564, 1.029, 1.424, 1.766, 2.070, 2.344, 2.596, 2.828, 3.045, 3.250];
    let place = f64::from(n.max(1)).log2().min(9.999);
    let (line, part) = (place as usize, place.fract());
    AT[line] + part * (AT[line + 1] - AT[line])
}

/// Share of the 8-bit peak that DeepGEMM reaches in contiguous grouped products: 1,297 TFLOP/s in the two products of gate
/// and up, 1,099 in the one down, of 1,979 (README of its first release, 4 groups of 8,192 rows on H800).
const CONTIGUOUS_COMPUTE: f64 = 0.62;

impl MoeLaw {
    /// Seconds of one call with experts of inner width `inner` on this rank, all of them padded to `padded` rows and
    /// multiplied in one contiguous buffer: every expert's weights are read; all rows are multiplied, written and read
    /// between the products (gate and up 2 n, activation n in 8 bits, output h wide); those of tokens are also copied in
    /// and gathered.
    pub fn seconds_contiguous(&self, rates: Datasheet, call: &MoeCall, padded: f64, inner: f64) -> f64 {
        let rows = call.rows + call.local * (padded - 1.0).max(0.0);
        let moved = rows * (2.0 * call.hidden + 9.0 * inner) + call.rows * 4.0 * call.hidden;
        let weights = call.local * call.parameters * call.weight_bytes;
        let memory = weights / (rates.bandwidth * self.memory);
        let compute = 2.0 * call.parameters * rows / (rates.peak * CONTIGUOUS_COMPUTE);
        self.launch_us * 1e-6 + moved / rates.bandwidth + overlap(memory, compute)
    }

    /// Seconds of one call.
    pub fn seconds(&self, rates: Datasheet, call: &MoeCall) -> f64 {
        let weights = call.touched * call.parameters * call.weight_bytes;
        let copies = self.passes * call.rows * call.hidden * 2.0 / rates.bandwidth;
        let flops = 2.0 * call.parameters * (call.rows + self.padding * call.touched);
        let memory = weights / (rates.bandwidth * self.memory);
        let compute = flops / (rates.peak * self.compute);
        self.launch_us * 1e-6 + copies + overlap(memory, compute)
    }
}

/// Products with 4- or 8-bit integer weights and 16-bit arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WeightOnlyLaw {
    /// Floor, microseconds.
    pub launch_us: f64,
    /// Reached share of memory bandwidth.
    pub memory: f64,
    /// Reached share of the 16-bit matrix rate.
    pub compute: f64,
    /// Standard deviation of ln(measured / predicted).
    pub sigma: f64,
}

impl WeightOnlyLaw {
    /// Seconds for `flops` and `bytes` of weights and activations.
    pub fn seconds(&self, rates: Datasheet, flops: f64, bytes: f64) -> f64 {
        let compute = flops / (rates.half * self.compute);
        self.launch_us * 1e-6 + overlap(compute, bytes / (rates.bandwidth * self.memory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_touched() {
        assert!((MoeCall::touched(8.0, 8.0, 1.0) - 1.0).abs() < 1e-9);
        assert!((MoeCall::touched(8.0, 8.0, 1e6) - 8.0).abs() < 1e-9);
        // 128 experts, 64 draws: 128 (1 - (127/128)^64).
        let expected = 128.0 * (1.0 - (127.0f64 / 128.0).powi(64));
        assert!((MoeCall::touched(128.0, 128.0, 64.0) - expected).abs() < 1e-9);
        // Spread popularity: 256 experts, 256 draws, half of them are hit in place of 63 %; coarse experts evenly.
        assert!((MoeCall::hit(256.0, 256.0, 256.0) - 128.0).abs() < 1e-9);
        assert!((MoeCall::hit(8.0, 8.0, 8.0) - MoeCall::touched(8.0, 8.0, 8.0)).abs() < 1e-12);
        // Long prompts reach all.
        assert!(MoeCall::hit(256.0, 256.0, 65_536.0) > 254.0);
    }

    #[test]
    fn contiguous_experts_cost_the_same_for_every_small_batch() {
        // Qwen3-235B in two halves: 128 experts, width 4,096, inner 768, of which 8 a token.
        let law =
            MoeLaw { launch_us: 36.0, memory: 0.89, compute: 0.46, padding: 58.0, passes: 25.0, sigma: 0.0 };
        let rates = Datasheet { half: 989e12, peak: 1979e12, bandwidth: 4.8e12 };
        let call = |tokens: f64| MoeCall {
            rows: 8.0 * tokens,
            touched: MoeCall::hit(128.0, 128.0, 8.0 * tokens),
            parameters: 3.0 * 4096.0 * 768.0,
            weight_bytes: 1.0,
            hidden: 4096.0,
            local: 128.0,
        };
        let at = |tokens: f64| law.seconds_contiguous(rates, &call(tokens), 128.0, 768.0);
        assert!(at(16.0) / at(1.0) < 1.02, "{} {}", at(1.0), at(16.0));
        // By hand: 16,264 rows, 307 TFLOP at 1,227 TFLOP/s are 250 us, 1.2 GB at 4.27 TB/s 283 us, joined 320; 245 MB
        // moved 51 us; launch 36 us.
        assert!((at(1.0) * 1e6 / 407.0 - 1.0).abs() < 0.02, "{}", at(1.0));
        // Long prompts fill the padding: no slower than the rows make it.
        let long = law.seconds_contiguous(rates, &call(65_536.0), 128.0, 768.0);
        let bare = law.seconds_contiguous(rates, &call(65_536.0), 1.0, 768.0);
        assert!(long / bare < 1.05, "{long} {bare}");
    }

    #[test]
    fn the_busiest_rank() {
        // Monte Carlo: 8 ranks of 16 exponential experts each.
        let mut state = 1u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            -(((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64).ln()
        };
        let trials = 4000;
        let mean: f64 = (0..trials)
            .map(|_| {
                let sums: Vec<f64> = (0..8).map(|_| (0..16).map(|_| draw()).sum()).collect();
                let all: f64 = sums.iter().sum();
                8.0 * sums.iter().copied().fold(0.0, f64::max) / all
            })
            .sum::<f64>()
            / f64::from(trials);
        let [rows, touched] = MoeCall::busiest(16.0, 128.0, 8, 1.0, 1024.0);
        assert!((rows / mean - 1.0).abs() < 0.05, "{rows} against {mean}");
        assert!((touched - 1.0).abs() < 1e-12);
        assert_eq!(MoeCall::busiest(128.0, 128.0, 1, 0.3, 64.0), [1.0, 1.0]);
        // Eight coarse experts on eight ranks, 512 rows drawn alike (Monte Carlo): no popularity, scatter of draws only.
        let mean: f64 = (0..trials)
            .map(|_| {
                let mut rows = [0u32; 8];
                for _ in 0..512 {
                    rows[(8.0 * (1.0 - (-draw()).exp())) as usize % 8] += 1;
                }
                f64::from(rows.iter().copied().max().unwrap()) / 64.0
            })
            .sum::<f64>()
            / f64::from(trials);
        let [rows, _] = MoeCall::busiest(1.0, 8.0, 8, 1.0, 64.0);
        assert!((rows / mean - 1.0).abs() < 0.03, "{rows} against {mean}");
    }
}
