//! What a transformer-like model is made of: blocks of a sequence mixer and a feed-forward part.

use crate::serving::Quantization;
use serde::{Deserialize, Serialize};

/// A decoder model (or encoder-decoder with [`Model::encoder`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Name (`llama3-70b`).
    pub name: String,
    /// Family (`llama`, `deepseek-v3`, `gpt`), informational.
    pub family: String,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Vocabulary (rows of the embedding), unpadded.
    pub vocab: u64,
    /// Output layer shares the embedding.
    pub tied_embeddings: bool,
    /// Bias of the output layer.
    pub head_bias: bool,
    /// Position encoding.
    pub position: Position,
    /// Normalisation used throughout.
    pub norm: Norm,
    /// A normalisation right after the embedding (BLOOM).
    pub embedding_norm: bool,
    /// A normalisation before the output layer.
    pub final_norm: bool,
    /// Distinct block kinds.
    pub kinds: Vec<Block>,
    /// Layer → index into `kinds`, first layer first.
    pub pattern: Vec<u16>,
    /// Encoder in front of the decoder (T5); its blocks attend without a causal mask.
    pub encoder: Option<Encoder>,
    /// Extra multi-token-prediction layers, each a block plus a `2·hidden × hidden` projection and three norms.
    pub mtp_layers: u32,
    /// Index into `kinds` of the block of a multi-token-prediction layer; `None`: the kind of the last layer.
    #[serde(default)]
    pub mtp_kind: Option<u16>,
    /// Width of the embedding table where it is not `hidden` (OPT-350M): a projection stands on either side.
    #[serde(default)]
    pub embedding_width: Option<u64>,
    /// Parameters outside the blocks that the above does not produce, by name (embedding projections …).
    pub extra_parameters: Vec<(String, u64)>,
    /// Longest context of the released model, tokens.
    pub max_context: Option<u64>,
    /// Formats that the weights are published in, where they are not 16-bit floats throughout.
    #[serde(default)]
    pub checkpoint: Option<Quantization>,
    /// Where the dimensions come from.
    pub source: String,
}

/// Encoder stack of an encoder-decoder model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Encoder {
    /// Number of layers.
    pub layers: u32,
    /// Their block (bidirectional attention).
    pub block: Block,
    /// Share of the workload's tokens that the encoder sees per decoder token (T5: 512 to 128 → 4).
    pub tokens_per_decoder_token: f64,
}

/// Position encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// None.
    None,
    /// Rotary embedding of queries and keys.
    Rope,
    /// A learned table with this many rows.
    Learned(u64),
    /// Linear attention biases.
    Alibi,
    /// Learned relative-position buckets per head (T5): this many buckets.
    Relative(u64),
}

/// Normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Norm {
    /// RMS normalisation (else layer normalisation with mean).
    pub rms: bool,
    /// Carries a bias vector.
    pub bias: bool,
    /// Carries a weight vector (OLMo's does not).
    pub weight: bool,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Sequence mixer.
    pub mixer: Mixer,
    /// Cross attention to the encoder (T5 decoder).
    pub cross_attention: Option<Attention>,
    /// Feed-forward part.
    pub ffn: Ffn,
    /// Normalisations of width `hidden` in the layer (pre-norm blocks: 2, Gemma 2/3: 4, GPT-J: 1).
    pub norms: u8,
    /// Mixer and feed-forward read the same input and are added together (GPT-J, NeoX, Falcon).
    pub parallel: bool,
    /// Small replicated parameters that no other field produces (layer scalars, extra norms inside a branch).
    #[serde(default)]
    pub extra_parameters: u64,
}

/// How tokens exchange information.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mixer {
    /// Softmax attention with MHA, GQA or MQA heads.
    Attention(Attention),
    /// Multi-head latent attention (DeepSeek V2/V3).
    Mla(Mla),
    /// Mamba-2 state-space layer.
    Mamba2(Mamba2),
    /// Linear attention (gated delta rule and relatives).
    Linear(LinearAttention),
    /// None (feed-forward-only layer of a hybrid).
    None,
}

/// Softmax attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Query heads.
    pub heads: u64,
    /// Key/value heads.
    pub kv_heads: u64,
    /// Width of a query/key head.
    pub head_dim: u64,
    /// Width of a value head.
    pub v_head_dim: u64,
    /// Sliding window in tokens; `None` attends to everything before.
    pub window: Option<u64>,
    /// Bias on the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub out_bias: bool,
    /// Normalisation of queries and keys.
    pub qk_norm: QkNorm,
    /// Learned sink logit per head (gpt-oss).
    pub sinks: bool,
    /// Output gate of the size of the query projection (Qwen3-Next), doubling the query projection.
    pub output_gate: bool,
    /// Rarer departures from the plain projections; the default has none of them.
    #[serde(default)]
    pub variant: AttentionVariant,
}

/// Departures from plain query, key, value and output projections.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AttentionVariant {
    /// Queries go through a low-rank bottleneck with a norm (Step-3 multi-matrix factorisation, DeepSeek V4).
    #[serde(default)]
    pub query_rank: Option<u64>,
    /// The output projection is factorised: per group of heads down to `rank`, then up to the model's width.
    #[serde(default)]
    pub output_rank: Option<OutputRank>,
    /// Keys and values are one projection (Gemma 4 global layers, DeepSeek V4): half the projection and half the cache.
    #[serde(default)]
    pub shared_key_value: bool,
    /// One sigmoid gate per head, a `hidden × heads` projection (Step-3.5).
    #[serde(default)]
    pub head_gate: bool,
    /// Selects the keys that a query attends to (MiniMax-M3 blocks, DeepSeek V4).
    #[serde(default)]
    pub indexer: Option<Indexer>,
    /// Keys and values are pooled: one cached entry for this many tokens (DeepSeek V4), beside the window.
    #[serde(default)]
    pub compression: Option<u64>,
}

/// Factorised output projection of grouped heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRank {
    /// Groups of heads, each with its own down projection.
    pub groups: u64,
    /// Width that a group is brought down to.
    pub rank: u64,
}

/// Normalisation of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNorm {
    /// None.
    None,
    /// One weight vector of `head_dim` for queries, one for keys.
    PerHead,
    /// One weight over all heads (OLMoE, MiniMax).
    AllHeads,
}

/// Multi-head latent attention (DeepSeek-V2, section 2.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mla {
    /// Heads.
    pub heads: u64,
    /// Rank of the query compression; `None` projects directly (V2-Lite).
    pub q_lora_rank: Option<u64>,
    /// Rank of the key/value compression.
    pub kv_lora_rank: u64,
    /// Non-rotary part of a query/key head.
    pub qk_nope_dim: u64,
    /// Rotary part, shared by all heads on the key side.
    pub qk_rope_dim: u64,
    /// Width of a value head.
    pub v_head_dim: u64,
    /// Bias on the projections.
    pub bias: bool,
    /// Sparse attention indexer (V3.2, GLM-5): heads, head width and tokens kept.
    pub indexer: Option<Indexer>,
    /// The indexer's selection is taken from an earlier layer: sparse attention, but no indexer weights (GLM-5.2).
    #[serde(default)]
    pub indexer_shared: bool,
    /// Sigmoid output gate, a `hidden × heads·v_head_dim` projection (Kimi K3).
    #[serde(default)]
    pub output_gate: bool,
}

/// Lightning indexer of DeepSeek sparse attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Indexer {
    /// Indexer heads.
    pub heads: u64,
    /// Indexer head width.
    pub head_dim: u64,
    /// Tokens kept per query.
    pub top_k: u64,
}

/// Mamba-2 (Dao and Gu 2024, section 7).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mamba2 {
    /// Heads of the state-space layer.
    pub heads: u64,
    /// Width of a head; `heads · head_dim` is the inner width.
    pub head_dim: u64,
    /// State size per head.
    pub state: u64,
    /// Groups sharing B and C.
    pub groups: u64,
    /// Width of the causal convolution.
    pub conv_kernel: u64,
    /// Bias on the convolution.
    pub conv_bias: bool,
    /// Bias on the projections.
    pub bias: bool,
    /// Chunk length of the scan.
    pub chunk: u64,
}

/// Linear attention with a matrix state per head (gated delta networks, Kimi delta attention, lightning attention).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinearAttention {
    /// Key (and query) heads.
    pub key_heads: u64,
    /// Value heads.
    pub value_heads: u64,
    /// Width of a key head.
    pub key_head_dim: u64,
    /// Width of a value head.
    pub value_head_dim: u64,
    /// Width of the causal convolution over q, k, v; 0 without.
    pub conv_kernel: u64,
    /// Output gate of the size of the values.
    pub output_gate: bool,
    /// Low-rank width of the gate and decay projections; `None` for full or per-head scalars.
    pub gate_rank: Option<u64>,
    /// Chunk length of the scan.
    pub chunk: u64,
    /// Parameters beyond projections, convolution and norms (decay, dt biases), per layer.
    pub extra_parameters: u64,
}

/// Feed-forward part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ffn {
    /// Dense two- or three-matrix network.
    Dense(DenseFfn),
    /// Mixture of experts.
    Moe(Moe),
    /// None (mixer-only layer of a hybrid).
    None,
}

/// Dense feed-forward network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DenseFfn {
    /// Inner width.
    pub hidden: u64,
    /// Gated (three matrices: SwiGLU, GeGLU) or plain (two).
    pub gated: bool,
    /// Bias on its matrices.
    pub bias: bool,
}

/// Mixture of experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moe {
    /// Routed experts.
    pub experts: u64,
    /// Experts each token goes to.
    pub top_k: u64,
    /// Inner width of one expert.
    pub hidden: u64,
    /// Gated experts.
    pub gated: bool,
    /// Bias on expert matrices.
    pub bias: bool,
    /// Inner width of all shared experts together; 0 without.
    pub shared_hidden: u64,
    /// A sigmoid gate of width `hidden` in front of the shared expert (Qwen).
    pub shared_gate: bool,
    /// Bias on the router (gpt-oss: bias; DeepSeek V3: selection correction).
    pub router_bias: bool,
    /// Width experts read and write when it is not the model's (latent MoE of Nemotron 3); `None` otherwise.
    pub latent: Option<u64>,
}

impl Model {
    /// Number of decoder layers.
    pub fn layers(&self) -> u32 {
        self.pattern.len() as u32
    }

    /// The block of decoder layer `layer`.
    pub fn block(&self, layer: usize) -> &Block {
        &self.kinds[usize::from(self.pattern[layer])]
    }

    /// Has at least one mixture-of-experts layer.
    pub fn is_moe(&self) -> bool {
        self.moe().is_some()
    }

    /// The first mixture of experts.
    pub fn moe(&self) -> Option<&Moe> {
        self.kinds.iter().find_map(|b| match &b.ffn {
            Ffn::Moe(moe) => Some(moe),
            _ => None,
        })
    }

    /// The model cut down to its first `layers` layers, as proxies in publications are; `None` for 0 or too many.
    pub fn first_layers(&self, layers: u32) -> Option<Self> {
        if layers == 0 || layers > self.layers() {
            return None;
        }
        let mut short = self.clone();
        // A multi-token-prediction layer keeps the kind that it had.
        short.mtp_kind = self.mtp_kind.or_else(|| self.pattern.last().copied());
        short.pattern.truncate(layers as usize);
        if layers < self.layers() {
            short.name = format!("{} ({layers} layers)", self.name);
        }
        Some(short)
    }

    /// The block of a multi-token-prediction layer; `None` for a model without layers.
    pub fn mtp_block(&self) -> Option<&Block> {
        let kind = self.mtp_kind.or_else(|| self.pattern.last().copied())?;
        self.kinds.get(usize::from(kind))
    }

    /// Query heads, key/value heads and head width of the first layer with softmax attention; zeros without one.
    /// Latent attention counts as many key/value heads as query heads, and the width of a value head.
    pub fn attention_shape(&self) -> (u64, u64, u64) {
        self.kinds
            .iter()
            .find_map(|block| match &block.mixer {
                Mixer::Attention(a) => Some((a.heads, a.kv_heads, a.head_dim)),
                Mixer::Mla(m) => Some((m.heads, m.heads, m.v_head_dim)),
                Mixer::Mamba2(_) | Mixer::Linear(_) | Mixer::None => None,
            })
            .unwrap_or((0, 0, 0))
    }
}
