//! Downhill simplex (Nelder and Mead 1965) in scaled coordinates; small problems, no derivatives.

/// Minimises `f` from `start` with initial steps `step`; returns the best point. Deterministic.
pub fn minimise(f: &mut dyn FnMut(&[f64]) -> f64, start: &[f64], step: f64, evaluations: usize) -> Vec<f64> {
    let n = start.len();
    let mut points: Vec<(f64, Vec<f64>)> = vec![(f(start), start.to_vec())];
    for i in 0..n {
        let mut p = start.to_vec();
        p[i] += step;
        points.push((f(&p), p));
    }
    let mut used = n + 1;
    while used < evaluations {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        if points[n].0 - points[0].0 < 1e-7 * points[0].0.abs().max(1e-12) {
            break;
        }
        let centre: Vec<f64> =
            (0..n).map(|i| points[..n].iter().map(|p| p.1[i]).sum::<f64>() / n as f64).collect();
        let worst = points[n].1.clone();
        let along = |t: f64| -> Vec<f64> { (0..n).map(|i| centre[i] + t * (centre[i] - worst[i])).collect() };
        let reflected = along(1.0);
        let value = f(&reflected);
        used += 1;
        if value < points[0].0 {
            let expanded = along(2.0);
            let further = f(&expanded);
            used += 1;
            points[n] = if further < value { (further, expanded) } else { (value, reflected) };
        } else if value < points[n - 1].0 {
            points[n] = (value, reflected);
        } else {
            let contracted = along(if value < points[n].0 { 0.5 } else { -0.5 });
            let nearer = f(&contracted);
            used += 1;
            if nearer < value.min(points[n].0) {
                points[n] = (nearer, contracted);
            } else {
                let best = points[0].1.clone();
                for point in &mut points[1..] {
                    for (value, best) in point.1.iter_mut().zip(&best) {
                        *value = best + 0.5 * (*value - best);
                    }
                    point.0 = f(&point.1);
                    used += 1;
                }
            }
        }
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points.swap_remove(0).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_valley() {
        let mut rosenbrock = |p: &[f64]| (1.0 - p[0]).powi(2) + 100.0 * (p[1] - p[0] * p[0]).powi(2);
        let best = minimise(&mut rosenbrock, &[-1.2, 1.0], 0.5, 2000);
        assert!((best[0] - 1.0).abs() < 1e-2 && (best[1] - 1.0).abs() < 1e-2, "{best:?}");
    }
}
