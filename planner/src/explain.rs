//! Where the time goes: from peak to achieved, and from one plan to another.
//!
//! Terms are whole picoseconds, so that they sum to the total exactly.

use psim_sim::StepPrediction;
use serde::Serialize;

/// One bar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WaterfallTerm {
    /// Name, as in the breakdown.
    pub term: &'static str,
    /// Picoseconds added (negative: saved).
    pub picoseconds: i64,
    /// Running total after this bar, picoseconds.
    pub after: i64,
}

/// Bars that lead from a start to an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waterfall {
    /// Where it starts, picoseconds (0 for one plan: all work at peak is the first bar).
    pub start: i64,
    /// Where it ends: the step time (of the second plan).
    pub end: i64,
    /// Bars; they sum to `end - start` exactly.
    pub terms: Vec<WaterfallTerm>,
}

/// Name of what the breakdown leaves over (rounding only, where the prediction keeps its promise).
const REMAINDER: &str = "rounding";

fn picoseconds(seconds: f64) -> i64 {
    (seconds * 1e12).round() as i64
}

fn bars(start: i64, end: i64, terms: impl Iterator<Item = (&'static str, i64)>) -> Waterfall {
    let mut after = start;
    let mut list: Vec<WaterfallTerm> = Vec::new();
    for (term, value) in terms.filter(|t| t.1 != 0) {
        after += value;
        list.push(WaterfallTerm { term, picoseconds: value, after });
    }
    if after != end {
        list.push(WaterfallTerm { term: REMAINDER, picoseconds: end - after, after: end });
    }
    Waterfall { start, end, terms: list }
}

/// From peak to achieved: ideal compute first, then everything that keeps the step from it.
pub fn waterfall(prediction: &StepPrediction) -> Waterfall {
    let terms = prediction.breakdown.terms();
    let end = picoseconds(prediction.step_time.value);
    bars(0, end, terms.iter().map(|&(name, t)| (name, picoseconds(t.0))))
}

/// From one plan's step to another's: what is saved and what is added.
pub fn difference(from: &StepPrediction, to: &StepPrediction) -> Waterfall {
    let (a, b) = (from.breakdown.terms(), to.breakdown.terms());
    let values = a.iter().zip(&b).map(|(x, y)| (x.0, picoseconds(y.1.0) - picoseconds(x.1.0)));
    bars(picoseconds(from.step_time.value), picoseconds(to.step_time.value), values)
}

impl Waterfall {
    /// The bars, longest first.
    pub fn largest(&self) -> Vec<&WaterfallTerm> {
        let mut list: Vec<&WaterfallTerm> = self.terms.iter().collect();
        list.sort_by_key(|t| std::cmp::Reverse(t.picoseconds.unsigned_abs()));
        list
    }
}
