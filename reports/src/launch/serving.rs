//! Launch files of serving engines for a deployment, with the benchmark that checks the prediction.
//!
//! Option names are those of the engines' public documentation, not yet tried on an engine: vLLM 0.12 (`vllm serve`, `vllm
//! bench serve`), SGLang 0.5 (`sglang.launch_server`, `sglang.bench_serving`), TensorRT-LLM 1.0 (`trtllm-serve`,
//! `benchmark_serving`). What an engine cannot express is refused by name instead of being written almost right.

mod common;
mod sglang;
mod split;
mod trtllm;
mod vllm;

pub use split::{SplitLaunch, emit_split};

use super::{LaunchError, LaunchFile};
use psim_cost_models::serving::EngineProfile;
use psim_hardware::Cluster;
use psim_models::Model;
use psim_models::serving::{Deployment, ServingWorkload};
use psim_sim::serving::Router;

/// What is launched.
#[derive(Debug, Clone, Copy)]
pub struct ServingLaunch<'a> {
    /// Model.
    pub model: &'a Model,
    /// Machines; accelerators per node are taken from the first group.
    pub cluster: &'a Cluster,
    /// Traffic, for the benchmark.
    pub workload: &'a ServingWorkload,
    /// Engine whose limits the prediction used.
    pub engine: &'a EngineProfile,
    /// Layout.
    pub deployment: &'a Deployment,
    /// What the balancer in front of the replicas is to do.
    pub router: Router,
}

/// A serving engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServingEngine {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM.
    TensorRtLlm,
}

impl ServingEngine {
    /// Every engine.
    pub const ALL: [Self; 3] = [Self::Vllm, Self::Sglang, Self::TensorRtLlm];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
            Self::TensorRtLlm => "TensorRT-LLM",
        }
    }
}

/// The files of one engine: how it is launched, and the benchmark that checks it.
///
/// # Errors
/// [`LaunchError`] names what the engine cannot express.
pub fn emit(engine: ServingEngine, job: &ServingLaunch<'_>) -> Result<Vec<LaunchFile>, LaunchError> {
    match engine {
        ServingEngine::Vllm => vllm::emit(job),
        ServingEngine::Sglang => sglang::emit(job),
        ServingEngine::TensorRtLlm => trtllm::emit(job),
    }
}

#[cfg(test)]
mod tests;
