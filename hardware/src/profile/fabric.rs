//! What a scale-out fabric really reaches.

use serde::{Deserialize, Serialize};

/// Newest schema of fabric profile files.
pub const FABRIC_PROFILE_SCHEMA: u32 = 1;

/// Measured factors of one kind of scale-out fabric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FabricProfile {
    /// Schema version of the file ([`FABRIC_PROFILE_SCHEMA`]).
    pub schema: u32,
    /// Kind that clusters refer to (`infiniband`, `roce`, `efa` …).
    pub kind: String,
    /// Where the measurements come from.
    pub source: String,
    /// Share of the NIC rate that rings reach on large messages.
    pub ring: f64,
    /// Share of the NIC rate that trees reach on large messages.
    pub tree: f64,
    /// Share of the NIC rate that all-to-all reaches on large messages.
    pub all_to_all: f64,
    /// Share of the NIC rate that one point-to-point stream reaches.
    pub send_recv: f64,
    /// Fixed time of any collective that leaves the scale-up domain, in microseconds.
    pub base_us: f64,
    /// Time of one step between neighbouring nodes beside the fabric's own latency, in microseconds.
    pub step_us: f64,
    /// Fill of the pipeline through one further rank of a scale-up domain, in microseconds, reached by large messages.
    pub fill_us: f64,
    /// Bytes per rank of a domain at which half of the fill is paid.
    pub half_bytes: f64,
    /// Cards, counted in one accelerator's share, that a single ring or tree collective drives at most.
    pub lanes: f64,
    /// Relative loss of bandwidth per doubling of nodes beyond two.
    pub scale_loss: f64,
    /// Robust standard deviation of ln(measured / predicted).
    pub sigma: f64,
    /// Measured points behind it (0: documented default).
    pub points: u32,
}
