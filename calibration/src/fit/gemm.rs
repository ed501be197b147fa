//! Dense matrix products: the law by Nelder-Mead, the residual as a smooth surface, the cast of dynamic
//! quantisation separated where the measured kernel includes it.

use super::law::bounded;
use super::minimise::{Bounded, nelder_mead};
use super::surface::{self, Residual, Smoothing};
use super::{Summary, held_out, median, quantile, round, sigma};
use psim_cost_models::gemm::{Rates, law_seconds};
use psim_hardware::profile::accelerator::{FitQuality, GemmLaw, GemmTable};
use psim_hardware::{DType, Scaling};

/// One measured product.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Rows.
    pub m: f64,
    /// Columns.
    pub n: f64,
    /// Reduction length.
    pub k: f64,
    /// Seconds.
    pub seconds: f64,
    /// Weight.
    pub weight: f64,
}

/// Quantisation of the activations inside the measured time: a launch and bytes per element of A at memory speed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cast {
    /// Extra launch time in microseconds.
    pub launch_us: f64,
    /// Bytes per element at the full memory bandwidth.
    pub bytes: f64,
}

const LAUNCH: Bounded = Bounded { low: 0.5, high: 30.0 };
const COMPUTE: Bounded = Bounded { low: 0.1, high: 0.98 };
const MEMORY: Bounded = Bounded { low: 0.3, high: 0.98 };
const PROLOGUE: Bounded = Bounded { low: 0.0, high: 1200.0 };
const SHARE: Bounded = Bounded { low: 0.0, high: 1.0 };
const SMALL: Bounded = Bounded { low: 0.4, high: 1.0 };
const CAST: Bounded = Bounded { low: 0.0, high: 16.0 };

fn decode(z: &[f64]) -> (GemmLaw, f64) {
    let law = GemmLaw {
        launch_us: round(LAUNCH.value(z[0]), 2),
        compute: round(COMPUTE.value(z[1]), 4),
        memory: round(MEMORY.value(z[2]), 4),
        prologue: round(PROLOGUE.value(z[3]), 1),
        quantisation: round(SHARE.value(z[4]), 4),
        small_tile: round(SMALL.value(z[5]), 4),
    };
    (law, z.get(6).map_or(0.0, |&c| CAST.value(c)))
}

/// Unavoidable bytes with 16-bit results, as the operators count them.
pub fn bytes(dtype: DType, m: f64, n: f64, k: f64) -> f64 {
    dtype.size() * (m * k + n * k) + 2.0 * m * n
}

fn law_time(law: &GemmLaw, rates: Rates, dtype: DType, s: &Sample) -> f64 {
    law_seconds(law, rates, s.m, s.n, s.k, 1.0, bytes(dtype, s.m, s.n, s.k))
}

/// Training multiplies thousands of rows by wide matrices; serving the same tables at a few rows.
pub fn importance(m: f64, n: f64, k: f64) -> f64 {
    let rows = if m >= 1024.0 { 3.0 } else { 1.0 };
    let width = if n >= 512.0 && k >= 512.0 { 2.0 } else { 0.5 };
    rows * width
}

/// In the region that training uses.
pub fn is_core(s: &Sample) -> bool {
    s.m >= 1024.0 && s.n >= 512.0 && s.k >= 512.0
}

/// Fits the law's parameters (and the cast, when asked).
fn fit_law(samples: &[Sample], rates: Rates, dtype: DType, with_cast: bool) -> (GemmLaw, f64) {
    let mut start = vec![
        LAUNCH.search(if with_cast { 8.0 } else { 2.8 }),
        COMPUTE.search(0.75),
        MEMORY.search(0.8),
        PROLOGUE.search(128.0),
        SHARE.search(0.6),
        SMALL.search(0.9),
    ];
    if with_cast {
        start.push(CAST.search(6.0));
    }
    let mut objective = |z: &[f64]| -> f64 {
        let (law, cast) = decode(z);
        samples
            .iter()
            .map(|s| {
                let time = law_time(&law, rates, dtype, s) + cast * s.m * s.k / rates.bandwidth;
                s.weight * bounded((s.seconds / time).ln())
            })
            .sum()
    };
    let (first, _) = nelder_mead(&mut objective, &start, 0.6, 900);
    let (best, _) = nelder_mead(&mut objective, &first, 0.3, 700);
    decode(&best)
}

fn axes(samples: &[Sample]) -> [Vec<f64>; 3] {
    let lines = [
        vec![1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0],
        vec![32.0, 256.0, 512.0, 1024.0, 2048.0, 3072.0, 4096.0, 6144.0, 8192.0, 12288.0, 16384.0, 65536.0],
        vec![32.0, 128.0, 512.0, 1024.0, 2048.0, 3072.0, 4096.0, 6144.0, 8192.0, 12288.0, 16384.0, 51200.0],
    ];
    let ranges = [|s: &Sample| s.m, |s: &Sample| s.n, |s: &Sample| s.k];
    let mut out = lines;
    for (axis, value) in out.iter_mut().zip(ranges) {
        let low = samples.iter().map(value).fold(f64::INFINITY, f64::min);
        let high = samples.iter().map(value).fold(0.0, f64::max);
        // Keep one line outside on each side so that the range is covered.
        let first = axis.iter().rposition(|&a| a <= low).unwrap_or(0);
        let last = axis.iter().position(|&a| a >= high).unwrap_or(axis.len() - 1);
        *axis = axis[first..=last].to_vec();
    }
    out
}

/// Residual points of samples under a law; the cast is taken off the measured time first.
fn residuals(samples: &[Sample], law: &GemmLaw, cast: &Cast, rates: Rates, dtype: DType) -> Vec<Residual> {
    samples
        .iter()
        .map(|s| {
            let base = law_time(law, rates, dtype, s);
            let casting = cast.launch_us * 1e-6 + cast.bytes * s.m * s.k / rates.bandwidth;
            // Where the cast is most of the time, what remains of it is noise.
            let own = (s.seconds - casting).max(0.3 * base);
            let trust = (base / (base + casting)).powi(2);
            Residual { at: [s.m, s.n, s.k], value: (own / base).ln(), weight: s.weight * trust }
        })
        .collect()
}

const SMOOTHING: Smoothing = Smoothing { curvature: [0.6, 0.6, 0.6], shrink: 0.05 };

/// What one fit produced.
#[derive(Debug)]
pub struct FittedGemm {
    /// The table.
    pub table: GemmTable,
    /// Cast separated from the measured kernels.
    pub cast: Cast,
    /// Errors.
    pub summary: Summary,
}

fn model(
    samples: &[Sample],
    rates: Rates,
    dtype: DType,
    cast_launch: Option<f64>,
) -> (GemmLaw, Cast, [Vec<f64>; 3], Vec<f64>) {
    let (mut law, cast_bytes) = fit_law(samples, rates, dtype, cast_launch.is_some());
    let mut cast = Cast { launch_us: 0.0, bytes: cast_bytes };
    if let Some(own) = cast_launch {
        cast.launch_us = (law.launch_us - own).max(0.0);
        law.launch_us = law.launch_us.min(own);
    }
    let axes = axes(samples);
    let points = residuals(samples, &law, &cast, rates, dtype);
    let mut values = surface::fit(&points, &axes, &SMOOTHING);
    let mut law_values = Vec::with_capacity(values.len());
    for &m in &axes[0] {
        for &n in &axes[1] {
            for &k in &axes[2] {
                let s = Sample { m, n, k, seconds: 0.0, weight: 0.0 };
                law_values.push(law_time(&law, rates, dtype, &s).ln());
            }
        }
    }
    surface::make_monotone(&mut values, &law_values, &axes);
    (law, cast, axes, values)
}

fn errors(
    samples: &[Sample],
    fitted: &(GemmLaw, Cast, [Vec<f64>; 3], Vec<f64>),
    rates: Rates,
    dtype: DType,
) -> Vec<(Sample, f64)> {
    let (law, cast, axes, values) = fitted;
    let grid = psim_cost_models::grid::Residual::new(Some(&surface::to_grid(values, axes)));
    samples
        .iter()
        .map(|s| {
            let own = law_time(law, rates, dtype, s) * grid.at([s.m, s.n, s.k]).exp();
            let time = own + cast.launch_us * 1e-6 + cast.bytes * s.m * s.k / rates.bandwidth;
            (*s, (s.seconds / time).ln().abs())
        })
        .collect()
}

/// Law and surface of some samples, to be tried on others.
#[derive(Debug)]
pub struct Trial {
    law: GemmLaw,
    grid: psim_cost_models::grid::Residual,
    rates: Rates,
    dtype: DType,
}

impl Trial {
    /// Fits the samples.
    pub fn new(samples: &[Sample], rates: Rates, dtype: DType) -> Self {
        let (law, _, axes, values) = model(samples, rates, dtype, None);
        let grid = psim_cost_models::grid::Residual::new(Some(&surface::to_grid(&values, &axes)));
        Self { law, grid, rates, dtype }
    }

    /// Seconds of the law alone.
    pub fn law_seconds(&self, s: &Sample) -> f64 {
        law_time(&self.law, self.rates, self.dtype, s)
    }

    /// Seconds with the surface.
    pub fn seconds(&self, s: &Sample) -> f64 {
        self.law_seconds(s) * self.grid.at([s.m, s.n, s.k]).exp()
    }
}

/// Fits one table. `cast_launch_us` is the launch time of the same machine's kernel without a cast, given when the
/// measured kernels include the dynamic quantisation of A.
pub fn fit(
    machine: &str,
    samples: &[Sample],
    rates: Rates,
    dtype: DType,
    scaling: Scaling,
    cast_launch_us: Option<f64>,
) -> FittedGemm {
    let (held, kept): (Vec<Sample>, Vec<Sample>) = samples.iter().partition(|s| held_out(&[s.n, s.k]));
    let trial = model(&kept, rates, dtype, cast_launch_us);
    let outside = errors(&held, &trial, rates, dtype);
    let fitted = model(samples, rates, dtype, cast_launch_us);
    let inside: Vec<f64> = errors(samples, &fitted, rates, dtype).iter().map(|e| e.1).collect();
    let held_errors: Vec<f64> = outside.iter().map(|e| e.1).collect();
    let core: Vec<f64> = outside.iter().filter(|(s, _)| is_core(s)).map(|e| e.1).collect();
    let (law, cast, axes, values) = fitted;
    let spread = sigma(if core.len() >= 10 { &core } else { &held_errors });
    let summary = Summary {
        machine: machine.to_owned(),
        table: format!("gemm {dtype} {scaling:?}").to_lowercase(),
        points: samples.len(),
        median: median(&inside),
        p90: quantile(&inside, 0.9),
        held_median: median(&held_errors),
        held_p90: quantile(&held_errors, 0.9),
        core_median: median(&core),
        core_p90: quantile(&core, 0.9),
        law: format!(
            "launch {:.1} us, compute {:.3}, memory {:.3}, prologue {:.0}, quantisation {:.2}, small tile {:.2}, cast {:.1} us + {:.1} B",
            law.launch_us,
            law.compute,
            law.memory,
            law.prologue,
            law.quantisation,
            law.small_tile,
            cast.launch_us,
            cast.bytes
        ),
    };
    let table = GemmTable {
        dtype,
        scaling,
        law,
        residual: Some(surface::to_grid(&values, &axes)),
        input_gradient: 1.0,
        weight_gradient: 1.0,
        input_gradient_residual: None,
        weight_gradient_residual: None,
        sustained: 1.0,
        fit: FitQuality { points: samples.len() as u32, sigma: (spread * 1000.0).round() / 1000.0 },
    };
    FittedGemm { table, cast, summary }
}
