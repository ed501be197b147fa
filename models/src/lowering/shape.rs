//! Everything lowering needs to know beside the model: tokens, parallel degrees, arithmetic, stack choices.

use super::Groups;
use crate::plan::{ContextParallel, Plan, Precision};
use crate::workload::TrainingWorkload;
use psim_hardware::DType;
use psim_hardware::profile::StackProfile;
use psim_hardware::profile::stack::{AttentionKernel, Fusion, Overlap};

/// Shape of one rank's share of a micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Sequences in the micro-batch.
    pub sequences: u64,
    /// Tokens per sequence before context parallelism.
    pub seq_len: u64,
    /// Tokens of the micro-batch on this rank before sequence parallelism.
    pub tokens: u64,
    /// Tokens that norms and residuals see.
    pub sharded_tokens: u64,
    /// Tensor-parallel degree.
    pub tp: u64,
    /// Context-parallel degree.
    pub cp: u64,
    /// Expert-parallel degree.
    pub ep: u64,
    /// Tensor-parallel degree inside experts.
    pub etp: u64,
    /// Sequence parallelism.
    pub sequence_parallel: bool,
    /// Context-parallel exchange.
    pub cp_kind: ContextParallel,
    /// Arithmetic.
    pub precision: Precision,
    /// Format of activations.
    pub base: DType,
    /// Format of GEMM inputs.
    pub gemm: DType,
    /// Communicators.
    pub groups: Groups,
    /// Attention kernel.
    pub attention: AttentionKernel,
    /// Operator fusion.
    pub fusion: Fusion,
    /// Overlap choices.
    pub overlap: Overlap,
    /// Dropout is on.
    pub dropout: bool,
    /// Loss in fp32.
    pub fp32_logits: bool,
    /// Bytes moved per element when a weight gradient is written or accumulated by its product.
    pub gradient_bytes: f64,
    /// Bytes moved per element by a kernel of its own that adds a weight gradient to the buffer; 0 where the product does.
    pub accumulate_bytes: f64,
    /// Packed document length, if shorter than the sequence.
    pub packed_length: Option<u64>,
    /// Adapters only: no weight gradients of the base weights.
    pub lora_rank: Option<u64>,
    /// Load of the busiest expert rank over the mean.
    pub expert_imbalance: f64,
    /// Token-drop capacity factor.
    pub capacity_factor: Option<f64>,
}

/// Bytes that adding one element of a weight gradient to its buffer moves: the new gradient is read, the buffer read and
/// written. Buffers of more than 4 bytes hold the gradient in both formats: it is converted first, then added (the bf16
/// optimizer of DeepSpeed).
fn accumulate_bytes(stack: &StackProfile, base: DType) -> f64 {
    match stack.states.gradient_buffer(base == DType::Fp16) {
        (buffer, true) => base.size() + buffer + 3.0 * buffer,
        (buffer, false) => base.size() + 2.0 * buffer,
    }
}

impl Shape {
    /// From a plan, a workload and a stack; sizes that do not divide are rounded up, as padding does.
    pub fn new(plan: &Plan, workload: &TrainingWorkload, stack: &StackProfile, groups: Groups) -> Self {
        let (tp, cp) = (u64::from(plan.tp.max(1)), u64::from(plan.cp.max(1)));
        let sequences = u64::from(plan.micro_batch.max(1));
        let tokens = (sequences * workload.seq_len).div_ceil(cp);
        let sequence_parallel = plan.sequence_parallel && tp > 1;
        let fused = stack.fusion.accumulation;
        Self {
            sequences,
            seq_len: workload.seq_len,
            tokens,
            sharded_tokens: if sequence_parallel { tokens.div_ceil(tp) } else { tokens },
            tp,
            cp,
            ep: u64::from(plan.ep.max(1)),
            etp: u64::from(plan.etp.max(1)),
            sequence_parallel,
            cp_kind: plan.cp_kind,
            precision: plan.precision,
            base: plan.precision.base(),
            gemm: plan.precision.gemm(),
            groups,
            attention: stack.attention,
            fusion: stack.fusion,
            // Buffers that products and collectives share live in one scale-up domain (Transformer Engine's userbuffers).
            overlap: Overlap { tp: stack.overlap.tp && groups.tp.is_local(), ..stack.overlap },
            dropout: stack.dropout,
            fp32_logits: stack.fp32_logits,
            gradient_bytes: if fused { 2.0 * stack.states.gradient } else { plan.precision.base().size() },
            accumulate_bytes: if fused { 0.0 } else { accumulate_bytes(stack, plan.precision.base()) },
            packed_length: workload.packed_length.filter(|&p| p < workload.seq_len),
            lora_rank: workload.lora_rank,
            expert_imbalance: workload.expert_imbalance.max(1.0),
            capacity_factor: workload.capacity_factor,
        }
    }

    /// The shape of an encoder that sees `per_token` of its own tokens for each token of the decoder.
    #[must_use]
    pub fn encoder(&self, per_token: f64) -> Self {
        let scale = |x: u64| (x as f64 * per_token).ceil() as u64;
        Self {
            seq_len: scale(self.seq_len),
            tokens: scale(self.tokens),
            sharded_tokens: scale(self.sharded_tokens),
            ..self.clone()
        }
    }

    /// Whether experts run in the stack's fused block-scaled kernels: they need micro-scaled formats and an expert group
    /// inside a scale-up domain of several nodes.
    pub fn fused_experts(&self) -> bool {
        let blocks = matches!(self.precision, Precision::MxFp8 | Precision::NvFp4);
        self.fusion.expert_kernels && blocks && self.groups.rack_scale
    }

    /// Share of the square of scores that a causal mask with window and packing leaves.
    pub fn density(&self, causal: bool, window: Option<u64>) -> f64 {
        let s = self.seq_len.max(1) as f64;
        if let Some(packed) = self.packed_length {
            let share = packed as f64 / s;
            return if causal { 0.5 * share } else { share };
        }
        match (causal, window) {
            (true, Some(w)) if (w as f64) < s => {
                let w = w as f64 / s;
                w - 0.5 * w * w
            }
            (true, _) => 0.5 * (1.0 + 1.0 / s),
            (false, Some(w)) if 2.0 * (w as f64) < s => 2.0 * w as f64 / s,
            (false, _) => 1.0,
        }
    }
}
