//! Final normalisation, output layer and loss, vocabulary-sharded over tp.

use super::builder::{Builder, compute, memory_kind};
use super::linear;
use crate::arch::Model;
use crate::operator::{CollectiveKind, Dimension, MemoryClass, Phase, Sync};

/// Rows of the vocabulary padded to a multiple of 128 · tp, as Megatron does.
pub fn padded_vocab(vocab: u64, tp: u64) -> u64 {
    vocab.next_multiple_of(128 * tp.max(1))
}

/// Norm, logits GEMM, softmax cross-entropy.
///
/// Loss traffic per logit: unfused fp32 arithmetic converts (2 → 4 bytes), subtracts the maximum, exponentiates,
/// sums and divides (about 7 passes of 4 bytes over forward and backward); a fused loss reads the logits and writes
/// the gradient in the base format.
pub(super) fn head(b: &mut Builder<'_>, model: &Model) {
    let shape = b.shape;
    if model.final_norm {
        b.norm(model.hidden, 1, model.norm);
    }
    let vocab = padded_vocab(model.vocab, shape.tp);
    linear::column(b, "logits", model.hidden, vocab);
    let logits = (shape.tokens * vocab.div_ceil(shape.tp)) as f64;
    let base = shape.base.size();
    let (forward, backward, kernels) = match (shape.fusion.cross_entropy, shape.fp32_logits) {
        (true, false) => (base, 2.0 * base, 2),
        (true, true) => (base + 4.0, 4.0 + base, 3),
        (false, false) => (4.0 * base, 4.0 * base, 5),
        (false, true) => (base + 4.0 * 4.0, 3.0 * 4.0 + base, 6),
    };
    b.forward("loss", memory_kind(MemoryClass::CrossEntropy, forward * logits, kernels));
    // Maximum, target logit and sum of exponentials are reduced over the vocabulary shards.
    let small = 4.0 * shape.tokens as f64;
    for _ in 0..3 {
        b.forward_collective(
            "loss-reduce",
            CollectiveKind::AllReduce,
            small,
            shape.groups.tp,
            Dimension::Tp,
            Sync::Serial,
        );
    }
    b.backward(vec![compute(
        "loss",
        memory_kind(MemoryClass::CrossEntropy, backward * logits, kernels),
        Phase::InputGradient,
    )]);
}
