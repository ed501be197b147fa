//! Fills the residual grid of a table by the model that predicts shapes left out best.

use super::forest::{Forest, Growth};
use super::kriging::{Kriging, Point};
use super::planes;
use crate::fit::surface::{make_monotone, to_grid};
use psim_cost_models::grid::Residual;
use psim_hardware::profile::accelerator::{FitQuality, ResidualGrid, ResidualModel, TableModel};

/// Groups of which each is left out once.
const GROUPS: u64 = 5;
/// Fewer points than this are not worth a comparison: local planes it is.
const FEWEST: usize = 12;
/// A forest is used where it is a tenth better at least: less is not worth its steps.
const MARGIN: f64 = 0.9;
/// Most cells of a grid with lines between the measured ones.
const CELLS: usize = 6000;

/// A measured shape: three coordinates in natural units, ln(measured / law).
pub type Sample = ([f64; 3], f64);

/// A filled grid, how good it is, and what was compared.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The grid; `None` without samples.
    pub grid: Option<ResidualGrid>,
    /// Errors of the model that was chosen.
    pub fit: FitQuality,
    /// The comparison; `None` where there were too few samples for one.
    pub model: Option<TableModel>,
}

/// Chooses and fills; `law` gives the law's seconds at coordinates.
pub fn choose(table: &str, samples: &[Sample], law: &dyn Fn([f64; 3]) -> f64) -> Chosen {
    let errors = |model: ResidualModel| -> [f64; 2] {
        let errors = left_out(samples, model, law);
        let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
        [round(mean), round(crate::fit::median(&errors))]
    };
    let points = samples.len() as u32;
    if samples.len() < FEWEST {
        let [_, median] = errors(ResidualModel::Interpolation);
        let fit = FitQuality { points, sigma: round(1.4826 * median) };
        return Chosen { grid: fill(samples, ResidualModel::Interpolation, law), fit, model: None };
    }
    let [interpolation, kriging, forest] =
        [ResidualModel::Interpolation, ResidualModel::Kriging, ResidualModel::Forest].map(errors);
    let (mut model, mut best) = (ResidualModel::Interpolation, interpolation);
    if kriging[0] < best[0] {
        (model, best) = (ResidualModel::Kriging, kriging);
    }
    if forest[0] < MARGIN * best[0] && forest[1] < MARGIN * best[1] {
        (model, best) = (ResidualModel::Forest, forest);
    }
    Chosen {
        grid: fill(samples, model, law),
        fit: FitQuality { points, sigma: round(1.4826 * best[1]) },
        model: Some(TableModel { table: table.to_owned(), model, points, interpolation, kriging, forest }),
    }
}

/// |ln(measured / predicted)| of every sample, predicted from those of the other groups as a profile would.
fn left_out(samples: &[Sample], model: ResidualModel, law: &dyn Fn([f64; 3]) -> f64) -> Vec<f64> {
    let mut errors = Vec::with_capacity(samples.len());
    for group in 0..GROUPS {
        let (held, known): (Vec<Sample>, Vec<Sample>) =
            samples.iter().copied().partition(|s| group_of(s.0) == group);
        if held.is_empty() || known.is_empty() {
            continue;
        }
        let residual = Residual::new(fill(&known, model, law).as_ref());
        errors.extend(held.iter().map(|(at, value)| (value - residual.at(*at)).abs()));
    }
    errors
}

/// The group of a shape: FNV-1a of its numbers, so that the same shapes are left out in every run.
fn group_of(shape: [f64; 3]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in shape.iter().flat_map(|value| value.to_bits().to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash >> 17) % GROUPS
}

/// What a forest sees: the coordinates, and their products as directions across them.
fn features([x, y, z]: [f64; 3]) -> [f64; 7] {
    [x, y, z, x + y, y + z, x + z, x + y + z]
}

/// The grid that a model fills, never falling with any coordinate together with its law; `None` without samples.
pub fn fill(samples: &[Sample], model: ResidualModel, law: &dyn Fn([f64; 3]) -> f64) -> Option<ResidualGrid> {
    if samples.is_empty() {
        return None;
    }
    let points: Vec<Point> = samples.iter().map(|(at, value)| (at.map(f64::log2), *value)).collect();
    let axes = lines(samples, model);
    let predict: Box<dyn Fn([f64; 3]) -> f64> = match model {
        ResidualModel::Interpolation => Box::new(|at| planes::at(&points, at)),
        ResidualModel::Kriging => {
            let surface = Kriging::fit(&points);
            Box::new(move |at| surface.at(at))
        }
        ResidualModel::Forest => {
            let rows: Vec<_> = points.iter().map(|(at, value)| (features(*at), *value)).collect();
            let forest = Forest::grow(&rows, Growth::usual(7));
            Box::new(move |at| forest.at(&features(at)))
        }
    };
    let (mut values, mut laws) = (Vec::new(), Vec::new());
    for &x in &axes[0] {
        for &y in &axes[1] {
            for &z in &axes[2] {
                let at = [x, y, z];
                values.push(predict(at.map(f64::log2)));
                laws.push(law(at).max(1e-300).ln());
            }
        }
    }
    make_monotone(&mut values, &laws, &axes);
    Some(to_grid(&values, &axes))
}

/// Grid lines: those that were measured, and for models that know more than the nearest points, lines between them
/// where they are more than a doubling apart.
fn lines(samples: &[Sample], model: ResidualModel) -> [Vec<f64>; 3] {
    let measured: [Vec<f64>; 3] = std::array::from_fn(|axis| {
        let mut lines: Vec<f64> = samples.iter().map(|s| s.0[axis]).collect();
        lines.sort_by(f64::total_cmp);
        lines.dedup();
        lines
    });
    if model == ResidualModel::Interpolation {
        return measured;
    }
    let refined = measured.clone().map(|lines| {
        let mut out = Vec::new();
        for pair in lines.windows(2) {
            // A measured ratio of 4 gets one line between; rounding must not make it two.
            let parts = ((pair[1] / pair[0]).log2() - 1e-6).ceil().max(1.0);
            out.extend((0..parts as u32).map(|i| pair[0] * (pair[1] / pair[0]).powf(f64::from(i) / parts)));
        }
        out.extend(lines.last());
        out
    });
    if refined.iter().map(Vec::len).product::<usize>() <= CELLS { refined } else { measured }
}

fn round(value: f64) -> f64 {
    if value.is_finite() { (value * 1e4).round() / 1e4 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grid of shapes every two doublings.
    fn shapes() -> impl Iterator<Item = [f64; 3]> {
        (0..6).flat_map(|x| {
            (0..4).flat_map(move |y| (0..4).map(move |z| [x, y, z].map(|p: i32| f64::from(32 << (2 * p)))))
        })
    }

    fn law(at: [f64; 3]) -> f64 {
        1e-9 + 1e-11 * at.iter().product::<f64>()
    }

    #[test]
    fn a_smooth_residual_is_kriged_and_a_cliff_is_not_worse_than_planes() {
        let smooth = |[x, y, z]: [f64; 3]| 0.4 * (x / 500.0).ln().tanh() + 0.2 * (0.4 * (y * z).log2()).sin();
        let samples: Vec<Sample> = shapes().map(|at| (at, smooth(at))).collect();
        let chosen = choose("gemm", &samples, &law);
        let model = chosen.model.unwrap();
        assert_eq!(model.model, ResidualModel::Kriging, "{model:?}");
        assert!(model.kriging[0] < model.interpolation[0] && chosen.fit.sigma < 0.2, "{model:?}");
        let cliff = |[x, y, _]: [f64; 3]| if x * y < 1e5 { 0.9 } else { 0.0 };
        let samples: Vec<Sample> = shapes().map(|at| (at, cliff(at))).collect();
        let chosen = choose("gemm", &samples, &law);
        let model = chosen.model.unwrap();
        let used = match model.model {
            ResidualModel::Interpolation => model.interpolation,
            ResidualModel::Kriging => model.kriging,
            ResidualModel::Forest => model.forest,
        };
        assert!(used[0] <= model.interpolation[0], "{model:?}");
        // The same samples give the same grid.
        assert_eq!(chosen.grid, choose("gemm", &samples, &law).grid);
    }

    #[test]
    fn whatever_fills_the_grid_larger_shapes_never_take_less_time() {
        // Residuals that fall by more than the law grows.
        let wild: Vec<Sample> =
            shapes().map(|at| (at, (at[0].log2() * 2.3 + at[1].log2() * 1.7 + at[2].log2()).sin())).collect();
        for model in [ResidualModel::Interpolation, ResidualModel::Kriging, ResidualModel::Forest] {
            let grid = fill(&wild, model, &law).unwrap();
            let residual = Residual::new(Some(&grid));
            let time = |at: [f64; 3]| law(at) * residual.at(at).exp();
            let [xs, ys, zs] = [0, 1, 2].map(|axis| grid.axes[axis].clone());
            for &x in &xs {
                for &y in &ys {
                    for &z in &zs {
                        let at = [x, y, z];
                        for axis in 0..3 {
                            let Some(&next) = grid.axes[axis].iter().find(|line| **line > at[axis]) else {
                                continue;
                            };
                            let mut larger = at;
                            larger[axis] = next;
                            // Residuals are rounded to hundredths.
                            assert!(time(larger) > 0.97 * time(at), "{model:?} {at:?} {larger:?}");
                        }
                    }
                }
            }
            // Beyond the measured range the edge holds, below it the law returns.
            let far = [1e9; 3];
            let edge = residual.at([32768.0, 2048.0, 2048.0]);
            assert!((residual.at(far) - edge).abs() < 1e-9);
            assert!(residual.at([1e-6; 3]).abs() < 0.01);
        }
    }

    #[test]
    fn few_points_are_interpolated() {
        let samples: Vec<Sample> = shapes().take(5).map(|at| (at, 0.1)).collect();
        let chosen = choose("decode", &samples, &law);
        assert!(chosen.model.is_none() && chosen.grid.is_some() && chosen.fit.points == 5);
        assert!(choose("decode", &[], &law).grid.is_none());
    }
}
