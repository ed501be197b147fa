//! Measurement, import, fitting and validation of psim's profiles.

pub mod validate;
