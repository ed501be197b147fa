//! The part of [`psim_models::Model`] that the executor runs, checked once.

use crate::error::{Result, divides, unsupported};
use psim_models::arch::{AttentionVariant, Ffn, Mixer, Model, Position, QkNorm};
use psim_models::plan::{ContextParallel, Precision};
use psim_models::{Plan, TrainingWorkload};

/// A decoder-only transformer with pre-norm blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Output layer shares the embedding.
    pub tied: bool,
    /// RMS normalisation, else layer normalisation.
    pub rms: bool,
    /// Normalisations carry a bias.
    pub norm_bias: bool,
    /// A normalisation before the output layer.
    pub final_norm: bool,
    /// Rows of a learned position table.
    pub learned_positions: Option<usize>,
    /// Rotary embedding of queries and keys.
    pub rope: bool,
    /// Layers, first to last.
    pub layers: Vec<Layer>,
}

/// One layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Bias on the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub out_bias: bool,
    /// Dense feed-forward part, or the shared expert of a mixture.
    pub dense: Option<Dense>,
    /// Routed experts.
    pub experts: Option<Experts>,
}

/// Dense feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dense {
    /// Inner width.
    pub hidden: usize,
    /// SwiGLU, else GeLU.
    pub gated: bool,
    /// Biases.
    pub bias: bool,
}

/// Routed experts: softmax over all experts, the `top_k` largest probabilities weigh the outputs (as in Switch and
/// DeepSeekMoE, not renormalised).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Experts.
    pub count: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Inner width.
    pub hidden: usize,
    /// SwiGLU, else GeLU.
    pub gated: bool,
}

const MODEL_HINT: &str =
    "dense GPT or Llama-style models and mixtures of plain experts run; see `psim execute --help`";

impl Network {
    /// Reads a model.
    ///
    /// # Errors
    /// When the model has parts that the executor does not run; it names the first.
    pub fn new(model: &Model) -> Result<Self> {
        let refuse = |what: &str| unsupported(format!("{what} (model {})", model.name), MODEL_HINT);
        if model.encoder.is_some() {
            return refuse("an encoder");
        }
        if model.mtp_layers > 0 {
            return refuse("multi-token-prediction layers");
        }
        if model.head_bias
            || model.embedding_norm
            || !model.norm.weight
            || !model.extra_parameters.is_empty()
            || model.embedding_width.is_some()
        {
            return refuse(
                "a biased output layer, an embedding norm, norms without weight, or extra parameters",
            );
        }
        let (rope, learned_positions) = match model.position {
            Position::None => (false, None),
            Position::Rope => (true, None),
            Position::Learned(rows) => (false, Some(rows as usize)),
            Position::Alibi | Position::Relative(_) => return refuse("ALiBi or relative positions"),
        };
        let mut layers = Vec::with_capacity(model.pattern.len());
        for index in 0..model.pattern.len() {
            let block = model.block(index);
            if block.parallel
                || block.norms != 2
                || block.extra_parameters > 0
                || block.cross_attention.is_some()
            {
                return refuse("parallel blocks, blocks without two norms, or cross attention");
            }
            let Mixer::Attention(a) = &block.mixer else {
                return refuse("a mixer other than softmax attention");
            };
            if a.window.is_some()
                || a.sinks
                || a.output_gate
                || a.qk_norm != QkNorm::None
                || a.variant != AttentionVariant::default()
            {
                return refuse("sliding windows, attention sinks, gates or query-key norms");
            }
            if a.v_head_dim != a.head_dim {
                return refuse("value heads of another width than key heads");
            }
            let (dense, experts) = match &block.ffn {
                Ffn::Dense(d) => {
                    (Some(Dense { hidden: d.hidden as usize, gated: d.gated, bias: d.bias }), None)
                }
                Ffn::Moe(m) => {
                    if m.bias || m.router_bias || m.shared_gate || m.latent.is_some() {
                        return refuse("experts with biases, router bias, shared gate or latent width");
                    }
                    let shared = m.shared_hidden as usize;
                    let dense = (shared > 0).then_some(Dense { hidden: shared, gated: m.gated, bias: false });
                    let experts = Experts {
                        count: m.experts as usize,
                        top_k: m.top_k as usize,
                        hidden: m.hidden as usize,
                        gated: m.gated,
                    };
                    (dense, Some(experts))
                }
                Ffn::None => return refuse("a layer without feed-forward part"),
            };
            layers.push(Layer {
                heads: a.heads as usize,
                kv_heads: a.kv_heads as usize,
                head_dim: a.head_dim as usize,
                qkv_bias: a.qkv_bias,
                out_bias: a.out_bias,
                dense,
                experts,
            });
        }
        Ok(Self {
            hidden: model.hidden as usize,
            vocab: model.vocab as usize,
            tied: model.tied_embeddings,
            rms: model.norm.rms,
            norm_bias: model.norm.bias && !model.norm.rms,
            final_norm: model.final_norm,
            learned_positions,
            rope,
            layers,
        })
    }

    /// Checks that the plan can run: features that exist, sizes that divide.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn check(&self, plan: &Plan, workload: &TrainingWorkload) -> Result<()> {
        let tp = u64::from(plan.tp);
        if plan.tp > 1 && !plan.sequence_parallel {
            return unsupported(
                "tensor parallelism without sequence parallelism",
                "set `sequence_parallel = true`",
            );
        }
        if plan.shard_group != 0 {
            return unsupported("sharding groups (HSDP)", "leave `shard_group` out");
        }
        if plan.vocabulary_parallel {
            return unsupported(
                "a vocabulary spread over pipeline stages",
                "set `vocabulary_parallel = false`",
            );
        }
        if plan.cp > 1 && plan.cp_kind == ContextParallel::Ulysses {
            return unsupported("Ulysses context parallelism", "set `cp_kind = \"ring\"`");
        }
        if !matches!(plan.precision, Precision::Fp32 | Precision::Bf16) {
            return unsupported(format!("precision {}", plan.precision.name()), "use fp32 or bf16");
        }
        if workload.packed_length.is_some()
            || workload.lora_rank.is_some()
            || workload.capacity_factor.is_some()
        {
            return unsupported("packed sequences, LoRA or token dropping", "leave them out of the workload");
        }
        if let Some(rows) = self.learned_positions
            && (rows as u64) < workload.seq_len
        {
            return unsupported(
                format!("sequences of {} tokens with {rows} learned positions", workload.seq_len),
                "shorten the sequences",
            );
        }
        let replicas = u64::from(plan.dp) * u64::from(plan.micro_batch);
        divides("global batch", u64::from(plan.global_batch), replicas, "dp · micro_batch")?;
        if plan.cp > 1 {
            divides(
                "sequence length",
                workload.seq_len,
                2 * u64::from(plan.cp),
                "balanced causal blocks of cp",
            )?;
        }
        let tokens = workload.seq_len / u64::from(plan.cp) * u64::from(plan.micro_batch);
        divides("tokens of a micro-batch", tokens, tp, "sequence parallelism over tp")?;
        for layer in &self.layers {
            divides("attention heads", layer.heads as u64, tp, "heads are split over tp")?;
            divides("key-value heads", layer.kv_heads as u64, tp, "heads are split over tp")?;
            divides("attention heads", layer.heads as u64, layer.kv_heads as u64, "grouped-query attention")?;
            if self.rope {
                divides("head width", layer.head_dim as u64, 2, "rotary embedding")?;
            }
            if let Some(dense) = layer.dense {
                divides("feed-forward width", dense.hidden as u64, tp, "split over tp")?;
            }
            if let Some(experts) = layer.experts {
                divides("experts", experts.count as u64, u64::from(plan.ep), "split over ep")?;
                divides("expert width", experts.hidden as u64, u64::from(plan.etp), "split over etp")?;
            }
        }
        Ok(())
    }
}
