//! Is the width of left-out intervals right? One factor on all widths, chosen for each source on the other ones.

use crate::validate::score::RowResult;
use std::collections::BTreeMap;

/// What the factor says of the sources that did not choose it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Nested {
    /// Smallest and largest factor chosen.
    pub factors: (f64, f64),
    /// Rows inside, percent.
    pub coverage: f64,
    /// Rows inside by source, percent.
    pub sources: BTreeMap<String, f64>,
}

/// |ln(measured / predicted)| and the half-width of the interval in logarithms.
type Points = Vec<(f64, f64)>;

/// Chooses the factor for each source by the interval score of all others (sources count alike, with a little more for
/// those that hold more rows); `None` for fewer than two sources.
pub fn nested(rows: &[RowResult]) -> Option<Nested> {
    let mut by_source: BTreeMap<&str, Points> = BTreeMap::new();
    for row in rows.iter().filter(|r| !r.weak) {
        let Some(entry) = row.scored.and_then(|i| row.entries.get(i)) else { continue };
        let Some([value, low, high]) = entry.predicted else { continue };
        let point = ((entry.measured / value).ln().abs(), 0.5 * (high / low).ln());
        if point.0.is_finite() && point.1.is_finite() {
            by_source.entry(&row.source).or_default().push(point);
        }
    }
    if by_source.len() < 2 {
        return None;
    }
    let mut out = Nested { factors: (f64::INFINITY, 0.0), ..Nested::default() };
    let (mut inside, mut all) = (0, 0);
    for (source, own) in &by_source {
        let cost = |factor: f64| -> f64 {
            let others = by_source.iter().filter(|(name, _)| *name != source);
            others.map(|(_, points)| (points.len() as f64).powf(0.25) * score(points, factor)).sum()
        };
        let factors = (8..=40).map(|f| 0.05 * f64::from(f));
        let factor = factors.min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(1.0);
        let within = own.iter().filter(|(error, half)| *error <= factor * half).count();
        out.factors = (out.factors.0.min(factor), out.factors.1.max(factor));
        out.sources.insert((*source).to_owned(), 100.0 * within as f64 / own.len() as f64);
        inside += within;
        all += own.len();
    }
    out.coverage = 100.0 * f64::from(inside as u32) / f64::from(all.max(1) as u32);
    Some(out)
}

/// Mean interval score of an 80 % interval.
fn score(points: &[(f64, f64)], factor: f64) -> f64 {
    let each = |(error, half): &(f64, f64)| 2.0 * factor * half + 10.0 * (error - factor * half).max(0.0);
    points.iter().map(each).sum::<f64>() / points.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_least_where_eight_in_ten_are_inside() {
        // Errors 0.01 to 0.10, intervals of half-width 0.1: eight lie within a factor of 0.8.
        let points: Points = (1..=10).map(|i| (0.01 * f64::from(i), 0.1)).collect();
        let best = (1..=20)
            .map(|f| 0.1 * f64::from(f))
            .min_by(|a, b| score(&points, *a).total_cmp(&score(&points, *b)));
        assert!((0.75..0.95).contains(&best.unwrap()), "{best:?}");
    }
}
