//! Configuration files of training frameworks for a plan.
//!
//! Option names and semantics follow the frameworks' own argument definitions, read in 2026: Megatron-LM after
//! core_v0.19.0 (`megatron/training/arguments.py`), Megatron-Bridge after v0.6.0 (`training/config.py`), torchtitan
//! v0.2.2 (`config/job_config.py`, the last release with TOML). What a framework cannot express is refused by name
//! instead of being written almost right.

mod bridge;
mod megatron;
pub mod serving;
mod shell;
mod torchtitan;

use psim_hardware::placement::GroupShape;
use psim_hardware::profile::StackProfile;
use psim_hardware::{Cluster, DType};
use psim_models::{Model, Plan, TrainingWorkload};

/// What is launched.
#[derive(Debug, Clone, Copy)]
pub struct LaunchJob<'a> {
    /// The model.
    pub model: &'a Model,
    /// The cluster; nodes and accelerators per node are taken from its first group.
    pub cluster: &'a Cluster,
    /// Sequence length, tokens.
    pub workload: &'a TrainingWorkload,
    /// The plan.
    pub plan: &'a Plan,
    /// Software stack whose overlaps are to be switched on.
    pub stack: &'a StackProfile,
}

/// A framework.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framework {
    /// Megatron-LM on Megatron-Core: a shell script.
    Megatron,
    /// NeMo's Megatron-Bridge: a shell script with overrides of a recipe.
    Nemo,
    /// torchtitan 0.2.2: TOML and a shell script.
    Torchtitan,
}

impl Framework {
    /// Every framework.
    pub const ALL: [Self; 3] = [Self::Megatron, Self::Nemo, Self::Torchtitan];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Megatron => "Megatron-LM",
            Self::Nemo => "NeMo (Megatron-Bridge)",
            Self::Torchtitan => "torchtitan",
        }
    }
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchFile {
    /// Name without directory.
    pub name: String,
    /// Contents.
    pub contents: String,
}

/// A plan that a framework cannot express.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{framework} cannot express {what}")]
pub struct LaunchError {
    /// The framework.
    pub framework: &'static str,
    /// What of the plan or the model.
    pub what: String,
}

/// The files of one framework.
///
/// # Errors
/// [`LaunchError`] names what the framework cannot express.
pub fn emit(framework: Framework, job: &LaunchJob<'_>) -> Result<Vec<LaunchFile>, LaunchError> {
    match framework {
        Framework::Megatron => megatron::emit(job),
        Framework::Nemo => bridge::emit(job),
        Framework::Torchtitan => torchtitan::emit(job),
    }
}

impl LaunchJob<'_> {
    /// Nodes and accelerators per node that the plan needs.
    fn nodes(&self) -> (u32, u32) {
        let per_node = self.cluster.first_node().accelerators.max(1).min(self.plan.world());
        (self.plan.world().div_ceil(per_node), per_node)
    }

    /// Steps of the whole job, if a token budget is set.
    fn steps(&self) -> Option<u64> {
        let per_step = f64::from(self.plan.global_batch) * self.workload.seq_len as f64;
        self.workload.tokens.map(|tokens| (tokens / per_step).ceil() as u64)
    }

    /// Gradients are summed in the format of the activations.
    fn reduces_in_bf16(&self) -> bool {
        let half = matches!(self.plan.precision.base(), DType::Bf16);
        half && self.stack.states.gradient < 4.0
    }

    /// Tensor-parallel collectives run behind products: only inside one scale-up domain.
    fn overlaps_tp(&self) -> bool {
        let node = self.cluster.first_node();
        let local = GroupShape::place(self.cluster, node, self.plan.tp, 1).is_local();
        self.stack.overlap.tp && local && self.plan.tp > 1 && self.plan.sequence_parallel
    }

    /// NVIDIA parts from Blackwell on.
    fn is_blackwell(&self) -> bool {
        let name = &self.cluster.first_node().accelerator.name;
        ["B200", "B300", "GB200", "GB300", "RTX-PRO-6000"].iter().any(|part| name.contains(part))
    }
}

#[cfg(test)]
mod tests;
