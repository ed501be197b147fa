//! Measurement, import, fitting and validation of psim's profiles.

pub mod fit;
pub mod fit_serving;
pub mod import;
pub mod learned;
pub mod measure;
pub mod tables;
pub mod validate;
pub mod validate_serving;
