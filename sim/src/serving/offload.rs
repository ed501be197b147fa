//! Experts that live outside the accelerator: when their copies hide behind the computation, and what is left of them.
//!
//! A pass runs the blocks of a model one after another on the compute stream; a copy stream brings the experts of each
//! block over the host link (or from a disk). Sources: Pre-gated MoE (Hwang et al., ISCA 2024, equation 1 and figure
//! 10), ExpertFlow (2024), SE-MoE (Shen et al. 2022, ring memory).

use psim_hardware::BytesPerSec;
use serde::{Deserialize, Serialize};

/// When experts are copied.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum OffloadPolicy {
    /// All experts stay on the accelerator.
    Resident,
    /// The chosen experts of a block are copied when its gate has spoken: nothing is hidden.
    OnDemand,
    /// All experts of the next block are copied while this one runs.
    PrefetchAll,
    /// The gate of a block chooses the experts of the next one, which are copied while this one runs.
    PreGated,
    /// A predictor fills the cache before the pass: the share of right guesses is copied ahead, the rest on demand.
    Predicted {
        /// Share of the chosen experts that are in the cache when their block starts.
        hit_rate: f64,
    },
    /// Whole layers in a ring of slots: a layer's slot is refilled when it has run (SE-MoE).
    Ring {
        /// Layers that fit on the accelerator.
        slots: u32,
    },
}

/// Names of the field that are not built, with the reason.
const NOT_BUILT: [(&str, &str); 2] = [
    ("read-me", "it needs batches formed by the experts of their requests"),
    ("m2r2", "its prefetch distance depends on residuals that are not published"),
];

impl OffloadPolicy {
    /// In a few words.
    pub fn name(self) -> String {
        match self {
            Self::Resident => "resident".to_owned(),
            Self::OnDemand => "copied when chosen".to_owned(),
            Self::PrefetchAll => "all of the next layer copied ahead".to_owned(),
            Self::PreGated => "those chosen for the next layer copied ahead".to_owned(),
            Self::Predicted { hit_rate } => {
                format!("{:.0} % of them guessed and copied ahead", 100.0 * hit_rate)
            }
            Self::Ring { slots } => format!("a ring of {slots} layers"),
        }
    }

    /// Reads a name; `predicted` and `ring` carry a number: `predicted:0.9`, `ring:4`.
    ///
    /// # Errors
    /// A sentence: unknown, wrong number, or known and not built with the reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, number) = text.split_once(':').map_or((text, None), |(a, b)| (a, Some(b)));
        let value = |what: &str| -> Result<f64, String> {
            let text = number.ok_or_else(|| format!("`{name}` needs {what}, as in `{name}:0.9`"))?;
            text.parse::<f64>().map_err(|_| format!("`{text}` is not a number"))
        };
        match name {
            "resident" => Ok(Self::Resident),
            "on-demand" => Ok(Self::OnDemand),
            "prefetch-all" => Ok(Self::PrefetchAll),
            "pre-gated" => Ok(Self::PreGated),
            "predicted" | "expertflow" => {
                let hit_rate = value("a hit rate")?;
                if !(0.0..=1.0).contains(&hit_rate) {
                    return Err(format!("a hit rate of {hit_rate} is not between 0 and 1"));
                }
                Ok(Self::Predicted { hit_rate })
            }
            "ring" | "se-moe" => {
                let slots = value("a number of layers")?;
                if !(1.0..=4096.0).contains(&slots) {
                    return Err(format!("{slots} layers in the ring are not between 1 and 4096"));
                }
                Ok(Self::Ring { slots: slots as u32 })
            }
            other => match NOT_BUILT.iter().find(|(known, _)| *known == other) {
                Some((name, why)) => Err(format!("offload `{name}` is not built: {why}")),
                None => Err(format!(
                    "`{other}` is not an offload policy; known: resident, on-demand, prefetch-all, pre-gated, predicted:RATE, ring:LAYERS"
                )),
            },
        }
    }
}

/// A block (layer) with experts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OffloadBlock {
    /// Seconds of its computation with all experts at hand.
    pub execute: f64,
    /// Experts of the block.
    pub experts: f64,
    /// Different experts that the batch chooses.
    pub chosen: f64,
    /// Bytes of one expert.
    pub expert_bytes: f64,
    /// Rate of the link that experts come over, bytes a second.
    pub link: f64,
}

impl OffloadBlock {
    /// Different experts of `experts` that `tokens` tokens with `top_k` each choose, routed uniformly: E(1 − (1 − k/E)^B).
    pub fn distinct(experts: f64, top_k: f64, tokens: f64) -> f64 {
        experts * (1.0 - (1.0 - (top_k / experts).min(1.0)).powf(tokens))
    }

    fn copy(&self, experts: f64) -> f64 {
        experts * self.expert_bytes / self.link
    }

    /// Bytes of experts on the accelerator at the worst moment, of a model with `blocks` such blocks.
    pub fn peak_bytes(&self, policy: OffloadPolicy, blocks: u32) -> f64 {
        let all = self.experts * self.expert_bytes;
        let chosen = self.chosen * self.expert_bytes;
        match policy {
            OffloadPolicy::Resident => all * f64::from(blocks),
            OffloadPolicy::OnDemand => chosen,
            OffloadPolicy::PrefetchAll => 2.0 * all,
            OffloadPolicy::PreGated | OffloadPolicy::Predicted { .. } => 2.0 * chosen,
            OffloadPolicy::Ring { slots } => all * f64::from(slots.min(blocks)),
        }
    }

    /// Seconds of a block in the middle of a long pass, in closed form.
    pub fn steady(&self, policy: OffloadPolicy) -> f64 {
        match policy {
            OffloadPolicy::Resident => self.execute,
            OffloadPolicy::OnDemand => self.execute + self.copy(self.chosen),
            OffloadPolicy::PrefetchAll | OffloadPolicy::Ring { .. } => {
                self.execute.max(self.copy(self.experts))
            }
            OffloadPolicy::PreGated => self.execute.max(self.copy(self.chosen)),
            OffloadPolicy::Predicted { hit_rate } => {
                let missed = self.copy(self.chosen * (1.0 - hit_rate));
                // Misses use the same link, so that what was guessed is behind them.
                (self.execute + missed).max(self.copy(self.chosen))
            }
        }
    }

    /// Seconds of a pass over `blocks` blocks, on a compute and a copy stream.
    pub fn pass(&self, policy: OffloadPolicy, blocks: u32) -> f64 {
        let (mut compute, mut copy) = (0.0f64, 0.0f64);
        // When the copies of each block are there and when each block ended.
        let mut ends: Vec<f64> = Vec::with_capacity(blocks as usize);
        for block in 0..blocks as usize {
            let before = if block > 0 { ends[block - 1] } else { 0.0 };
            let start = match policy {
                OffloadPolicy::Resident => compute,
                OffloadPolicy::OnDemand => {
                    copy = copy.max(compute) + self.copy(self.chosen);
                    copy
                }
                OffloadPolicy::PrefetchAll | OffloadPolicy::PreGated => {
                    let experts = if policy == OffloadPolicy::PreGated { self.chosen } else { self.experts };
                    // Copies start when the block before starts (its gate or its turn), and one after another.
                    let gate = if block > 0 { before - self.execute } else { 0.0 };
                    copy = copy.max(gate) + self.copy(experts);
                    copy.max(compute)
                }
                OffloadPolicy::Predicted { hit_rate } => {
                    // Guessed copies run ahead from the start of the pass, misses when the gate has spoken.
                    copy += self.copy(self.chosen * hit_rate);
                    let missed = self.copy(self.chosen * (1.0 - hit_rate));
                    if missed > 0.0 {
                        copy = copy.max(compute) + missed;
                    }
                    copy.max(compute)
                }
                OffloadPolicy::Ring { slots } => {
                    let slots = slots as usize;
                    if block < slots {
                        compute
                    } else {
                        // The slot is free when the layer that it held has run.
                        copy = copy.max(ends[block - slots]) + self.copy(self.experts);
                        copy.max(compute)
                    }
                }
            };
            compute = start + self.execute;
            ends.push(compute);
        }
        compute
    }
}

/// Experts outside the accelerators of a replica that serves requests: every step is a pass over the layers that have
/// experts, their share of the step in each, with the copies beside it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertOffload {
    /// When experts are copied.
    pub policy: OffloadPolicy,
    /// Layers with experts.
    pub layers: u32,
    /// Experts of a layer.
    pub experts: f64,
    /// Those of them that this accelerator computes.
    pub local: f64,
    /// Experts that a token chooses.
    pub top_k: f64,
    /// Bytes of one expert on one accelerator.
    pub expert_bytes: f64,
    /// Rate of the link that experts come over, of one accelerator.
    pub link: BytesPerSec,
}

impl ExpertOffload {
    /// A layer of a step of so many tokens of all ranks that share the experts; this accelerator has its share of those
    /// that are chosen.
    pub fn block(&self, tokens: u32) -> OffloadBlock {
        let share = (self.local / self.experts.max(1.0)).min(1.0);
        let chosen = share * OffloadBlock::distinct(self.experts, self.top_k, f64::from(tokens));
        let (experts, expert_bytes) = (self.local, self.expert_bytes);
        OffloadBlock { execute: 0.0, experts, chosen, expert_bytes, link: self.link.0.max(1.0) }
    }

    /// Seconds of a step that takes `seconds` with all experts at hand.
    pub fn seconds(&self, block: &OffloadBlock, seconds: f64) -> f64 {
        let layers = self.layers.max(1);
        OffloadBlock { execute: seconds / f64::from(layers), ..*block }.pass(self.policy, layers)
    }

    /// Bytes of all experts, and of those that the policy keeps on an accelerator for steps of at most so many tokens.
    pub fn bytes(&self, most_tokens: u32) -> (f64, f64) {
        let all = f64::from(self.layers) * self.local * self.expert_bytes;
        (all, self.block(most_tokens).peak_bytes(self.policy, self.layers).min(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(execute_ms: f64, chosen: f64) -> OffloadBlock {
        // Switch-Large: an expert is 2 · 1,024 · 4,096 numbers of 4 bytes, 33.6 MB; PCIe of 32 GB/s: 1.05 ms.
        OffloadBlock {
            execute: execute_ms * 1e-3,
            experts: 128.0,
            chosen,
            expert_bytes: 2.0 * 1024.0 * 4096.0 * 4.0,
            link: 32e9,
        }
    }

    #[test]
    fn streams_come_to_the_closed_forms() {
        for b in [block(0.5, 1.0), block(3.0, 1.0), block(2.0, 4.0)] {
            for policy in [
                OffloadPolicy::Resident,
                OffloadPolicy::OnDemand,
                OffloadPolicy::PrefetchAll,
                OffloadPolicy::PreGated,
                OffloadPolicy::Predicted { hit_rate: 0.9 },
                OffloadPolicy::Predicted { hit_rate: 1.0 },
                OffloadPolicy::Ring { slots: 3 },
            ] {
                let (long, short) = (b.pass(policy, 400), b.pass(policy, 200));
                let steady = (long - short) / 200.0;
                assert!((steady / b.steady(policy) - 1.0).abs() < 0.02, "{policy:?} {b:?}: {steady}");
                assert!(long >= b.pass(OffloadPolicy::Resident, 400) - 1e-12);
            }
        }
    }

    #[test]
    fn published_ratios_of_pre_gated() {
        // Figure 10: copying all experts of Switch-Large-128 is up to 125 times slower than the pre-gate.
        let b = block(0.7, 1.0);
        let ratio = b.steady(OffloadPolicy::PrefetchAll) / b.steady(OffloadPolicy::PreGated);
        assert!((ratio / 125.0 - 1.0).abs() < 0.05, "{ratio}");
        // On demand 1.7 times slower: 0.7 ms of execution and 1.05 ms of copying.
        let ratio = b.steady(OffloadPolicy::OnDemand) / b.steady(OffloadPolicy::PreGated);
        assert!((ratio / 1.7 - 1.0).abs() < 0.05, "{ratio}");
    }

    #[test]
    fn ranks_copy_their_own_experts_only() {
        let one = ExpertOffload {
            policy: OffloadPolicy::OnDemand,
            layers: 10,
            experts: 64.0,
            local: 64.0,
            top_k: 2.0,
            expert_bytes: 1e6,
            link: BytesPerSec(1e9),
        };
        let eighth = ExpertOffload { local: 8.0, ..one };
        let (all, kept) = one.bytes(4);
        assert_eq!((all, eighth.bytes(4).0), (640e6, 80e6));
        assert!((eighth.bytes(4).1 / (kept / 8.0) - 1.0).abs() < 1e-12);
        // Ten milliseconds of computing; 64 (1 - (62/64)^4) = 7.63 experts of a layer are chosen, ten layers long.
        let chosen = 64.0 * (1.0 - (62.0f64 / 64.0).powi(4));
        for (offload, share) in [(one, 1.0), (eighth, 0.125)] {
            let seconds = offload.seconds(&offload.block(4), 0.01);
            assert!((seconds - 0.01 - 10.0 * share * chosen * 1e-3).abs() < 1e-9, "{seconds}");
        }
    }

    #[test]
    fn memory_and_names() {
        let b = block(1.0, 1.0);
        assert!((b.peak_bytes(OffloadPolicy::PreGated, 12) - 2.0 * b.expert_bytes).abs() < 1.0);
        assert!(
            b.peak_bytes(OffloadPolicy::Ring { slots: 4 }, 12) < b.peak_bytes(OffloadPolicy::Resident, 12)
        );
        assert!((OffloadBlock::distinct(128.0, 1.0, 32.0) - 28.3).abs() < 0.3);
        assert_eq!(OffloadPolicy::parse("ring:4"), Ok(OffloadPolicy::Ring { slots: 4 }));
        assert!(OffloadPolicy::parse("read-me").unwrap_err().contains("not built"));
        for bad in ["ring", "ring:x", "predicted:2", "lru"] {
            assert!(OffloadPolicy::parse(bad).is_err(), "{bad}");
        }
    }
}
