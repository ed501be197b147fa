//! Self-contained HTML pages.

mod capacity;
mod page;
mod plan;
mod sections;

pub use capacity::capacity_page;
pub use plan::plan_page;

#[cfg(test)]
mod tests;
