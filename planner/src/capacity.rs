//! Capacity planning: which accelerators, how many, for how long, at what price.

pub mod failures;
