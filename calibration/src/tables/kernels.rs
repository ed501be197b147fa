//! Rows of the kernel tables, in the units of the files (microseconds, TFLOP/s).

use serde::Deserialize;

/// One dense matrix product.
#[derive(Debug, Clone, Deserialize)]
pub struct GemmRow {
    /// Accelerator.
    pub gpu: String,
    /// Format and recipe (`bf16`, `fp8-dyn`, `fp8-block128`, `nvfp4` …).
    pub dtype: String,
    /// Rows.
    pub m: f64,
    /// Columns.
    pub n: f64,
    /// Reduction length.
    pub k: f64,
    /// Time in microseconds.
    pub time_us: f64,
    /// Board power, where sampled.
    pub power_w: Option<f64>,
    /// Kernel or library.
    pub kernel: String,
    /// Source.
    pub source: String,
}

/// One attention call.
#[derive(Debug, Clone, Deserialize)]
pub struct AttentionRow {
    /// Accelerator.
    pub gpu: String,
    /// `prefill`, `decode`, `train-fwd`, `train-bwd`, `train-fwd+bwd`.
    pub phase: String,
    /// `mha`, `gqa`, `mla`, `mla-absorbed`.
    pub variant: String,
    /// Sequences.
    pub batch: f64,
    /// Query heads.
    pub q_heads: f64,
    /// Key/value heads.
    pub kv_heads: f64,
    /// Query/key width.
    pub head_dim: f64,
    /// Value width.
    pub head_dim_v: f64,
    /// Query tokens.
    pub seq_q: f64,
    /// Key tokens.
    pub seq_kv: f64,
    /// 1 when causal.
    pub causal: f64,
    /// Sliding window, 0 for none.
    pub window: Option<f64>,
    /// Format.
    pub dtype: String,
    /// Cache format.
    pub kv_dtype: String,
    /// Time in microseconds.
    pub time_us: f64,
    /// 10^12 flop/s with the conventions of the table.
    pub tflops: Option<f64>,
    /// Kernel.
    pub kernel: String,
    /// Source.
    pub source: String,
}

/// One fused MoE layer or grouped product.
#[derive(Debug, Clone, Deserialize)]
pub struct MoeRow {
    /// Accelerator.
    pub gpu: String,
    /// `fused-moe` or `grouped-gemm:…` with the shape in the name.
    pub op: String,
    /// Format and recipe.
    pub dtype: String,
    /// Tokens of the whole expert group.
    pub tokens: Option<f64>,
    /// Model width.
    pub hidden: Option<f64>,
    /// Expert width.
    pub inter: Option<f64>,
    /// Experts per token.
    pub topk: Option<f64>,
    /// Experts.
    pub experts: Option<f64>,
    /// Tensor-parallel ranks.
    pub tp: Option<f64>,
    /// Expert-parallel ranks.
    pub ep: Option<f64>,
    /// `balanced` or `power_law_*`.
    pub distribution: String,
    /// Time in microseconds.
    pub time_us: f64,
    /// 10^12 flop/s.
    pub tflops: Option<f64>,
    /// Kernel.
    pub kernel: String,
    /// Source.
    pub source: String,
}

/// One memory-bound operator.
#[derive(Debug, Clone, Deserialize)]
pub struct ElementwiseRow {
    /// Accelerator.
    pub gpu: String,
    /// Operator.
    pub op: String,
    /// Bytes moved.
    pub bytes: f64,
    /// Time in microseconds.
    pub time_us: f64,
    /// Kernel.
    pub kernel: String,
    /// Source.
    pub source: String,
}

/// One achieved peak.
#[derive(Debug, Clone, Deserialize)]
pub struct PeakRow {
    /// Accelerator.
    pub gpu: String,
    /// What.
    pub metric: String,
    /// Format.
    pub dtype: String,
    /// Reached value.
    pub achieved: f64,
    /// Unit.
    pub unit: String,
    /// Reached over datasheet.
    pub efficiency: Option<f64>,
}
