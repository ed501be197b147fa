//! Errors by model, engine profile and accelerator: which groups lean to one side.
//!
//! A number of an engine on an accelerator moves all models alike. So what is left in one model of them, on one side and
//! with little scatter, is a mechanism that the model has and the prediction lacks, or the other way round; what scatters
//! about nothing is not.

use super::accuracy::{Class, FAMILIES, class, family_error};
use crate::validate::percentile::percentile;
use crate::validate::row::Row;
use crate::validate::score::RowResult;
use std::collections::BTreeMap;

/// Errors of one model, in one format, under one engine on one accelerator.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Source, model, format, engine profile with release, accelerator.
    pub key: [String; 5],
    /// Rows with the metric.
    pub rows: usize,
    /// Median absolute error, percent.
    pub median: f64,
    /// Median signed error, percent.
    pub bias: f64,
    /// Median distance of signed errors from their median, percentage points.
    pub scatter: f64,
}

impl Group {
    /// The errors lie on one side: the bias is larger than what scatters about it.
    pub fn leans(&self) -> bool {
        self.rows >= 3 && self.bias.abs() > self.scatter
    }
}

/// Groups of the rows of one pool without speculation for a family of metrics (`throughput`, `tpot`, `ttft`), those first
/// that weigh most: rows times median error.
pub fn groups(rows: &[Row], results: &[RowResult], family: &str) -> Vec<Group> {
    let Some((_, metrics)) = FAMILIES.iter().find(|(name, _)| *name == family) else { return Vec::new() };
    let mut errors: BTreeMap<[String; 5], Vec<f64>> = BTreeMap::new();
    for (row, result) in rows.iter().zip(results) {
        if result.weak || result.doubtful || class(row) != Class::Aggregated {
            continue;
        }
        if let Some(Some(error)) = family_error(result, metrics) {
            let text = |key: &str| {
                let value = row.value.get("config").and_then(|c| c.get(key)).and_then(|v| v.as_str());
                value.unwrap_or_default().to_owned()
            };
            let engine = text("engine");
            let engine = engine.split(" (").next().unwrap_or_default();
            let key = [&result.source, &row.model.name, &text("quant"), engine, &row.hardware.gpu]
                .map(|part: &str| part.to_owned());
            errors.entry(key).or_default().push(error);
        }
    }
    let mut out: Vec<Group> = errors
        .into_iter()
        .map(|(key, errors)| {
            let middle = |values: &[f64]| percentile(values, 0.5).unwrap_or(f64::NAN);
            let bias = middle(&errors);
            let sizes: Vec<f64> = errors.iter().map(|e| e.abs()).collect();
            let about: Vec<f64> = errors.iter().map(|e| (e - bias).abs()).collect();
            Group { key, rows: errors.len(), median: middle(&sizes), bias, scatter: middle(&about) }
        })
        .collect();
    out.sort_by(|a, b| (b.rows as f64 * b.median).total_cmp(&(a.rows as f64 * a.median)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_leans_when_its_bias_outweighs_its_scatter() {
        let group =
            |bias, scatter, rows| Group { key: Default::default(), rows, median: 10.0, bias, scatter };
        assert!(group(-10.0, 3.0, 5).leans());
        assert!(!group(-2.0, 9.0, 5).leans());
        assert!(!group(-10.0, 3.0, 2).leans());
    }
}
