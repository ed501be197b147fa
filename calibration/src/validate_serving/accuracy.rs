//! Accuracy of serving predictions, per source and metric.

use super::map::map;
use crate::validate::percentile::percentile;
use crate::validate::row::Row;
use crate::validate::score::RowResult;
use std::collections::BTreeMap;

/// The three kinds of metrics that targets are stated for.
pub const FAMILIES: [(&str, &[&str]); 3] = [
    ("throughput", &["output_tokens_per_s", "total_tokens_per_s", "request_per_s", "input_tokens_per_s"]),
    ("tpot", &["tpot_ms"]),
    ("ttft", &["ttft_ms"]),
];

/// Which rows a score is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// One pool, no speculation: what targets are stated for.
    Aggregated,
    /// Several tokens a step.
    Speculative,
    /// Prompts and answers on different accelerators.
    Disaggregated,
}

/// Class of a row.
pub fn class(row: &Row) -> Class {
    let config = row.value.get("config");
    let get = |key: &str| config.and_then(|c| c.get(key));
    let speculative = match get("speculative") {
        Some(serde_json::Value::String(s)) => !matches!(s.as_str(), "" | "none"),
        Some(serde_json::Value::Bool(b)) => *b,
        _ => false,
    };
    if get("disagg").is_some_and(|d| d.is_object() || d.as_bool() == Some(true)) {
        Class::Disaggregated
    } else if speculative {
        Class::Speculative
    } else {
        Class::Aggregated
    }
}

/// Score of a source and a family of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// Rows that carry the metric.
    pub rows: usize,
    /// Of these, predicted.
    pub covered: usize,
    /// Median absolute error, percent.
    pub median: f64,
    /// 90th percentile, percent.
    pub p90: f64,
    /// Median of the signed error, percent.
    pub bias: f64,
}

/// The entry of a family in a row: signed error in percent, `None` where it is not predicted.
pub fn family_error(result: &RowResult, metrics: &[&str]) -> Option<Option<f64>> {
    result.entries.iter().find(|e| metrics.contains(&e.metric)).map(crate::validate::score::Entry::error)
}

/// Scores of every source for one family and class, weak rows left out.
pub fn scores(
    rows: &[Row],
    results: &[RowResult],
    class_wanted: Class,
    metrics: &[&str],
) -> BTreeMap<String, Score> {
    let mut errors: BTreeMap<String, (usize, Vec<f64>)> = BTreeMap::new();
    for (row, result) in rows.iter().zip(results) {
        if result.weak || result.doubtful || class(row) != class_wanted {
            continue;
        }
        if let Some(error) = family_error(result, metrics) {
            let slot = errors.entry(result.source.clone()).or_default();
            slot.0 += 1;
            slot.1.extend(error);
        }
    }
    errors
        .into_iter()
        .map(|(source, (rows, errors))| {
            let apes: Vec<f64> = errors.iter().map(|e| e.abs()).collect();
            let score = Score {
                rows,
                covered: errors.len(),
                median: percentile(&apes, 0.5).unwrap_or(f64::NAN),
                p90: percentile(&apes, 0.9).unwrap_or(f64::NAN),
                bias: percentile(&errors, 0.5).unwrap_or(f64::NAN),
            };
            (source, score)
        })
        .collect()
}

/// Mean of the medians (and of the 90th percentiles) of the sources with at least 8 predicted rows.
pub fn macro_median(scores: &BTreeMap<String, Score>) -> Option<(f64, f64)> {
    let counted: Vec<&Score> = scores.values().filter(|s| s.covered >= 8).collect();
    let n = counted.len() as f64;
    (n > 0.0).then(|| {
        (counted.iter().map(|s| s.median).sum::<f64>() / n, counted.iter().map(|s| s.p90).sum::<f64>() / n)
    })
}

/// Coverage as the acceptance states it: rows with lengths whose accelerator is known, predicted over all of them.
pub fn coverage(rows: &[Row], results: &[RowResult]) -> (usize, usize) {
    let mut counted = (0, 0);
    for (row, result) in rows.iter().zip(results) {
        let load = row.value.get("workload");
        let given = |key: &str| load.and_then(|w| w.get(key)).and_then(serde_json::Value::as_f64).is_some();
        let known = psim_hardware::catalogue::datasheet(&row.hardware.gpu).is_ok();
        if result.weak || !known || !given("isl") || !given("osl") {
            continue;
        }
        counted.1 += 1;
        counted.0 += usize::from(result.entries.iter().any(|e| e.predicted.is_some()));
    }
    counted
}

/// Key of rows that share an engine's numbers: profile and accelerator family.
pub fn group(row: &Row) -> Option<(String, String)> {
    let mapped = map(row).ok()?;
    Some((mapped.engine.name.clone(), row.hardware.gpu.clone()))
}
