//! Results as text for a person and as JSON for a program.

pub(crate) mod plans;
pub(crate) mod prediction;
pub(crate) mod switched;
