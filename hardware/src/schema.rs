//! Cluster files (`schema = 1`): TOML that people write, checked into [`Cluster`].
//!
//! ```toml
//! schema = 1
//! name = "h100x64"
//! pue = 1.3
//!
//! [[nodes]]                        # one table per group of equal nodes; several make a mixed cluster
//! count = 8
//! system = "DGX/HGX H100 (NDR)"    # a node type of the catalogue; every key below overrides it
//! price_per_gpu_hour = 2.49
//!
//! [fabric]
//! kind = "infiniband"
//! latency = "5us"
//!
//! [[fabric.level]]                 # from the nodes upwards
//! name = "leaf"
//! nodes = 32
//! oversubscription = 1.0
//! ```

mod check;
mod file;
mod print;

pub use print::print_cluster;

use crate::source_error::parse_toml;
use crate::{Cluster, SourceError};

/// A fault in a cluster file.
pub type SchemaError = SourceError;

/// Version of the cluster schema that this program reads and writes.
pub const CLUSTER_SCHEMA: i64 = 1;

/// Most accelerators that a cluster may have.
pub const MAX_ACCELERATORS: u64 = 1 << 24;

/// Reads and checks a cluster file. `file_name` is used in messages, and its stem names a cluster without a `name`.
///
/// # Errors
/// Everything that is not a possible cluster: wrong syntax, unknown keys, wrong units, zero or absurd counts, unknown
/// accelerators, domains that do not divide, values that are not finite. The error names the place and a remedy.
pub fn parse_cluster(file_name: &str, text: &str) -> Result<Cluster, SchemaError> {
    let hint = "`psim show clusters h100x64` prints a complete one to start from";
    let raw: file::ClusterFile = parse_toml(file_name, text, "cluster description", CLUSTER_SCHEMA, hint)?;
    check::check(file_name, text, &raw)
}

#[cfg(test)]
mod tests;
