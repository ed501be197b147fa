//! What capacity planning answers: which accelerators, how many, for how long, at what price.

use super::{Assumption, RankedPlan};
use serde::Serialize;

/// Time and machines set aside for failures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FailureHeadroom {
    /// Mean time between failures of one accelerator, hours (assumption, with its source in the report).
    pub mtbf_per_gpu_hours: f64,
    /// Failures expected over the job.
    pub failures: f64,
    /// Seconds to write one checkpoint.
    pub checkpoint_write_s: f64,
    /// Interval between checkpoints, seconds (Daly 2006).
    pub checkpoint_interval_s: f64,
    /// Seconds from a failure to the next useful step, lost work not counted.
    pub restart_s: f64,
    /// Useful share of the wall-clock time.
    pub goodput: f64,
    /// Nodes kept as spares.
    pub spare_nodes: u32,
}

/// One way to do the job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CapacityOption {
    /// Cluster or accelerator type.
    pub cluster: String,
    /// Name of the accelerator.
    pub accelerator: String,
    /// Accelerators that compute.
    pub accelerators: u32,
    /// Accelerators rented, spares included.
    pub rented: u32,
    /// Days of wall-clock time, failures included.
    pub days: f64,
    /// Price, US dollars, spares included.
    pub cost_usd: f64,
    /// Energy, MWh, PUE included.
    pub energy_mwh: f64,
    /// Price of one accelerator for one hour, US dollars.
    pub price_per_gpu_hour: f64,
    /// Meets the limits asked for.
    pub meets: bool,
    /// Limits missed, in words.
    pub misses: Vec<String>,
    /// Margin to the deadline, share of it (negative: late); `None` without a deadline.
    pub deadline_margin: Option<f64>,
    /// Margin to the budget, share of it; `None` without a budget.
    pub budget_margin: Option<f64>,
    /// Failures.
    pub failures: FailureHeadroom,
    /// The plan, with its prediction.
    pub plan: RankedPlan,
}

/// The answer of capacity planning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CapacityReport {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Model name.
    pub model: String,
    /// Tokens of the job.
    pub tokens: f64,
    /// Deadline, days.
    pub deadline_days: Option<f64>,
    /// Budget, US dollars.
    pub budget_usd: Option<f64>,
    /// Options: those that meet the limits by price (deadline given) or by time (budget given), then the nearest misses.
    pub options: Vec<CapacityOption>,
    /// Index of the recommended option.
    pub recommended: Option<usize>,
    /// Accelerator types for which nothing is feasible, with the reason.
    pub rejected: Vec<(String, String)>,
    /// Defaults taken, with their source.
    pub assumptions: Vec<Assumption>,
}
