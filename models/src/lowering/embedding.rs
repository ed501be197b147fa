//! Vocabulary embedding, row-sharded over tp.

use super::builder::{Builder, collective, compute, memory_kind};
use crate::arch::{Model, Position};
use crate::operator::{CollectiveKind, Dimension, MemoryClass, Phase, Sync};

/// Look-up, sum over tp, positions and dropout; backward scatters into the fp32 gradient.
pub(super) fn embedding(b: &mut Builder<'_>, model: &Model) {
    let shape = b.shape;
    let row = b.row(model.hidden);
    let bytes = row * shape.tokens as f64;
    b.forward("embedding", memory_kind(MemoryClass::Embedding, 2.0 * bytes, 3).of_width(model.hidden));
    let (kind, back) = if shape.sequence_parallel {
        (CollectiveKind::ReduceScatter, Some(CollectiveKind::AllGather))
    } else {
        (CollectiveKind::AllReduce, None)
    };
    let tp = shape.groups.tp;
    b.forward_collective("tp-scatter", kind, bytes, tp, Dimension::Tp, Sync::Serial);
    let mut segment = Vec::new();
    let phase = Phase::WeightGradient;
    if let Some(kind) = back {
        segment.extend(collective("tp-gather", kind, bytes, tp, Dimension::Tp, Sync::Serial, phase));
    }
    if shape.lora_rank.is_none() {
        let scattered = bytes + 2.0 * 4.0 * (shape.tokens * model.hidden) as f64;
        let kind = memory_kind(MemoryClass::Embedding, scattered, 3).of_width(model.hidden);
        segment.push(compute("embedding", kind, phase));
    }
    b.backward(segment);
    if matches!(model.position, Position::Learned(_)) || shape.dropout {
        let sharded = row * shape.sharded_tokens as f64;
        b.memory("positions", MemoryClass::Elementwise, (4.0 * sharded, 2), (3.0 * sharded, 2));
    }
    if model.embedding_norm {
        b.norm(model.hidden, 1, model.norm);
    }
}
