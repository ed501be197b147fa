//! What a refit without each source predicts of that source.

use super::refit::nested::Nested;
use super::score::{RowResult, Summary};
use std::collections::BTreeMap;

/// Scores of a refit without each source.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LeftOut {
    /// Scores of the rows of each source, predicted by the fit that never saw it.
    pub sources: BTreeMap<String, Summary>,
    /// All of these rows together.
    pub all: Summary,
    /// How wide the intervals of each source are by the errors of the others, and what coverage chance allows.
    pub nested: Option<Nested>,
    /// Every row, predicted by the fit that never saw its source.
    pub rows: Vec<RowResult>,
}
