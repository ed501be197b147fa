//! Dense feed-forward networks.

use super::builder::Builder;
use super::linear;
use crate::operator::MemoryClass;

/// Bytes per inner element of an activation function, forward and backward, in elements of the base format.
///
/// Gated: forward reads gate and up, writes one; backward reads gate, up and the gradient, writes two.
/// Plain: forward reads one, writes one; backward reads input and gradient, writes one.
pub(super) fn activation_traffic(gated: bool) -> (f64, f64) {
    if gated { (3.0, 5.0) } else { (2.0, 3.0) }
}

/// Class of an activation function.
pub(super) fn activation_class(gated: bool) -> MemoryClass {
    if gated { MemoryClass::Activation } else { MemoryClass::Gelu }
}

/// Up projection, activation, down projection. `parallel`: tensor-parallel with its collectives.
pub(super) fn dense(
    b: &mut Builder<'_>,
    width: u64,
    inner: u64,
    gated: bool,
    name: &'static str,
    parallel: bool,
) {
    let matrices = if gated { 2 } else { 1 };
    let (up, act, down) = match name {
        "mlp" => ("mlp-up", "mlp-activation", "mlp-down"),
        _ => ("shared-up", "shared-activation", "shared-down"),
    };
    if parallel {
        linear::column(b, up, width, matrices * inner);
    } else {
        linear::replicated(b, up, b.shape.sharded_tokens, width, matrices * inner);
    }
    let tokens = if parallel { b.shape.tokens } else { b.shape.sharded_tokens };
    let elements =
        (tokens * inner.div_ceil(if parallel { b.shape.tp } else { 1 })) as f64 * b.shape.base.size();
    let (forward, backward) = activation_traffic(gated);
    let (factor, kernels) =
        if b.shape.fusion.activation { (1.0, 1) } else { (2.2, if gated { 3 } else { 4 }) };
    b.memory(
        act,
        activation_class(gated),
        (forward * elements * factor, kernels),
        (backward * elements * factor, kernels),
    );
    if parallel {
        linear::row(b, down, inner, width);
    } else {
        linear::replicated(b, down, b.shape.sharded_tokens, inner, width);
    }
}
