//! Least absolute errors by damped Gauss-Newton steps: all numbers move at once, so that those which stand in for one
//! another (host time of a step, idle time of a layer, efficiency of products) do not block each other as they do when
//! only one moves.

use super::{FITTED, Sample};
use crate::validate_serving::predict::{Figures, ServingPredictor, restate};
use psim_cost_models::serving::EngineParameters;
use rayon::prelude::*;

/// Step of the finite differences, in the units of [`coordinate`].
const DIFFERENCE: f64 = 0.06;
/// Errors below this count as squares; above as absolute values.
const CORNER: f64 = 0.02;
/// Errors above this count no further: the row is of another kind.
const CLIP: f64 = 0.8;

/// What is minimised: mean weighted absolute logarithmic error of the samples, plus a pull to where numbers come from.
pub(super) struct Problem<'a> {
    pub(super) predictor: &'a ServingPredictor,
    pub(super) samples: Vec<&'a Sample>,
    /// Numbers are pulled here.
    pub(super) anchor: EngineParameters,
    /// Strength of the pull per unit of logarithm.
    pub(super) pull: f64,
}

/// Weight and signed error of each metric of each sample, in a fixed order.
pub(super) type Errors = Vec<(f64, f64)>;

/// Parameters that may be zero move on their own scale, the others on a logarithmic one.
pub(super) fn coordinate(name: &str, value: f64) -> f64 {
    match name {
        "kv_reuse" | "pipeline" | "worker" | "cast" | "arithmetic" | "moe_arithmetic" => value,
        "reduce_us" => 0.2 * value,
        "moe_us" => 0.03 * value,
        "front_us" => (1.0 + value / 300.0).ln(),
        _ => value.max(1e-6).ln(),
    }
}

pub(super) fn value(name: &str, coordinate: f64) -> f64 {
    match name {
        "kv_reuse" | "pipeline" | "worker" | "cast" | "arithmetic" | "moe_arithmetic" => coordinate,
        "reduce_us" => 5.0 * coordinate,
        "moe_us" => coordinate / 0.03,
        "front_us" => 300.0 * (coordinate.exp() - 1.0),
        _ => coordinate.exp(),
    }
}

fn moved(p: EngineParameters, name: &str, by: f64) -> EngineParameters {
    let mut next = p;
    if let Some(now) = p.get(name) {
        next.set(name, value(name, coordinate(name, now) + by));
    }
    next
}

/// Weight and signed logarithmic error of each metric of a sample.
pub(super) fn errors(s: &Sample, figures: Option<&Figures>) -> Errors {
    let weight = |metric: &str| FITTED.iter().find(|f| f.0 == metric).map_or(0.0, |f| f.1);
    let all: f64 = s.measured.iter().map(|(m, _)| weight(m)).sum();
    s.measured
        .iter()
        .map(|(metric, measured)| {
            let predicted = figures.and_then(|f| restate(metric, &s.mapped, f));
            let error = predicted.map_or(CLIP, |[v, ..]| (v / measured).ln());
            let error = if error.is_finite() { error.clamp(-3.0, 3.0) } else { CLIP };
            (weight(metric) / all.max(1e-9), error)
        })
        .collect()
}

impl Problem<'_> {
    fn errors(&self, p: EngineParameters) -> Errors {
        let mut with = self.predictor.clone();
        with.parameters = Some(p);
        let parts: Vec<Errors> =
            self.samples.par_iter().map(|s| errors(s, s.figures(&with, p).as_ref())).collect();
        parts.into_iter().flatten().collect()
    }

    fn distance(&self, p: EngineParameters) -> f64 {
        EngineParameters::BOUNDS
            .iter()
            .filter_map(|(n, ..)| {
                let (a, b) = (p.get(n)?, self.anchor.get(n)?);
                Some((coordinate(n, a) - coordinate(n, b)).abs().min(3.0))
            })
            .sum()
    }

    fn total(&self, errors: &Errors, p: EngineParameters) -> f64 {
        let sum: f64 = errors.iter().map(|(w, e)| w * e.abs().min(CLIP)).sum();
        sum / self.samples.len().max(1) as f64 + self.pull * self.distance(p)
    }

    /// What is minimised.
    pub(super) fn loss(&self, p: EngineParameters) -> f64 {
        self.total(&self.errors(p), p)
    }

    /// Steps of the numbers `names` from `start` until they stop helping, `most` at the most. Returns numbers and loss.
    pub(super) fn minimise(
        &self,
        start: EngineParameters,
        names: &[&str],
        most: usize,
    ) -> (EngineParameters, f64) {
        let mut best = start;
        let mut errors = self.errors(best);
        let mut value = self.total(&errors, best);
        let mut damping = 0.1;
        let mut columns: Vec<Vec<f64>> = Vec::new();
        for round in 0..most {
            // Slopes are dear and change slowly: each set serves two steps.
            if round % 2 == 0 {
                columns = names.iter().map(|name| self.column(best, name, &errors)).collect();
            }
            let mut improved = false;
            for _ in 0..5 {
                let step = self.step(best, names, &errors, &columns, damping);
                let mut next = best;
                for (name, by) in names.iter().zip(&step) {
                    next = moved(next, name, by.clamp(-0.7, 0.7));
                }
                let there = self.errors(next);
                let candidate = self.total(&there, next);
                if candidate < value - 2e-5 {
                    improved = value - candidate > 3e-4;
                    (best, value, errors) = (next, candidate, there);
                    damping = (damping * 0.6).max(0.01);
                    break;
                }
                damping *= 5.0;
            }
            if !improved && round % 2 == 0 {
                break;
            }
        }
        (best, value)
    }

    /// Moves one number after another up or down where that helps, for `rounds` rounds: slopes of first-token times are
    /// rough, and steps of all numbers at once end where a common step does not help. A number's step grows by half when
    /// it helped and halves when not.
    pub(super) fn walk(
        &self,
        start: EngineParameters,
        names: &[&str],
        rounds: usize,
    ) -> (EngineParameters, f64) {
        let (mut best, mut value) = (start, self.loss(start));
        let mut steps = vec![0.3; names.len()];
        for _ in 0..rounds {
            let before = value;
            for (name, step) in names.iter().zip(&mut steps) {
                let found = [*step, -*step].into_iter().find_map(|by| {
                    let next = moved(best, name, by);
                    let loss = (next != best).then(|| self.loss(next))?;
                    (loss < value - 2e-5).then_some((next, loss))
                });
                match found {
                    Some(found) => {
                        (best, value) = found;
                        *step *= 1.5;
                    }
                    None => *step *= 0.5,
                }
            }
            if before - value < 1e-4 {
                break;
            }
        }
        (best, value)
    }

    /// Puts numbers back to the anchor, the least useful first, while each costs less than `worth` on straight lines
    /// through `found`; the others move along. Ends with steps on the true errors.
    pub(super) fn prune(
        &self,
        found: EngineParameters,
        names: &[&str],
        worth: f64,
    ) -> (EngineParameters, f64) {
        let errors = self.errors(found);
        let mut left: Vec<&str> =
            names.iter().copied().filter(|n| found.get(n) != self.anchor.get(n)).collect();
        let columns: Vec<Vec<f64>> = left.iter().map(|name| self.column(found, name, &errors)).collect();
        let line = Lines { problem: self, from: found, names: left.clone(), errors, columns };
        let mut value = line.best(&left).1;
        let mut best = found;
        while !left.is_empty() {
            let without = |name: &str| -> Vec<&str> { left.iter().copied().filter(|n| *n != name).collect() };
            let cheapest = left
                .iter()
                .map(|n| {
                    let rest = without(n);
                    let (p, loss) = line.best(&rest);
                    (rest, p, loss)
                })
                .min_by(|a, b| a.2.total_cmp(&b.2));
            let Some((rest, p, loss)) = cheapest.filter(|c| c.2 < value + worth) else { break };
            (left, best, value) = (rest, p, loss);
        }
        self.minimise(best, &left, 2)
    }

    /// Derivative of every error by one number.
    fn column(&self, p: EngineParameters, name: &str, errors: &Errors) -> Vec<f64> {
        let mut by = DIFFERENCE;
        let mut next = moved(p, name, by);
        if next.get(name) == p.get(name) {
            by = -DIFFERENCE;
            next = moved(p, name, by);
        }
        let (Some(a), Some(b)) = (next.get(name), p.get(name)) else { return vec![0.0; errors.len()] };
        let span = coordinate(name, a) - coordinate(name, b);
        if span.abs() < 1e-9 {
            return vec![0.0; errors.len()];
        }
        self.errors(next).iter().zip(errors).map(|(n, o)| (n.1 - o.1) / span).collect()
    }

    /// Solves (JᵀWJ + damping) d = -JᵀWe with weights 1/|e| (absolute errors as reweighted squares), the pull included.
    fn step(
        &self,
        p: EngineParameters,
        names: &[&str],
        errors: &Errors,
        columns: &[Vec<f64>],
        damping: f64,
    ) -> Vec<f64> {
        let n = names.len();
        let mut matrix = vec![vec![0.0; n + 1]; n];
        let scale = 1.0 / self.samples.len().max(1) as f64;
        for (row, (weight, error)) in errors.iter().enumerate() {
            // Rows of another kind hardly steer.
            let far = if error.abs() > CLIP { 0.2 } else { 1.0 };
            let w = scale * weight * far / error.abs().max(CORNER / weight.max(0.1).sqrt());
            for i in 0..n {
                let a = w * columns[i][row];
                if a == 0.0 {
                    continue;
                }
                for j in 0..n {
                    matrix[i][j] += a * columns[j][row];
                }
                matrix[i][n] -= a * error;
            }
        }
        for (i, name) in names.iter().enumerate() {
            let (Some(a), Some(b)) = (p.get(name), self.anchor.get(name)) else { continue };
            let away = coordinate(name, a) - coordinate(name, b);
            let w = self.pull / away.abs().max(0.05);
            // In the number's own scale: weak ones must be free to move far.
            matrix[i][i] += w + damping * matrix[i][i] + 5e-4;
            matrix[i][n] -= w * away;
        }
        solve(matrix)
    }
}

/// The errors around a point as straight lines.
struct Lines<'a> {
    problem: &'a Problem<'a>,
    from: EngineParameters,
    names: Vec<&'a str>,
    errors: Errors,
    columns: Vec<Vec<f64>>,
}

impl Lines<'_> {
    /// The best point where only `free` numbers differ from the anchor, and its loss.
    fn best(&self, free: &[&str]) -> (EngineParameters, f64) {
        let mut p = self.from;
        for name in self.names.iter().filter(|n| !free.contains(n)) {
            p.set(name, self.problem.anchor.get(name).unwrap_or_default());
        }
        let mut errors = self.at(p);
        let mut loss = self.problem.total(&errors, p);
        let columns: Vec<Vec<f64>> = free
            .iter()
            .filter_map(|n| self.names.iter().position(|m| m == n).map(|i| self.columns[i].clone()))
            .collect();
        for _ in 0..12 {
            let step = self.problem.step(p, free, &errors, &columns, 1e-3);
            let mut next = p;
            for (name, by) in free.iter().zip(&step) {
                next = moved(next, name, by.clamp(-1.0, 1.0));
            }
            let there = self.at(next);
            let candidate = self.problem.total(&there, next);
            if candidate >= loss - 1e-6 {
                break;
            }
            (p, errors, loss) = (next, there, candidate);
        }
        (p, loss)
    }

    fn at(&self, p: EngineParameters) -> Errors {
        let mut errors = self.errors.clone();
        for (name, column) in self.names.iter().zip(&self.columns) {
            let (Some(a), Some(b)) = (p.get(name), self.from.get(name)) else { continue };
            let by = coordinate(name, a) - coordinate(name, b);
            for (e, slope) in errors.iter_mut().zip(column) {
                e.1 += by * slope;
            }
        }
        errors
    }
}

/// Gaussian elimination with row pivots on `n` rows of `n` coefficients and a right-hand side.
fn solve(mut m: Vec<Vec<f64>>) -> Vec<f64> {
    let n = m.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|a, b| m[*a][i].abs().total_cmp(&m[*b][i].abs())).unwrap_or(i);
        m.swap(i, pivot);
        if m[i][i].abs() < 1e-15 {
            continue;
        }
        let row = m[i].clone();
        for (j, other) in m.iter_mut().enumerate() {
            if j != i {
                let factor = other[i] / row[i];
                for (o, r) in other.iter_mut().zip(&row) {
                    *o -= factor * r;
                }
            }
        }
    }
    (0..n).map(|i| if m[i][i].abs() < 1e-15 { 0.0 } else { m[i][n] / m[i][i] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_are_solved() {
        // 2x + y = 5, x - 3y = -8, with a zero pivot first: 0x + 2y + z = 7, …
        let x = solve(vec![vec![0.0, 2.0, 1.0, 7.0], vec![2.0, 1.0, 0.0, 4.0], vec![1.0, 0.0, 3.0, 10.0]]);
        // x = 1, y = 2, z = 3.
        for (a, b) in x.iter().zip([1.0, 2.0, 3.0]) {
            assert!((a - b).abs() < 1e-12, "{x:?}");
        }
    }

    #[test]
    fn numbers_stay_within_their_bounds() {
        let p = EngineParameters::default();
        for (name, low, high) in EngineParameters::BOUNDS {
            for by in [-50.0, -0.1, 0.1, 50.0] {
                let v = moved(p, name, by).get(name).unwrap();
                assert!((low..=high).contains(&v), "{name} {by}: {v}");
            }
        }
    }
}
