//! Attention and feed-forward layers on different accelerators: micro-batches go to and fro between two stages.
//!
//! Per layer a micro-batch runs its attention, crosses the network, runs its feed-forward (experts) and crosses back.
//! With enough micro-batches the slower side is always busy: a step takes layers · micro-batches · max(attention,
//! feed-forward) and the time of filling. (MegaScale-Infer, Zhu et al. 2025; Step-3, 2025.)

use serde::{Deserialize, Serialize};

/// Times of one micro-batch in one layer, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionFfn {
    /// Attention with its projections.
    pub attention: f64,
    /// Feed-forward or experts.
    pub feed_forward: f64,
    /// One crossing, from the end on one side to the start on the other.
    pub crossing: f64,
    /// What of it keeps the links of its direction busy: the next micro-batch waits for them.
    #[serde(default)]
    pub wire: f64,
    /// Layers.
    pub layers: u32,
    /// Micro-batches in flight.
    pub micro_batches: u32,
}

impl AttentionFfn {
    /// Seconds of a step: both sides take micro-batches in turn.
    pub fn step_seconds(&self) -> f64 {
        let m = self.micro_batches.max(1) as usize;
        let (mut attention_free, mut ffn_free) = (0.0f64, 0.0f64);
        // When the links of each direction are free.
        let (mut there, mut back) = (0.0f64, 0.0f64);
        let rest = (self.crossing - self.wire).max(0.0);
        let mut ready = vec![0.0f64; m];
        let mut arrives = vec![0.0; m];
        for _ in 0..self.layers {
            for (r, a) in ready.iter().zip(&mut arrives) {
                attention_free = attention_free.max(*r) + self.attention;
                there = there.max(attention_free) + self.wire;
                *a = there + rest;
            }
            for (a, r) in arrives.iter().zip(&mut ready) {
                ffn_free = ffn_free.max(*a) + self.feed_forward;
                back = back.max(ffn_free) + self.wire;
                *r = back + rest;
            }
        }
        ready.iter().copied().fold(0.0, f64::max)
    }

    /// Micro-batches from which the crossings and the other side are hidden: (attention + feed-forward + two crossings)
    /// over the slowest of sides and links.
    pub fn enough(&self) -> u32 {
        let round = self.attention + self.feed_forward + 2.0 * self.crossing;
        (round / self.attention.max(self.feed_forward).max(self.wire).max(f64::MIN_POSITIVE)).ceil() as u32
    }

    /// Lower bound of a step: the busiest of the sides and the links, and one micro-batch alone.
    pub fn lower_bound(&self) -> f64 {
        let layers = f64::from(self.layers);
        let busy = layers
            * f64::from(self.micro_batches.max(1))
            * self.attention.max(self.feed_forward).max(self.wire);
        busy.max(layers * (self.attention + self.feed_forward + 2.0 * self.crossing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn three_micro_batches_hide_the_network() {
        let step = AttentionFfn {
            attention: 1.0,
            feed_forward: 1.0,
            crossing: 0.5,
            wire: 0.0,
            layers: 60,
            micro_batches: 1,
        };
        // Alone: 1 + 0.5 + 1 + 0.5 a layer.
        assert!((step.step_seconds() - 180.0).abs() < 1e-9);
        assert_eq!(step.enough(), 3);
        let three = AttentionFfn { micro_batches: 3, ..step };
        // Busy all the time: 3 a layer and the last way round.
        assert!((three.step_seconds() - (60.0 * 3.0 + 2.0 - 0.0)).abs() < 1.1, "{}", three.step_seconds());
        assert!(three.step_seconds() >= three.lower_bound());
        // Links that one micro-batch keeps busy for 1.5 are the slowest of all: 1.5 a micro-batch and layer.
        let slow = AttentionFfn { crossing: 1.5, wire: 1.5, micro_batches: 4, ..step };
        assert!((slow.step_seconds() / (60.0 * 4.0 * 1.5) - 1.0).abs() < 0.02, "{}", slow.step_seconds());
        assert_eq!(slow.enough(), 4);
    }

    proptest! {
        #[test]
        fn never_below_the_bound_and_close_to_it_with_enough(
            a in 0.1f64..3.0, f in 0.1f64..3.0, c in 0.0f64..1.0, w in 0.0f64..1.0, m in 1u32..8,
        ) {
            let step = AttentionFfn { attention: a, feed_forward: f, crossing: c, wire: w * c, layers: 80, micro_batches: m };
            let bound = step.lower_bound();
            prop_assert!(step.step_seconds() >= bound - 1e-9);
            if m >= step.enough() {
                prop_assert!(step.step_seconds() <= 1.05 * bound + 2.0 * (a + f + c), "{} {bound}", step.step_seconds());
            }
        }
    }
}
