//! GPipe, 1F1B and interleaved 1F1B: warm-up forwards, then one forward and one backward in turn, then the rest.
//!
//! The order of interleaved 1F1B is Megatron's (Narayanan et al. 2021, §2.2): micro-batches come in groups of (at
//! least) as many as there are stages, and a group passes through all chunks of a stage before the next group starts.
//! Stage `s` of `p` runs `2(p - s - 1) + (v - 1) g` warm-up forwards for `v > 1` chunks and groups of `g`, and
//! `p - s - 1` for one chunk. 1F1B is PipeDream-flush (Narayanan et al. 2021); GPipe is Huang et al. 2019, whose
//! backward passes run in the reverse order of the forward passes.

use super::{Order, Pass, PassKind, micro_batch_group};
use crate::passes::PipelineSpec;
use psim_models::plan::Schedule;

/// All forwards, then all backwards in reverse.
pub(super) fn gpipe(spec: &PipelineSpec, order: &mut Order) {
    let count = spec.micro_batches;
    for _ in 0..spec.stages {
        order.starts.push(order.passes.len());
        order.passes.extend((0..count).map(|i| Pass { micro_batch: i, chunk: 0, kind: PassKind::Forward }));
        order.passes.extend((0..count).rev().map(|i| Pass {
            micro_batch: i,
            chunk: 0,
            kind: PassKind::Backward,
        }));
    }
    order.starts.push(order.passes.len());
}

/// Forward passes that stage `stage` runs before its first backward pass, besides the one that is paired with it.
pub(super) fn warm_up(spec: &PipelineSpec, stage: u32) -> u32 {
    let behind = spec.stages - 1 - stage;
    let total = spec.micro_batches.saturating_mul(spec.chunks_per_stage);
    let count = if spec.schedule == Schedule::Interleaved && spec.chunks_per_stage > 1 {
        2 * behind + (spec.chunks_per_stage - 1).saturating_mul(micro_batch_group(spec))
    } else {
        behind
    };
    count.min(total)
}

/// 1F1B, interleaved when there are several chunks per stage.
pub(super) fn one_f_one_b(spec: &PipelineSpec, order: &mut Order) {
    let chunks = spec.chunks_per_stage;
    let group = if chunks == 1 { spec.micro_batches } else { micro_batch_group(spec) };
    // Micro-batch and chunk of the k-th forward pass of any stage; backward passes mirror the chunks.
    let mut sequence = Vec::with_capacity((spec.micro_batches * chunks) as usize);
    let mut first = 0;
    while first < spec.micro_batches {
        let end = first.saturating_add(group).min(spec.micro_batches);
        for chunk in 0..chunks {
            sequence.extend((first..end).map(|micro_batch| (micro_batch, chunk as u16)));
        }
        first = end;
    }
    let last = (chunks - 1) as u16;
    let forward = |&(micro_batch, chunk): &(u32, u16)| Pass { micro_batch, chunk, kind: PassKind::Forward };
    let backward = |&(micro_batch, chunk): &(u32, u16)| Pass {
        micro_batch,
        chunk: last - chunk,
        kind: PassKind::Backward,
    };
    for stage in 0..spec.stages {
        order.starts.push(order.passes.len());
        let warm_up = warm_up(spec, stage) as usize;
        order.passes.extend(sequence[..warm_up].iter().map(forward));
        for (f, b) in sequence[warm_up..].iter().zip(&sequence) {
            order.passes.push(forward(f));
            order.passes.push(backward(b));
        }
        order.passes.extend(sequence[sequence.len() - warm_up..].iter().map(backward));
    }
    order.starts.push(order.passes.len());
}
