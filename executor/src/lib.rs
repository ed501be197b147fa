//! Runs a psim plan for real and compares it with the prediction.
//!
//! A training step of a dense or mixture-of-experts transformer, generic over [`psim_kernels::Device`] and over the
//! transport between ranks: tensor parallelism with sequence parallelism, pipeline schedules (zero-bubble ones with
//! separate weight passes), data parallelism with ZeRO stages 1 to 3 and bucketed reduction, context-parallel ring
//! attention, expert parallelism, recomputation, Adam. Ranks are threads, or processes over MPI, TCP or NCCL; [`shard`] runs
//! one rank of a cluster's plan alone, [`serving`] answers requests from a paged cache. The order of
//! the passes is the [`psim_sim::step::StepProgram`] that the simulator prices. What is not built is refused by name.

mod attention;
pub mod bench;
pub mod comm;
mod ends;
pub mod error;
pub mod execute;
mod experts;
pub mod fabric;
pub mod launch;
mod layer;
pub mod mesh;
mod nccl;
pub mod network;
pub mod parameters;
pub mod predict;
mod rank;
pub mod run;
pub mod serving;
pub mod shard;
pub mod stack;
pub mod step;
mod update;

pub use attention::ROPE_BASE;
pub use ends::token;
pub use error::{ExecutorError, Result};
pub use execute::{ExecuteDevice, ExecuteReport, ExecuteRequest, RankMode, execute};
pub use predict::Basis;
pub use rank::{EPSILON, Rank};
pub use run::{Job, RankRecord, Run, Settings, run_threads};
pub use update::Piece;

#[cfg(test)]
mod tests_support {
    use psim_models::Plan;
    use psim_models::plan::Precision;

    /// One rank, one micro-batch.
    pub(crate) fn plan() -> Plan {
        Plan { precision: Precision::Fp32, ..Plan::default() }
    }
}
