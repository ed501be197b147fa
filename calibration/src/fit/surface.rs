//! Fits a smooth residual surface over three logarithmic axes to scattered points.
//!
//! Minimises Σ w·(r − interpolation)² + λ·Σ (second differences)² + μ·Σ value² by conjugate gradients, reweighted so
//! that outliers count linearly (Huber). The result is a grid for linear interpolation.

use psim_hardware::profile::accelerator::ResidualGrid;

/// One residual at a point (natural units) with its weight.
#[derive(Debug, Clone, Copy)]
pub struct Residual {
    /// Coordinates.
    pub at: [f64; 3],
    /// ln(measured / law).
    pub value: f64,
    /// Weight.
    pub weight: f64,
}

/// How strongly the surface is smoothed.
#[derive(Debug, Clone, Copy)]
pub struct Smoothing {
    /// Weight of second differences per axis.
    pub curvature: [f64; 3],
    /// Pull towards zero (towards the law).
    pub shrink: f64,
}

/// Residual at which the loss turns from quadratic to linear.
const HUBER: f64 = 0.10;

/// The eight corners and weights of one point.
type Stencil = ([u32; 8], [f32; 8]);

fn stencil(axes: &[Vec<f64>; 3], at: [f64; 3]) -> Stencil {
    let mut lines = [[0usize; 2]; 3];
    let mut fractions = [0.0f64; 3];
    for d in 0..3 {
        let axis = &axes[d];
        let x = at[d].max(1e-9).log2();
        let last = axis.len() - 1;
        let low = axis.iter().rposition(|&a| a.log2() <= x).unwrap_or(0).min(last);
        let high = (low + 1).min(last);
        let (a, b) = (axis[low].log2(), axis[high].log2());
        fractions[d] = if high == low { 0.0 } else { ((x - a) / (b - a)).clamp(0.0, 1.0) };
        lines[d] = [low, high];
    }
    let mut index = [0u32; 8];
    let mut weight = [0f32; 8];
    for corner in 0..8usize {
        let mut w = 1.0;
        let mut cell = 0usize;
        for d in 0..3 {
            let side = corner >> d & 1;
            w *= if side == 1 { fractions[d] } else { 1.0 - fractions[d] };
            cell = cell * axes[d].len() + lines[d][side];
        }
        index[corner] = cell as u32;
        weight[corner] = w as f32;
    }
    (index, weight)
}

fn read(values: &[f64], (index, weight): &Stencil) -> f64 {
    index.iter().zip(weight).map(|(&i, &w)| values[i as usize] * f64::from(w)).sum()
}

/// Applies the smoothing operator: out += curvature·D'D·x + shrink·x.
fn smooth(axes: &[Vec<f64>; 3], smoothing: &Smoothing, x: &[f64], out: &mut [f64]) {
    let size = [axes[0].len(), axes[1].len(), axes[2].len()];
    let stride = [size[1] * size[2], size[2], 1];
    for (o, v) in out.iter_mut().zip(x) {
        *o += smoothing.shrink * v;
    }
    for d in 0..3 {
        for cell in 0..x.len() {
            let line = cell / stride[d] % size[d];
            if line == 0 {
                continue;
            }
            let (a, b) = (cell - stride[d], cell);
            if line + 1 < size[d] {
                let c = cell + stride[d];
                let bend = smoothing.curvature[d] * (x[a] - 2.0 * x[b] + x[c]);
                out[a] += bend;
                out[b] -= 2.0 * bend;
                out[c] += bend;
            }
            let slope = 0.1 * smoothing.curvature[d] * (x[b] - x[a]);
            out[b] += slope;
            out[a] -= slope;
        }
    }
}

/// Fits the surface; deterministic.
pub fn fit(points: &[Residual], axes: &[Vec<f64>; 3], smoothing: &Smoothing) -> Vec<f64> {
    let cells = axes[0].len() * axes[1].len() * axes[2].len();
    let stencils: Vec<Stencil> = points.iter().map(|p| stencil(axes, p.at)).collect();
    let mut values = vec![0.0; cells];
    for round in 0..4 {
        let weights: Vec<f64> = points
            .iter()
            .zip(&stencils)
            .map(|(p, s)| {
                let error = (p.value - read(&values, s)).abs();
                if round == 0 || error < HUBER { p.weight } else { p.weight * HUBER / error }
            })
            .collect();
        let apply = |x: &[f64], out: &mut [f64]| {
            out.fill(0.0);
            for (s, w) in stencils.iter().zip(&weights) {
                let r = w * read(x, s);
                for (&i, &c) in s.0.iter().zip(&s.1) {
                    out[i as usize] += r * f64::from(c);
                }
            }
            smooth(axes, smoothing, x, out);
        };
        let mut right = vec![0.0; cells];
        for ((p, s), w) in points.iter().zip(&stencils).zip(&weights) {
            for (&i, &c) in s.0.iter().zip(&s.1) {
                right[i as usize] += w * p.value * f64::from(c);
            }
        }
        conjugate_gradients(&apply, &right, &mut values);
    }
    values
}

fn conjugate_gradients(apply: &dyn Fn(&[f64], &mut [f64]), right: &[f64], x: &mut [f64]) {
    let mut product = vec![0.0; x.len()];
    apply(x, &mut product);
    let mut residual: Vec<f64> = right.iter().zip(&product).map(|(b, p)| b - p).collect();
    let mut direction = residual.clone();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(p, q)| p * q).sum::<f64>();
    let mut norm = dot(&residual, &residual);
    let goal = 1e-12 * dot(right, right).max(1e-30);
    for _ in 0..400 {
        if norm <= goal {
            break;
        }
        apply(&direction, &mut product);
        let step = norm / dot(&direction, &product).max(1e-300);
        for i in 0..x.len() {
            x[i] += step * direction[i];
            residual[i] -= step * product[i];
        }
        let next = dot(&residual, &residual);
        let ratio = next / norm;
        norm = next;
        for (d, r) in direction.iter_mut().zip(&residual) {
            *d = r + ratio * *d;
        }
    }
}

/// Raises values so that `law + value` never falls along any axis (running maximum along each axis in turn, halfway
/// between raising the later and lowering the earlier one).
pub fn make_monotone(values: &mut [f64], law: &[f64], axes: &[Vec<f64>; 3]) {
    let size = [axes[0].len(), axes[1].len(), axes[2].len()];
    let stride = [size[1] * size[2], size[2], 1];
    for _ in 0..200 {
        let mut worst: f64 = 0.0;
        for d in 0..3 {
            for cell in 0..values.len() {
                if (cell / stride[d]).is_multiple_of(size[d]) {
                    continue;
                }
                let before = cell - stride[d];
                let fall = (law[before] + values[before]) - (law[cell] + values[cell]);
                if fall > 0.0 {
                    values[before] -= 0.5 * fall;
                    values[cell] += 0.5 * fall;
                    worst = worst.max(fall);
                }
            }
        }
        if worst < 1e-4 {
            break;
        }
    }
}

/// The profile form of a fitted surface, rounded to hundredths.
pub fn to_grid(values: &[f64], axes: &[Vec<f64>; 3]) -> ResidualGrid {
    ResidualGrid {
        axes: axes.to_vec(),
        centinats: values.iter().map(|v| (v * 100.0).round().clamp(-300.0, 300.0) as i16).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovers_a_smooth_surface_from_scattered_points() {
        let axes = [vec![1.0, 8.0, 64.0, 512.0], vec![1.0, 16.0, 256.0], vec![2.0, 32.0]];
        let truth = |p: [f64; 3]| 0.02 * p[0].log2() - 0.01 * p[1].log2() + 0.03 * p[2].log2();
        let points: Vec<Residual> = (0..400)
            .map(|i| {
                let at = [
                    2f64.powf(f64::from(i * 7 % 90) / 10.0),
                    2f64.powf(f64::from(i * 11 % 80) / 10.0),
                    2f64.powf(1.0 + f64::from(i * 13 % 40) / 10.0),
                ];
                Residual { at, value: truth(at), weight: 1.0 }
            })
            .collect();
        let values = fit(&points, &axes, &Smoothing { curvature: [1e-3; 3], shrink: 1e-6 });
        for p in &points {
            let error = read(&values, &stencil(&axes, p.at)) - p.value;
            assert!(error.abs() < 5e-3, "{p:?} {error}");
        }
    }

    #[test]
    fn monotone_after_repair() {
        let axes = [vec![1.0, 2.0, 4.0], vec![1.0], vec![1.0]];
        let mut values = vec![0.0, 0.5, -0.5];
        let law = vec![0.0, 0.1, 0.2];
        make_monotone(&mut values, &law, &axes);
        assert!(
            law[0] + values[0] <= law[1] + values[1] + 1e-3
                && law[1] + values[1] <= law[2] + values[2] + 1e-3
        );
    }
}
