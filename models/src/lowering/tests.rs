//! Published formulas as checks of the lowering and of the ledger.

use super::*;
use crate::arch::*;
use crate::flops::forward_flops_per_sequence;
use crate::memory::layer_activations;
use crate::plan::Plan;
use crate::workload::TrainingWorkload;
use psim_hardware::GroupShape;
use psim_hardware::profile::StackProfile;
use psim_hardware::profile::stack::AttentionKernel;

fn gpt(hidden: u64, heads: u64) -> (Model, Block) {
    let attention = Attention {
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        v_head_dim: hidden / heads,
        window: None,
        qkv_bias: true,
        out_bias: true,
        qk_norm: QkNorm::None,
        sinks: false,
        output_gate: false,
        variant: AttentionVariant::default(),
    };
    let block = Block {
        mixer: Mixer::Attention(attention),
        cross_attention: None,
        ffn: Ffn::Dense(DenseFfn { hidden: 4 * hidden, gated: false, bias: true }),
        norms: 2,
        parallel: false,
        extra_parameters: 0,
    };
    let model = Model {
        name: "gpt".into(),
        family: "gpt".into(),
        hidden,
        vocab: 51_200,
        tied_embeddings: true,
        head_bias: false,
        position: Position::Learned(2048),
        norm: Norm { rms: false, bias: true, weight: true },
        embedding_norm: false,
        final_norm: true,
        kinds: vec![block.clone()],
        pattern: vec![0; 4],
        encoder: None,
        mtp_layers: 0,
        mtp_kind: None,
        embedding_width: None,
        extra_parameters: Vec::new(),
        max_context: None,
        checkpoint: None,
        source: String::new(),
    };
    (model, block)
}

fn stack(attention: AttentionKernel, dropout: bool) -> StackProfile {
    let text = include_str!("../../../cost-models/data/stacks/megatron-2022.toml");
    let mut stack: StackProfile = toml::from_str(text).unwrap();
    stack.attention = attention;
    stack.dropout = dropout;
    stack
}

fn group(ranks: u32) -> GroupShape {
    GroupShape { ranks, per_domain: ranks, per_node: ranks, stride: 1, level: 0 }
}

fn shape(tp: u32, sequence_parallel: bool, micro_batch: u32, stack: &StackProfile) -> Shape {
    let plan = Plan { tp, sequence_parallel, micro_batch, global_batch: micro_batch, ..Plan::default() };
    let alone = group(1);
    let groups = Groups {
        tp: group(tp),
        cp: alone,
        dp: alone,
        pp: alone,
        ep: alone,
        etp: alone,
        edp: alone,
        shard: alone,
        rack_scale: false,
    };
    let workload =
        TrainingWorkload { seq_len: 2048, global_batch: micro_batch, ..TrainingWorkload::default() };
    Shape::new(&plan, &workload, stack, groups)
}

#[test]
fn activations_of_a_gpt_block_follow_korthikanti() {
    // Korthikanti et al. 2022, equations 1 and 2 and table 2, in units of s·b·h bytes.
    let (model, block) = gpt(4096, 32);
    let stack = stack(AttentionKernel::Unfused, true);
    let (s, b, a, h) = (2048.0, 2.0, 32.0, 4096.0);
    let unit = s * b * h;
    let kept = |tp, sp| layer_activations(&block, &model, &shape(tp, sp, 2, &stack));
    let scores = 5.0 * a * s / h;
    assert!((kept(1, false).kept / unit - (34.0 + scores)).abs() < 1e-9);
    assert!((kept(8, false).kept / unit - (10.0 + 24.0 / 8.0 + scores / 8.0)).abs() < 1e-9);
    assert!((kept(8, true).kept / unit - (34.0 / 8.0 + scores / 8.0)).abs() < 1e-9);
    let selective = kept(8, true);
    assert!(((selective.kept - selective.core) / unit - 34.0 / 8.0).abs() < 1e-9);
    assert!((kept(1, false).input / unit - 2.0).abs() < 1e-9);
}

#[test]
fn flops_of_a_gpt_follow_narayanan() {
    // Narayanan et al. 2021, section 5.1: 96·B·s·l·h²·(1 + s/6h + V/16lh) with full recomputation (4 passes of 24),
    // full attention; forward alone is a quarter. Here the causal half of attention counts.
    let (model, _) = gpt(4096, 32);
    let stack = stack(AttentionKernel::Flash2, false);
    let workload = TrainingWorkload { seq_len: 2048, ..TrainingWorkload::default() };
    let (s, l, h, v) = (2048.0, 4.0, 4096.0, 51_200.0);
    let forward = 24.0 * s * l * h * h * (1.0 + s / (6.0 * h) / 2.0 * (1.0 + 1.0 / s) + v / (12.0 * l * h));
    let ours = forward_flops_per_sequence(&model, &workload, &stack);
    assert!((ours / forward - 1.0).abs() < 1e-9, "{ours} against {forward}");
}

#[test]
fn tensor_parallel_ranks_share_the_flops() {
    let (model, block) = gpt(4096, 32);
    let stack = stack(AttentionKernel::Flash2, false);
    let whole = lower_block(&block, &model, &shape(1, false, 1, &stack));
    for tp in [2, 4, 8] {
        for sp in [false, true] {
            let part = lower_block(&block, &model, &shape(tp, sp, 1, &stack));
            for (a, b) in [(&whole.forward, &part.forward), (&whole.backward, &part.backward)] {
                let (a, b) = (LayerProgram::flops(a), LayerProgram::flops(b) * f64::from(tp));
                assert!((a / b - 1.0).abs() < 1e-12, "tp {tp} sp {sp}");
            }
        }
    }
}

#[test]
fn backward_does_twice_the_work_of_forward() {
    let (model, block) = gpt(4096, 32);
    let stack = stack(AttentionKernel::Unfused, true);
    let p = lower_block(&block, &model, &shape(4, true, 2, &stack));
    let ratio = LayerProgram::flops(&p.backward) / LayerProgram::flops(&p.forward);
    assert!((ratio - 2.0).abs() < 1e-12, "{ratio}");
    let core = LayerProgram::flops(&p.selective);
    let expected = 4.0 * 2.0 * 2048.0 * 2048.0 * 4096.0 / 4.0;
    assert!((core / expected - 1.0).abs() < 1e-12);
}

#[test]
fn sequence_parallelism_moves_the_same_bytes_as_all_reduce() {
    // Korthikanti et al. 2022, section 4.2.2: gather plus scatter cost what one all-reduce costs; the backward pass
    // gathers the inputs of the column-parallel layers once more.
    use crate::operator::{CollectiveKind, OperatorKind};
    let (model, block) = gpt(4096, 32);
    let stack = stack(AttentionKernel::Flash2, false);
    let sent = |sp: bool, forward: bool| -> f64 {
        let p = lower_block(&block, &model, &shape(4, sp, 1, &stack));
        let list = if forward { p.forward } else { p.backward };
        list.iter()
            .filter_map(|o| match o.kind {
                OperatorKind::Collective { kind: CollectiveKind::AllReduce, bytes, .. } => {
                    Some(2.0 * bytes as f64)
                }
                OperatorKind::Collective { bytes, .. } => Some(bytes as f64),
                _ => None,
            })
            .sum()
    };
    assert!((sent(true, true) - sent(false, true)).abs() < 1.0);
    assert!((sent(true, false) / sent(false, false) - 1.5).abs() < 1e-9);
}

#[test]
fn fused_expert_kernels_drop_copies_and_casts_but_no_arithmetic() {
    use crate::operator::{MemoryClass, OperatorKind};
    use crate::plan::Precision;
    let (model, mut block) = gpt(4096, 32);
    block.ffn = Ffn::Moe(Moe {
        experts: 8,
        top_k: 2,
        hidden: 2048,
        gated: true,
        bias: false,
        shared_hidden: 0,
        shared_gate: false,
        router_bias: false,
        latent: None,
    });
    let mut stack = stack(AttentionKernel::Flash2, false);
    stack.fusion.expert_kernels = true;
    let lowered = |rack_scale: bool, precision: Precision| {
        let mut s = shape(1, false, 1, &stack);
        (s.precision, s.gemm, s.groups.rack_scale) = (precision, precision.gemm(), rack_scale);
        lower_block(&block, &model, &s)
    };
    let count = |p: &LayerProgram, class: MemoryClass| {
        let all = p.forward.iter().chain(&p.backward);
        all.filter(|o| matches!(o.kind, OperatorKind::Memory { class: c, .. } if c == class)).count()
    };
    let (fused, apart) = (lowered(true, Precision::MxFp8), lowered(false, Precision::MxFp8));
    assert_eq!(count(&fused, MemoryClass::Permute), 0);
    assert!(count(&apart, MemoryClass::Permute) > 0);
    assert!(count(&fused, MemoryClass::Quantize) < count(&apart, MemoryClass::Quantize));
    assert_eq!(LayerProgram::flops(&fused.forward), LayerProgram::flops(&apart.forward));
    // Neither 16-bit nor per-tensor fp8 products have such kernels.
    for precision in [Precision::Bf16, Precision::Fp8] {
        assert!(count(&lowered(true, precision), MemoryClass::Permute) > 0);
    }
}

#[test]
fn current_scaling_reads_every_cast_tensor_once_more() {
    use crate::operator::{MemoryClass, OperatorKind};
    use crate::plan::Precision;
    let (model, block) = gpt(4096, 32);
    let cast = |delayed: bool| -> u64 {
        let mut stack = stack(AttentionKernel::Flash2, false);
        stack.fusion.delayed_scaling = delayed;
        let mut s = shape(1, false, 1, &stack);
        (s.precision, s.gemm) = (Precision::Fp8, Precision::Fp8.gemm());
        let p = lower_block(&block, &model, &s);
        p.forward
            .iter()
            .filter_map(|o| match o.kind {
                OperatorKind::Memory { class: MemoryClass::Quantize, bytes, .. } => Some(bytes),
                _ => None,
            })
            .sum()
    };
    // Two bytes in and two copies of one byte out, against four in.
    assert_eq!(2 * cast(false), 3 * cast(true));
}

#[test]
fn gradients_are_added_by_a_kernel_of_their_own_where_the_product_does_not() {
    use crate::operator::{GemmRole, MemoryClass, OperatorKind, Phase};
    let (model, block) = gpt(4096, 32);
    let backward = |fused: bool| {
        let mut stack = stack(AttentionKernel::Flash2, false);
        stack.fusion.accumulation = fused;
        (stack.states.gradient, stack.states.fp16_gradient) = (4.0, None);
        lower_block(&block, &model, &shape(1, false, 1, &stack)).backward
    };
    let gradients = |operators: &[crate::operator::Operator]| -> f64 {
        operators
            .iter()
            .filter_map(|o| match o.kind {
                OperatorKind::Gemm { m, n, role: GemmRole::WeightGradient, .. } => Some((m * n) as f64),
                _ => None,
            })
            .sum()
    };
    let added = |operators: &[crate::operator::Operator]| -> f64 {
        operators
            .iter()
            .filter(|o| o.phase == Phase::WeightGradient)
            .filter_map(|o| match o.kind {
                OperatorKind::Memory { class: MemoryClass::Elementwise, bytes, .. } => Some(bytes as f64),
                _ => None,
            })
            .sum()
    };
    let (fused, apart) = (backward(true), backward(false));
    assert_eq!(added(&fused), 0.0);
    // Two bytes of the new gradient in, four of the buffer in and out.
    assert!((added(&apart) / gradients(&apart) - 10.0).abs() < 1e-6);
    assert_eq!(gradients(&fused), gradients(&apart));
}

/// Forward FLOPs of the operators whose name begins with `prefix`.
fn named(p: &LayerProgram, prefix: &str) -> f64 {
    p.forward.iter().filter(|o| o.name.starts_with(prefix)).map(|o| o.kind.flops()).sum()
}

fn preset_block(name: &str, layer: usize, seq_len: u64) -> (LayerProgram, Model, Block) {
    let model = crate::presets::find(name).unwrap();
    let block = model.kinds[usize::from(model.pattern[layer])].clone();
    let mut s = shape(1, false, 1, &stack(AttentionKernel::Flash2, false));
    (s.seq_len, s.tokens, s.sharded_tokens) = (seq_len, seq_len, seq_len);
    (lower_block(&block, &model, &s), model, block)
}

#[test]
fn an_indexer_scores_all_keys_and_the_core_reads_the_chosen_ones() {
    let s = 65_536.0;
    let (p, model, block) = preset_block("deepseek-v3.2", 10, 65_536);
    let Mixer::Mla(mla) = &block.mixer else { panic!("latent attention") };
    let i = mla.indexer.as_ref().unwrap();
    let (heads, width, k) = (i.heads as f64, i.head_dim as f64, i.top_k as f64);
    let scores = named(&p, "indexer-scores");
    assert!((scores / (2.0 * s * s / 2.0 * heads * width) - 1.0).abs() < 1e-3);
    // Multi-query over the latent: 576 wide keys, 512 wide values, on average slightly fewer than `top_k` of them.
    let chosen = s * (k - k * k / s / 2.0);
    let core = 2.0 * chosen * mla.heads as f64 * (2 * mla.kv_lora_rank + mla.qk_rope_dim) as f64;
    assert!((named(&p, "attention") - named(&p, "attention-out") - core).abs() < 1e-3 * core);
    // At this length the indexer is cheaper than the attention that it saves.
    let dense = s * s * mla.heads as f64 * (mla.qk_nope_dim + mla.qk_rope_dim + mla.v_head_dim) as f64;
    assert!(named(&p, "indexer") + core < dense);
    // Its projections are its parameters.
    let projected = named(&p, "indexer") - scores - named(&p, "indexer-target");
    let parameters = i.parameters(model.hidden, mla.q_lora_rank.unwrap()) as f64;
    assert!((projected / (2.0 * s * parameters) - 1.0).abs() < 1e-3);
}

#[test]
fn products_of_compressed_attention_are_its_parameters() {
    let s = 32_768u64;
    for layer in 0..8 {
        let (p, model, block) = preset_block("deepseek-v4-flash", layer, s);
        let Mixer::Attention(a) = &block.mixer else { panic!("softmax attention") };
        let split = block.mixer.split(model.hidden, model.norm);
        let mut parameters = (split.sharded + split.replicated) as f64;
        if let Some(ratio) = a.variant.compression {
            parameters += (model.hidden * 2 * a.head_dim * if ratio == 4 { 2 } else { 1 }) as f64;
        }
        if let Some(i) = &a.variant.indexer {
            parameters += (model.hidden * (3 * i.head_dim + i.heads)) as f64;
        }
        let linear = ["q-down", "q-up", "kv", "compressor", "indexer", "attention-down", "attention-out"];
        let mut counted: f64 = linear.iter().map(|name| named(&p, name)).sum();
        counted -= named(&p, "indexer-scores") + named(&p, "indexer-target");
        let ratio = counted / (2.0 * s as f64 * parameters);
        assert!((ratio - 1.0).abs() < 2e-3, "layer {layer}: {ratio}");
    }
}

#[test]
fn a_shared_selection_has_no_indexer_of_its_own() {
    let (p, model, block) = preset_block("deepseek-v3.2", 10, 16_384);
    let Mixer::Mla(mla) = &block.mixer else { panic!("latent attention") };
    let shared = Block {
        mixer: Mixer::Mla(crate::arch::Mla { indexer_shared: true, ..mla.clone() }),
        ..block.clone()
    };
    let mut s = shape(1, false, 1, &stack(AttentionKernel::Flash2, false));
    (s.seq_len, s.tokens, s.sharded_tokens) = (16_384, 16_384, 16_384);
    let q = lower_block(&shared, &model, &s);
    assert_eq!(named(&q, "indexer"), 0.0);
    assert!(named(&p, "indexer") > 0.0);
    assert_eq!(named(&q, "attention"), named(&p, "attention"));
}
