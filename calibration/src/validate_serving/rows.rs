//! Many rows at once: what `psim validate` calls for serving rows.

use super::predict::ServingPredictor;
use crate::validate::row::Row;
use crate::validate::score::RowResult;
use rayon::prelude::*;

/// Predicts rows on the threads of the current rayon pool, in the order of `rows`.
///
/// Each result carries the row's metrics in its own units with value and 80 % interval (`entries[i].predicted`), the
/// status with its reason, the engine profile (`stack`), whether the deployment is predicted to fit (`fits`), and notes
/// on what was assumed. Rows of another kind come back as unsupported. Same rows, same results, whatever the threads.
pub fn predict_rows(predictor: &ServingPredictor, rows: &[Row]) -> Vec<RowResult> {
    rows.par_iter().map(|row| predictor.row(row)).collect()
}
