//! Search over parallel configurations, capacity planning and explanation.
//!
//! ```text
//! space (candidates) → rules (legal?) → memory (fits?) → L0 bound (can it win?) → L1 → top K → L2 → PlanReport
//! ```
//!
//! This crate is pure: it reads no files, no clock and no environment. Threads only behind the feature `parallel`.

pub mod capacity;
pub mod evaluator;
pub mod objective;
mod parallel;
pub mod partition;
pub mod progress;
pub mod result;
pub mod rules;
pub mod search;
pub mod space;

pub use progress::{Progress, Silent};
pub use result::{
    Assumption, BoundBy, CapacityOption, CapacityReport, FailureHeadroom, Infeasible, KilledBy,
    NearestChange, Objective, Optimality, ParetoPoint, PlanReport, Question, RankedPlan, TermShare,
    ThroughputPoint,
};
