//! What the laws of serving kernels miss: a smooth surface over three coordinates, kept only where it helps on rows that
//! it was not fitted to.

use super::FitLine;
use crate::fit::surface::{self, Residual, Smoothing};
use psim_cost_models::grid;
use psim_hardware::profile::accelerator::ResidualGrid;

/// Fewest rows for a surface.
const FEWEST: usize = 40;

/// Fits a surface to `errors` = ln(measured / law) at `points`. Returns it with the standard deviation of what is left
/// (on rows held out of a trial fit), or nothing with `sigma`, that of the law alone. The last error line is restated.
pub(super) fn residual(
    axes: &[&[f64]; 3],
    points: &[[f64; 3]],
    errors: &[f64],
    sigma: f64,
    lines: &mut [FitLine],
) -> (Option<ResidualGrid>, f64) {
    if points.len() < FEWEST {
        return (None, sigma);
    }
    let axes = clip(axes, points);
    let smoothing = Smoothing { curvature: [0.5, 0.5, 0.3], shrink: 0.1 };
    let surface = |keep: &dyn Fn(usize) -> bool| -> ResidualGrid {
        let chosen: Vec<Residual> = points
            .iter()
            .zip(errors)
            .enumerate()
            .filter(|(i, _)| keep(*i))
            .map(|(_, (at, value))| Residual { at: *at, value: value.clamp(-1.5, 1.5), weight: 1.0 })
            .collect();
        surface::to_grid(&surface::fit(&chosen, &axes, &smoothing), &axes)
    };
    let held = |i: usize| held_out(points[i]);
    let trial = grid::Residual::new(Some(&surface(&|i| !held(i))));
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for i in (0..points.len()).filter(|i| held(*i)) {
        before.push(errors[i].abs());
        after.push((errors[i] - trial.at(points[i])).abs());
    }
    let mean = |v: &[f64]| v.iter().map(|e| e.min(1.0)).sum::<f64>() / v.len().max(1) as f64;
    if after.len() < 8 || mean(&after) > 0.95 * mean(&before) {
        return (None, sigma);
    }
    let grid = surface(&|_| true);
    let left = (after.iter().map(|e| e.min(1.0).powi(2)).sum::<f64>() / after.len() as f64).sqrt();
    if let Some(line) = lines.last_mut() {
        after.sort_by(f64::total_cmp);
        let at = |q: f64| 100.0 * after[((after.len() - 1) as f64 * q) as usize].exp_m1();
        (line.median, line.p90) = (at(0.5), at(0.9));
        line.what.push_str(" +");
    }
    (Some(grid), format!("{left:.3e}").parse().unwrap_or(left))
}

/// One row in five, by its coordinates.
fn held_out(point: [f64; 3]) -> bool {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for value in point {
        hash = (hash ^ value.to_bits()).wrapping_mul(0x0100_0000_01b3);
        hash ^= hash >> 29;
    }
    hash.is_multiple_of(5)
}

/// Grid lines that the points span, and one beyond on each side.
fn clip(axes: &[&[f64]; 3], points: &[[f64; 3]]) -> [Vec<f64>; 3] {
    std::array::from_fn(|d| {
        let low = points.iter().map(|p| p[d]).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(|p| p[d]).fold(0.0, f64::max);
        let axis = axes[d];
        let first = axis.iter().rposition(|a| *a <= low).unwrap_or(0);
        let last = axis.iter().position(|a| *a >= high).unwrap_or(axis.len() - 1).max(first);
        axis[first..=last].to_vec()
    })
}
