//! Derivative-free minimisation (Nelder and Mead 1965) and bounded parameters.

/// Minimises `objective` from `start` with initial steps `step`; deterministic, at most `evaluations` calls.
pub fn nelder_mead(
    objective: &mut dyn FnMut(&[f64]) -> f64,
    start: &[f64],
    step: f64,
    evaluations: usize,
) -> (Vec<f64>, f64) {
    let n = start.len();
    let mut points: Vec<(Vec<f64>, f64)> = Vec::with_capacity(n + 1);
    points.push((start.to_vec(), objective(start)));
    for i in 0..n {
        let mut p = start.to_vec();
        p[i] += step;
        let value = objective(&p);
        points.push((p, value));
    }
    let mut calls = n + 1;
    while calls < evaluations {
        points.sort_by(|a, b| a.1.total_cmp(&b.1));
        let spread = points[n].1 - points[0].1;
        if spread.abs() < 1e-9 * (1.0 + points[0].1.abs()) {
            break;
        }
        let mut centre = vec![0.0; n];
        for (p, _) in &points[..n] {
            for (c, x) in centre.iter_mut().zip(p) {
                *c += x / n as f64;
            }
        }
        let along = |t: f64, worst: &[f64]| -> Vec<f64> {
            centre.iter().zip(worst).map(|(c, w)| c + t * (c - w)).collect()
        };
        let worst = points[n].clone();
        let reflected = along(1.0, &worst.0);
        let value = objective(&reflected);
        calls += 1;
        if value < points[0].1 {
            let expanded = along(2.0, &worst.0);
            let further = objective(&expanded);
            calls += 1;
            points[n] = if further < value { (expanded, further) } else { (reflected, value) };
        } else if value < points[n - 1].1 {
            points[n] = (reflected, value);
        } else {
            let contracted = if value < worst.1 { along(0.5, &worst.0) } else { along(-0.5, &worst.0) };
            let inner = objective(&contracted);
            calls += 1;
            if inner < value.min(worst.1) {
                points[n] = (contracted, inner);
            } else {
                let best = points[0].0.clone();
                for point in points.iter_mut().skip(1) {
                    let p: Vec<f64> = point.0.iter().zip(&best).map(|(x, b)| b + 0.5 * (x - b)).collect();
                    let value = objective(&p);
                    calls += 1;
                    *point = (p, value);
                }
            }
        }
    }
    points.sort_by(|a, b| a.1.total_cmp(&b.1));
    points.swap_remove(0)
}

/// A parameter kept inside (low, high) by a logistic map, so that the search itself is unbounded.
#[derive(Debug, Clone, Copy)]
pub struct Bounded {
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Bounded {
    /// Search variable to parameter.
    pub fn value(self, z: f64) -> f64 {
        self.low + (self.high - self.low) / (1.0 + (-z).exp())
    }

    /// Parameter to search variable.
    pub fn search(self, value: f64) -> f64 {
        let share = ((value - self.low) / (self.high - self.low)).clamp(1e-6, 1.0 - 1e-6);
        (share / (1.0 - share)).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_bottom_of_a_banana() {
        let mut f = |p: &[f64]| (1.0 - p[0]).powi(2) + 100.0 * (p[1] - p[0] * p[0]).powi(2);
        let (at, value) = nelder_mead(&mut f, &[-1.2, 1.0], 0.5, 2000);
        assert!(value < 1e-6 && (at[0] - 1.0).abs() < 1e-2, "{at:?} {value}");
    }

    #[test]
    fn bounds_map_back_and_forth() {
        let bound = Bounded { low: 0.1, high: 0.9 };
        assert!((bound.value(bound.search(0.3)) - 0.3).abs() < 1e-9);
        assert!(bound.value(1e3) <= 0.9 && bound.value(-1e3) >= 0.1);
    }
}
