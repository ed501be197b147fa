//! The numbers of a stack profile by dotted key, with their bounds.
//!
//! A release's deltas, `--set` and the fit of profiles address the same keys. These are the only numbers that may be
//! adjusted on end-to-end measurements; each is a property of the software, never of a row, model or paper.

use super::{Release, StackProfile};
use crate::{Bytes, Seconds};

/// One adjustable number of a stack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    /// Dotted key (`efficiency.gemm`).
    pub key: &'static str,
    /// Smallest meaningful value (SI units).
    pub low: f64,
    /// Largest meaningful value.
    pub high: f64,
    /// What it is.
    pub what: &'static str,
}

/// Every adjustable number.
pub const PARAMETERS: &[Parameter] = &[
    parameter("efficiency.gemm", 0.4, 1.2, "sustained over tabled GEMM rate (power, clocks, layout)"),
    parameter("efficiency.attention", 0.2, 1.4, "reached over tabled rate of the attention core"),
    parameter("efficiency.memory", 0.15, 1.2, "reached over tabled bandwidth of memory-bound operators"),
    parameter("efficiency.network", 0.1, 1.2, "reached over tabled bus bandwidth of collectives"),
    parameter("efficiency.grouped_gemm", 0.2, 1.2, "grouped over dense GEMM rate of the same rows"),
    parameter("efficiency.permute", 0.2, 2.0, "permutation and casts over other memory-bound operators"),
    parameter("host.expert_launches", 0.0, 24.0, "kernels per local expert and grouped product"),
    parameter("fusion.expert_kernels", 0.0, 1.0, "switch: fused block-scaled expert kernels (0 off, 1 on)"),
    parameter("efficiency.contention", 0.0, 0.6, "compute slow-down beside a collective"),
    parameter(
        "efficiency.dispatch_contention",
        0.0,
        0.8,
        "compute slow-down beside an overlapped token exchange",
    ),
    parameter("efficiency.straggler", 0.0, 0.05, "step-time growth per doubling of nodes"),
    parameter("host.launch", 1e-6, 40e-6, "host time to launch one kernel, seconds"),
    parameter(
        "host.gap",
        0.0,
        2e-4,
        "gap between dependent kernels (blocking launches: the host's turn-around), seconds",
    ),
    parameter("host.per_micro_batch", 0.0, 0.1, "fixed cost per micro-batch and stage, seconds"),
    parameter("host.per_step", 0.0, 1.0, "fixed cost per step, seconds"),
    parameter(
        "host.per_slice",
        0.0,
        1e-4,
        "host time per rank of a sharded weight's gather or scatter, seconds",
    ),
    parameter("host.moe_sync", 0.0, 5e-3, "host synchronisation per mixture layer and pass, seconds"),
    parameter(
        "states.gradient",
        2.0,
        6.0,
        "gradient buffers per parameter, bytes (a fact of the release, never fitted)",
    ),
    parameter("memory.context", 0.0, 12e9, "driver context, workspaces and cached blocks, bytes"),
    parameter("memory.per_communicator", 0.0, 2e9, "communication buffers per communicator, bytes"),
    parameter("memory.fragmentation", 0.0, 0.4, "reserved over allocated, for activations"),
    parameter(
        "residual_sigma",
        0.01,
        0.6,
        "spread of ln(measured / predicted) beside mechanisms, for the interval",
    ),
    parameter(
        "mechanism_spread",
        0.0,
        4.0,
        "spread of the mechanisms over the documented one, for the interval",
    ),
];

const fn parameter(key: &'static str, low: f64, high: f64, what: &'static str) -> Parameter {
    Parameter { key, low, high, what }
}

/// A key that no number of a stack profile has, or a value that is not a number.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ParameterError {
    /// Unknown key.
    #[error("unknown stack parameter `{0}`")]
    Unknown(String),
    /// Not finite or outside the bounds.
    #[error("stack parameter `{key}` = {value} is outside {low} to {high}")]
    Bounds {
        /// Key.
        key: &'static str,
        /// Asked for.
        value: f64,
        /// Smallest.
        low: f64,
        /// Largest.
        high: f64,
    },
}

impl Parameter {
    /// The parameter called `key`.
    pub fn find(key: &str) -> Option<&'static Self> {
        PARAMETERS.iter().find(|p| p.key == key)
    }
}

impl StackProfile {
    /// The number behind `key`, in SI units.
    pub fn number(&self, key: &str) -> Option<f64> {
        Some(match key {
            "efficiency.gemm" => self.efficiency.gemm,
            "efficiency.attention" => self.efficiency.attention,
            "efficiency.memory" => self.efficiency.memory,
            "efficiency.network" => self.efficiency.network,
            "efficiency.grouped_gemm" => self.efficiency.grouped_gemm,
            "efficiency.permute" => self.efficiency.permute,
            "host.expert_launches" => self.host.expert_launches,
            "fusion.expert_kernels" => f64::from(u8::from(self.fusion.expert_kernels)),
            "efficiency.contention" => self.efficiency.contention,
            "efficiency.dispatch_contention" => self.efficiency.dispatch_contention,
            "efficiency.straggler" => self.efficiency.straggler,
            "host.launch" => self.host.launch.0,
            "host.gap" => self.host.gap.0,
            "host.per_micro_batch" => self.host.per_micro_batch.0,
            "host.per_step" => self.host.per_step.0,
            "host.per_slice" => self.host.per_slice.0,
            "host.moe_sync" => self.host.moe_sync.0,
            "states.gradient" => self.states.gradient,
            "memory.context" => self.memory.context.as_f64(),
            "memory.per_communicator" => self.memory.per_communicator.as_f64(),
            "memory.fragmentation" => self.memory.fragmentation,
            "residual_sigma" => self.residual_sigma,
            "mechanism_spread" => self.mechanism_spread,
            _ => return None,
        })
    }

    /// Sets the number behind `key`.
    ///
    /// # Errors
    /// Unknown keys; values that are not finite or outside the parameter's bounds.
    pub fn set_number(&mut self, key: &str, value: f64) -> Result<(), ParameterError> {
        let parameter = Parameter::find(key).ok_or_else(|| ParameterError::Unknown(key.to_owned()))?;
        if !(value.is_finite() && value >= parameter.low && value <= parameter.high) {
            let Parameter { key, low, high, .. } = *parameter;
            return Err(ParameterError::Bounds { key, value, low, high });
        }
        match key {
            "efficiency.gemm" => self.efficiency.gemm = value,
            "efficiency.attention" => self.efficiency.attention = value,
            "efficiency.memory" => self.efficiency.memory = value,
            "efficiency.network" => self.efficiency.network = value,
            "efficiency.grouped_gemm" => self.efficiency.grouped_gemm = value,
            "efficiency.permute" => self.efficiency.permute = value,
            "host.expert_launches" => self.host.expert_launches = value,
            "fusion.expert_kernels" => self.fusion.expert_kernels = value >= 0.5,
            "efficiency.contention" => self.efficiency.contention = value,
            "efficiency.dispatch_contention" => self.efficiency.dispatch_contention = value,
            "efficiency.straggler" => self.efficiency.straggler = value,
            "host.launch" => self.host.launch = Seconds(value),
            "host.gap" => self.host.gap = Seconds(value),
            "host.per_micro_batch" => self.host.per_micro_batch = Seconds(value),
            "host.per_step" => self.host.per_step = Seconds(value),
            "host.per_slice" => self.host.per_slice = Seconds(value),
            "host.moe_sync" => self.host.moe_sync = Seconds(value),
            "states.gradient" => self.states.gradient = value,
            "memory.context" => self.memory.context = Bytes::from_f64(value),
            "memory.per_communicator" => self.memory.per_communicator = Bytes::from_f64(value),
            "memory.fragmentation" => self.memory.fragmentation = value,
            "residual_sigma" => self.residual_sigma = value,
            "mechanism_spread" => self.mechanism_spread = value,
            _ => return Err(ParameterError::Unknown(key.to_owned())),
        }
        Ok(())
    }

    /// The release that `text` (container, release, date) names: the longest match.
    pub fn release(&self, text: &str) -> Option<&Release> {
        let text = text.to_lowercase();
        let length = |release: &Release| {
            let hit = |m: &&String| !m.is_empty() && text.contains(m.to_lowercase().as_str());
            release.matches.iter().filter(hit).map(String::len).max().unwrap_or(0)
        };
        self.releases.iter().filter(|r| length(r) > 0).max_by_key(|r| length(r))
    }

    /// The profile of the release that `text` names; unchanged when it names none.
    ///
    /// # Errors
    /// A delta with an unknown key or a value outside the bounds.
    pub fn with_release(&self, text: &str) -> Result<Self, ParameterError> {
        let mut profile = self.clone();
        if let Some(release) = self.release(text) {
            for (key, value) in &release.deltas {
                profile.set_number(key, *value)?;
            }
        }
        Ok(profile)
    }
}
