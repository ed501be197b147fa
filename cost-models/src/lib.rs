//! What operators and collectives cost: nominal rate × measured factor, every factor from a profile.
//!
//! [`CostModel`] binds one accelerator of a cluster, its fitted profile and a software stack, and prices
//! [`psim_models::OperatorKind`]s. Fitted profiles are embedded (`data/`) and read lazily per accelerator;
//! [`ProfileLibrary`] lays the user's own over them.
//!
//! This crate is pure: it reads no files, no clock and no environment.

pub mod attention;
pub mod builtin;
pub mod collective;
pub mod cost;
pub mod defaults;
pub mod gemm;
pub mod grid;
pub mod grouped;
pub mod library;
pub mod memory;
pub mod model;
pub mod power;
pub mod relatives;
pub mod serving;
pub mod stacks;
mod sustained;

pub use cost::{Bound, Cost};
pub use library::ProfileLibrary;
pub use model::CostModel;
