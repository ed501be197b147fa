//! Cross-crate test suites of psim.

pub mod weather;
