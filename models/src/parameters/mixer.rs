//! Parameters of the sequence mixers.

use super::{Split, flag, product, sum};
use crate::arch::{Attention, Indexer, LinearAttention, Mamba2, Mixer, Mla, Norm, QkNorm};

impl Mixer {
    /// Parameters in a model `hidden` wide, by what tensor parallelism does with them.
    pub fn split(&self, hidden: u64, norm: Norm) -> Split {
        match self {
            Self::Attention(attention) => attention.split(hidden, norm),
            Self::Mla(mla) => mla.split(hidden),
            Self::Mamba2(mamba) => mamba.split(hidden),
            Self::Linear(linear) => linear.split(hidden),
            Self::None => Split::default(),
        }
    }
}

impl Attention {
    /// Width of all query heads together.
    pub fn query_width(&self) -> u64 {
        product(&[self.heads, self.head_dim])
    }

    /// Width of all key heads together.
    pub fn key_width(&self) -> u64 {
        product(&[self.kv_heads, self.head_dim])
    }

    /// Width of all value heads together, as projected: 0 where keys serve as values.
    pub fn value_width(&self) -> u64 {
        if self.variant.shared_key_value { 0 } else { product(&[self.kv_heads, self.v_head_dim]) }
    }

    /// Width of the attention output before the output projection.
    pub fn output_width(&self) -> u64 {
        product(&[self.heads, self.v_head_dim])
    }

    fn split(&self, hidden: u64, norm: Norm) -> Split {
        let query = product(&[self.query_width(), 1 + flag(self.output_gate)]);
        let key_value = sum(&[self.key_width(), self.value_width()]);
        // A bottleneck before the queries is small and read by every head: replicated, with its norm.
        let (query_matrix, query_down) = match self.variant.query_rank {
            Some(rank) => (product(&[rank, query]), sum(&[product(&[hidden, rank]), rank])),
            None => (product(&[hidden, query]), 0),
        };
        let output = match self.variant.output_rank {
            // Each group's heads go down to `rank`; the up-projection reads all groups.
            Some(low) => {
                sum(&[product(&[self.output_width(), low.rank]), product(&[low.groups, low.rank, hidden])])
            }
            None => product(&[self.output_width(), hidden]),
        };
        let qkv_bias = flag(self.qkv_bias) * sum(&[query, key_value]);
        let per_channel = flag(norm.weight) + flag(norm.bias);
        let qk_norm = match self.qk_norm {
            QkNorm::None => Split::default(),
            QkNorm::PerHead => Split { sharded: 0, replicated: product(&[2, self.head_dim, per_channel]) },
            QkNorm::AllHeads => Split {
                sharded: product(&[sum(&[self.query_width(), self.key_width()]), per_channel]),
                replicated: 0,
            },
        };
        let gate = product(&[flag(self.variant.head_gate), hidden, self.heads]);
        // Block-sparse indexers project queries and one key head from the residual stream (MiniMax-M3).
        let indexer = self.variant.indexer.as_ref().map_or(0, |i| {
            let source = self.variant.query_rank.unwrap_or(hidden);
            sum(&[product(&[source, i.heads, i.head_dim]), product(&[hidden, i.head_dim])])
        });
        Split {
            sharded: sum(&[
                query_matrix,
                product(&[hidden, key_value]),
                output,
                qkv_bias,
                qk_norm.sharded,
                flag(self.sinks) * self.heads,
                gate,
            ]),
            replicated: sum(&[query_down, qk_norm.replicated, flag(self.out_bias) * hidden, indexer]),
        }
    }
}

impl Mla {
    fn split(&self, hidden: u64) -> Split {
        let query_width = product(&[self.heads, sum(&[self.qk_nope_dim, self.qk_rope_dim])]);
        let latent = sum(&[self.kv_lora_rank, self.qk_rope_dim]);
        let (query, query_down) = match self.q_lora_rank {
            Some(rank) => (product(&[rank, query_width]), sum(&[product(&[hidden, rank]), rank])),
            None => (product(&[hidden, query_width]), 0),
        };
        let key_value_up =
            product(&[self.kv_lora_rank, self.heads, sum(&[self.qk_nope_dim, self.v_head_dim])]);
        let output_width = product(&[self.heads, self.v_head_dim]);
        let output = product(&[output_width, hidden]);
        let gate = product(&[flag(self.output_gate), hidden, output_width]);
        // Released modules put the bias on the down-projections and the output only.
        let bias = flag(self.bias) * sum(&[self.q_lora_rank.unwrap_or(0), latent, hidden]);
        let indexer = match &self.indexer {
            Some(indexer) if !self.indexer_shared => {
                indexer.parameters(hidden, self.q_lora_rank.unwrap_or(hidden))
            }
            _ => 0,
        };
        Split {
            sharded: sum(&[query, key_value_up, output, gate]),
            replicated: sum(&[query_down, product(&[hidden, latent]), self.kv_lora_rank, bias, indexer]),
        }
    }
}

impl Indexer {
    /// Query projection from the query latent, one key head with its layer norm, and a weight per head
    /// (DeepSeek-V3.2 report, section 2.1; released inference code).
    pub fn parameters(&self, hidden: u64, query_rank: u64) -> u64 {
        sum(&[
            product(&[query_rank, self.heads, self.head_dim]),
            product(&[hidden, self.head_dim]),
            product(&[2, self.head_dim]),
            product(&[hidden, self.heads]),
        ])
    }
}

impl Mamba2 {
    /// Inner width: heads times head width.
    pub fn inner(&self) -> u64 {
        product(&[self.heads, self.head_dim])
    }

    /// Channels of the causal convolution: inner width, B and C.
    pub fn conv_channels(&self) -> u64 {
        sum(&[self.inner(), product(&[2, self.groups, self.state])])
    }

    /// Outputs of the input projection: gate, convolution channels and a time step per head.
    pub fn projection_width(&self) -> u64 {
        sum(&[self.inner(), self.conv_channels(), self.heads])
    }

    fn split(&self, hidden: u64) -> Split {
        let convolution = product(&[self.conv_channels(), self.conv_kernel + flag(self.conv_bias)]);
        Split {
            sharded: sum(&[
                product(&[hidden, self.projection_width()]),
                flag(self.bias) * self.projection_width(),
                convolution,
                // A, D and the time-step bias per head; the gated norm.
                product(&[3, self.heads]),
                self.inner(),
                product(&[self.inner(), hidden]),
            ]),
            replicated: flag(self.bias) * hidden,
        }
    }
}

impl LinearAttention {
    /// Width of all key heads together.
    pub fn key_width(&self) -> u64 {
        product(&[self.key_heads, self.key_head_dim])
    }

    /// Width of all value heads together.
    pub fn value_width(&self) -> u64 {
        product(&[self.value_heads, self.value_head_dim])
    }

    fn split(&self, hidden: u64) -> Split {
        let (key, value) = (self.key_width(), self.value_width());
        let qkv = sum(&[key, key, value]);
        // Either full-rank gate with one decay scalar per head, or low-rank gate and per-channel decay.
        let (gate, decay) = match self.gate_rank {
            Some(rank) => (
                sum(&[product(&[hidden, rank]), product(&[rank, value])]),
                sum(&[product(&[hidden, rank]), product(&[rank, key])]),
            ),
            None => (product(&[hidden, value]), product(&[hidden, self.value_heads])),
        };
        let beta = product(&[hidden, self.value_heads]);
        Split {
            sharded: sum(&[
                product(&[hidden, qkv]),
                product(&[qkv, self.conv_kernel]),
                flag(self.output_gate) * gate,
                decay,
                beta,
                product(&[value, hidden]),
                self.extra_parameters,
            ]),
            replicated: self.value_head_dim,
        }
    }
}
