//! How many parameters a model has, and where they sit.
//!
//! Counts follow the tensors of the released checkpoints: matrices, biases, norm weights, learned positions.
//! All arithmetic saturates, so that an absurd configuration gives `u64::MAX` rather than a wrong small number.

mod mixer;

use serde::{Deserialize, Serialize};

use crate::arch::{Block, DenseFfn, Encoder, Ffn, Mixer, Model, Moe, Norm, Position};

/// Product that saturates.
pub(crate) fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |acc, &f| acc.saturating_mul(f))
}

/// Sum that saturates.
pub(crate) fn sum(terms: &[u64]) -> u64 {
    terms.iter().fold(0, |acc, &t| acc.saturating_add(t))
}

fn flag(on: bool) -> u64 {
    u64::from(on)
}

/// A count split by what tensor parallelism does with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Divided by the tensor-parallel degree.
    pub sharded: u64,
    /// Held whole by every tensor-parallel rank.
    pub replicated: u64,
}

impl Split {
    /// Both parts.
    pub fn total(self) -> u64 {
        self.sharded.saturating_add(self.replicated)
    }
}

/// Parameters of one layer. Every field counts the whole layer, before any sharding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockParameters {
    /// Sequence mixer, with biases, query/key norms and cross attention; both parts of [`BlockParameters::mixer_split`].
    pub mixer: u64,
    /// Part of `mixer` that tensor parallelism replicates: latent down-projections, inner norms, row-parallel biases.
    pub mixer_replicated: u64,
    /// Dense feed-forward network, or the latent projections around experts.
    pub ffn_dense: u64,
    /// Part of `ffn_dense` that tensor parallelism replicates: the bias of the down-projection, latent projections.
    pub ffn_replicated: u64,
    /// All routed experts.
    pub experts: u64,
    /// The routed experts that one token visits.
    pub experts_active: u64,
    /// Shared experts and their gate.
    pub shared_experts: u64,
    /// Router and its bias (replicated).
    pub router: u64,
    /// Layer norms and the block's [`Block::extra_parameters`] (replicated).
    pub norms: u64,
}

impl BlockParameters {
    /// Everything in the layer.
    pub fn total(&self) -> u64 {
        sum(&[self.mixer, self.ffn_dense, self.experts, self.shared_experts, self.router, self.norms])
    }

    /// What one token uses: everything but the experts that it does not visit.
    pub fn active(&self) -> u64 {
        sum(&[self.mixer, self.ffn_dense, self.experts_active, self.shared_experts, self.router, self.norms])
    }

    /// The mixer by what tensor parallelism does with it.
    pub fn mixer_split(&self) -> Split {
        Split { sharded: self.mixer.saturating_sub(self.mixer_replicated), replicated: self.mixer_replicated }
    }

    /// Everything outside the routed experts, by what tensor parallelism does with it.
    pub fn dense_split(&self) -> Split {
        Split {
            sharded: sum(&[
                self.mixer.saturating_sub(self.mixer_replicated),
                self.ffn_dense.saturating_sub(self.ffn_replicated),
                self.shared_experts,
            ]),
            replicated: sum(&[self.mixer_replicated, self.ffn_replicated, self.router, self.norms]),
        }
    }
}

/// Parameters of a whole model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterCount {
    /// All parameters of the model itself; tied embeddings once, multi-token-prediction layers not.
    pub total: u64,
    /// Parameters that one token uses: `total` without the routed experts that it does not visit. The embedding table is in.
    pub active: u64,
    /// Embedding table, learned positions and the norm after them.
    pub embedding: u64,
    /// Output layer beyond a tied embedding, its bias and the final norm.
    pub head: u64,
    /// Encoder stack; 0 without.
    pub encoder: u64,
    /// Multi-token-prediction layers; in addition to `total`.
    pub mtp: u64,
    /// Routed experts, part of `total`.
    pub experts: u64,
    /// Parameters per block kind, in the order of [`Model::kinds`].
    pub blocks: Vec<BlockParameters>,
}

impl ParameterCount {
    /// `total` and the multi-token-prediction layers, as some checkpoints count.
    pub fn total_with_mtp(&self) -> u64 {
        self.total.saturating_add(self.mtp)
    }
}

impl Norm {
    /// Parameters of one norm over `width` channels.
    pub fn parameters(self, width: u64) -> u64 {
        width.saturating_mul(flag(self.weight) + flag(self.bias))
    }
}

impl DenseFfn {
    /// Parameters with inputs and outputs of width `hidden`.
    pub fn parameters(&self, hidden: u64) -> u64 {
        let matrices = 2 + flag(self.gated);
        let bias = flag(self.bias) * hidden.saturating_add(self.hidden.saturating_mul(matrices - 1));
        sum(&[product(&[matrices, hidden, self.hidden]), bias])
    }
}

impl Moe {
    /// Parameters of one routed expert.
    pub fn expert_parameters(&self, hidden: u64) -> u64 {
        let expert = DenseFfn { hidden: self.hidden, gated: self.gated, bias: self.bias };
        expert.parameters(self.latent.unwrap_or(hidden))
    }

    /// Parameters of all shared experts together, with their gate.
    pub fn shared_parameters(&self, hidden: u64) -> u64 {
        if self.shared_hidden == 0 {
            return 0;
        }
        let shared = DenseFfn { hidden: self.shared_hidden, gated: self.gated, bias: self.bias };
        sum(&[shared.parameters(hidden), hidden * flag(self.shared_gate)])
    }

    /// Router matrix and bias.
    pub fn router_parameters(&self, hidden: u64) -> u64 {
        sum(&[product(&[hidden, self.experts]), self.experts * flag(self.router_bias)])
    }

    /// The two projections between the model's width and the experts' (latent mixture of experts); 0 without.
    pub fn latent_parameters(&self, hidden: u64) -> u64 {
        self.latent.map_or(0, |latent| product(&[2, hidden, latent]))
    }
}

impl Block {
    /// Parameters of the layer in a model `hidden` wide with norm `norm`.
    pub fn parameters(&self, hidden: u64, norm: Norm) -> BlockParameters {
        let mut mixer = self.mixer.split(hidden, norm);
        if let Some(cross) = &self.cross_attention {
            let cross = Mixer::Attention(cross.clone()).split(hidden, norm);
            mixer.sharded = mixer.sharded.saturating_add(cross.sharded);
            mixer.replicated = mixer.replicated.saturating_add(cross.replicated);
        }
        let norms = norm.parameters(hidden).saturating_mul(u64::from(self.norms));
        let mut counts = BlockParameters {
            mixer: mixer.total(),
            mixer_replicated: mixer.replicated,
            norms: norms.saturating_add(self.extra_parameters),
            ..BlockParameters::default()
        };
        match &self.ffn {
            Ffn::Dense(dense) => {
                counts.ffn_dense = dense.parameters(hidden);
                counts.ffn_replicated = hidden * flag(dense.bias);
            }
            Ffn::Moe(moe) => {
                let expert = moe.expert_parameters(hidden);
                counts.experts = expert.saturating_mul(moe.experts);
                counts.experts_active = expert.saturating_mul(moe.top_k.min(moe.experts));
                counts.shared_experts = moe.shared_parameters(hidden);
                counts.router = moe.router_parameters(hidden);
                counts.ffn_dense = moe.latent_parameters(hidden);
                counts.ffn_replicated = counts.ffn_dense;
            }
            Ffn::None => {}
        }
        counts
    }
}

impl Encoder {
    /// Parameters of the stack with its final norm; relative-position buckets are counted by the model.
    pub fn parameters(&self, hidden: u64, norm: Norm) -> u64 {
        let block = self.block.parameters(hidden, norm).total();
        sum(&[block.saturating_mul(u64::from(self.layers)), norm.parameters(hidden)])
    }
}

impl Model {
    /// Embedding table, learned or relative positions, and the norm after the embedding.
    pub fn embedding_parameters(&self) -> u64 {
        let table = match self.embedding_width {
            Some(width) => sum(&[product(&[self.vocab, width]), product(&[2, width, self.hidden])]),
            None => product(&[self.vocab, self.hidden]),
        };
        let stacks = 1 + flag(self.encoder.is_some());
        let position = match self.position {
            Position::Learned(rows) => product(&[rows, self.hidden]),
            Position::Relative(buckets) => product(&[stacks, buckets, self.heads()]),
            Position::None | Position::Rope | Position::Alibi => 0,
        };
        let norm = self.norm.parameters(self.hidden) * flag(self.embedding_norm);
        sum(&[table, position, norm])
    }

    /// Output layer (0 where it shares the embedding), its bias, and the norm before it.
    pub fn head_parameters(&self) -> u64 {
        let matrix = if self.tied_embeddings { 0 } else { product(&[self.vocab, self.hidden]) };
        let norm = self.norm.parameters(self.hidden) * flag(self.final_norm);
        sum(&[matrix, self.vocab * flag(self.head_bias), norm])
    }

    /// Parameters of one multi-token-prediction layer: a block, the projection that joins two streams, three norms.
    pub fn mtp_layer_parameters(&self) -> u64 {
        let Some(block) = self.mtp_block() else { return 0 };
        let norms = self.norm.parameters(self.hidden).saturating_mul(3);
        sum(&[
            block.parameters(self.hidden, self.norm).total(),
            product(&[2, self.hidden, self.hidden]),
            norms,
        ])
    }

    /// Query heads of the first attention layer, 0 without one.
    pub fn heads(&self) -> u64 {
        self.kinds
            .iter()
            .find_map(|block| match &block.mixer {
                Mixer::Attention(attention) => Some(attention.heads),
                Mixer::Mla(mla) => Some(mla.heads),
                Mixer::Mamba2(_) | Mixer::Linear(_) | Mixer::None => None,
            })
            .unwrap_or(0)
    }

    /// Counts everything.
    ///
    /// ```
    /// # use psim_models::presets;
    /// let model = presets::find("llama3-70b")?;
    /// assert_eq!(model.parameters().total, 70_553_706_496);
    /// # Ok::<(), presets::PresetError>(())
    /// ```
    pub fn parameters(&self) -> ParameterCount {
        let blocks: Vec<BlockParameters> =
            self.kinds.iter().map(|block| block.parameters(self.hidden, self.norm)).collect();
        let over_layers = |count: fn(&BlockParameters) -> u64| {
            let layers = self.pattern.iter().filter_map(|&kind| blocks.get(usize::from(kind)));
            layers.fold(0u64, |acc, block| acc.saturating_add(count(block)))
        };
        let embedding = self.embedding_parameters();
        let head = self.head_parameters();
        let encoder = self.encoder.as_ref().map_or(0, |e| e.parameters(self.hidden, self.norm));
        let extra = self.extra_parameters.iter().fold(0u64, |acc, (_, n)| acc.saturating_add(*n));
        let outside = sum(&[embedding, head, encoder, extra]);
        ParameterCount {
            total: outside.saturating_add(over_layers(BlockParameters::total)),
            active: outside.saturating_add(over_layers(BlockParameters::active)),
            embedding,
            head,
            encoder,
            mtp: self.mtp_layer_parameters().saturating_mul(u64::from(self.mtp_layers)),
            experts: over_layers(|block| block.experts),
            blocks,
        }
    }
}
