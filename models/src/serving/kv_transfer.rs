//! What moves from a prefill instance to a decode instance when a prompt is done: its cache, rank by rank.
//!
//! The two sides may split the heads over different numbers of ranks. Every decode rank receives the heads that it
//! keeps (copies included where there are more ranks than key/value heads); the prefill ranks share the sending evenly.
//! DistServe (Zhong et al., OSDI 2024, section 4.2): bytes = 2 · layers · width · tokens · element for multi-head
//! attention, which is what the sum over the receiving ranks comes to.

use super::lower::ServingShape;
use psim_hardware::DType;
use serde::Serialize;

/// Why a cache cannot move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KvTransferError {
    /// The two sides keep keys and values in different formats.
    #[error(
        "prefill keeps its cache in {prefill} and decode in {decode}; converting on the way is not built"
    )]
    Format {
        /// Of the sender.
        prefill: DType,
        /// Of the receiver.
        decode: DType,
    },
    /// Models with different depth.
    #[error("prefill has {prefill} layers and decode {decode}")]
    Layers {
        /// Of the sender.
        prefill: u32,
        /// Of the receiver.
        decode: u32,
    },
}

/// Bytes of a cache in motion.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KvTransfer {
    /// Layers, sent one after another where the transfer is layer-wise.
    pub layers: u32,
    /// Ranks that hold a share of the cache of one sequence on the prefill side.
    pub senders: u32,
    /// The same on the decode side.
    pub receivers: u32,
    per_token: f64,
    windows: Vec<(u64, f64)>,
    state: f64,
}

impl KvTransfer {
    /// From instances of one shape to instances of another.
    ///
    /// # Errors
    /// Different cache formats or depths.
    pub fn between(prefill: &ServingShape, decode: &ServingShape) -> Result<Self, KvTransferError> {
        let (from, to) = (&prefill.deployment, &decode.deployment);
        if from.quantization.kv != to.quantization.kv {
            return Err(KvTransferError::Format {
                prefill: from.quantization.kv,
                decode: to.quantization.kv,
            });
        }
        if prefill.layers != decode.layers {
            return Err(KvTransferError::Layers { prefill: prefill.layers, decode: decode.layers });
        }
        Ok(Self {
            layers: decode.layers.max(1),
            senders: from.tp * from.pp,
            receivers: to.tp * to.pp,
            per_token: decode.kv_bytes_per_token,
            windows: decode.kv_windowed.clone(),
            state: decode.state_bytes_per_sequence,
        })
    }

    /// Bytes that one decode rank receives for a sequence of `tokens`.
    pub fn received_by_rank(&self, tokens: u64) -> f64 {
        let windows: f64 = self.windows.iter().map(|(w, b)| b * tokens.min(*w) as f64).sum();
        self.per_token * tokens as f64 + windows + self.state
    }

    /// Bytes on the wire for a sequence of `tokens`.
    pub fn bytes(&self, tokens: u64) -> f64 {
        self.received_by_rank(tokens) * f64::from(self.receivers)
    }

    /// Bytes that one prefill rank sends for a sequence of `tokens`.
    pub fn sent_by_rank(&self, tokens: u64) -> f64 {
        self.bytes(tokens) / f64::from(self.senders.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;
    use crate::serving::{Deployment, NumberFormat, Quantization, lower};

    fn shape(model: &str, tp: u32, pp: u32) -> ServingShape {
        let q = Quantization::uniform(NumberFormat::Bf16);
        let d = Deployment { pp, ..Deployment::tensor_parallel(tp, q) };
        lower(&presets::find(model).unwrap(), &d).unwrap()
    }

    #[test]
    fn bytes_follow_the_closed_form_whatever_the_split() {
        // Llama-3-70B: 80 layers, 8 key/value heads of 128, keys and values in 2 bytes: 327,680 bytes a token.
        for (p, d) in [((1, 1), (1, 1)), ((4, 1), (2, 2)), ((2, 4), (8, 1)), ((8, 1), (4, 1))] {
            let t =
                KvTransfer::between(&shape("llama3-70b", p.0, p.1), &shape("llama3-70b", d.0, d.1)).unwrap();
            assert!((t.bytes(1000) - 327_680.0 * 1000.0).abs() < 1.0, "{p:?} {d:?}: {}", t.bytes(1000));
            assert!((t.sent_by_rank(1000) * f64::from(t.senders) - t.bytes(1000)).abs() < 1e-3);
        }
        // 16 decode ranks share 8 heads: every head goes to two of them.
        let t = KvTransfer::between(&shape("llama3-70b", 8, 1), &shape("llama3-70b", 16, 1)).unwrap();
        assert!((t.bytes(1) - 2.0 * 327_680.0).abs() < 1e-6);
    }

    #[test]
    fn formats_must_agree() {
        let mut q = Quantization::uniform(NumberFormat::Bf16);
        q.kv = DType::Fp8;
        let other = lower(&presets::find("llama3-70b").unwrap(), &Deployment::tensor_parallel(4, q)).unwrap();
        assert!(KvTransfer::between(&shape("llama3-70b", 4, 1), &other).is_err());
    }
}
