//! From arguments to the values that the other crates work on.

pub(crate) mod cluster;
pub(crate) mod common;
pub(crate) mod job;
pub(crate) mod model;
pub(crate) mod settings;

pub(crate) use common::CommonArguments;
pub(crate) use job::{Job, JobArguments};
