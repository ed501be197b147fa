//! The price of one operator.

use psim_hardware::Seconds;
use psim_hardware::profile::Provenance;
use serde::Serialize;

/// What limits an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Arithmetic units.
    Compute,
    /// Device memory.
    Memory,
    /// Fixed cost of a kernel or message.
    Latency,
    /// Links.
    Network,
}

/// Predicted duration of one operator running alone, with what it could be at best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Predicted time, never below `roofline`.
    pub time: Seconds,
    /// Lower bound from datasheet rates on the unavoidable flops and bytes.
    pub roofline: Seconds,
    /// What limits it.
    pub bound: Bound,
    /// Where the factors come from.
    pub provenance: Provenance,
    /// Standard deviation of ln(measured / predicted) of the table used.
    pub sigma: f64,
}
