//! Runs of decoding steps with an unchanged batch.

use super::{KINDS, StepCost};

/// A run of decoding steps of one lane whose batch does not change: all that does not depend on the cache is summed.
#[derive(Debug, Clone, Copy)]
pub struct DecodeRun {
    kinds: [RunKind; KINDS],
    used: usize,
    /// Everything but attention, seconds.
    base: f64,
    base_roofline: f64,
    /// Launch floor of steps without a captured graph.
    floor: f64,
    host: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct RunKind {
    layers: f64,
    launch: f64,
    /// Fourth power of the block term.
    block4: f64,
    /// Fourth power of the seconds of memory and arithmetic per token of context.
    per_token4: f64,
    index: f64,
    roofline: f64,
}

impl DecodeRun {
    /// Seconds of the step that reads this many cached tokens per attention kind.
    pub fn seconds(&self, context: &[u64; KINDS]) -> f64 {
        let (mut attention, mut roofline) = (0.0, self.base_roofline);
        for (kind, context) in self.kinds[..self.used].iter().zip(context) {
            let c = *context as f64;
            let c2 = c * c;
            let work = (kind.block4 + c2 * c2 * kind.per_token4).sqrt().sqrt();
            attention += kind.layers * (kind.launch + work) + c * kind.index;
            roofline += c * kind.roofline;
        }
        (self.base + attention).max(self.floor).max(roofline) + self.host
    }
}

impl StepCost {
    /// Prepares steps in which one lane of a replica with a single lane decodes `decoding` sequences.
    pub fn decode_run(&self, decoding: u32) -> DecodeRun {
        let p = &self.parameters;
        let mut kinds = [RunKind::default(); KINDS];
        for (slot, kind) in kinds.iter_mut().zip(&self.kinds) {
            let memory = kind.bytes_per_token / (self.rates.bandwidth * kind.decode.memory);
            let compute = kind.decode_flops / (self.rates.half * kind.decode.compute);
            let block = f64::from(decoding) * kind.blocks_per_sequence * kind.decode.block_ns * 1e-9;
            *slot = RunKind {
                layers: kind.core.layers / p.decode,
                launch: kind.decode.launch_us * 1e-6,
                block4: block.powi(4),
                per_token4: memory.powi(4) + compute.powi(4),
                index: kind.core.layers * kind.index_bytes / (0.5 * self.rates.bandwidth),
                roofline: kind.core.layers * kind.core.cache_elements as f64 * kind.kv_size
                    / self.rates.bandwidth,
            };
        }
        let states =
            if self.shape.states.is_empty() { 0.0 } else { self.state_seconds(f64::from(decoding), 0.0) };
        let layers = f64::from(self.shape.layers);
        let eager = decoding > p.graph_tokens;
        DecodeRun {
            kinds,
            used: self.kinds.len(),
            base: self.local.at(decoding)
                + self.head.at(decoding)
                + self.shared.at(decoding)
                + states
                + layers * p.layer_us * 1e-6
                + self.hops(decoding),
            base_roofline: self.roofline_local.at(decoding)
                + self.roofline_head.at(decoding)
                + self.roofline_shared.at(decoding),
            floor: if eager { layers * p.eager_layer_us * 1e-6 } else { 0.0 },
            host: (p.step_us + p.sequence_us * f64::from(decoding)) * 1e-6,
        }
    }
}
