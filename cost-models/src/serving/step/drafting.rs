//! Steps that verify drafts of the model's own extra layers (multi-token prediction).

use super::StepCost;

/// Drafting by layers of the model itself: every step runs `1 + drafts` tokens of each sequence through the model and
/// `drafts` passes of one layer and the output layer after it (DeepSeek-V3 report, section 2.2; EAGLE with one chain).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drafting {
    /// Drafted tokens of a step.
    pub drafts: u32,
    /// Real over counted tokens of a sequence's context: a simulation that counts steps as tokens sees fewer.
    pub context: f64,
    /// Counted over real bytes of a whole sequence in the cache.
    pub cache: f64,
}

impl StepCost {
    /// The same deployment with drafts. One step still counts as one token of each sequence: the caller restates.
    #[must_use]
    pub fn with_drafting(&self, drafting: Drafting) -> Self {
        Self { drafting: (drafting.drafts > 0).then_some(drafting), ..self.clone() }
    }

    /// The same deployment with steps that verify so many drafts of every decoding sequence, wherever those come from: what
    /// drafting costs is the caller's. Contexts are counted as they are.
    #[must_use]
    pub fn verifying(&self, drafts: u32) -> Self {
        let drafting = Drafting { drafts, context: 1.0, cache: 1.0 };
        Self { given: true, ..self.with_drafting(drafting) }
    }

    /// Tokens of a sequence that a decoding step runs.
    pub(super) fn queries(&self) -> u32 {
        1 + self.drafting.map_or(0, |d| d.drafts)
    }

    /// Real over counted context.
    pub(super) fn stretch(&self) -> f64 {
        self.drafting.map_or(1.0, |d| d.context)
    }

    /// Accelerator seconds of the drafting passes for `decoding` sequences of one of `copies` equal lanes.
    pub(super) fn draft_seconds(&self, decoding: u32, copies: u32) -> f64 {
        let Some(d) = self.drafting else { return 0.0 };
        if decoding == 0 || self.given {
            return 0.0;
        }
        let layers = f64::from(self.pieces.shape.layers.max(1));
        let pass = self.local.at(decoding) + self.shared.at(decoding.saturating_mul(copies)) + self.idle();
        f64::from(d.drafts) * (pass / layers + self.head.at(decoding))
    }

    /// Least time of attention in one layer per cached token: arithmetic of all queries at a share of the peak that
    /// prompt kernels reach; nothing without drafts.
    pub(super) fn query_seconds(&self, kind: usize) -> f64 {
        let Some(k) = self.pieces.kinds.get(kind).filter(|_| self.drafting.is_some()) else { return 0.0 };
        let width =
            if k.core.latent { 2 * k.core.cache_elements } else { k.core.head_dim + k.core.head_dim_v };
        let flops = 2.0 * (k.core.q_heads * width) as f64;
        f64::from(self.queries()) * flops / (0.6 * self.pieces.rates.half)
    }
}
