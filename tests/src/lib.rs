//! Cross-crate test suites of psim.
