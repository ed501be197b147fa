//! Widths of left-out intervals by a rule: a source's intervals take one factor from the left-out errors of all *other*
//! sources, never from its own (cross-conformal prediction: Vovk 2015; sources as exchangeable groups: Dunn et al. 2023).
//!
//! The spreads of `sim/src/step/interval.rs` say how the width differs from step to step; the factor says how wide, such
//! that eight in ten of the others' measurements lie inside. Sources count alike, with a little more for those that hold
//! more rows, as in the fit.

use crate::validate::score::{Entry, RowResult};
use std::collections::BTreeMap;

/// Share of measurements that an interval is to contain.
const NOMINAL: f64 = 0.8;

/// One source's intervals by the errors of the others.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Calibrated {
    /// Factor on the documented half-widths (in logarithms).
    pub factor: f64,
    /// Rows that the source's rows are worth: rows of one source share machine, team and stack and fall inside or outside
    /// together (design effect of a cluster sample, Kish 1965, section 5.4; correlation from the other sources).
    pub effective_rows: f64,
    /// Range of coverage in percent that intervals of exactly 80 % leave with probability 95 % for so many rows.
    pub range: (f64, f64),
}

/// Factors of all sources.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Nested {
    /// By source.
    pub sources: BTreeMap<String, Calibrated>,
    /// The factor that all sources together would choose.
    pub all: f64,
    /// Correlation within a source of lying inside, over all sources.
    pub correlation: f64,
}

/// |ln(measured / predicted)| and the half-width of the interval in logarithms.
type Points = Vec<(f64, f64)>;

/// Calibrates every source on the others; `None` for fewer than three sources.
pub fn nested(rows: &[RowResult]) -> Option<Nested> {
    let mut by_source: BTreeMap<&str, Points> = BTreeMap::new();
    for row in rows.iter().filter(|r| !r.weak) {
        let Some(entry) = row.scored.and_then(|i| row.entries.get(i)) else { continue };
        let Some([value, low, high]) = entry.predicted else { continue };
        let point = ((entry.measured / value).ln().abs(), 0.5 * (high / low).ln());
        if point.0.is_finite() && point.1.is_finite() && point.1 > 0.0 {
            by_source.entry(&row.source).or_default().push(point);
        }
    }
    if by_source.len() < 3 {
        return None;
    }
    let all: Vec<&Points> = by_source.values().collect();
    let everywhere = factor(&all);
    let mut out = Nested { all: everywhere, correlation: correlation(&all, everywhere), ..Nested::default() };
    for (source, own) in &by_source {
        let others: Vec<&Points> =
            by_source.iter().filter(|(name, _)| *name != source).map(|(_, points)| points).collect();
        let factor = factor(&others);
        let effective = own.len() as f64 / (1.0 + (own.len() as f64 - 1.0) * correlation(&others, factor));
        let calibrated = Calibrated { factor, effective_rows: effective, range: range(effective) };
        out.sources.insert((*source).to_owned(), calibrated);
    }
    Some(out)
}

/// The entry with its interval widened by `factor`.
pub fn widen(entry: &mut Entry, factor: f64) {
    if let Some([value, low, high]) = &mut entry.predicted
        && *value > 0.0
    {
        *low = *value * (*low / *value).powf(factor);
        *high = *value * (*high / *value).powf(factor);
    }
}

/// Smallest factor with which the intervals hold at least 80 % of the weighted errors.
fn factor(sources: &[&Points]) -> f64 {
    let mut ratios: Vec<(f64, f64)> = Vec::new();
    for points in sources {
        let weight = (points.len() as f64).powf(0.25 - 1.0);
        ratios.extend(points.iter().map(|(error, half)| (error / half, weight)));
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total: f64 = ratios.iter().map(|r| r.1).sum();
    let mut sum = 0.0;
    for (ratio, weight) in &ratios {
        sum += weight;
        if sum >= NOMINAL * total * (1.0 - 1e-12) {
            return *ratio;
        }
    }
    ratios.last().map_or(1.0, |r| r.0)
}

/// Correlation within a source of lying inside its interval (one-way analysis of variance, unequal groups), 0 to 1.
fn correlation(sources: &[&Points], factor: f64) -> f64 {
    let inside = |points: &Points| points.iter().filter(|(e, half)| *e <= factor * half).count() as f64;
    let count = |points: &Points| points.len() as f64;
    let groups = sources.len() as f64;
    let rows: f64 = sources.iter().map(|p| count(p)).sum();
    let mean = sources.iter().map(|p| inside(p)).sum::<f64>() / rows;
    let (mut between, mut within, mut squares) = (0.0, 0.0, 0.0);
    for points in sources {
        let (n, k) = (count(points), inside(points));
        between += n * (k / n - mean).powi(2);
        within += k * (1.0 - k / n);
        squares += n * n;
    }
    if groups < 2.0 || rows <= groups {
        return 0.0;
    }
    let (between, within) = (between / (groups - 1.0), within / (rows - groups));
    let typical = (rows - squares / rows) / (groups - 1.0);
    let all = between + (typical - 1.0) * within;
    if all > 0.0 { ((between - within) / all).clamp(0.0, 1.0) } else { 0.0 }
}

/// Central 95 % of the binomial distribution of `rows` draws at 80 %, percent. Rows are rounded to the next whole number.
fn range(rows: f64) -> (f64, f64) {
    let n = rows.round().max(1.0) as u32;
    let mut probability = (1.0 - NOMINAL).powi(n as i32);
    let (mut sum, mut low, mut high) = (0.0, None, n);
    for k in 0..=n {
        sum += probability;
        if low.is_none() && sum > 0.025 {
            low = Some(k);
        }
        if sum >= 0.975 {
            high = k;
            break;
        }
        probability *= f64::from(n - k) / f64::from(k + 1) * NOMINAL / (1.0 - NOMINAL);
    }
    let percent = |k: u32| 100.0 * f64::from(k) / f64::from(n);
    (percent(low.unwrap_or(0)), percent(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_in_ten_of_the_others_are_inside() {
        // Errors 0.01 to 0.10, intervals of half-width 0.1: eight lie within a factor of 0.8.
        let points: Points = (1..=10).map(|i| (0.01 * f64::from(i), 0.1)).collect();
        assert!((factor(&[&points]) - 0.8).abs() < 1e-12);
        // A source with twice the errors moves the factor by its weight, not by its number of rows.
        let wide: Points = (1..=1000).map(|i| (0.0002 * f64::from(i), 0.1)).collect();
        let both = factor(&[&points, &wide]);
        assert!(both > 0.8 && both < 1.8, "{both}");
    }

    #[test]
    fn rows_that_fall_together_count_once() {
        let (inside, outside): (Points, Points) = (vec![(0.0, 1.0); 50], vec![(2.0, 1.0); 50]);
        assert!(correlation(&[&inside, &outside], 1.0) > 0.99);
        let mixed: Points = (0..50).map(|i| (if i % 5 == 0 { 2.0 } else { 0.0 }, 1.0)).collect();
        assert!(correlation(&[&mixed, &mixed.clone(), &mixed.clone()], 1.0) < 1e-9);
    }

    #[test]
    fn ranges_are_those_of_the_binomial_distribution() {
        // Of 10 draws at 80 %: P(k <= 4) = 0.0064, P(k <= 5) = 0.033; P(k <= 9) = 0.893.
        assert_eq!(range(10.0), (50.0, 100.0));
        // Of 100: 72 to 87 in tables of the binomial distribution.
        let (low, high) = range(100.0);
        assert!((71.0..=73.0).contains(&low) && (86.0..=88.0).contains(&high), "{low} {high}");
        assert_eq!(range(1.0), (0.0, 100.0));
    }

    #[test]
    fn a_source_has_no_say_in_its_own_width() {
        let row = |source: &str, error: f64| {
            let entry = Entry {
                metric: "step_time_s",
                measured: error.exp(),
                predicted: Some([1.0, 0.9, 1.0 / 0.9]),
            };
            let mut row = crate::validate::score::blank(source, source);
            (row.entries, row.scored) = (vec![entry], Some(0));
            row
        };
        let with = |error: f64| {
            let mut rows: Vec<RowResult> =
                (0..30).map(|i| row(["a", "b", "c"][i % 3], 0.01 * i as f64)).collect();
            rows.extend((0..10).map(|_| row("d", error)));
            nested(&rows).unwrap()
        };
        let (small, large) = (with(0.001), with(0.9));
        assert_eq!(small.sources["d"], large.sources["d"]);
        assert!(small.sources["a"].factor < large.sources["a"].factor);
    }
}
