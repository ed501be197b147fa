//! A folder of measured CSV tables (`gemm.csv.gz`, `collectives.csv` …) fitted to the profile of one accelerator.

use super::ImportError;
use super::profile::Imported;
use crate::fit::assemble::{Tables, assemble, peak_only};
use crate::fit::relatives;
use psim_hardware::Accelerator;
use std::path::Path;

/// Fits what the folder holds for this accelerator.
///
/// # Errors
/// When a table is missing or malformed, or none has rows of the accelerator.
pub fn fit(folder: &Path, accelerator: &Accelerator) -> Result<Imported, ImportError> {
    let refuse = |reason: String| ImportError::Kind { expected: "a folder of measured tables", reason };
    let tables = Tables::read(folder).map_err(|e| refuse(e.to_string()))?;
    let name = accelerator.name.as_str();
    let source = format!("fitted to the tables of {}", folder.display());
    if let Some(mut found) = assemble(&tables, name).filter(|a| !a.profile.gemm.is_empty()) {
        relatives::fill_classes(&mut found.profile);
        found.profile.source = source;
        let changes = found
            .summaries
            .iter()
            .map(|s| format!("{}: {} points, median error {:.1} %", s.table, s.points, s.median * 100.0))
            .chain(found.notes)
            .collect();
        return Ok(Imported { profile: found.profile, changes });
    }
    let mut profile =
        peak_only(&tables, name).ok_or_else(|| refuse(format!("no table has rows of {name}")))?;
    profile.source = source;
    let changes = vec!["only its best matrix rate is measured; the rest are documented defaults".to_owned()];
    Ok(Imported { profile, changes })
}
