//! What a refit without each source predicts of that source.

use super::refit::nested::Nested;
use super::score::{RowResult, Summary};
use std::collections::BTreeMap;

/// Scores of a refit without each source.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LeftOut {
    /// Report of the rows of each source, predicted by the fit that never saw it.
    pub sources: BTreeMap<String, Summary>,
    /// All of these rows together.
    pub all: Summary,
    /// The widths checked by what the other sources would have made of them.
    pub nested: Option<Nested>,
    /// Every row, predicted by the fit that never saw its source.
    pub rows: Vec<RowResult>,
}
