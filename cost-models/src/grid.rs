//! Residual grids made ready for look-up: linear interpolation in log2 of up to three axes, no allocation.

use psim_hardware::profile::accelerator::ResidualGrid;

/// A residual grid with its axes as logarithms.
#[derive(Debug, Clone, Default)]
pub struct Residual {
    axes: [Vec<f32>; 3],
    values: Vec<f32>,
}

/// Position on one axis: lower line and fraction towards the next.
#[derive(Debug, Clone, Copy)]
struct Position {
    line: usize,
    fraction: f64,
}

impl Residual {
    /// Prepares a grid; a malformed one (axes and values that do not agree) counts as absent.
    pub fn new(grid: Option<&ResidualGrid>) -> Self {
        let Some(grid) = grid else { return Self::default() };
        let cells: usize = grid.axes.iter().map(Vec::len).product();
        if grid.axes.len() != 3 || cells == 0 || cells != grid.centinats.len() {
            return Self::default();
        }
        let axis = |i: usize| grid.axes[i].iter().map(|v| v.max(1e-9).log2() as f32).collect();
        Self {
            axes: [axis(0), axis(1), axis(2)],
            values: grid.centinats.iter().map(|&c| f32::from(c) / 100.0).collect(),
        }
    }

    /// No residual known.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All three coordinates (natural units) lie within the grid lines.
    pub fn covers(&self, point: [f64; 3]) -> bool {
        !self.is_empty()
            && self.axes.iter().zip(point).all(|(axis, value)| {
                let x = value.max(1e-9).log2() as f32;
                axis.first().is_some_and(|&low| x >= low - 0.01)
                    && axis.last().is_some_and(|&high| x <= high + 0.01)
            })
    }

    /// ln(measured / law) at a point given in natural units; 0 without a grid. Above the grid the edge value holds (the
    /// law is proportional there). Below it the edge value halves with every octave: tiny calls are mostly launch, and a
    /// residual of larger ones would not even grow with the shape.
    pub fn at(&self, point: [f64; 3]) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        let p = [
            locate(&self.axes[0], point[0]),
            locate(&self.axes[1], point[1]),
            locate(&self.axes[2], point[2]),
        ];
        let below: f64 = self
            .axes
            .iter()
            .zip(point)
            .map(|(axis, value)| (f64::from(axis[0]) - value.max(1e-9).log2()).max(0.0))
            .sum();
        let (wide, deep) = (self.axes[1].len(), self.axes[2].len());
        let mut total = 0.0;
        for corner in 0..8usize {
            let mut weight = 1.0;
            let mut index = [0usize; 3];
            for (axis, position) in p.iter().enumerate() {
                if corner >> axis & 1 == 1 {
                    weight *= position.fraction;
                    index[axis] = (position.line + 1).min(self.axes[axis].len() - 1);
                } else {
                    weight *= 1.0 - position.fraction;
                    index[axis] = position.line;
                }
            }
            if weight > 0.0 {
                total += weight * f64::from(self.values[(index[0] * wide + index[1]) * deep + index[2]]);
            }
        }
        total * (-below).exp2()
    }
}

fn locate(axis: &[f32], value: f64) -> Position {
    let x = value.max(1e-9).log2() as f32;
    let last = axis.len() - 1;
    if x <= axis[0] {
        return Position { line: 0, fraction: 0.0 };
    }
    if x >= axis[last] {
        return Position { line: last, fraction: 0.0 };
    }
    let line = axis.partition_point(|&a| a <= x) - 1;
    let fraction = f64::from((x - axis[line]) / (axis[line + 1] - axis[line]));
    Position { line, fraction }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> ResidualGrid {
        ResidualGrid {
            axes: vec![vec![1.0, 4.0], vec![1.0, 2.0], vec![1.0]],
            centinats: vec![0, 100, 200, 300],
        }
    }

    #[test]
    fn interpolates_in_the_logarithm_and_fades_below() {
        let residual = Residual::new(Some(&grid()));
        assert!((residual.at([1.0, 1.0, 7.0]) - 0.0).abs() < 1e-6);
        assert!((residual.at([2.0, 1.0, 1.0]) - 1.0).abs() < 1e-6);
        assert!((residual.at([4.0, 2.0, 1.0]) - 3.0).abs() < 1e-6);
        assert!((residual.at([1e9, 1e9, 1.0]) - 3.0).abs() < 1e-6);
        assert!((residual.at([4.0, 2.0, 0.5]) - 1.5).abs() < 1e-6);
        assert!(residual.covers([2.0, 1.5, 1.0]));
        assert!(!residual.covers([8.0, 1.5, 1.0]));
    }

    #[test]
    fn a_malformed_grid_counts_as_absent() {
        let mut bad = grid();
        bad.centinats.pop();
        assert!(Residual::new(Some(&bad)).is_empty());
    }
}
