//! Serving: what is asked for (requests, lengths, arrivals, service levels), how it is deployed, and what one engine
//! step consists of.
//!
//! - [`builtin`]: workloads that come with the program;
//! - [`workload`]: the TOML description of traffic and service levels; [`traffic`] turns it into requests;
//! - [`trace`]: request traces in the layouts that are published;
//! - [`deployment`]: replicas, parallel degrees, number formats;
//! - [`kv_transfer`]: what moves when prefill and decode run on different instances;
//! - [`mod@lower`]: model and deployment to the linear layers, attention kinds, experts, collectives and bytes of a step.

pub mod builtin;
pub mod deployment;
pub mod kv_transfer;
pub mod lengths;
pub mod lower;
pub mod rng;
mod shared;
pub mod slo;
pub mod trace;
pub mod traffic;
pub mod workload;

pub use crate::quantization::{NumberFormat, Quantization};
pub use deployment::Deployment;
pub use kv_transfer::{KvTransfer, KvTransferError};
pub use lengths::Lengths;
pub use lower::{ServingShape, lower, lower_apart};
pub use shared::SharedPrefixes;
pub use slo::{Metric, Promise, ServiceLevel};
pub use traffic::{Request, Traffic};
pub use workload::{Arrival, Replay, ServingWorkload, Tenant};
