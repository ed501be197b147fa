//! Rows of the collective and point-to-point tables.

use serde::Deserialize;

/// One collective.
#[derive(Debug, Clone, Deserialize)]
pub struct CollectiveRow {
    /// System.
    pub system: String,
    /// Accelerator.
    pub gpu: String,
    /// Nodes.
    pub nodes: Option<f64>,
    /// Ranks.
    pub gpus: Option<f64>,
    /// `all_reduce`, `all_gather`, `reduce_scatter`, `alltoall`.
    pub op: String,
    /// nccl-tests size.
    pub bytes: Option<f64>,
    /// Time in microseconds.
    pub time_us: Option<f64>,
    /// Bus bandwidth, 10^9 bytes/s.
    pub busbw: Option<f64>,
    /// Algorithm, where named.
    pub algo: String,
    /// Library.
    pub library: String,
    /// Format.
    pub dtype: String,
    /// Source.
    pub source: String,
}

/// One point-to-point transfer.
#[derive(Debug, Clone, Deserialize)]
pub struct PointRow {
    /// System.
    pub system: String,
    /// Accelerator.
    pub gpu: String,
    /// Link.
    pub link: String,
    /// Scope.
    pub scope: String,
    /// Size.
    pub bytes: Option<f64>,
    /// Time in microseconds.
    pub time_us: Option<f64>,
    /// 10^9 bytes/s.
    pub gbps: Option<f64>,
    /// Tool.
    pub tool: String,
    /// Source.
    pub source: String,
}

/// One expert-parallel dispatch or combine.
#[derive(Debug, Clone, Deserialize)]
pub struct ExpertRow {
    /// System.
    pub system: String,
    /// Accelerator.
    pub gpu: String,
    /// Nodes.
    pub nodes: Option<f64>,
    /// Ranks.
    pub gpus: Option<f64>,
    /// Kernel kind.
    pub kind: String,
    /// Tokens per rank.
    pub tokens_per_gpu: Option<f64>,
    /// Width.
    pub hidden: Option<f64>,
    /// Experts per token.
    pub topk: Option<f64>,
    /// Dispatch time.
    pub dispatch_us: Option<f64>,
    /// Combine time.
    pub combine_us: Option<f64>,
    /// Source.
    pub source: String,
}
