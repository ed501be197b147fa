//! The serving side of the commands: a workload of requests with a service level in place of a training job.
//!
//! `plan`, `simulate`, `explain`, `compare`, `emit` and `report` come here when their `--workload` is a serving workload, `capacity` when
//! it is given a rate.

mod capacity;
mod compare;
mod deployment;
mod emit;
mod formats;
mod job;
mod plan;
mod render;
mod served;
mod simulate;
mod workload;

pub(crate) use capacity::{ServingCapacityArguments, run as run_capacity};
pub(crate) use compare::run as run_compare;
pub(crate) use emit::run as run_emit;
pub(crate) use job::{ServingJob, load_engine};
pub(crate) use plan::{failure as plan_failure, run as run_plan};
pub(crate) use simulate::{explain, run as run_simulate};
pub(crate) use workload::is_serving;
