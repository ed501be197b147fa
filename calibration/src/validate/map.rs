//! A row to everything the simulator needs.

use super::convention::{self, Convention};
use super::row::Row;
use super::stack::{self, StackSelection};
use super::{cluster, model, plan};
use psim_hardware::Cluster;
use psim_models::Model;
use psim_models::plan::Plan;
use psim_models::workload::TrainingWorkload;

/// Simulator inputs of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapped {
    /// Model.
    pub model: Model,
    /// Layout.
    pub plan: Plan,
    /// Job.
    pub workload: TrainingWorkload,
    /// Machine.
    pub cluster: Cluster,
    /// Software.
    pub stack: StackSelection,
    /// How the source counts FLOPs.
    pub convention: Convention,
    /// Printed over simulated batch: multiplies the step time.
    pub batch_scale: f64,
    /// Assumptions taken.
    pub notes: Vec<String>,
}

/// Why a row is not predicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// A kind of measurement that is not predicted (yet).
    #[error("{0}")]
    Unsupported(String),
    /// A decisive field is missing, contradictory or of the wrong type.
    #[error("{0}")]
    Incomplete(String),
}

/// Maps a training row.
///
/// # Errors
/// Rows of another kind, and rows without a decisive field. Measured values and outcomes are never looked at.
pub fn map(row: &Row) -> Result<Mapped, Reason> {
    if row.kind != "train" {
        return Err(Reason::Unsupported(format!("kind `{}` is not predicted", row.kind)));
    }
    if let Some(fault) = &row.fault {
        return Err(Reason::Incomplete(fault.clone()));
    }
    let (model, mut notes) = model::map(&row.model, &row.config).map_err(Reason::Incomplete)?;
    let (cluster, more) = cluster::map(&row.hardware).map_err(Reason::Incomplete)?;
    notes.extend(more);
    let stack = stack::selection(row);
    let mapped = plan::map(row, &model, &stack).map_err(Reason::Incomplete)?;
    notes.extend(mapped.notes);
    let (plan, workload) = (mapped.plan, mapped.workload);
    let convention = convention::convention(row, &model, &plan, &workload, &cluster);
    Ok(Mapped { model, plan, workload, cluster, stack, convention, batch_scale: mapped.batch_scale, notes })
}
