//! Why a plan cannot be run.

use psim_kernels::DeviceError;
use psim_models::layout::LayoutError;
use psim_sim::PipelineError;

/// Result of the executor.
pub type Result<T> = std::result::Result<T, ExecutorError>;

/// Why a plan cannot be run here.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// The executor does not run this (yet); it refuses instead of approximating.
    #[error("the executor cannot run {what}\nhint: {hint}")]
    Unsupported {
        /// What was asked.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// A size does not divide as the plan needs.
    #[error("{what} = {value} is not divisible by {divisor} ({because})")]
    Indivisible {
        /// Quantity.
        what: &'static str,
        /// Its value.
        value: u64,
        /// By what.
        divisor: u64,
        /// Why it must.
        because: &'static str,
    },
    /// Layers do not fit the stages.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The schedule cannot run.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The simulator refuses the plan.
    #[error("no prediction: {0}")]
    Prediction(String),
    /// A device call failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A library that connects ranks failed.
    #[error("{library}: {reason}")]
    Communicator {
        /// Which one.
        library: &'static str,
        /// What it said.
        reason: String,
    },
    /// A peer stopped, so this rank cannot go on.
    #[error("rank {rank} stopped: {reason}")]
    Peer {
        /// Which rank noticed.
        rank: usize,
        /// Why.
        reason: String,
    },
}

/// An error unless `value` is a multiple of `divisor`.
pub(crate) fn divides(what: &'static str, value: u64, divisor: u64, because: &'static str) -> Result<()> {
    if divisor != 0 && value.is_multiple_of(divisor) {
        Ok(())
    } else {
        Err(ExecutorError::Indivisible { what, value, divisor, because })
    }
}

/// Shorthand for a refusal.
pub(crate) fn unsupported<T>(what: impl Into<String>, hint: impl Into<String>) -> Result<T> {
    Err(ExecutorError::Unsupported { what: what.into(), hint: hint.into() })
}
