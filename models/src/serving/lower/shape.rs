//! What one rank does in a step, and what it stores: the parts with their shapes and counts.

use crate::quantization::NumberFormat;
use crate::serving::Deployment;
use serde::Serialize;

/// A matrix product `tokens × k · k × n` on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Linear {
    /// Name.
    pub name: &'static str,
    /// How many layers have it.
    pub layers: f64,
    /// Output features on this rank.
    pub n: u64,
    /// Input features on this rank.
    pub k: u64,
    /// Number format.
    pub format: NumberFormat,
    /// Runs only for the last token of each sequence (output layer).
    pub last_token_only: bool,
}

/// Softmax attention over a cache, on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AttentionCore {
    /// Layers of this kind.
    pub layers: f64,
    /// Query heads on this rank.
    pub q_heads: u64,
    /// Key/value heads on this rank (one where heads are replicated).
    pub kv_heads: u64,
    /// Query/key width in prompts.
    pub head_dim: u64,
    /// Value width in prompts.
    pub head_dim_v: u64,
    /// Elements of one token's cache in this layer on this rank.
    pub cache_elements: u64,
    /// Latent attention: decoding runs all heads against one shared latent of `cache_elements`.
    pub latent: bool,
    /// Tokens back that a query reads at most (sliding window, sparse selection).
    pub reads_at_most: Option<u64>,
    /// Tokens that are kept (sliding window); `None` keeps all.
    pub keeps_at_most: Option<u64>,
    /// Extra elements read per cached token by the indexer of sparse attention, whatever is selected.
    pub indexer_elements: u64,
    /// Heads of that indexer, on every rank; each scores every pair of tokens of a prompt.
    pub indexer_heads: u64,
}

/// A mixer with a state of constant size (state space, linear attention), on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StateCore {
    /// Layers of this kind.
    pub layers: f64,
    /// Bytes of the state of one sequence on this rank (32-bit).
    pub state_bytes: f64,
    /// Flops per token in prompts.
    pub flops_per_token: f64,
    /// Value heads on this rank of a layer with the delta rule, whose chunks follow one another; 0 of other mixers.
    pub delta_heads: u64,
}

/// Routed experts of a layer, on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Experts {
    /// Layers with experts.
    pub layers: f64,
    /// Experts of the layer.
    pub experts: u64,
    /// Experts on this rank.
    pub local: u64,
    /// Experts per token.
    pub top_k: u64,
    /// Width that experts read and write.
    pub hidden: u64,
    /// Inner width of an expert on this rank.
    pub inner: u64,
    /// Matrices of an expert: 3 gated, 2 plain.
    pub matrices: u64,
    /// Number format.
    pub format: NumberFormat,
}

/// What one rank does in a step, and what it stores.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServingShape {
    /// Matrix products.
    pub linears: Vec<Linear>,
    /// Attention kinds.
    pub attention: Vec<AttentionCore>,
    /// Mixers with a constant state.
    pub states: Vec<StateCore>,
    /// Expert kinds.
    pub experts: Vec<Experts>,
    /// Layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Memory-bound kernels over all layers (norms, rotary, activation, routing), after fusion.
    pub small_kernels: f64,
    /// Bytes that those move per token, over all layers.
    pub small_bytes_per_token: f64,
    /// All-reduces of `tokens · hidden` 16-bit elements over the `tp` ranks, over all layers.
    pub all_reduces: f64,
    /// Gather and scatter of expert inputs between attention copies, over all layers (0 without attention DP).
    pub exchanges: f64,
    /// Layers of the model with routed experts.
    pub moe_layers: f64,
    /// Bytes of the weights on one rank (the largest stage).
    pub weight_bytes: f64,
    /// Bytes of all weights of a replica.
    pub total_weight_bytes: f64,
    /// Cache bytes of one token that are kept however long the sequence gets, on one rank.
    pub kv_bytes_per_token: f64,
    /// (window, bytes per token) of layers that keep a window only.
    pub kv_windowed: Vec<(u64, f64)>,
    /// Bytes of constant state of one sequence on one rank.
    pub state_bytes_per_sequence: f64,
    /// Parameters that a token multiplies, in the whole model.
    pub active_parameters: f64,
    /// The deployment.
    pub deployment: Deployment,
}

impl ServingShape {
    /// Cache bytes on one rank of a sequence of `tokens`.
    pub fn sequence_bytes(&self, tokens: u64) -> f64 {
        let windows: f64 = self.kv_windowed.iter().map(|(w, b)| b * tokens.min(*w) as f64).sum();
        self.kv_bytes_per_token * tokens as f64 + windows + self.state_bytes_per_sequence
    }
}
