//! Useful floating-point operations of a model, independent of any plan.

use crate::arch::Model;
use crate::layout::{Layout, block_of};
use crate::lowering::{
    Groups, LayerProgram, Shape, lower_block, lower_embedding, lower_head, lower_mtp_projection,
};
use crate::operator::OperatorKind;
use crate::plan::Plan;
use crate::workload::TrainingWorkload;
use psim_hardware::profile::StackProfile;
use psim_hardware::profile::stack::AttentionKernel;
use psim_hardware::{DType, GroupShape};

/// Forward flops of one sequence: matrix products and attention with the causal half (and windows) only.
///
/// A training step costs three times this (forward, input gradient, weight gradient). Embedding look-ups count nothing;
/// the output layer counts; routed experts count for the tokens they get.
pub fn forward_flops_per_sequence(model: &Model, workload: &TrainingWorkload, stack: &StackProfile) -> f64 {
    count(model, workload, stack, false)
}

/// As [`forward_flops_per_sequence`] with the whole square of every attention: how Megatron-LM counts model FLOPs in its
/// logs and in the tables of its README (`num_floating_point_operations`).
pub fn forward_flops_full_attention(model: &Model, workload: &TrainingWorkload, stack: &StackProfile) -> f64 {
    count(model, workload, stack, true)
}

fn count(model: &Model, workload: &TrainingWorkload, stack: &StackProfile, whole: bool) -> f64 {
    let alone = GroupShape { ranks: 1, per_domain: 1, per_node: 1, stride: 1, level: 0 };
    let groups = Groups {
        tp: alone,
        cp: alone,
        dp: alone,
        pp: alone,
        ep: alone,
        etp: alone,
        edp: alone,
        shard: alone,
        rack_scale: false,
    };
    let plan = Plan::default();
    let mut shape = Shape::new(&plan, workload, stack, groups);
    shape.attention = AttentionKernel::Flash2;
    shape.lora_rank = None;
    shape.expert_imbalance = 1.0;
    shape.gemm = DType::Bf16;
    let Ok(layout) = Layout::new(model, &plan) else { return 0.0 };
    let flops = |program: &LayerProgram| -> f64 {
        let of = |kind: &OperatorKind| match kind {
            OperatorKind::Attention { density, .. } if whole && *density > 0.0 => kind.flops() / density,
            _ => kind.flops(),
        };
        program.forward.iter().map(|op| of(&op.kind)).sum()
    };
    let mut total = 0.0;
    for chunk in &layout.chunks {
        for &(kind, count) in &chunk.layers {
            if let Some(block) = block_of(model, kind) {
                let mut shape = shape.clone();
                if let (crate::layout::LayerKind::Encoder, Some(e)) = (kind, &model.encoder) {
                    shape.seq_len = (shape.seq_len as f64 * e.tokens_per_decoder_token).ceil() as u64;
                    shape.tokens = shape.seq_len;
                    shape.sharded_tokens = shape.seq_len;
                }
                total += f64::from(count) * flops(&lower_block(block, model, &shape));
            }
        }
    }
    let head = flops(&lower_head(model, &shape));
    total += head + flops(&lower_embedding(model, &shape));
    if model.mtp_layers > 0
        && let Some(block) = model.mtp_block()
    {
        let extra =
            flops(&lower_block(block, model, &shape)) + flops(&lower_mtp_projection(model, &shape)) + head;
        total += f64::from(model.mtp_layers) * extra;
    }
    total
}
