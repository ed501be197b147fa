//! HTML reports, plots, traces and launch files; reads result types only.
//!
//! Every function returns text: writing it to a file is the caller's business. This crate is pure.
//!
//! * [`plan_page`], [`serving_page`] and [`capacity_page`]: one self-contained HTML page, no external address, dark and light.
//! * [`trace::chrome`]: a timeline as Chrome trace JSON, which the Perfetto viewer opens.
//! * [`launch`]: configuration files of training frameworks for a plan.

pub mod charts;
mod html;
pub mod launch;
pub mod number;
pub mod trace;
mod words;

pub use html::{
    ServingCapacityPage, ServingPage, capacity_page, plan_page, serving_capacity_page, serving_page,
};
pub use words::{layout_label, plan_label, serving_label, short_layout_label};

#[cfg(test)]
mod fixture;
