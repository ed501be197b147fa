//! One engine step of one rank: which matrices are multiplied, which caches are read, what is sent.
//!
//! Nothing here depends on the batch: [`ServingShape`] lists the parts with counts over all layers, and a cost model
//! multiplies them by the tokens, sequences and cache lengths of a step. Pipeline stages are not divided out: a batch
//! passes every layer, one stage after another.

mod apart;
mod shape;
#[cfg(test)]
mod tests;

pub use apart::lower_apart;
pub use shape::{AttentionCore, Experts, Linear, ServingShape, StateCore};

use super::deployment::{Deployment, DeploymentError};
use crate::Model;
use crate::arch::{Attention, Block, DenseFfn, Ffn, Indexer, LinearAttention, Mamba2, Mixer, Mla, Moe};
use crate::quantization::NumberFormat;

/// Lists the parts of a step of one rank.
///
/// # Errors
/// A deployment that does not fit the model.
pub fn lower(model: &Model, deployment: &Deployment) -> Result<ServingShape, DeploymentError> {
    deployment.check(model)?;
    let mut builder = Builder::new(model, deployment);
    builder.each_kind(|b, block, layers| {
        b.mixer(block, layers);
        match &block.ffn {
            Ffn::Dense(f) => b.dense_block(f, block, layers),
            Ffn::Moe(m) => b.moe(m, layers),
            Ffn::None => {}
        }
        b.norms(block, layers);
    });
    builder.vocabulary();
    Ok(builder.finish())
}

/// Kernels of a sparse indexer beside its matrix products.
const INDEXER_KERNELS: f64 = 14.0;

struct Builder<'a> {
    model: &'a Model,
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
        Self { model, d, tp: u64::from(d.tp), out, other: 0.0 }
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

    /// Runs `part` once for each kind of layer, with how many layers are of it.
    fn each_kind(&mut self, part: impl Fn(&mut Self, &Block, f64)) {
        for (index, block) in self.model.kinds.iter().enumerate() {
            let layers = self.model.pattern.iter().filter(|k| usize::from(**k) == index).count() as f64;
            if layers > 0.0 {
                part(self, block, layers);
            }
        }
    }

    /// What mixes tokens: attention or a state.
    fn mixer(&mut self, block: &Block, layers: f64) {
        match &block.mixer {
            Mixer::Attention(a) => self.attention(a, layers),
            Mixer::Mla(m) => self.mla(m, layers),
            Mixer::Mamba2(m) => self.mamba(m, layers),
            Mixer::Linear(l) => self.linear_attention(l, layers),
            Mixer::None => return,
        }
        self.reduce(layers);
    }

    /// Feed-forward matrices beside the mixer; a parallel block is summed once for both.
    fn dense_block(&mut self, f: &DenseFfn, block: &Block, layers: f64) {
        self.dense(f.hidden.div_ceil(self.tp), f.gated, layers);
        if !block.parallel {
            self.reduce(layers);
        }
    }

    /// Norms: each reads and writes the stream, fused with the residual addition.
    fn norms(&mut self, block: &Block, layers: f64) {
        let (norms, h) = (f64::from(block.norms), self.model.hidden as f64);
        self.small(layers, norms, 4.0 * norms * h);
        self.other += layers * norms * h;
    }

    fn dense(&mut self, inner: u64, gated: bool, layers: f64) {
        let (h, format) = (self.model.hidden, self.d.quantization.dense);
        self.linear("up", layers, if gated { 2 * inner } else { inner }, h, format);
        self.linear("down", layers, h, inner, format);
        self.small(layers, 1.0, 3.0 * inner as f64);
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
            indexer_heads: a.variant.indexer.as_ref().map_or(0, |i| i.heads),
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
        let selected = m.indexer.as_ref().map(|i| i.top_k);
        let (index, index_heads) = match &m.indexer {
            Some(i) if !m.indexer_shared => (i.head_dim, i.heads),
            _ => (0, 0),
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
            indexer_elements: index,
            indexer_heads: index_heads,
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
        self.state(layers, (inner * m.state) as f64, 6.0 * (inner * m.state) as f64, inner, 0);
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
        let heads = l.value_heads.div_ceil(self.tp);
        let state = (heads * l.key_head_dim * l.value_head_dim) as f64;
        self.state(layers, state, 8.0 * state, values, heads);
    }

    fn state(&mut self, layers: f64, elements: f64, flops_per_token: f64, width: u64, delta_heads: u64) {
        let state_bytes = 4.0 * elements;
        self.out.state_bytes_per_sequence += layers * state_bytes;
        self.out.states.push(StateCore { layers, state_bytes, flops_per_token, delta_heads });
        self.small(layers, 4.0, 8.0 * width as f64);
    }

    /// What a layer with experts has beside them: router, latent projections, shared experts.
    fn beside_experts(&mut self, m: &Moe, layers: f64) {
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
    }

    fn moe(&mut self, m: &Moe, layers: f64) {
        self.beside_experts(m, layers);
        self.experts(m, layers);
        if self.d.attention_dp > 1 {
            self.out.exchanges += layers;
        } else {
            self.reduce(layers);
        }
    }

    /// The vocabulary, split over tp; a tied table is stored once.
    fn vocabulary(&mut self) {
        let m = self.model;
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

    fn finish(mut self) -> ServingShape {
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
