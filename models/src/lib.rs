//! Model architectures, workloads and parallel plans, and their lowering to operators.
//!
//! The road: a [`Model`] and a [`Plan`] with a [`TrainingWorkload`] become [`Operator`]s with shapes and bytes for
//! one rank, and a memory ledger. Nothing here knows how long anything takes.
//!
//! This crate is pure: it reads no files, no clock and no environment.

pub mod arch;
pub mod flops;
pub mod hf;
pub mod layout;
pub mod lowering;
pub mod memory;
pub mod operator;
pub mod parameters;
pub mod plan;
pub mod presets;
pub mod workload;

pub use arch::Model;
pub use lowering::{Groups, LayerProgram, Shape};
pub use operator::{Operator, OperatorKind};
pub use parameters::{BlockParameters, ParameterCount};
pub use plan::Plan;
pub use workload::TrainingWorkload;
