//! Why a plan cannot be simulated.

use crate::Level;
use psim_models::layout::LayoutError;

/// Why a plan cannot be simulated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SimError {
    /// More ranks than accelerators.
    #[error(
        "the plan needs tp {tp} × pp {pp} × dp {dp} × cp {cp} = {needed} accelerators, the cluster has {available}"
    )]
    TooManyRanks {
        /// Tensor parallel.
        tp: u32,
        /// Pipeline.
        pp: u32,
        /// Data parallel.
        dp: u32,
        /// Context parallel.
        cp: u32,
        /// Product.
        needed: u64,
        /// Accelerators of the cluster.
        available: u32,
    },
    /// A size must be at least one.
    #[error("`{name}` is 0; it must be at least 1")]
    Zero {
        /// Which.
        name: &'static str,
    },
    /// The batch does not divide.
    #[error("global batch {global_batch} is not a multiple of dp {dp} × micro-batch {micro_batch} = {unit}")]
    Batch {
        /// Sequences per step.
        global_batch: u32,
        /// Replicas.
        dp: u32,
        /// Sequences per micro-batch.
        micro_batch: u32,
        /// dp · micro-batch.
        unit: u64,
    },
    /// Expert ranks do not fold into the attention ranks.
    #[error("ep {ep} × etp {etp} = {unit} does not divide tp {tp} × cp {cp} × dp {dp} = {ranks}")]
    ExpertMesh {
        /// Expert parallel.
        ep: u32,
        /// Expert tensor parallel.
        etp: u32,
        /// Product.
        unit: u64,
        /// Tensor parallel.
        tp: u32,
        /// Context parallel.
        cp: u32,
        /// Data parallel.
        dp: u32,
        /// tp · cp · dp.
        ranks: u64,
    },
    /// Layers cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The schedule cannot run.
    #[error("{0}")]
    Schedule(String),
    /// Depth not built.
    #[error("level {0:?} is not built yet; use l0, l1 or l2")]
    Level(Level),
    /// A size beyond what can be counted.
    #[error("{0}")]
    Absurd(String),
}
