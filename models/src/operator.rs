//! Operators: the unit that cost models price, with shapes and bytes of one rank.

use psim_hardware::{DType, GroupShape, Scaling};
use serde::{Deserialize, Serialize};

/// A pass through a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Forward.
    Forward,
    /// Gradient of the input (B).
    InputGradient,
    /// Gradient of the weights (W).
    WeightGradient,
    /// Forward again, for activations that were not kept.
    Recompute,
    /// Optimizer step.
    Optimizer,
}

/// One operator (one or several kernels) on one rank.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Operator {
    /// Name in timelines (`qkv`, `attention`, `mlp-up`).
    pub name: &'static str,
    /// What it computes.
    pub kind: OperatorKind,
    /// The pass it belongs to; the input- and weight-gradient parts of one backward list can be told apart by it.
    pub phase: Phase,
    /// How a collective lies beside compute; ignored for compute.
    pub sync: Sync,
}

/// How a collective synchronises with the compute stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sync {
    /// Starts after the compute before it; the compute after it waits.
    Serial,
    /// Starts after the compute before it; must be done by the end of the pass.
    Async,
    /// Pipelined in chunks with the next compute operator (gather feeding a GEMM).
    WithNext,
    /// Pipelined in chunks with the previous compute operator (GEMM feeding a scatter).
    WithPrevious,
}

/// Role of a GEMM in training; decides layout and accumulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GemmRole {
    /// y = x·W (TN).
    Forward,
    /// dx = dy·Wᵀ (NN).
    InputGradient,
    /// dW += xᵀ·dy (NT, fp32 accumulation into the gradient buffer).
    WeightGradient,
}

/// What a memory-bound operator does; classes reach different bandwidths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryClass {
    /// RMS or layer normalisation.
    Norm,
    /// SwiGLU and other gates, bias.
    Activation,
    /// Residual addition, dropout, scaling, plain copies.
    Elementwise,
    /// Rotary embedding.
    Rope,
    /// Softmax over scores.
    Softmax,
    /// Softmax cross-entropy over the vocabulary.
    CrossEntropy,
    /// Embedding look-up or its scattered gradient.
    Embedding,
    /// Optimizer update, gradient norm, casts of parameters.
    Optimizer,
    /// Cast and scale computation of low-precision GEMM inputs.
    Quantize,
    /// Expert permutation and its inverse.
    Permute,
    /// State-space or linear-attention scan.
    Scan,
    /// GeLU without a gate: fewer bytes per function value than SwiGLU, which tells where the arithmetic is not hidden (a
    /// processor's core). Profiles without a table of its own price it as [`MemoryClass::Activation`].
    Gelu,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Kind and shape of an operator.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub enum OperatorKind {
    /// `batch` products of an m × k and a k × n matrix.
    Gemm {
        /// Rows (tokens).
        m: u64,
        /// Columns (output features).
        n: u64,
        /// Reduction length.
        k: u64,
        /// Independent products in one call.
        batch: u64,
        /// Input format.
        dtype: DType,
        /// Scales of a low-precision input ([`crate::plan::Precision::scaling`]); `None` for 16 bits and more.
        scaling: Scaling,
        /// Bytes of one output element.
        out_bytes: f64,
        /// Role.
        role: GemmRole,
    },
    /// `groups` products of different row counts with equal n and k (experts on this rank).
    GroupedGemm {
        /// Experts on this rank.
        groups: u64,
        /// Rows over all groups on the most loaded rank.
        rows: u64,
        /// Columns.
        n: u64,
        /// Reduction length.
        k: u64,
        /// Input format.
        dtype: DType,
        /// Scales of a low-precision input ([`crate::plan::Precision::scaling`]); `None` for 16 bits and more.
        scaling: Scaling,
        /// Role.
        role: GemmRole,
    },
    /// Fused (flash) attention core.
    Attention {
        /// Sequences.
        batch: u64,
        /// Query heads on this rank.
        q_heads: u64,
        /// Key/value heads on this rank.
        kv_heads: u64,
        /// Query/key width.
        head_dim: u64,
        /// Value width.
        head_dim_v: u64,
        /// Query tokens per sequence on this rank.
        seq_q: u64,
        /// Key tokens per sequence.
        seq_kv: u64,
        /// Share of the `seq_q × seq_kv` rectangle really computed (causal 0.5, window, packing).
        density: f64,
        /// Backward pass (else forward).
        backward: bool,
        /// Format.
        dtype: DType,
    },
    /// Memory-bound operator: `bytes` moved through device memory by `kernels` kernels.
    Memory {
        /// Class.
        class: MemoryClass,
        /// Bytes read and written.
        bytes: u64,
        /// Kernels launched.
        kernels: u32,
        /// Floating-point work, where it is not negligible (scans).
        flops: f64,
        /// Numbers of a row, for kernels that go row by row; 0 where rows do not matter.
        #[serde(skip_serializing_if = "is_zero")]
        width: u64,
    },
    /// A collective among `group`.
    Collective {
        /// Which.
        kind: CollectiveKind,
        /// nccl-tests "size": all-gather the gathered total, reduce-scatter the input total, all-to-all the send buffer.
        bytes: u64,
        /// Ranks.
        group: GroupShape,
        /// Which parallel dimension asks for it.
        dimension: Dimension,
    },
}

/// Collectives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollectiveKind {
    /// Sum everywhere.
    AllReduce,
    /// Every rank gets every part.
    AllGather,
    /// Every rank gets the sum of its part.
    ReduceScatter,
    /// Every rank sends a different part to every other.
    AllToAll,
    /// One rank to all.
    Broadcast,
    /// Neighbour exchange (pipeline, ring attention).
    SendRecv,
}

/// Parallel dimension that a communication belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dimension {
    /// Tensor parallel.
    Tp,
    /// Pipeline.
    Pp,
    /// Data parallel.
    Dp,
    /// Context parallel.
    Cp,
    /// Expert parallel.
    Ep,
    /// Tensor parallel inside experts.
    Etp,
}

impl OperatorKind {
    /// Floating-point operations on this rank.
    pub fn flops(&self) -> f64 {
        match *self {
            Self::Gemm { m, n, k, batch, .. } => 2.0 * m as f64 * n as f64 * k as f64 * batch as f64,
            Self::GroupedGemm { rows, n, k, .. } => 2.0 * rows as f64 * n as f64 * k as f64,
            Self::Attention {
                batch,
                q_heads,
                head_dim,
                head_dim_v,
                seq_q,
                seq_kv,
                density,
                backward,
                ..
            } => {
                let forward = 2.0
                    * (batch * q_heads) as f64
                    * seq_q as f64
                    * seq_kv as f64
                    * density
                    * (head_dim + head_dim_v) as f64;
                if backward { 2.5 * forward } else { forward }
            }
            Self::Memory { flops, .. } => flops,
            Self::Collective { .. } => 0.0,
        }
    }

    /// The same memory-bound operator on rows of `width` numbers; others are left as they are.
    pub fn of_width(mut self, rows_of: u64) -> Self {
        if let Self::Memory { width, .. } = &mut self {
            *width = rows_of;
        }
        self
    }

    /// Unavoidable bytes through device memory.
    pub fn bytes(&self) -> f64 {
        match *self {
            Self::Gemm { m, n, k, batch, dtype, out_bytes, .. } => {
                batch as f64
                    * (dtype.size() * (m as f64 * k as f64 + n as f64 * k as f64)
                        + out_bytes * m as f64 * n as f64)
            }
            Self::GroupedGemm { groups, rows, n, k, dtype, role, .. } => {
                let (rows, weights) = (rows as f64, groups as f64 * n as f64 * k as f64);
                match role {
                    GemmRole::WeightGradient => dtype.size() * rows * (n + k) as f64 + 4.0 * weights,
                    _ => dtype.size() * (rows * k as f64 + weights) + 2.0 * rows * n as f64,
                }
            }
            Self::Attention {
                batch,
                q_heads,
                kv_heads,
                head_dim,
                head_dim_v,
                seq_q,
                seq_kv,
                backward,
                dtype,
                ..
            } => {
                let q = (batch * q_heads * seq_q) as f64 * (head_dim + head_dim_v) as f64;
                let kv = (batch * kv_heads * seq_kv) as f64 * (head_dim + head_dim_v) as f64;
                dtype.size() * if backward { 2.0 * (q + kv) + q } else { q + kv }
            }
            Self::Memory { bytes, .. } => bytes as f64,
            Self::Collective { .. } => 0.0,
        }
    }
}
