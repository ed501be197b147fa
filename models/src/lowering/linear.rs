//! Linear layers: column- and row-parallel (Shoeybi et al. 2019, section 3; sequence parallel: Korthikanti et al. 2022).

use super::Shape;
use super::builder::{Builder, collective, compute, gemm, memory_kind};
use crate::operator::{
    CollectiveKind, Dimension, GemmRole, MemoryClass, Operator, OperatorKind, Phase, Sync,
};
use psim_hardware::{DType, Scaling};

/// Bytes moved to cast `elements` to the GEMM format: read, written row-wise and column-wise (the transposed copy feeds
/// the weight gradient); read once more for the maximum under per-tensor current scaling and for 4-bit formats, whose
/// per-tensor scale comes on top of the blocks' (NVFP4).
pub(super) fn cast_bytes(shape: &Shape, elements: f64) -> f64 {
    let maximum = match shape.precision.scaling() {
        Scaling::Tensor => !shape.fusion.delayed_scaling,
        _ => shape.gemm == DType::Fp4,
    };
    let reads = if maximum { 2.0 } else { 1.0 };
    elements * (reads * shape.base.size() + 2.0 * shape.gemm.size())
}

/// Kernels that cast the inputs of `groups` products. Every expert has a scale of its own and is cast by itself
/// (`split_quantize` of Transformer Engine): its maximum, the scale and the cast under per-tensor current scaling, maximum and
/// cast for 4-bit formats, one kernel under block scaling. Delayed scaling knows its scales beforehand and casts many tensors
/// in one launch (`multi_cast_transpose`). Measured on single products, per-tensor current scaling takes 9 us (H100) to 12 us
/// (B300) whatever the size, block scaling 2 to 3 us (`cost-models/data/FIT.md`).
pub(super) fn cast_kernels(shape: &Shape, groups: u64) -> u32 {
    let each = match (shape.gemm, shape.precision.scaling()) {
        (DType::Fp4, _) => 2,
        (_, Scaling::Tensor) if shape.fusion.delayed_scaling => return 1,
        (_, Scaling::Tensor) => 3,
        _ => 1,
    };
    u32::try_from(groups).unwrap_or(u32::MAX).max(1).saturating_mul(each)
}

/// Reduction of a tensor's maximum over the ranks that hold its sequence shards, before the cast under per-tensor
/// current scaling: one number, so latency only (Transformer Engine, `with_amax_reduction` of its current-scaling
/// quantizers under sequence parallelism). Delayed scaling reduces all maxima once per step.
fn maximum(shape: &Shape, phase: Phase) -> Option<Operator> {
    let current = shape.precision.scaling() == Scaling::Tensor && !shape.fusion.delayed_scaling;
    if !current || !shape.sequence_parallel || shape.gemm.bits() >= shape.base.bits() {
        return None;
    }
    let (kind, group) = (CollectiveKind::AllReduce, shape.groups.tp);
    collective("amax", kind, 4.0, group, Dimension::Tp, Sync::Serial, phase)
}

/// Casting a GEMM input to a narrow format.
fn quantize(b: &Builder<'_>, elements: f64) -> Option<OperatorKind> {
    let narrow = b.shape.gemm;
    if narrow == b.shape.base || narrow.bits() >= b.shape.base.bits() {
        return None;
    }
    let bytes = cast_bytes(b.shape, elements);
    let kernels = match narrow {
        DType::Fp4 => 2,
        _ if b.shape.precision.scaling() == Scaling::Tensor && !b.shape.fusion.delayed_scaling => 2,
        _ => 1,
    };
    Some(memory_kind(MemoryClass::Quantize, bytes, kernels))
}

/// The kernel that adds a weight gradient to its buffer where the product does not.
fn accumulation(b: &Builder<'_>, name: &'static str, elements: f64) -> Option<Operator> {
    let bytes = b.shape.accumulate_bytes;
    (bytes > 0.0).then(|| {
        let kind = memory_kind(MemoryClass::Elementwise, bytes * elements, 1);
        compute(name, kind, Phase::WeightGradient)
    })
}

/// Operators of a linear layer's backward pass in execution order: gradient cast, input gradient, weight gradient.
fn backward_gemms(b: &Builder<'_>, name: &'static str, inputs: u64, outputs: u64) -> [Vec<Operator>; 3] {
    let (m, shape) = (b.shape.tokens, b.shape);
    let cast = quantize(b, (m * outputs) as f64)
        .map(|kind| compute(name, kind, Phase::InputGradient))
        .into_iter()
        .collect();
    let input = vec![compute(
        name,
        gemm(shape, m, inputs, outputs, 1, GemmRole::InputGradient),
        Phase::InputGradient,
    )];
    let weight = match shape.lora_rank {
        None => {
            let kind = gemm(shape, outputs, inputs, m, 1, GemmRole::WeightGradient);
            let product = compute(name, kind, Phase::WeightGradient);
            std::iter::once(product).chain(accumulation(b, name, (outputs * inputs) as f64)).collect()
        }
        Some(rank) => vec![
            compute(name, gemm(shape, rank, inputs, m, 1, GemmRole::WeightGradient), Phase::WeightGradient),
            compute(name, gemm(shape, outputs, rank, m, 1, GemmRole::WeightGradient), Phase::WeightGradient),
        ],
    };
    [cast, input, weight]
}

/// Forward GEMM (with adapters beside it).
fn forward_gemm(b: &mut Builder<'_>, name: &'static str, inputs: u64, outputs: u64) {
    let m = b.shape.tokens;
    if let Some(kind) = quantize(b, (m * inputs) as f64) {
        b.forward(name, kind);
    }
    let kind = gemm(b.shape, m, outputs, inputs, 1, GemmRole::Forward);
    b.forward(name, kind);
    if let Some(rank) = b.shape.lora_rank {
        let down = gemm(b.shape, m, rank, inputs, 1, GemmRole::Forward);
        let up = gemm(b.shape, m, outputs, rank, 1, GemmRole::Forward);
        b.forward(name, down);
        b.forward(name, up);
    }
}

/// Column-parallel: the input is whole on every rank (gathered from the sequence shards), outputs are sharded.
pub(super) fn column(b: &mut Builder<'_>, name: &'static str, inputs: u64, outputs: u64) {
    let shape = b.shape;
    let outputs = outputs.div_ceil(shape.tp);
    let bytes = b.row(inputs) * shape.tokens as f64;
    let tp = shape.groups.tp;
    let pipelined = if shape.overlap.tp { Sync::WithNext } else { Sync::Serial };
    if shape.sequence_parallel {
        b.forward_operator(maximum(shape, Phase::Forward));
        b.forward_collective("tp-gather", CollectiveKind::AllGather, bytes, tp, Dimension::Tp, pipelined);
    }
    forward_gemm(b, name, inputs, outputs);
    let [cast, input, weight] = backward_gemms(b, name, inputs, outputs);
    let mut segment = cast;
    let phase = Phase::InputGradient;
    if shape.sequence_parallel {
        // The input is gathered again for the weight gradient, behind the input gradient (section 4.2.2).
        if shape.lora_rank.is_none() {
            segment.extend(collective(
                "tp-gather",
                CollectiveKind::AllGather,
                bytes,
                tp,
                Dimension::Tp,
                Sync::Async,
                phase,
            ));
        }
        segment.extend(input);
        let scatter = CollectiveKind::ReduceScatter;
        segment.extend(collective("tp-scatter", scatter, bytes, tp, Dimension::Tp, Sync::Async, phase));
    } else {
        segment.extend(input);
        let behind = shape.overlap.tp || shape.overlap.input_reduce;
        let sync = if behind { Sync::Async } else { Sync::Serial };
        segment.extend(collective(
            "tp-reduce",
            CollectiveKind::AllReduce,
            bytes,
            tp,
            Dimension::Tp,
            sync,
            phase,
        ));
    }
    segment.extend(weight);
    b.backward(segment);
}

/// Row-parallel: inputs are sharded, the partial outputs are summed (and scattered over the sequence).
pub(super) fn row(b: &mut Builder<'_>, name: &'static str, inputs: u64, outputs: u64) {
    let shape = b.shape;
    let inputs = inputs.div_ceil(shape.tp);
    let bytes = b.row(outputs) * shape.tokens as f64;
    let tp = shape.groups.tp;
    forward_gemm(b, name, inputs, outputs);
    let [cast, input, weight] = backward_gemms(b, name, inputs, outputs);
    let mut segment = Vec::with_capacity(4);
    if shape.sequence_parallel {
        let (forward, backward) = if shape.overlap.tp {
            (Sync::WithPrevious, Sync::WithNext)
        } else {
            (Sync::Serial, Sync::Serial)
        };
        b.forward_collective("tp-scatter", CollectiveKind::ReduceScatter, bytes, tp, Dimension::Tp, forward);
        segment.extend(maximum(shape, Phase::InputGradient));
        segment.extend(collective(
            "tp-gather",
            CollectiveKind::AllGather,
            bytes,
            tp,
            Dimension::Tp,
            backward,
            Phase::InputGradient,
        ));
    } else {
        b.forward_collective("tp-reduce", CollectiveKind::AllReduce, bytes, tp, Dimension::Tp, Sync::Serial);
    }
    segment.extend(cast);
    segment.extend(input);
    segment.extend(weight);
    b.backward(segment);
}

/// Replicated: every rank of the tensor-parallel group computes the whole layer on its own tokens (low-rank
/// compressions of MLA, routers).
pub(super) fn replicated(b: &mut Builder<'_>, name: &'static str, tokens: u64, inputs: u64, outputs: u64) {
    let kind = gemm(b.shape, tokens, outputs, inputs, 1, GemmRole::Forward);
    b.forward(name, kind);
    let input = gemm(b.shape, tokens, inputs, outputs, 1, GemmRole::InputGradient);
    let mut segment = vec![compute(name, input, Phase::InputGradient)];
    if b.shape.lora_rank.is_none() {
        let weight = gemm(b.shape, outputs, inputs, tokens, 1, GemmRole::WeightGradient);
        segment.push(compute(name, weight, Phase::WeightGradient));
    }
    b.backward(segment);
}
