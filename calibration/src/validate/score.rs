//! Scores: errors per source and in all, intervals, memory verdicts. Works for any kind of row.
//!
//! Percentages are percentages (`12.5` is 12.5 %): errors, bias, regret, interval coverage and width. A *source* is the
//! leading letters and digits of a row's `id`. Weak rows are scored apart.

use super::facts::Facts;
use super::percentile::percentile;
use super::ranking::{Candidate, Ranking, rank};
use serde::Serialize;
use std::collections::BTreeMap;

/// Whether a row could be predicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Yes.
    Predicted,
    /// A kind or feature that is not predicted, with the reason.
    Unsupported(String),
    /// A decisive field is missing, with the reason.
    Incomplete(String),
}

/// One metric of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Metric name as in the row.
    pub metric: &'static str,
    /// Printed value.
    pub measured: f64,
    /// Predicted value and its 80 % interval, in the row's unit and convention.
    pub predicted: Option<[f64; 3]>,
}

impl Entry {
    /// Signed error in percent of the measurement.
    pub fn error(&self) -> Option<f64> {
        let [value, _, _] = self.predicted?;
        (self.measured != 0.0).then(|| 100.0 * (value - self.measured) / self.measured)
    }

    /// Absolute error in percent.
    pub fn ape(&self) -> Option<f64> {
        self.error().map(f64::abs)
    }
}

/// One row after prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct RowResult {
    /// Identifier.
    pub id: String,
    /// Source.
    pub source: String,
    /// A decisive field is missing: scored apart.
    pub weak: bool,
    /// The source contradicts itself on this row (WARNING or SUSPECT): left out of rankings.
    pub doubtful: bool,
    /// Accelerator.
    pub gpu: String,
    /// The model is a mixture of experts.
    pub mixture: bool,
    /// Outcome of the prediction.
    pub status: Status,
    /// Stack profile used.
    pub stack: String,
    /// Metrics that the row carries.
    pub entries: Vec<Entry>,
    /// Index of the entry that is scored (step time, else tokens/s, else TFLOP/s or utilisation).
    pub scored: Option<usize>,
    /// Index of the memory entry.
    pub memory: Option<usize>,
    /// Predicted to fit.
    pub fits: Option<bool>,
    /// Ran (`true`), ran out of memory (`false`), or nothing printed (`None`).
    pub ran: Option<bool>,
    /// For rankings: group, configuration, measured and predicted time (any unit, equal in a group).
    pub candidate: Option<Candidate>,
    /// Assumptions and remarks.
    pub notes: Vec<String>,
    /// Where the predicted time goes, largest first (name, share of the step).
    pub breakdown: Vec<(&'static str, f64)>,
    /// What the interval is made of: standard deviation of ln(time) by cause.
    pub doubts: Vec<(&'static str, f64)>,
    /// What other rows of the source may contradict.
    pub facts: Option<Facts>,
}

/// Memory score.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct MemoryScore {
    /// Ran and predicted to fit.
    pub fits_right: usize,
    /// Out of memory and predicted so.
    pub oom_right: usize,
    /// Verdict wrong.
    pub wrong: usize,
    /// Median absolute error of the peak, percent.
    pub median_ape: Option<f64>,
}

/// Interval score.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct IntervalScore {
    /// Share of measurements inside the 80 % interval, percent.
    pub coverage: Option<f64>,
    /// Mean of (high − low) / predicted, percent.
    pub mean_width: Option<f64>,
    /// Interval score (Gneiting and Raftery 2007, section 6.2), percent of the prediction: width plus ten times (2 / 0.2)
    /// how far a measurement lies outside. The least is reached by the true 10th and 90th percentile.
    pub score: Option<f64>,
}

/// Summary of a set of rows.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Summary {
    /// Rows with a metric.
    pub rows: usize,
    /// Of these, predicted.
    pub covered: usize,
    /// Median absolute error, percent.
    pub median_ape: Option<f64>,
    /// 90th percentile, percent.
    pub p90_ape: Option<f64>,
    /// Mean signed error of the metric, percent.
    pub bias: Option<f64>,
    /// Mean over sources of the source's median, percent (one source: its median).
    pub macro_median_ape: Option<f64>,
    /// Ranking of configurations.
    pub ranking: Ranking,
    /// Memory.
    pub memory: MemoryScore,
    /// Intervals.
    pub interval: IntervalScore,
}

/// Scores the rows for which `keep` holds.
pub fn summarise<'a>(rows: impl Iterator<Item = &'a RowResult> + Clone) -> Summary {
    let scored: Vec<(&RowResult, &Entry)> =
        rows.clone().filter_map(|r| Some((r, r.entries.get(r.scored?)?))).collect();
    let errors: Vec<f64> = scored.iter().filter_map(|(_, e)| e.error()).collect();
    let apes: Vec<f64> = errors.iter().map(|e| e.abs()).collect();
    let mut by_source: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (row, entry) in &scored {
        if let Some(ape) = entry.ape() {
            by_source.entry(row.source.as_str()).or_default().push(ape);
        }
    }
    let medians: Vec<f64> = by_source.values().filter_map(|v| percentile(v, 0.5)).collect();
    let mean =
        |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let mut inside = Vec::new();
    let mut widths = Vec::new();
    let mut scores = Vec::new();
    for (_, entry) in &scored {
        if let Some([value, low, high]) = entry.predicted {
            inside.push(if entry.measured >= low && entry.measured <= high { 100.0 } else { 0.0 });
            if value > 0.0 {
                let outside = (low - entry.measured).max(entry.measured - high).max(0.0);
                widths.push(100.0 * (high - low) / value);
                scores.push(100.0 * (high - low + 10.0 * outside) / value);
            }
        }
    }
    let mut memory = MemoryScore::default();
    for row in rows.clone() {
        match (row.fits, row.ran) {
            (Some(true), Some(true)) => memory.fits_right += 1,
            (Some(false), Some(false)) => memory.oom_right += 1,
            (Some(_), Some(_)) => memory.wrong += 1,
            _ => {}
        }
    }
    let peaks: Vec<f64> = rows.clone().filter_map(|r| r.entries.get(r.memory?)?.ape()).collect();
    memory.median_ape = percentile(&peaks, 0.5);
    let candidates: Vec<&Candidate> =
        rows.filter(|r| !r.weak && !r.doubtful).filter_map(|r| r.candidate.as_ref()).collect();
    Summary {
        rows: scored.len(),
        covered: errors.len(),
        median_ape: percentile(&apes, 0.5),
        p90_ape: percentile(&apes, 0.9),
        bias: mean(&errors),
        macro_median_ape: mean(&medians),
        ranking: rank(&candidates),
        memory,
        interval: IntervalScore { coverage: mean(&inside), mean_width: mean(&widths), score: mean(&scores) },
    }
}

/// A predicted row without metrics, for tests.
#[cfg(test)]
pub(crate) fn blank(id: &str, source: &str) -> RowResult {
    RowResult {
        id: id.to_owned(),
        source: source.to_owned(),
        weak: false,
        doubtful: false,
        gpu: String::new(),
        mixture: false,
        status: Status::Predicted,
        stack: String::new(),
        entries: Vec::new(),
        scored: None,
        memory: None,
        fits: Some(true),
        ran: Some(true),
        candidate: None,
        notes: Vec::new(),
        breakdown: Vec::new(),
        doubts: Vec::new(),
        facts: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(id: &str, source: &str, measured: f64, predicted: f64) -> RowResult {
        let predicted = Some([predicted, predicted * 0.9, predicted * 1.1]);
        let entries = vec![Entry { metric: "step_time_s", measured, predicted }];
        RowResult { entries, scored: Some(0), ..blank(id, source) }
    }

    #[test]
    fn every_source_counts_once() {
        let mut rows: Vec<RowResult> = (0..9).map(|i| result(&format!("a-{i}"), "a", 100.0, 110.0)).collect();
        rows.push(result("b-0", "b", 100.0, 80.0));
        let summary = summarise(rows.iter());
        assert_eq!((summary.rows, summary.covered), (10, 10));
        assert!((summary.median_ape.unwrap() - 10.0).abs() < 1e-9);
        assert!((summary.macro_median_ape.unwrap() - 15.0).abs() < 1e-9);
        assert!((summary.bias.unwrap() - 7.0).abs() < 1e-9);
        assert!((summary.interval.mean_width.unwrap() - 20.0).abs() < 1e-9);
        assert!((summary.interval.coverage.unwrap() - 90.0).abs() < 1e-9);
        // Nine intervals hold, the tenth (72 to 88 of 80) misses 100 by 12: 20 % and 10 x 12 / 80.
        assert!((summary.interval.score.unwrap() - 35.0).abs() < 1e-9);
    }

    #[test]
    fn verdicts() {
        let mut rows = [result("a", "a", 1.0, 1.0), result("b", "a", 1.0, 1.0), result("c", "a", 1.0, 1.0)];
        rows[1].ran = Some(false);
        rows[2].ran = Some(false);
        rows[2].fits = Some(false);
        let memory = summarise(rows.iter()).memory;
        assert_eq!((memory.fits_right, memory.oom_right, memory.wrong), (1, 1, 1));
    }
}
