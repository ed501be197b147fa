//! Hardware descriptions: accelerators, nodes, fabrics and clusters, with units as distinct types.
//!
//! Datasheet numbers live here, each with its source. What a machine really reaches lives in *profiles*, whose
//! types are also here ([`profile`]); the fitted values are in `psim-cost-models`.
//!
//! This crate is pure: it reads no files, no clock and no environment.

pub mod accelerator;
pub mod catalogue;
pub mod cluster;
pub mod device;
pub mod dtype;
pub mod placement;
pub mod profile;
pub mod schema;
pub mod source_error;
pub mod suggest;
pub mod units;

pub use accelerator::Accelerator;
pub use cluster::{Cluster, Fabric, FabricLevel, Nics, Node, NodeGroup, ScaleUp, ScaleUpTopology, Storage};
pub use dtype::{DType, Scaling};
pub use placement::GroupShape;
pub use source_error::SourceError;
pub use units::{Bytes, BytesPerSec, FlopPerSec, Flops, Seconds, Time, Watts};
