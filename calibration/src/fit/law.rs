//! The common road of a kernel table: fit a law's parameters, then a smooth residual surface, with shapes held out.

use super::minimise::{Bounded, nelder_mead};
use super::surface::{self, Residual, Smoothing};
use super::{Summary, held_out, median, quantile};
use psim_hardware::profile::accelerator::ResidualGrid;

/// One measured call of a kernel.
pub trait Measured {
    /// Measured seconds.
    fn seconds(&self) -> f64;
    /// Weight in the fit.
    fn weight(&self) -> f64;
    /// Coordinates on the residual grid.
    fn point(&self) -> [f64; 3];
    /// Numbers that say whether two calls count as the same shape when holding out.
    fn family(&self) -> Vec<f64>;
    /// In the region that matters most.
    fn core(&self) -> bool;
}

/// Seconds of a sample from parameters.
pub type SampleSeconds<'a, S> = &'a dyn Fn(&[f64], &S) -> f64;

/// What to fit.
pub struct Problem<'a, S> {
    /// Bounds of each parameter.
    pub bounds: &'a [Bounded],
    /// Start of each parameter.
    pub start: &'a [f64],
    /// Seconds of the law.
    pub law: SampleSeconds<'a, S>,
    /// Seconds inside the measured time that the table must not hold (a cache write beside the attention kernel).
    pub extra: Option<SampleSeconds<'a, S>>,
    /// Grid lines; `None` for a law without residual.
    pub axes: Option<[Vec<f64>; 3]>,
    /// A call at given grid coordinates, to keep law × residual from falling along the grid.
    pub probe: Option<&'a dyn Fn([f64; 3]) -> S>,
    /// Smoothing of the residual.
    pub smoothing: Smoothing,
}

/// What was fitted.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// Parameters.
    pub parameters: Vec<f64>,
    /// Residual surface.
    pub residual: Option<ResidualGrid>,
}

/// Errors of a fit.
#[derive(Debug, Clone, Default)]
pub struct Errors {
    /// |ln(measured / predicted)| of all points in the fit.
    pub inside: Vec<f64>,
    /// Of held-out shapes.
    pub held: Vec<f64>,
    /// Of held-out shapes in the core region.
    pub core: Vec<f64>,
}

impl Errors {
    /// The errors of one table in a few figures.
    pub fn summary(&self, machine: &str, table: String, law: String) -> Summary {
        Summary {
            machine: machine.to_owned(),
            table,
            points: self.inside.len(),
            median: median(&self.inside),
            p90: quantile(&self.inside, 0.9),
            held_median: median(&self.held),
            held_p90: quantile(&self.held, 0.9),
            core_median: median(&self.core),
            core_p90: quantile(&self.core, 0.9),
            law,
        }
    }
}

impl Errors {
    /// Standard deviation for intervals: from held-out core shapes where there are enough.
    pub fn sigma(&self) -> f64 {
        let base = if self.core.len() >= 10 {
            &self.core
        } else if self.held.len() >= 5 {
            &self.held
        } else {
            &self.inside
        };
        // Tails beyond the normal's count too.
        let value = f64::max(1.4826 * median(base), quantile(base, 0.9) / 1.645).max(0.01);
        (value * 1000.0).round() / 1000.0
    }
}

/// Absolute error, much flatter beyond a half: a few strange rows must not bend the law.
pub fn bounded(error: f64) -> f64 {
    let size = error.abs();
    size.min(0.5) + 0.1 * (size - 0.5).max(0.0)
}

impl<S: Measured> Problem<'_, S> {
    fn parameters(&self, z: &[f64]) -> Vec<f64> {
        z.iter().zip(self.bounds).map(|(&z, b)| b.value(z)).collect()
    }

    /// Law and what was timed beside it.
    fn times(&self, p: &[f64], s: &S) -> (f64, f64) {
        ((self.law)(p, s), self.extra.map_or(0.0, |f| f(p, s)))
    }

    fn model(&self, samples: &[&S]) -> Fitted {
        let start: Vec<f64> = self.start.iter().zip(self.bounds).map(|(&s, b)| b.search(s)).collect();
        let mut objective = |z: &[f64]| -> f64 {
            let p = self.parameters(z);
            let error = |s: &&S| {
                let (law, extra) = self.times(&p, s);
                s.weight() * bounded((s.seconds() / (law + extra)).ln())
            };
            samples.iter().map(error).sum()
        };
        let (first, _) = nelder_mead(&mut objective, &start, 0.6, 900);
        let (best, _) = nelder_mead(&mut objective, &first, 0.3, 700);
        let parameters = self.parameters(&best);
        let residual = self.axes.as_ref().map(|axes| {
            let points: Vec<Residual> = samples
                .iter()
                .map(|s| {
                    let (law, extra) = self.times(&parameters, s);
                    // Where the extra is most of the time, what remains of it is noise.
                    let own = (s.seconds() - extra).max(0.3 * law);
                    let trust = (law / (law + extra)).powi(2);
                    Residual { at: s.point(), value: (own / law).ln(), weight: s.weight() * trust }
                })
                .collect();
            let axes = clip(axes, samples);
            let mut values = surface::fit(&points, &axes, &self.smoothing);
            if let Some(probe) = self.probe {
                let mut law = Vec::with_capacity(values.len());
                for &a in &axes[0] {
                    for &b in &axes[1] {
                        for &c in &axes[2] {
                            law.push((self.law)(&parameters, &probe([a, b, c])).ln());
                        }
                    }
                }
                surface::make_monotone(&mut values, &law, &axes);
            }
            surface::to_grid(&values, &axes)
        });
        Fitted { parameters, residual }
    }

    fn errors<'s>(&self, fitted: &Fitted, samples: impl Iterator<Item = &'s S>) -> Vec<f64>
    where
        S: 's,
    {
        let grid = psim_cost_models::grid::Residual::new(fitted.residual.as_ref());
        samples
            .map(|s| {
                let (law, extra) = self.times(&fitted.parameters, s);
                (s.seconds() / (law * grid.at(s.point()).exp() + extra)).ln().abs()
            })
            .collect()
    }

    /// Fits all samples; the errors on held-out shapes come from a fit without them.
    pub fn fit(&self, samples: &[S]) -> (Fitted, Errors) {
        let all: Vec<&S> = samples.iter().collect();
        let (held, kept): (Vec<&S>, Vec<&S>) = all.iter().partition(|s| held_out(&s.family()));
        let fitted = self.model(&all);
        let mut errors = Errors { inside: self.errors(&fitted, samples.iter()), ..Errors::default() };
        if !held.is_empty() && kept.len() > self.bounds.len() {
            let trial = self.model(&kept);
            errors.held = self.errors(&trial, held.iter().copied());
            errors.core = self.errors(&trial, held.iter().copied().filter(|s| s.core()));
        }
        (fitted, errors)
    }
}

/// Keeps the grid lines that the samples span, and one beyond on each side.
fn clip<S: Measured>(axes: &[Vec<f64>; 3], samples: &[&S]) -> [Vec<f64>; 3] {
    let mut out = axes.clone();
    for (d, axis) in out.iter_mut().enumerate() {
        let low = samples.iter().map(|s| s.point()[d]).fold(f64::INFINITY, f64::min);
        let high = samples.iter().map(|s| s.point()[d]).fold(0.0, f64::max);
        let first = axis.iter().rposition(|&a| a <= low).unwrap_or(0);
        let last = axis.iter().position(|&a| a >= high).unwrap_or(axis.len() - 1).max(first);
        *axis = axis[first..=last].to_vec();
    }
    out
}
