//! What one accelerator really reaches: fitted kernel laws with residual grids, and collectives of its scale-up domain.
//!
//! Times come out as `law × exp(residual)`: the law is mechanistic with a few physical parameters, the residual is what
//! the measurements say beside it. A profile without residuals is valid (a short calibration makes one).

use super::stack::AttentionKernel;
use crate::{BytesPerSec, DType, Scaling};
use serde::{Deserialize, Serialize};

/// Newest schema of accelerator profile files.
pub const ACCELERATOR_PROFILE_SCHEMA: u32 = 1;

/// Measured factors of one accelerator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceleratorProfile {
    /// Schema version of the file ([`ACCELERATOR_PROFILE_SCHEMA`]).
    pub schema: u32,
    /// Canonical name of the accelerator that was measured.
    pub accelerator: String,
    /// Where the measurements come from.
    pub source: String,
    /// Units (SMs, CUs) of the measured part that run tiles at once, for parts whose datasheet has no count.
    #[serde(default)]
    pub units: Option<u32>,
    /// Scale-up rate of the measured part, one direction: collectives of a relative are scaled by it.
    #[serde(default)]
    pub link_bandwidth: Option<BytesPerSec>,
    /// Dense matrix products, one table per format and scale layout.
    #[serde(default)]
    pub gemm: Vec<GemmTable>,
    /// Products of several experts in one call.
    #[serde(default)]
    pub grouped_gemm: Vec<GroupedGemmTable>,
    /// Fused attention.
    #[serde(default)]
    pub attention: Vec<AttentionTable>,
    /// Memory-bound operators.
    #[serde(default)]
    pub memory: Vec<MemoryTable>,
    /// Collectives inside the scale-up domain.
    #[serde(default)]
    pub collectives: Vec<CollectiveCurve>,
    /// Board power under load.
    #[serde(default)]
    pub power: Option<PowerTable>,
    /// By which model each residual grid was made, and what the others were worth on shapes left out; where `psim
    /// calibrate` compared them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<TableModel>,
    /// The machine it was measured on, where `psim calibrate` made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<super::machine::MachineFacts>,
}

/// How well a table was fitted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitQuality {
    /// Measured points behind it.
    pub points: u32,
    /// Robust standard deviation of ln(measured / predicted) on held-out shapes.
    pub sigma: f64,
}

/// How a residual grid was filled between the points that were measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResidualModel {
    /// The plane that fits the nearest points best.
    Interpolation,
    /// A linear trend and a smooth deviation from it (Gaussian-process regression).
    Kriging,
    /// A random forest.
    Forest,
}

/// Which model fills a table's residual grid, with the errors of all on shapes left out: mean and median of
/// |ln(measured / predicted)|.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableModel {
    /// Table.
    pub table: String,
    /// The model that is used.
    pub model: ResidualModel,
    /// Shapes, each left out once.
    pub points: u32,
    /// Mean and median error of local planes.
    pub interpolation: [f64; 2],
    /// Of kriging.
    pub kriging: [f64; 2],
    /// Of a random forest.
    pub forest: [f64; 2],
}

/// A residual ln(measured / law) on a rectangular grid, interpolated linearly in log2 of the axes, constant outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidualGrid {
    /// Grid lines of each axis, ascending, natural units (not logarithms).
    pub axes: Vec<Vec<f64>>,
    /// Residuals in hundredths of a natural logarithm, last axis fastest.
    pub centinats: Vec<i16>,
}

/// Physical parameters of a tiled matrix product.
///
/// One tile of `tile_m × tile_n` runs on one unit (SM, CU) and costs `2·tile_m·tile_n·(k + prologue)` flops at the unit's
/// share of `compute × peak`; `units` tiles run at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GemmLaw {
    /// Fixed time of a launch in microseconds, seen from the device.
    pub launch_us: f64,
    /// Share of the datasheet peak that full waves of long tiles reach.
    pub compute: f64,
    /// Share of the datasheet memory bandwidth that streaming operands reach.
    pub memory: f64,
    /// Fill and drain of a tile's pipeline, expressed as extra reduction length.
    pub prologue: f64,
    /// Weight of whole waves against evenly spread tiles (1: plain tiles, 0: perfect stream-k).
    pub quantisation: f64,
    /// Rate of a tile of half the largest size relative to the largest one (less operand reuse), per halving.
    pub small_tile: f64,
}

/// A dense matrix product table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GemmTable {
    /// Input format.
    pub dtype: DType,
    /// Scale layout.
    pub scaling: Scaling,
    /// Law.
    pub law: GemmLaw,
    /// Residual over (m, n, k).
    #[serde(default)]
    pub residual: Option<ResidualGrid>,
    /// Time of the input-gradient layout relative to the forward layout.
    #[serde(default = "one")]
    pub input_gradient: f64,
    /// Time of the weight-gradient layout (accumulated in fp32) relative to the forward layout.
    #[serde(default = "one")]
    pub weight_gradient: f64,
    /// What is left of [`GemmTable::input_gradient`] over (m, n, k): packing a transposed matrix costs few rows more than many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_gradient_residual: Option<ResidualGrid>,
    /// What is left of [`GemmTable::weight_gradient`], likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_gradient_residual: Option<ResidualGrid>,
    /// Rate under sustained power over burst rate.
    #[serde(default = "one")]
    pub sustained: f64,
    /// Quality.
    pub fit: FitQuality,
}

/// Grouped products relative to a dense product of the same flops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupedGemmTable {
    /// Input format.
    pub dtype: DType,
    /// Scale layout.
    pub scaling: Scaling,
    /// Law of one group's product; the tiles of all groups share the units.
    pub law: GemmLaw,
    /// Fixed cost per group, in microseconds (descriptor set-up, wave tail).
    pub group_us: f64,
    /// Residual over (rows per group, n, k).
    #[serde(default)]
    pub residual: Option<ResidualGrid>,
    /// Time of the input-gradient layout relative to the forward layout.
    #[serde(default = "one")]
    pub input_gradient: f64,
    /// Time of the weight-gradient layout relative to the forward layout.
    #[serde(default = "one")]
    pub weight_gradient: f64,
    /// Quality.
    pub fit: FitQuality,
}

/// What an attention call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionPass {
    /// Forward over many query tokens (training, prefill).
    Forward,
    /// Backward.
    Backward,
    /// One or a few query tokens against a long cache.
    Decode,
}

/// Physical parameters of a fused attention kernel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionLaw {
    /// Fixed time of a call in microseconds.
    pub launch_us: f64,
    /// Share of the datasheet peak that long sequences with wide heads reach.
    pub compute: f64,
    /// Share of the memory bandwidth that reading keys and values reaches.
    pub memory: f64,
    /// Fill, drain and masked diagonal of a query tile, as extra key tokens.
    pub prologue: f64,
    /// Rate at head dimension 64 relative to 128 (exponentials per flop double); applied per halving below 128.
    pub narrow_head: f64,
    /// Weight of whole waves of query tiles against evenly spread ones.
    pub quantisation: f64,
}

/// An attention table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionTable {
    /// Kernel generation.
    pub kernel: AttentionKernel,
    /// Pass.
    pub pass: AttentionPass,
    /// Format of the products.
    pub dtype: DType,
    /// Law.
    pub law: AttentionLaw,
    /// Residual over (query tiles, key tokens, head width).
    #[serde(default)]
    pub residual: Option<ResidualGrid>,
    /// Quality.
    pub fit: FitQuality,
}

/// Bandwidth of one class of memory-bound operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryTable {
    /// Class name as the lowering names it (`norm`, `activation` …), or `default`.
    pub class: String,
    /// Fixed time per kernel in microseconds.
    pub launch_us: f64,
    /// Share of the datasheet bandwidth reached by large operands.
    pub efficiency: f64,
    /// Bytes per kernel at which half of that share is reached, launch excluded.
    pub half_bytes: f64,
    /// Width of a row, in numbers, that takes as long to begin as to move: kernels that go row by row take
    /// `1 + half_width / width` of the time. 0 where rows do not show.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub half_width: f64,
    /// Reached share by bytes, where caches of several levels make it rise and fall again; then `efficiency` and
    /// `half_bytes` are not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_sets: Option<WorkingSets>,
    /// Quality.
    pub fit: FitQuality,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// Share of the datasheet bandwidth that a class reaches by the bytes that one kernel moves: linear in the logarithms
/// between the points, constant outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSets {
    /// Bytes per kernel, ascending.
    pub bytes: Vec<f64>,
    /// Shares, one per size; none grows faster than the bytes, so that more bytes never take less time.
    pub share: Vec<f64>,
}

/// Measured times of one collective inside a scale-up domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectiveCurve {
    /// `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all` or `send-recv`.
    pub operation: String,
    /// Ranks.
    pub ranks: u32,
    /// Measured with in-switch reduction (NVLS).
    #[serde(default)]
    pub in_switch: bool,
    /// Sizes in bytes (nccl-tests convention), ascending.
    pub bytes: Vec<f64>,
    /// Times in microseconds, one per size, never falling.
    pub time_us: Vec<f64>,
    /// Quality.
    pub fit: FitQuality,
}

/// Board power by what limits the kernel, as shares of the thermal design power.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerTable {
    /// Doing nothing.
    pub idle: f64,
    /// Matrix units busy.
    pub compute: f64,
    /// Memory busy.
    pub memory: f64,
    /// Links busy, units idle.
    pub network: f64,
}

fn one() -> f64 {
    1.0
}
