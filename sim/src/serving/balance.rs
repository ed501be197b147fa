//! Load of experts over ranks: hot experts, redundant copies (DeepSeek's EPLB), spilling to the least loaded rank.
//!
//! The step of an expert layer waits for its busiest rank. The imbalance is the busiest over the mean load; it
//! multiplies the expert work of a step (`expert_imbalance` of an engine).

use psim_models::serving::rng::Rng;

/// Loads of experts: how often each is chosen, summing to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertLoads(Vec<f64>);

impl ExpertLoads {
    /// All the same.
    pub fn uniform(experts: usize) -> Self {
        Self(vec![1.0 / experts.max(1) as f64; experts.max(1)])
    }

    /// Zipf: the expert of rank i is chosen in proportion to 1 / i^s; ranks are shuffled over experts by the seed.
    pub fn zipf(experts: usize, exponent: f64, seed: u64) -> Self {
        let mut loads: Vec<f64> = (1..=experts.max(1)).map(|i| (i as f64).powf(-exponent)).collect();
        let mut rng = Rng::new(seed, 41);
        for i in (1..loads.len()).rev() {
            loads.swap(i, rng.between(0, i as u64) as usize);
        }
        Self::normal(loads)
    }

    /// The first `hot` experts get `share` of all tokens, evenly; the others the rest.
    pub fn hot(experts: usize, hot: usize, share: f64) -> Self {
        let (hot, experts) = (hot.clamp(1, experts.max(1)), experts.max(1));
        let cold = (experts - hot).max(1) as f64;
        Self::normal(
            (0..experts).map(|i| if i < hot { share / hot as f64 } else { (1.0 - share) / cold }).collect(),
        )
    }

    fn normal(loads: Vec<f64>) -> Self {
        let sum: f64 = loads.iter().sum();
        Self(loads.into_iter().map(|l| l / sum.max(f64::MIN_POSITIVE)).collect())
    }

    /// The loads.
    pub fn loads(&self) -> &[f64] {
        &self.0
    }

    /// Busiest over mean rank with experts in order, the same number on every rank.
    pub fn contiguous(&self, ranks: usize) -> f64 {
        let ranks = ranks.max(1);
        let each = self.0.len().div_ceil(ranks);
        let busiest = self.0.chunks(each).map(|c| c.iter().sum::<f64>()).fold(0.0, f64::max);
        busiest * ranks as f64
    }

    /// Busiest over mean rank with `redundant` more copies than experts: the most loaded copy is doubled again and
    /// again, then copies go, heaviest first, to the least loaded rank with a free slot. Fewer copies are also tried,
    /// because a greedy packing alone may get worse with more.
    pub fn balanced(&self, ranks: usize, redundant: usize) -> f64 {
        let ranks = ranks.max(1);
        (0..=redundant).map(|copies| self.packed(ranks, copies)).fold(f64::INFINITY, f64::min)
    }

    fn packed(&self, ranks: usize, redundant: usize) -> f64 {
        let mut copies = vec![1usize; self.0.len()];
        for _ in 0..redundant {
            let heaviest = (0..copies.len()).max_by(|a, b| {
                (self.0[*a] / copies[*a] as f64).total_cmp(&(self.0[*b] / copies[*b] as f64)).then(b.cmp(a))
            });
            if let Some(index) = heaviest {
                copies[index] += 1;
            }
        }
        let mut items: Vec<f64> =
            (0..copies.len()).flat_map(|i| vec![self.0[i] / copies[i] as f64; copies[i]]).collect();
        items.sort_by(|a, b| b.total_cmp(a));
        let slots = items.len().div_ceil(ranks);
        let mut loads = vec![(0.0f64, 0usize); ranks];
        for item in items {
            let open =
                (0..ranks).filter(|r| loads[*r].1 < slots).min_by(|a, b| loads[*a].0.total_cmp(&loads[*b].0));
            if let Some(rank) = open {
                loads[rank].0 += item;
                loads[rank].1 += 1;
            }
        }
        loads.iter().map(|l| l.0).fold(0.0, f64::max) * ranks as f64
    }

    /// Busiest over mean rank after spilling (LLEP): experts in order on the ranks; a rank keeps at most `cap` times
    /// the mean, the overflow of `tokens` tokens moves with its expert's weights to the least loaded ranks in pieces of
    /// at least `piece` tokens. Also the number of moves.
    pub fn spilled(&self, ranks: usize, cap: f64, tokens: f64, piece: f64) -> (f64, u32) {
        let ranks = ranks.max(1);
        let each = self.0.len().div_ceil(ranks);
        let mean = tokens / ranks as f64;
        let limit = cap * mean;
        let mut loads: Vec<f64> = self
            .0
            .chunks(each)
            .map(|c| c.iter().sum::<f64>() * tokens)
            .chain(std::iter::repeat(0.0))
            .take(ranks)
            .collect();
        let mut moves = 0;
        for rank in 0..ranks {
            while loads[rank] > limit + 1e-9 {
                let least = (0..ranks).min_by(|a, b| loads[*a].total_cmp(&loads[*b])).unwrap_or(rank);
                let room = limit - loads[least];
                let moved = (loads[rank] - limit).max(piece).min(room.max(0.0)).min(loads[rank]);
                if least == rank || moved < piece.min(loads[rank] - limit) || moves > 100_000 {
                    break;
                }
                loads[rank] -= moved;
                loads[least] += moved;
                moves += 1;
            }
        }
        (loads.iter().copied().fold(0.0, f64::max) / mean, moves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_hot_experts_even_the_load() {
        // One of 8 experts takes 30 % on 8 ranks: 2.4 times the mean. With 8 more copies it falls to
        // 1.2: copies of 0.1, 0.075 and 0.05 packed two a rank, the heaviest rank 0.15 against a mean of 0.125.
        let loads = ExpertLoads::hot(8, 1, 0.3);
        assert!((loads.contiguous(8) - 2.4).abs() < 1e-9);
        assert!((loads.balanced(8, 8) - 1.2).abs() < 1e-9, "{}", loads.balanced(8, 8));
        // DeepSeek-V3 on 32 ranks with 32 redundant copies: 256 experts.
        for seed in 0..5 {
            let zipf = ExpertLoads::zipf(256, 0.6, seed);
            let mut last = f64::INFINITY;
            for redundant in [0, 16, 32, 64] {
                let factor = zipf.balanced(32, redundant);
                assert!(factor >= 1.0 - 1e-9 && factor <= last);
                last = factor;
            }
            assert!(zipf.balanced(32, 32) < 1.1 && zipf.contiguous(32) > 1.3);
        }
        assert!((ExpertLoads::uniform(64).balanced(8, 0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn spilling_conserves_and_bounds() {
        // 95 % of 8 · 32,768 tokens in one expert of 128 on 8 ranks: 7.65 times the mean without spilling.
        let loads = ExpertLoads::hot(128, 1, 0.95);
        assert!((loads.contiguous(8) - 7.645).abs() < 0.01, "{}", loads.contiguous(8));
        let (factor, moves) = loads.spilled(8, 1.0, 8.0 * 32_768.0, 1024.0);
        assert!(factor < 1.1 && moves >= 7, "{factor} {moves}");
        assert!((ExpertLoads::uniform(128).spilled(8, 1.0, 1e5, 1024.0).0 - 1.0).abs() < 1e-9);
    }
}
