//! Fits without a source as a file, so that left-out scores need no refit.
//!
//! One JSON object: source to parameter name to value. `accuracy --loso` writes it, every other command reads it.

use super::{Problem, State};
use crate::validate::score::RowResult;
use serde_json::json;
use std::collections::BTreeMap;

/// Source to parameter name to value.
type Values = BTreeMap<String, BTreeMap<String, f64>>;

/// The adjusted numbers of every fit without a source.
///
/// # Errors
/// The serialiser's message.
pub fn text(problem: &Problem, states: &BTreeMap<String, State>) -> Result<String, String> {
    let slots = || problem.slots.iter().chain(&problem.idle);
    let values: Values = states
        .iter()
        .map(|(source, state)| {
            (source.clone(), slots().map(|s| (s.name(), rounded(s.value(state)))).collect())
        })
        .collect();
    serde_json::to_string_pretty(&values).map(|text| text + "\n").map_err(|e| e.to_string())
}

/// The fits of a file, as changes of `start`.
///
/// # Errors
/// A text that does not parse; a source of the rows, or a parameter, that the file does not have; values out of bounds.
pub fn read(problem: &Problem, start: &State, text: &str) -> Result<BTreeMap<String, State>, String> {
    let values: Values = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut states = BTreeMap::new();
    for source in problem.sources() {
        let own = values.get(source).ok_or_else(|| format!("no fit without `{source}`: run with --loso"))?;
        let mut state = start.clone();
        for slot in problem.slots.iter().chain(&problem.idle) {
            let name = slot.name();
            let value = own
                .get(&name)
                .ok_or_else(|| format!("no `{name}` in the fit without `{source}`: run with --loso"))?;
            if !slot.set(&mut state, *value) {
                return Err(format!("`{name}` = {value} is out of bounds"));
            }
        }
        states.insert(source.to_owned(), state);
    }
    Ok(states)
}

/// Six significant digits.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// One JSON object a line: every scored row with its error and the shares of its step.
pub fn residuals(rows: &[RowResult]) -> String {
    let mut out = String::new();
    for row in rows {
        let Some(entry) = row.scored.and_then(|i| row.entries.get(i)) else { continue };
        let Some([value, low, high]) = entry.predicted else { continue };
        let sign = if entry.metric == "step_time_s" { 1.0 } else { -1.0 };
        let line = json!({
            "id": row.id,
            "source": row.source,
            "weak": row.weak,
            "doubtful": row.doubtful,
            "stack": row.stack,
            "error": sign * (value / entry.measured).ln(),
            "low": low / value,
            "high": high / value,
            "doubts": row.doubts.iter().map(|(name, sigma)| ((*name).to_owned(), *sigma)).collect::<BTreeMap<_, _>>(),
            "terms": row.breakdown.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect::<BTreeMap<_, _>>(),
        });
        out += &line.to_string();
        out.push('\n');
    }
    out
}
