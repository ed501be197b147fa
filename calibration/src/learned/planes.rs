//! Interpolation by local planes: the plane through the measured points that fits those nearby best, weighted by the
//! inverse fourth power of the distance, kept within what the nearest ones say.

use super::kriging::Point;

/// Weight that pulls the slopes of a local plane to zero: little beside one measured point two doublings away (0.24).
const SLOPE_RIDGE: f64 = 0.02;

/// The value at a point (coordinates in doublings); 0 without points.
pub fn at(points: &[Point], point: [f64; 3]) -> f64 {
    // Weighted normal equations of value ≈ c0 + Σ c·distance, slopes held back a little where nothing fixes them.
    let (mut matrix, mut right) = ([[0.0; 4]; 4], [0.0; 4]);
    let mut nearest: Vec<(f64, f64)> = Vec::new();
    for (p, value) in points {
        let d: [f64; 3] = std::array::from_fn(|axis| p[axis] - point[axis]);
        let distance: f64 = d.iter().map(|d| d * d).sum();
        if distance < 1e-12 {
            return *value;
        }
        nearest.push((distance, *value));
        let w = (distance + 0.1).powi(-2);
        let row = [1.0, d[0], d[1], d[2]];
        for a in 0..4 {
            for b in 0..4 {
                matrix[a][b] += w * row[a] * row[b];
            }
            right[a] += w * row[a] * value;
        }
    }
    if nearest.is_empty() {
        return 0.0;
    }
    for (axis, row) in matrix.iter_mut().enumerate().skip(1) {
        row[axis] += SLOPE_RIDGE;
    }
    nearest.sort_by(|a, b| a.0.total_cmp(&b.0));
    nearest.truncate(8);
    let low = nearest.iter().map(|n| n.1).fold(f64::INFINITY, f64::min);
    let high = nearest.iter().map(|n| n.1).fold(f64::NEG_INFINITY, f64::max);
    let room = 0.25 * (high - low);
    eliminate(matrix, right)[0].clamp(low - room, high + room)
}

/// Solves a symmetric, positive system by elimination.
fn eliminate(mut matrix: [[f64; 4]; 4], mut right: [f64; 4]) -> [f64; 4] {
    for column in 0..4 {
        let pivot = matrix[column][column].max(1e-300);
        for row in column + 1..4 {
            let factor = matrix[row][column] / pivot;
            let above = matrix[column];
            matrix[row].iter_mut().zip(above).for_each(|(x, y)| *x -= factor * y);
            right[row] -= factor * right[column];
        }
    }
    for column in (0..4).rev() {
        right[column] /= matrix[column][column].max(1e-300);
        for row in 0..column {
            right[row] -= matrix[row][column] * right[column];
        }
    }
    right
}

#[cfg(test)]
mod tests {
    use super::at;

    #[test]
    fn a_plane_is_followed_and_points_are_met() {
        let truth = |p: [f64; 3]| 1.0 + 0.2 * p[0] - 0.1 * p[2];
        let points: Vec<_> = (0..27)
            .map(|i| [f64::from(i % 3), f64::from(i / 3 % 3), f64::from(i / 9)])
            .map(|p| (p, truth(p)))
            .collect();
        assert!((at(&points, [1.0, 1.0, 1.0]) - truth([1.0, 1.0, 1.0])).abs() < 1e-12);
        assert!((at(&points, [0.5, 1.3, 1.6]) - truth([0.5, 1.3, 1.6])).abs() < 0.02);
        assert_eq!(at(&[], [0.0; 3]), 0.0);
    }
}
