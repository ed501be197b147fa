//! One engine step of one rank: which matrices are multiplied, which caches are read, what is sent.
//!
//! Nothing here depends on the batch: [`ServingShape`] lists the parts with counts over all layers, and a cost model
//! multiplies them by the tokens, sequences and cache lengths of a step. Pipeline stages are not divided out: a batch
//! passes every layer, one stage after another.

use super::deployment::{Deployment, DeploymentError};
use crate::Model;
use crate::arch::{Attention, Block, Ffn, Indexer, LinearAttention, Mamba2, Mixer, Mla, Moe};
use crate::quantization::NumberFormat;
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

/// Lists the parts of a step of one rank.
///
/// # Errors
/// A deployment that does not fit the model.
pub fn lower(model: &Model, deployment: &Deployment) -> Result<ServingShape, DeploymentError> {
    deployment.check(model)?;
    let mut builder = Builder::new(model, deployment);
    for (index, block) in model.kinds.iter().enumerate() {
        let layers = model.pattern.iter().filter(|k| usize::from(**k) == index).count() as f64;
        if layers > 0.0 {
            builder.block(block, layers);
        }
    }
    Ok(builder.finish())
}

/// Kernels of a sparse indexer beside its matrix products.
const INDEXER_KERNELS: f64 = 14.0;

/// Lists the parts of a step where feed-forward layers have ranks of their own: of one rank of the attention, and of one
/// rank of a feed-forward instance.
///
/// What moves are the routed experts, which the instances share, or in a model without any the feed-forward matrices,
/// of which every instance has a copy. Shared experts, routers and the dense layers of a mixture stay with the attention.
///
/// # Errors
/// A deployment that does not fit the model; one with stages, or with experts spread over the attention's own ranks.
pub fn lower_apart(
    model: &Model,
    attention: &Deployment,
    (instances, tp): (u32, u32),
) -> Result<(ServingShape, ServingShape), DeploymentError> {
    attention.check(model)?;
    let experts = model.moe().map_or(0, |m| m.experts);
    if instances == 0 || tp == 0 || (experts > 0 && u64::from(instances) > experts) {
        return Err(DeploymentError::Experts { ep: instances, ranks: instances.saturating_mul(tp), experts });
    }
    let behind = Deployment {
        tp,
        pp: 1,
        attention_dp: instances,
        ep: if experts > 0 { instances } else { 1 },
        ..*attention
    };
    let half = |d: &Deployment, part: Part| {
        let mut builder = Builder { part, ..Builder::new(model, d) };
        for (index, block) in model.kinds.iter().enumerate() {
            let layers = model.pattern.iter().filter(|k| usize::from(**k) == index).count() as f64;
            if layers > 0.0 {
                builder.block(block, layers);
            }
        }
        builder.finish()
    };
    Ok((half(attention, Part::Attention), half(&behind, Part::FeedForward)))
}

/// Which part of every layer a rank has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    Attention,
    FeedForward,
}

struct Builder<'a> {
    model: &'a Model,
    part: Part,
    d: &'a Deployment,
    tp: u64,
    out: ServingShape,
    /// Weights outside linears and experts, elements on this rank in 16 bits.
    other: f64,
}

impl<'a> Builder<'a> {
    fn new(model: &'a Model, d: &'a Deployment) -> Self {
        let out = ServingShape {
            linears: Vec::new(),
            attention: Vec::new(),
            states: Vec::new(),
            experts: Vec::new(),
            layers: model.layers(),
            hidden: model.hidden,
            small_kernels: 0.0,
            small_bytes_per_token: 0.0,
            all_reduces: 0.0,
            exchanges: 0.0,
            moe_layers: 0.0,
            weight_bytes: 0.0,
            total_weight_bytes: 0.0,
            kv_bytes_per_token: 0.0,
            kv_windowed: Vec::new(),
            state_bytes_per_sequence: 0.0,
            active_parameters: 0.0,
            deployment: *d,
        };
        Self { model, part: Part::Whole, d, tp: u64::from(d.tp), out, other: 0.0 }
    }

    fn linear(&mut self, name: &'static str, layers: f64, n: u64, k: u64, format: NumberFormat) {
        self.out.linears.push(Linear {
            name,
            layers,
            n: n.max(1),
            k: k.max(1),
            format,
            last_token_only: false,
        });
    }

    fn block(&mut self, block: &Block, layers: f64) {
        let h = self.model.hidden;
        if self.part == Part::FeedForward {
            return self.feed_forward(block, layers);
        }
        match &block.mixer {
            Mixer::Attention(a) => self.attention(a, layers),
            Mixer::Mla(m) => self.mla(m, layers),
            Mixer::Mamba2(m) => self.mamba(m, layers),
            Mixer::Linear(l) => self.linear_attention(l, layers),
            Mixer::None => {}
        }
        if !matches!(block.mixer, Mixer::None) {
            self.reduce(layers);
        }
        match &block.ffn {
            Ffn::Dense(_) if self.part == Part::Attention && !self.model.is_moe() => {}
            Ffn::Dense(f) => {
                let inner = f.hidden.div_ceil(self.tp);
                self.dense(inner, f.gated, layers);
                if !block.parallel {
                    self.reduce(layers);
                }
            }
            Ffn::Moe(m) => self.moe(m, layers),
            Ffn::None => {}
        }
        // Each norm reads and writes the stream, fused with the residual addition.
        self.small(layers, f64::from(block.norms), 4.0 * f64::from(block.norms) * h as f64);
        self.other += layers * f64::from(block.norms) * h as f64;
    }

    fn dense(&mut self, inner: u64, gated: bool, layers: f64) {
        let (h, format) = (self.model.hidden, self.d.quantization.dense);
        self.linear("up", layers, if gated { 2 * inner } else { inner }, h, format);
        self.linear("down", layers, h, inner, format);
        self.small(layers, 1.0, 3.0 * inner as f64);
    }

    /// What a rank of a feed-forward instance has of a layer: its experts, or in a model without any the matrices.
    fn feed_forward(&mut self, block: &Block, layers: f64) {
        match &block.ffn {
            Ffn::Moe(m) => {
                self.experts(m, layers);
                self.reduce(layers);
            }
            Ffn::Dense(f) if !self.model.is_moe() => {
                self.dense(f.hidden.div_ceil(self.tp), f.gated, layers);
                self.reduce(layers);
            }
            _ => {}
        }
    }

    /// Routed experts, spread over the ranks.
    fn experts(&mut self, m: &Moe, layers: f64) {
        let ranks = u64::from(self.d.tp * self.d.attention_dp);
        let ep = u64::from(self.d.ep);
        self.out.experts.push(Experts {
            layers,
            experts: m.experts,
            local: m.experts.div_ceil(ep),
            top_k: m.top_k,
            hidden: m.latent.unwrap_or(self.model.hidden),
            inner: m.hidden.div_ceil(ranks / ep),
            matrices: if m.gated { 3 } else { 2 },
            format: self.d.quantization.experts,
        });
        self.out.moe_layers += layers;
    }

    /// `kernels` memory-bound kernels in each layer that move `elements` 16-bit elements per token.
    fn small(&mut self, layers: f64, kernels: f64, elements: f64) {
        self.out.small_kernels += layers * kernels;
        self.out.small_bytes_per_token += layers * 2.0 * elements;
    }

    fn reduce(&mut self, layers: f64) {
        if self.d.tp > 1 {
            self.out.all_reduces += layers;
        }
    }

    /// Elements of cache that a layer keeps for each token.
    fn cache(&mut self, layers: f64, elements: f64, window: Option<u64>) {
        let bytes = layers * elements * self.d.quantization.kv.size();
        match window {
            None => self.out.kv_bytes_per_token += bytes,
            Some(w) => self.out.kv_windowed.push((w, bytes)),
        }
    }

    fn attention(&mut self, a: &Attention, layers: f64) {
        let h = self.model.hidden;
        let format = self.d.quantization.attention;
        let q = a.heads.div_ceil(self.tp);
        let kv = a.kv_heads.div_ceil(self.tp);
        let values = if a.variant.shared_key_value { 0 } else { kv * a.v_head_dim };
        let gate = if a.output_gate { q * a.head_dim } else { 0 };
        match a.variant.query_rank {
            Some(rank) => {
                self.linear("query-down", layers, rank, h, format);
                self.linear("query-up", layers, q * a.head_dim + gate, rank, format);
                self.linear("key-value", layers, kv * a.head_dim + values, h, format);
            }
            None => {
                self.linear("qkv", layers, q * a.head_dim + gate + kv * a.head_dim + values, h, format);
            }
        }
        match a.variant.output_rank {
            Some(o) => {
                let groups = o.groups.div_ceil(self.tp);
                self.linear(
                    "output-down",
                    layers * groups as f64,
                    o.rank,
                    (q * a.v_head_dim / groups.max(1)).max(1),
                    format,
                );
                self.linear("output-up", layers, h, groups * o.rank, format);
            }
            None => self.linear("output", layers, h, q * a.v_head_dim, format),
        }
        self.small(layers, 2.0, (2 * (q + kv) * a.head_dim) as f64);
        let per_token = kv * a.head_dim + values;
        let compression = a.variant.compression.unwrap_or(1).max(1);
        let keeps = if compression > 1 { None } else { a.window };
        let selected = a.variant.indexer.as_ref().map(|i| i.top_k);
        self.cache(layers, per_token as f64 / compression as f64, keeps);
        self.out.attention.push(AttentionCore {
            layers,
            q_heads: q,
            kv_heads: kv,
            head_dim: a.head_dim,
            head_dim_v: a.v_head_dim,
            cache_elements: per_token.div_ceil(compression),
            latent: false,
            reads_at_most: selected.or(a.window),
            keeps_at_most: keeps,
            indexer_elements: a.variant.indexer.as_ref().map_or(0, |i| i.head_dim),
        });
        if let Some(i) = &a.variant.indexer {
            self.indexer(i, layers, h);
        }
    }

    fn indexer(&mut self, i: &Indexer, layers: f64, from: u64) {
        self.linear(
            "indexer",
            layers,
            i.heads * i.head_dim + i.head_dim + i.heads,
            from,
            self.d.quantization.attention,
        );
        self.cache(layers, i.head_dim as f64 / self.d.quantization.kv.size(), None);
        // Around its products (SGLang's and vLLM's lightning indexer): query and key each rotated, mixed by a Hadamard
        // transform, quantised; key normed and stored; head weights cast and scaled twice; scores, top-k, page numbers.
        self.small(layers, INDEXER_KERNELS, (3 * i.heads * i.head_dim + 5 * i.head_dim + 3 * i.heads) as f64);
    }

    fn mla(&mut self, m: &Mla, layers: f64) {
        let h = self.model.hidden;
        let format = self.d.quantization.attention;
        let heads = m.heads.div_ceil(self.tp);
        let query = m.qk_nope_dim + m.qk_rope_dim;
        let latent = m.kv_lora_rank + m.qk_rope_dim;
        match m.q_lora_rank {
            Some(rank) => {
                self.linear("latent-down", layers, rank + latent, h, format);
                self.linear("query-up", layers, heads * query, rank, format);
            }
            None => self.linear("query-latent", layers, heads * query + latent, h, format),
        }
        // Decoding absorbs the key and value up-projections into per-head products of the same size.
        self.linear("value-up", layers, heads * (m.qk_nope_dim + m.v_head_dim), m.kv_lora_rank, format);
        self.linear("output", layers, h, heads * m.v_head_dim, format);
        if m.output_gate {
            self.linear("gate", layers, heads * m.v_head_dim, h, format);
        }
        self.small(layers, 4.0, (2 * heads * query + 2 * latent) as f64);
        self.cache(layers, latent as f64, None);
        let (selected, index) = match &m.indexer {
            Some(i) => (Some(i.top_k), i.head_dim),
            None => (None, 0),
        };
        self.out.attention.push(AttentionCore {
            layers,
            q_heads: heads,
            kv_heads: 1,
            head_dim: query,
            head_dim_v: m.v_head_dim,
            cache_elements: latent,
            latent: true,
            reads_at_most: selected,
            keeps_at_most: None,
            indexer_elements: if m.indexer_shared { 0 } else { index },
        });
        if let (Some(i), false) = (&m.indexer, m.indexer_shared) {
            self.indexer(i, layers, m.q_lora_rank.unwrap_or(h));
        }
    }

    fn mamba(&mut self, m: &Mamba2, layers: f64) {
        let h = self.model.hidden;
        let format = self.d.quantization.dense;
        let inner = (m.heads * m.head_dim).div_ceil(self.tp);
        let groups = (2 * m.groups * m.state).div_ceil(self.tp);
        self.linear("in", layers, 2 * inner + groups + m.heads.div_ceil(self.tp), h, format);
        self.linear("out", layers, h, inner, format);
        self.state(layers, (inner * m.state) as f64, 6.0 * (inner * m.state) as f64, inner);
    }

    fn linear_attention(&mut self, l: &LinearAttention, layers: f64) {
        let h = self.model.hidden;
        let format = self.d.quantization.dense;
        let (keys, values) = (l.key_heads * l.key_head_dim, l.value_heads * l.value_head_dim);
        let (keys, values) = (keys.div_ceil(self.tp), values.div_ceil(self.tp));
        let gate = if l.output_gate { values } else { 0 };
        let extra = l.gate_rank.map_or(2 * l.value_heads, |r| 2 * r).div_ceil(self.tp);
        self.linear("in", layers, 2 * keys + values + gate + extra, h, format);
        self.linear("out", layers, h, values, format);
        let state = (l.value_heads.div_ceil(self.tp) * l.key_head_dim * l.value_head_dim) as f64;
        self.state(layers, state, 8.0 * state, values);
    }

    fn state(&mut self, layers: f64, elements: f64, flops_per_token: f64, width: u64) {
        let state_bytes = 4.0 * elements;
        self.out.state_bytes_per_sequence += layers * state_bytes;
        self.out.states.push(StateCore { layers, state_bytes, flops_per_token });
        self.small(layers, 4.0, 8.0 * width as f64);
    }

    fn moe(&mut self, m: &Moe, layers: f64) {
        let h = self.model.hidden;
        let q = self.d.quantization;
        let width = m.latent.unwrap_or(h);
        self.linear("router", layers, m.experts, h, NumberFormat::Bf16);
        if m.latent.is_some() {
            self.linear("latent-down", layers, width, h, q.dense);
            self.linear("latent-up", layers, h, width, q.dense);
        }
        if m.shared_hidden > 0 {
            let inner = m.shared_hidden.div_ceil(self.tp);
            self.linear("shared-up", layers, if m.gated { 2 * inner } else { inner }, h, q.dense);
            self.linear("shared-down", layers, h, inner, q.dense);
            self.small(layers, 1.0, 3.0 * inner as f64);
        }
        // Routing: softmax and top-k.
        self.small(layers, 2.0, 4.0 * m.experts as f64);
        if self.part == Part::Attention {
            // Shared experts' partial sums; what comes back over the network is whole.
            if m.shared_hidden > 0 {
                self.reduce(layers);
            }
            self.out.moe_layers += layers;
            return;
        }
        self.experts(m, layers);
        if self.d.attention_dp > 1 {
            self.out.exchanges += layers;
        } else {
            self.reduce(layers);
        }
    }

    fn finish(mut self) -> ServingShape {
        let m = self.model;
        if self.part != Part::FeedForward {
            // The vocabulary is split over tp; a tied table is stored once.
            let head = m.vocab.div_ceil(self.tp);
            self.out.linears.push(Linear {
                name: "head",
                layers: 1.0,
                n: head,
                k: m.hidden,
                format: NumberFormat::Bf16,
                last_token_only: true,
            });
            let table = (head * m.hidden) as f64;
            self.other += if m.tied_embeddings { 0.0 } else { table };
        }
        let out = &mut self.out;
        let linear_bytes: f64 =
            out.linears.iter().map(|l| l.layers * (l.n * l.k) as f64 * l.format.weight_bits() / 8.0).sum();
        let expert = |e: &Experts| {
            e.layers * (e.local * e.matrices * e.hidden * e.inner) as f64 * e.format.weight_bits() / 8.0
        };
        let expert_bytes: f64 = out.experts.iter().map(expert).sum();
        let all = linear_bytes + expert_bytes + 2.0 * self.other;
        let pp = f64::from(self.d.pp);
        out.weight_bytes = all / pp;
        out.total_weight_bytes = all * f64::from(self.d.tp * self.d.attention_dp);
        out.kv_bytes_per_token /= pp;
        out.state_bytes_per_sequence /= pp;
        for (_, bytes) in &mut out.kv_windowed {
            *bytes /= pp;
        }
        let linear_parameters: f64 = out.linears.iter().map(|l| l.layers * (l.n * l.k) as f64).sum();
        let expert_parameters: f64 = out
            .experts
            .iter()
            .map(|e| {
                let per_expert = (e.matrices * e.hidden * e.inner) as f64;
                let split = f64::from(self.d.tp * self.d.attention_dp / self.d.ep);
                e.layers * e.top_k as f64 * per_expert * split
            })
            .sum();
        out.active_parameters = linear_parameters * f64::from(self.d.tp) + expert_parameters;
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;
    use crate::serving::Quantization;

    fn shape(name: &str, d: &Deployment) -> ServingShape {
        lower(&presets::find(name).unwrap(), d).unwrap()
    }

    #[test]
    fn weights_agree_with_the_parameter_count() {
        for name in
            ["llama3-8b", "llama3-70b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-120b", "qwen3-30b-a3b"]
        {
            let model = presets::find(name).unwrap();
            let one = Deployment::tensor_parallel(1, Quantization::uniform(NumberFormat::Bf16));
            let total = shape(name, &one).total_weight_bytes / 2.0;
            let expected = model.parameters().total as f64;
            assert!((total / expected - 1.0).abs() < 0.01, "{name}: {total} against {expected}");
            let eight = Deployment { tp: 8, ..one };
            let split = shape(name, &eight).total_weight_bytes / 2.0;
            assert!(split >= 0.99 * total && split < 1.2 * total, "{name}: {split}");
            let active = shape(name, &one).active_parameters;
            let expected = (model.parameters().active - model.parameters().embedding) as f64;
            assert!((active / expected - 1.0).abs() < 0.03, "{name}: active {active} against {expected}");
        }
    }

    #[test]
    fn cache_bytes() {
        let bf16 = Quantization::uniform(NumberFormat::Bf16);
        // 80 layers, 8 heads of 128, keys and values, 2 bytes.
        let s = shape("llama3-70b", &Deployment::tensor_parallel(1, bf16));
        assert_eq!(s.kv_bytes_per_token, 80.0 * 8.0 * 128.0 * 2.0 * 2.0);
        // More ranks than heads replicate them.
        let s = shape("llama3-70b", &Deployment::tensor_parallel(16, bf16));
        assert_eq!(s.kv_bytes_per_token, 80.0 * 128.0 * 2.0 * 2.0);
        // One latent of 576 in each of 61 layers, on every rank.
        let s = shape("deepseek-v3", &Deployment::tensor_parallel(8, bf16));
        assert_eq!(s.kv_bytes_per_token, 61.0 * 576.0 * 2.0);
        // Half of the layers keep 128 tokens.
        let s = shape("gpt-oss-120b", &Deployment::tensor_parallel(1, bf16));
        assert_eq!(s.kv_windowed, [(128, 18.0 * 8.0 * 64.0 * 2.0 * 2.0)]);
        let far = s.sequence_bytes(4096) - s.sequence_bytes(4095);
        assert_eq!(far, 18.0 * 8.0 * 64.0 * 2.0 * 2.0);
    }

    #[test]
    fn halves_together_hold_the_whole_model() {
        let q = Quantization::uniform(NumberFormat::Bf16);
        for name in ["mixtral-8x22b", "deepseek-v3", "llama3-70b"] {
            let model = presets::find(name).unwrap();
            let whole = shape(name, &Deployment::tensor_parallel(1, q));
            let attention = Deployment { attention_dp: 4, ..Deployment::tensor_parallel(2, q) };
            let (a, f) = lower_apart(&model, &attention, (1, 1)).unwrap();
            let one = lower_apart(&model, &Deployment::tensor_parallel(1, q), (1, 1)).unwrap().0;
            assert!(((one.weight_bytes + f.weight_bytes) / whole.weight_bytes - 1.0).abs() < 1e-9, "{name}");
            assert!(a.experts.is_empty() && a.exchanges == 0.0 && f.attention.is_empty());
            // Two ranks of a copy halve its matrices and sum once a layer; caches are those of the copy.
            assert!(a.weight_bytes < 0.55 * one.weight_bytes, "{name}");
            assert_eq!(
                a.kv_bytes_per_token,
                shape(name, &Deployment::tensor_parallel(2, q)).kv_bytes_per_token
            );
        }
        // Eight instances of one of Mixtral's experts each; a ninth has none.
        let model = presets::find("mixtral-8x22b").unwrap();
        let d = Deployment::tensor_parallel(1, q);
        let (_, f) = lower_apart(&model, &d, (8, 1)).unwrap();
        assert_eq!((f.experts[0].local, f.weight_bytes), (1, 56.0 * 3.0 * 6144.0 * 16384.0 * 2.0));
        assert!(lower_apart(&model, &d, (9, 1)).is_err() && lower_apart(&model, &d, (0, 1)).is_err());
        // Two ranks of an instance halve each expert and add their sums up.
        let (_, f) = lower_apart(&model, &d, (4, 2)).unwrap();
        assert_eq!((f.experts[0].local, f.experts[0].inner, f.all_reduces), (2, 8192, 56.0));
    }

    #[test]
    fn impossible_deployments_are_refused() {
        let model = presets::find("deepseek-v3").unwrap();
        let base = Deployment::tensor_parallel(8, Quantization::uniform(NumberFormat::Fp8Block));
        assert!(lower(&model, &Deployment { tp: 0, ..base }).is_err());
        assert!(lower(&model, &Deployment { tp: 3, ..base }).is_err());
        assert!(lower(&model, &Deployment { ep: 3, ..base }).is_err());
        assert!(lower(&model, &Deployment { pp: 100, ..base }).is_err());
        assert!(lower(&model, &Deployment { tp: 1, attention_dp: 8, ep: 8, ..base }).is_ok());
    }
}
