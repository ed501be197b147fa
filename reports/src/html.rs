//! Self-contained HTML pages.

mod capacity;
mod page;
mod plan;
mod sections;
mod serving;
mod serving_capacity;

pub use capacity::capacity_page;
pub use plan::plan_page;
pub use serving::{ServingPage, serving_page};
pub use serving_capacity::{ServingCapacityPage, serving_capacity_page};

#[cfg(test)]
mod tests;
