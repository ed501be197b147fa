//! What operators and collectives cost: nominal rate × measured factor, every factor from a profile.
//!
//! [`CostModel`] binds one accelerator of a cluster, its fitted profile and a software stack, and prices
//! [`psim_models::OperatorKind`]s. Fitted profiles are embedded (`data/`) and read lazily per accelerator.
//!
//! This crate is pure: it reads no files, no clock and no environment.

pub mod cost;

pub use cost::{Bound, Cost};
