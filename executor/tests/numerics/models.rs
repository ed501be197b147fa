//! Tiny models and plans.

use psim_models::arch::{
    Attention, AttentionVariant, Block, DenseFfn, Ffn, Mixer, Model, Moe, Norm, Position, QkNorm,
};
use psim_models::plan::{ContextParallel, Precision, Recompute, Schedule, Sharding};
use psim_models::{Plan, TrainingWorkload};

fn attention(heads: u64, kv_heads: u64, bias: bool) -> Mixer {
    Mixer::Attention(Attention {
        heads,
        kv_heads,
        head_dim: 8,
        v_head_dim: 8,
        window: None,
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: QkNorm::None,
        sinks: false,
        output_gate: false,
        variant: AttentionVariant::default(),
    })
}

fn model(
    name: &str,
    norm: Norm,
    position: Position,
    tied: bool,
    kinds: Vec<Block>,
    pattern: Vec<u16>,
) -> Model {
    Model {
        name: name.to_owned(),
        family: "test".to_owned(),
        hidden: 32,
        vocab: 61,
        tied_embeddings: tied,
        head_bias: false,
        position,
        norm,
        embedding_norm: false,
        final_norm: true,
        kinds,
        pattern,
        encoder: None,
        mtp_layers: 0,
        mtp_kind: None,
        embedding_width: None,
        extra_parameters: Vec::new(),
        max_context: None,
        checkpoint: None,
        source: "made up".to_owned(),
    }
}

fn block(mixer: Mixer, ffn: Ffn) -> Block {
    Block { mixer, cross_attention: None, ffn, norms: 2, parallel: false, extra_parameters: 0 }
}

fn moe(shared_hidden: u64) -> Ffn {
    Ffn::Moe(Moe {
        experts: 4,
        top_k: 2,
        hidden: 24,
        gated: true,
        bias: false,
        shared_hidden,
        shared_gate: false,
        router_bias: false,
        latent: None,
    })
}

const RMS: Norm = Norm { rms: true, bias: false, weight: true };

/// GPT-2 style: layer norms, biases, learned positions, GeLU, tied embedding.
pub(crate) fn gpt(layers: usize) -> Model {
    let ffn = Ffn::Dense(DenseFfn { hidden: 64, gated: false, bias: true });
    let norm = Norm { rms: false, bias: true, weight: true };
    model("gpt", norm, Position::Learned(64), true, vec![block(attention(4, 4, true), ffn)], vec![0; layers])
}

/// Llama style: RMS norms, rotary positions, SwiGLU, grouped queries.
pub(crate) fn llama(layers: usize) -> Model {
    let ffn = Ffn::Dense(DenseFfn { hidden: 48, gated: true, bias: false });
    model("llama", RMS, Position::Rope, false, vec![block(attention(4, 2, false), ffn)], vec![0; layers])
}

/// A dense layer, then mixtures, with a shared expert in some.
pub(crate) fn mixture(layers: usize) -> Model {
    let dense = Ffn::Dense(DenseFfn { hidden: 48, gated: true, bias: false });
    let kinds = [dense, moe(0), moe(16)].into_iter().map(|f| block(attention(4, 2, false), f)).collect();
    let pattern = (0..layers as u16).map(|l| if l == 0 { 0 } else { 1 + l % 2 }).collect();
    model("mixture", RMS, Position::Rope, false, kinds, pattern)
}

/// The same dense model with other widths, so that its passes take longer.
pub(crate) fn widened(mut model: Model, hidden: u64, vocab: u64, head_dim: u64, ffn: u64) -> Model {
    model.name = format!("{} {hidden} wide", model.name);
    model.hidden = hidden;
    model.vocab = vocab;
    for kind in &mut model.kinds {
        if let Mixer::Attention(a) = &mut kind.mixer {
            (a.head_dim, a.v_head_dim) = (head_dim, head_dim);
        }
        if let Ffn::Dense(dense) = &mut kind.ffn {
            dense.hidden = ffn;
        }
    }
    model
}

/// One rank, eight sequences.
pub(crate) fn base() -> Plan {
    Plan { global_batch: 8, precision: Precision::Fp32, ..Plan::default() }
}

pub(crate) fn workload() -> TrainingWorkload {
    TrainingWorkload {
        seq_len: 32,
        global_batch: 8,
        tokens: None,
        packed_length: None,
        lora_rank: None,
        expert_imbalance: 1.0,
        capacity_factor: None,
    }
}

/// The models and the plans that each is run under.
pub(crate) fn suite() -> [(Model, Vec<Plan>); 3] {
    [(gpt(4), dense_plans()), (llama(4), dense_plans()), (mixture(4), mixture_plans())]
}

/// Dense plans: every technique alone, then mixtures.
pub(crate) fn dense_plans() -> Vec<Plan> {
    use Recompute::{Full, Layers, Selective};
    use Schedule::{Gpipe, Interleaved, OneFOneB, ZbH1, ZbH2, ZbV};
    vec![
        base(),
        Plan { micro_batch: 4, ..base() },
        Plan { tp: 2, ..base() },
        Plan { dp: 2, ..base() },
        Plan { dp: 4, sharding: Sharding::None, ..base() },
        Plan { cp: 2, ..base() },
        Plan { cp: 4, micro_batch: 2, ..base() },
        Plan { cp: 2, cp_kind: ContextParallel::AllGather, ..base() },
        Plan { pp: 2, schedule: Gpipe, ..base() },
        Plan { pp: 2, schedule: OneFOneB, ..base() },
        Plan { pp: 4, schedule: OneFOneB, micro_batch: 2, ..base() },
        Plan { pp: 2, vpp: 2, schedule: Interleaved, ..base() },
        Plan { recompute: Full, ..base() },
        Plan { recompute: Selective, ..base() },
        Plan { recompute: Layers(1), pp: 2, ..base() },
        Plan { pp: 2, stage_layers: vec![1, 3], ..base() },
        Plan { tp: 2, pp: 2, dp: 2, micro_batch: 2, ..base() },
        Plan { tp: 2, cp: 2, dp: 2, ..base() },
        Plan { tp: 2, cp: 2, pp: 2, schedule: Gpipe, recompute: Selective, ..base() },
        Plan { tp: 2, pp: 2, vpp: 2, dp: 2, schedule: Interleaved, recompute: Full, ..base() },
        Plan { cp: 2, pp: 2, dp: 2, micro_batch: 2, sharding: Sharding::None, ..base() },
        Plan { tp: 2, cp: 2, pp: 2, dp: 2, recompute: Full, ..base() },
        Plan { pp: 2, schedule: ZbH1, ..base() },
        Plan { pp: 4, schedule: ZbH1, recompute: Full, ..base() },
        Plan { pp: 4, schedule: ZbH2, micro_batch: 2, ..base() },
        Plan { pp: 2, vpp: 2, schedule: ZbV, ..base() },
        // Too few micro-batches for the rounds by hand: the greedy order.
        Plan { pp: 2, vpp: 2, micro_batch: 4, schedule: ZbV, ..base() },
        Plan { tp: 2, pp: 2, dp: 2, schedule: ZbH1, recompute: Selective, ..base() },
        Plan { cp: 2, pp: 2, dp: 2, schedule: ZbH2, ..base() },
        Plan { tp: 2, pp: 2, vpp: 2, schedule: ZbV, recompute: Layers(1), ..base() },
        Plan { dp: 4, sharding: Sharding::Gradients, ..base() },
        Plan { dp: 2, sharding: Sharding::Parameters, ..base() },
        Plan { tp: 2, dp: 2, pp: 2, sharding: Sharding::Gradients, recompute: Full, ..base() },
        Plan { cp: 2, dp: 2, sharding: Sharding::Parameters, recompute: Selective, ..base() },
        Plan { tp: 2, pp: 2, vpp: 2, dp: 2, schedule: Interleaved, sharding: Sharding::Parameters, ..base() },
        Plan { pp: 2, dp: 2, schedule: ZbH1, sharding: Sharding::Parameters, ..base() },
        // Several chunks per stage under the name of 1F1B, and of uneven length.
        Plan { pp: 2, vpp: 2, ..base() },
        Plan { pp: 2, vpp: 2, schedule: Interleaved, stage_layers: vec![1, 2, 0, 1], ..base() },
    ]
}

/// Plans that only mixtures have, and common ones.
pub(crate) fn mixture_plans() -> Vec<Plan> {
    use Schedule::{Gpipe, Interleaved, ZbH1, ZbV};
    vec![
        base(),
        Plan { dp: 2, ep: 2, ..base() },
        Plan { dp: 4, ep: 4, micro_batch: 2, ..base() },
        Plan { dp: 4, ep: 2, ..base() },
        Plan { tp: 2, ep: 2, ..base() },
        Plan { tp: 2, etp: 2, ..base() },
        Plan { tp: 2, dp: 2, ep: 2, etp: 2, ..base() },
        Plan { cp: 2, ep: 2, recompute: Recompute::Full, ..base() },
        Plan { tp: 2, dp: 2, ep: 4, pp: 2, schedule: Gpipe, ..base() },
        Plan {
            dp: 2,
            ep: 2,
            pp: 2,
            vpp: 2,
            schedule: Interleaved,
            recompute: Recompute::Selective,
            ..base()
        },
        Plan { tp: 2, cp: 2, dp: 2, ep: 4, etp: 2, sharding: Sharding::None, ..base() },
        Plan { dp: 2, ep: 2, pp: 2, schedule: ZbH1, ..base() },
        Plan { dp: 4, ep: 2, sharding: Sharding::Gradients, ..base() },
        Plan { tp: 2, dp: 4, ep: 2, etp: 2, sharding: Sharding::Parameters, ..base() },
        Plan { tp: 2, dp: 2, ep: 2, etp: 2, pp: 2, vpp: 2, schedule: ZbV, ..base() },
    ]
}
