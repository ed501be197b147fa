//! Runs of decoding steps with an unchanged batch.

use super::decode_table::DecodeRow;
use super::{KINDS, StepCost};

/// A run of decoding steps of one lane whose batch does not change: all that does not depend on the cache is summed.
#[derive(Debug, Clone, Copy)]
pub struct DecodeRun<'a> {
    kinds: [Option<RunKind<'a>>; KINDS],
    /// Everything but attention, seconds.
    base: f64,
    base_roofline: f64,
    /// Least accelerator time: launches without a captured graph, the host's own loop.
    floor: f64,
    /// Exposed host time.
    host: f64,
    /// Overlap of kernels, seconds.
    overlap: f64,
}

#[derive(Debug, Clone, Copy)]
struct RunKind<'a> {
    layers: f64,
    row: DecodeRow<'a>,
    index: f64,
    roofline: f64,
    /// Real over counted context, and least seconds of all layers per cached token.
    stretch: f64,
    arithmetic: f64,
}

/// Steps for which a batch that reads `context` tokens, `growth` more each step, stays on one line of a table.
pub(super) fn straight_steps(row: &DecodeRow<'_>, stretch: f64, context: u64, growth: u32) -> u64 {
    if growth == 0 {
        return u64::MAX;
    }
    let to = row.straight_to(context as f64 * stretch) / stretch;
    ((to - context as f64) / f64::from(growth)).ceil().max(1.0) as u64
}

impl DecodeRun<'_> {
    /// Steps from one that reads `context`, each with `growth` more, over which no table bends: seconds are a maximum of
    /// lines in them.
    pub fn straight(&self, context: &[u64; KINDS], growth: &[u32; KINDS]) -> u64 {
        let kinds = self.kinds.iter().flatten().zip(context).zip(growth);
        kinds.map(|((k, c), g)| straight_steps(&k.row, k.stretch, *c, *g)).min().unwrap_or(u64::MAX)
    }

    /// Seconds of the step that reads this many cached tokens per attention kind.
    pub fn seconds(&self, context: &[u64; KINDS]) -> f64 {
        let (mut attention, mut roofline) = (0.0, self.base_roofline);
        for (kind, context) in self.kinds.iter().flatten().zip(context) {
            let c = *context as f64 * kind.stretch;
            attention += (kind.layers * kind.row.seconds(c)).max(c * kind.arithmetic) + c * kind.index;
            roofline += c * kind.roofline;
        }
        let gpu = super::overlapped(self.base + attention, self.overlap);
        gpu.max(self.floor).max(roofline) + self.host
    }
}

impl StepCost {
    /// Prepares steps in which one lane of a replica with a single lane decodes `decoding` sequences.
    pub fn decode_run(&self, decoding: u32) -> DecodeRun<'_> {
        let (p, pieces) = (&self.parameters, &*self.pieces);
        let mut kinds = [None; KINDS];
        for (index, (slot, kind)) in kinds.iter_mut().zip(&pieces.kinds).enumerate() {
            *slot = Some(RunKind {
                layers: kind.core.layers / p.decode,
                row: kind.decode.row(decoding),
                index: kind.core.layers * kind.index_bytes / (0.5 * pieces.rates.bandwidth),
                roofline: kind.core.layers * kind.core.cache_elements as f64 * kind.kv_size
                    / pieces.rates.bandwidth,
                stretch: self.stretch(),
                arithmetic: kind.core.layers * self.query_seconds(index),
            });
        }
        let tokens = decoding.saturating_mul(self.queries());
        let states = if pieces.shape.states.is_empty() {
            0.0
        } else {
            self.state_seconds(f64::from(decoding), f64::from(tokens - decoding), 0.0)
        };
        DecodeRun {
            kinds,
            base: self.local.at(tokens)
                + self.head.at(tokens)
                + self.shared.at(tokens)
                + self.draft_seconds(decoding, 1)
                + states
                + self.idle()
                + self.hops(tokens),
            base_roofline: pieces.roofline_local.at(tokens)
                + pieces.roofline_head.at(tokens)
                + pieces.roofline_shared.at(tokens),
            floor: self.floor(decoding, decoding > p.graph_tokens),
            host: (p.step_us + p.sequence_us * f64::from(decoding)) * 1e-6,
            overlap: self.overlap(),
        }
    }
}
