//! Search over parallel configurations, capacity planning and explanation.
//!
//! ```text
//! space (candidates) → rules (legal?) → memory (fits?) → L0 bound (can it win?) → L1 → top K → L2 → PlanReport
//! ```
//!
//! This crate is pure: it reads no files, no clock and no environment. Threads only behind the feature `parallel`.

pub mod capacity;
pub mod evaluator;
pub mod explain;
mod infeasible;
pub mod objective;
mod parallel;
pub mod pareto;
pub mod partition;
mod plan;
pub mod progress;
mod ranked;
pub mod request;
pub mod result;
pub mod rules;
pub mod search;
pub mod serving;
pub mod space;
pub mod step_evaluator;

pub use plan::plan;
pub use progress::{Progress, Silent};
pub use request::{PlanError, PlanRequest};
pub use result::{
    Assumption, BoundBy, CapacityOption, CapacityReport, FailureHeadroom, Infeasible, KilledBy,
    NearestChange, Objective, Optimality, ParetoPoint, PlanReport, Question, RankedPlan, TermShare,
    ThroughputPoint,
};
