//! Collects the forward and backward operators of a block; backward operators are prepended as a tape would.

use super::{LayerProgram, Shape};
use crate::arch::Norm;
use crate::operator::{
    CollectiveKind, Dimension, GemmRole, MemoryClass, Operator, OperatorKind, Phase, Sync,
};
use psim_hardware::GroupShape;

/// Builds a [`LayerProgram`] operator by operator, in forward order.
pub(super) struct Builder<'a> {
    /// The rank's shape.
    pub(super) shape: &'a Shape,
    forward: Vec<Operator>,
    /// Backward segments in forward order; reversed at the end.
    backward: Vec<Vec<Operator>>,
    selective: Vec<Operator>,
    /// Operators now added to `forward` are also rerun by selective recomputation.
    pub(super) in_attention_core: bool,
}

impl<'a> Builder<'a> {
    pub(super) fn new(shape: &'a Shape) -> Self {
        Self {
            shape,
            forward: Vec::with_capacity(32),
            backward: Vec::with_capacity(24),
            selective: Vec::new(),
            in_attention_core: false,
        }
    }

    pub(super) fn finish(self) -> LayerProgram {
        LayerProgram {
            forward: self.forward,
            backward: self.backward.into_iter().rev().flatten().collect(),
            selective: self.selective,
        }
    }

    fn push_forward(&mut self, operator: Operator) {
        if self.in_attention_core {
            self.selective.push(Operator { phase: Phase::Recompute, ..operator.clone() });
        }
        self.forward.push(operator);
    }

    /// Adds a forward compute operator.
    pub(super) fn forward(&mut self, name: &'static str, kind: OperatorKind) {
        self.push_forward(Operator { name, kind, phase: Phase::Forward, sync: Sync::Serial });
    }

    /// Adds a forward operator that may not exist.
    pub(super) fn forward_operator(&mut self, operator: Option<Operator>) {
        if let Some(operator) = operator {
            self.push_forward(operator);
        }
    }

    /// Adds a forward collective; groups of one rank cost nothing and are left out.
    pub(super) fn forward_collective(
        &mut self,
        name: &'static str,
        kind: CollectiveKind,
        bytes: f64,
        group: GroupShape,
        dimension: Dimension,
        sync: Sync,
    ) {
        if let Some(op) = collective(name, kind, bytes, group, dimension, sync, Phase::Forward) {
            self.push_forward(op);
        }
    }

    /// Adds one backward segment: operators in the order the backward pass runs them.
    pub(super) fn backward(&mut self, segment: Vec<Operator>) {
        self.backward.push(segment);
    }

    /// A memory-bound operator: forward and backward bytes and kernels.
    pub(super) fn memory(
        &mut self,
        name: &'static str,
        class: MemoryClass,
        forward: (f64, u32),
        backward: (f64, u32),
    ) {
        if forward.1 > 0 {
            self.forward(name, memory_kind(class, forward.0, forward.1));
        }
        if backward.1 > 0 {
            self.backward(vec![compute(
                name,
                memory_kind(class, backward.0, backward.1),
                Phase::InputGradient,
            )]);
        }
    }

    /// `count` normalisations of the (sharded) residual stream.
    ///
    /// Fused: forward reads and writes once; backward reads the input and the gradient, writes the gradient, and
    /// reduces the weight gradients. Unfused fp32 arithmetic moves about 2.5 times as much.
    pub(super) fn norm(&mut self, width: u64, count: u64, norm: Norm) {
        let elements = (self.shape.sharded_tokens * width * count) as f64;
        let base = self.shape.base.size();
        let factor = if self.shape.fusion.norm { 1.0 } else { 2.5 };
        let kernels = count as u32 * if self.shape.fusion.norm { 1 } else { 4 };
        let extra = if norm.rms { 0 } else { 1 };
        let kind = |bytes: f64, kernels| {
            memory_kind(MemoryClass::Norm, bytes * base * elements * factor, kernels).of_width(width)
        };
        let (forward, backward) = (kind(2.0, kernels), kind(3.0, kernels * 2 + extra));
        if kernels > 0 {
            self.forward("norm", forward);
        }
        if kernels * 2 + extra > 0 {
            self.backward(vec![compute("norm", backward, Phase::InputGradient)]);
        }
    }

    /// Bias, dropout and residual addition; the backward pass of dropout is one kernel, fused or not.
    pub(super) fn residual(&mut self, width: u64) {
        let elements = (self.shape.sharded_tokens * width) as f64;
        let base = self.shape.base.size();
        let mask = if self.shape.dropout { 1.0 } else { 0.0 };
        let (forward, backward) =
            (3.0 * base + mask, if self.shape.dropout { 2.0 * base + mask } else { 0.0 });
        // The gradient of the skip connection is added to that of the branch either way.
        let add = 3.0 * base;
        let (factor, kernels) = if self.shape.fusion.residual { (1.0, 1) } else { (2.0, 3) };
        self.memory(
            "residual",
            MemoryClass::Elementwise,
            (forward * elements * factor, kernels),
            ((backward + add) * elements, 1 + u32::from(self.shape.dropout)),
        );
    }

    /// Bytes of the activations of one token row of `width` in the base format.
    pub(super) fn row(&self, width: u64) -> f64 {
        self.shape.base.size() * width as f64
    }
}

/// A memory-bound operator kind.
pub(super) fn memory_kind(class: MemoryClass, bytes: f64, kernels: u32) -> OperatorKind {
    OperatorKind::Memory { class, bytes: bytes.ceil() as u64, kernels, flops: 0.0, width: 0 }
}

/// A compute operator of a backward segment.
pub(super) fn compute(name: &'static str, kind: OperatorKind, phase: Phase) -> Operator {
    Operator { name, kind, phase, sync: Sync::Serial }
}

/// A collective, unless its group has one rank or it carries nothing.
pub(super) fn collective(
    name: &'static str,
    kind: CollectiveKind,
    bytes: f64,
    group: GroupShape,
    dimension: Dimension,
    sync: Sync,
    phase: Phase,
) -> Option<Operator> {
    (group.ranks > 1 && bytes > 0.0).then(|| Operator {
        name,
        kind: OperatorKind::Collective { kind, bytes: bytes.ceil() as u64, group, dimension },
        phase,
        sync,
    })
}

/// One GEMM of `tokens` rows.
pub(super) fn gemm(shape: &Shape, m: u64, n: u64, k: u64, batch: u64, role: GemmRole) -> OperatorKind {
    let out_bytes = match role {
        GemmRole::WeightGradient => shape.gradient_bytes,
        _ => shape.base.size(),
    };
    OperatorKind::Gemm {
        m,
        n,
        k,
        batch,
        dtype: shape.gemm,
        scaling: shape.precision.scaling(),
        out_bytes,
        role,
    }
}
