//! Kriging of what a law leaves over: a linear trend and a smooth deviation from it (Gaussian-process regression,
//! Rasmussen and Williams 2006, equations 2.23 to 2.26), with the reach of each axis and the noise chosen so that every
//! point is predicted best from the others (their equations 5.10 to 5.12).

/// Coordinates in doublings, and a value.
pub type Point = ([f64; 3], f64);

/// Most points by which reach and noise are chosen: the choice costs the cube of them.
const CHOOSING: usize = 250;
/// Reaches of an axis that are tried, doublings.
const REACHES: [f64; 6] = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0];
/// Shares of noise in the variance that are tried.
const NOISES: [f64; 4] = [0.001, 0.01, 0.05, 0.2];
/// Variance of a slope of the trend per doubling, in variances of the values: weak, the measurements decide.
const TREND: f64 = 0.1;

/// How alike two points are.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Likeness {
    reach: [f64; 3],
    noise: f64,
}

impl Likeness {
    /// Covariance of two points (Matérn 3/2 beside a linear trend), in variances of the values.
    fn of(&self, a: &[f64; 3], b: &[f64; 3]) -> f64 {
        let (mut square, mut along) = (0.0, 1.0);
        for axis in 0..3 {
            square += ((a[axis] - b[axis]) / self.reach[axis]).powi(2);
            along += a[axis] * b[axis];
        }
        let distance = (3.0 * square).sqrt();
        TREND * along + (1.0 + distance) * (-distance).exp()
    }
}

/// A fitted surface.
#[derive(Debug, Clone)]
pub struct Kriging {
    /// Centred coordinates.
    points: Vec<[f64; 3]>,
    weights: Vec<f64>,
    centre: [f64; 3],
    mean: f64,
    likeness: Likeness,
    /// What the surface never leaves.
    range: [f64; 2],
}

impl Kriging {
    /// Fits points; the same points give the same surface.
    pub fn fit(points: &[Point]) -> Self {
        let count = points.len().max(1) as f64;
        let centre = std::array::from_fn(|axis| points.iter().map(|p| p.0[axis]).sum::<f64>() / count);
        let mean = points.iter().map(|p| p.1).sum::<f64>() / count;
        let centred: Vec<[f64; 3]> =
            points.iter().map(|p| std::array::from_fn(|axis| p.0[axis] - centre[axis])).collect();
        let values: Vec<f64> = points.iter().map(|p| p.1 - mean).collect();
        let likeness = choose(&centred, &values);
        let weights = Inverse::new(&centred, &likeness).map_or_else(
            || vec![0.0; values.len()],
            |inverse| (0..values.len()).map(|row| inverse.times(row, &values)).collect(),
        );
        let low = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
        let room = 0.25 * (high - low);
        let range = if points.is_empty() { [0.0; 2] } else { [low - room, high + room] };
        Self { points: centred, weights, centre, mean, likeness, range }
    }

    /// The surface at a point (coordinates in doublings); 0 without points.
    pub fn at(&self, point: [f64; 3]) -> f64 {
        let at = std::array::from_fn(|axis| point[axis] - self.centre[axis]);
        let deviation: f64 =
            self.points.iter().zip(&self.weights).map(|(p, w)| w * self.likeness.of(&at, p)).sum();
        (self.mean + deviation).clamp(self.range[0], self.range[1])
    }
}

/// The likeness by which every point follows best from the others, one parameter after another.
fn choose(points: &[[f64; 3]], values: &[f64]) -> Likeness {
    // Every so-manieth point, so that all of the range is there.
    let stride = points.len().div_ceil(CHOOSING).max(1);
    let some: Vec<[f64; 3]> = points.iter().copied().step_by(stride).collect();
    let known: Vec<f64> = values.iter().copied().step_by(stride).collect();
    let mut best = Likeness { reach: [4.0; 3], noise: 0.05 };
    let mut least = left_out(&some, &known, &best);
    for _ in 0..2 {
        let before = least;
        for axis in (0..3).filter(|&axis| some.iter().any(|p| p[axis] != some[0][axis])) {
            for reach in REACHES {
                let mut candidate = best;
                candidate.reach[axis] = reach;
                consider(candidate, &some, &known, &mut best, &mut least);
            }
        }
        for noise in NOISES {
            consider(Likeness { noise, ..best }, &some, &known, &mut best, &mut least);
        }
        if least == before {
            break;
        }
    }
    best
}

fn consider(candidate: Likeness, points: &[[f64; 3]], values: &[f64], best: &mut Likeness, least: &mut f64) {
    let error = left_out(points, values, &candidate);
    if error < *least {
        (*best, *least) = (candidate, error);
    }
}

/// Mean distance of the points from what the others say of them.
fn left_out(points: &[[f64; 3]], values: &[f64], likeness: &Likeness) -> f64 {
    let Some(inverse) = Inverse::new(points, likeness) else { return f64::INFINITY };
    let errors = (0..values.len()).map(|i| (inverse.times(i, values) / inverse.at(i, i)).abs());
    errors.sum::<f64>() / values.len().max(1) as f64
}

/// Inverse of the covariance of all points, noise included.
struct Inverse {
    size: usize,
    cells: Vec<f64>,
}

impl Inverse {
    /// By Cholesky's factors; `None` where rounding makes the matrix indefinite.
    fn new(points: &[[f64; 3]], likeness: &Likeness) -> Option<Self> {
        let size = points.len();
        // The factor L, row by row; then its inverse; the product of that with its transpose is the answer.
        let mut lower = vec![0.0; size * size];
        for i in 0..size {
            for j in 0..=i {
                let (before, from) = lower.split_at(i * size);
                let row_j = if i == j { &from[..j] } else { &before[j * size..][..j] };
                let done: f64 = from[..j].iter().zip(row_j).map(|(a, b)| a * b).sum();
                let noise = if i == j { likeness.noise } else { 0.0 };
                let left = likeness.of(&points[i], &points[j]) + noise - done;
                lower[i * size + j] = if i == j {
                    if left <= 0.0 {
                        return None;
                    }
                    left.sqrt()
                } else {
                    left / lower[j * size + j]
                };
            }
        }
        // Columns of the inverse factor, kept as rows so that every loop runs along memory.
        let mut inverse = vec![0.0; size * size];
        for column in 0..size {
            let row = &mut inverse[column * size..][..size];
            for i in column..size {
                let start = if i == column { 1.0 } else { 0.0 };
                let done: f64 = lower[i * size + column..i * size + i]
                    .iter()
                    .zip(&row[column..i])
                    .map(|(a, b)| a * b)
                    .sum();
                row[i] = (start - done) / lower[i * size + i];
            }
        }
        let mut cells = vec![0.0; size * size];
        for i in 0..size {
            for j in 0..=i {
                let (a, b) = (&inverse[i * size + i..][..size - i], &inverse[j * size + i..][..size - i]);
                let sum: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                cells[i * size + j] = sum;
                cells[j * size + i] = sum;
            }
        }
        Some(Self { size, cells })
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        self.cells[row * self.size + column]
    }

    /// A row times a vector.
    fn times(&self, row: usize, vector: &[f64]) -> f64 {
        self.cells[row * self.size..][..self.size].iter().zip(vector).map(|(a, b)| a * b).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(f: impl Fn([f64; 3]) -> f64) -> Vec<Point> {
        let mut points = Vec::new();
        for x in 0..5 {
            for y in 0..4 {
                for z in 0..4 {
                    let at = [2.0 * f64::from(x), 2.0 * f64::from(y), f64::from(z)];
                    points.push((at, f(at)));
                }
            }
        }
        points
    }

    #[test]
    fn it_follows_a_surface_between_its_points() {
        let truth = |p: [f64; 3]| 0.3 * p[0] - 0.1 * p[1] + (0.7 * p[2]).sin() + 0.02 * p[0] * p[1];
        let surface = Kriging::fit(&grid(truth));
        for at in [[1.0, 1.0, 0.5], [3.0, 5.0, 1.5], [7.0, 3.0, 2.5], [5.0, 2.0, 1.0]] {
            assert!((surface.at(at) - truth(at)).abs() < 0.1, "{at:?}: {} for {}", surface.at(at), truth(at));
        }
        // Far away it stays within what was seen and a quarter of its range.
        assert!(surface.at([1e3; 3]).abs() < 6.0);
    }

    #[test]
    fn noise_is_smoothed_and_nothing_is_no_surface() {
        let noisy = grid(|p| 0.2 * (((p[0] * 13.0 + p[1] * 7.0 + p[2] * 29.0) * 1.7).sin()));
        let surface = Kriging::fit(&noisy);
        let worst = noisy.iter().map(|p| surface.at(p.0).abs()).fold(0.0, f64::max);
        assert!(worst < 0.25, "{worst}");
        assert_eq!(Kriging::fit(&[]).at([1.0; 3]), 0.0);
        assert!((Kriging::fit(&[([1.0; 3], 2.5)]).at([4.0; 3]) - 2.5).abs() < 1e-9);
    }

    /// The inverse against the definition.
    #[test]
    fn the_inverse_times_the_matrix_is_one() {
        let points: Vec<[f64; 3]> =
            (0..7).map(|i| [f64::from(i), f64::from(i * i % 5), f64::from(3 * i % 7)]).collect();
        let likeness = Likeness { reach: [2.0, 1.0, 4.0], noise: 0.05 };
        let inverse = Inverse::new(&points, &likeness).unwrap();
        for i in 0..7 {
            for j in 0..7 {
                let column: Vec<f64> = (0..7)
                    .map(|k| likeness.of(&points[k], &points[j]) + if k == j { likeness.noise } else { 0.0 })
                    .collect();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((inverse.times(i, &column) - expected).abs() < 1e-9, "{i} {j}");
            }
        }
    }
}
