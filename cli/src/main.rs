//! The `psim` command line.
fn main() {}
