//! Dense matrix products: tiles over units, waves, pipeline fill, memory roofline, launch floor; times a residual.
//!
//! The tile-and-wave view follows NVIDIA's matrix-multiplication guide (tile and wave quantisation) and Osama et al.
//! 2023 (stream-k) for the share of the tail wave that spreads out.

use crate::grid::Residual;
use psim_hardware::DType;
use psim_hardware::profile::accelerator::{GemmLaw, GemmTable};
use psim_models::operator::GemmRole;

/// Datasheet rates that laws multiply, in flop/s, bytes/s and units (SMs, CUs).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Dense peak of the format, flop/s.
    pub peak: f64,
    /// Device-memory bandwidth, bytes/s.
    pub bandwidth: f64,
    /// Units that run tiles at once.
    pub units: f64,
}

/// Tiles that libraries choose among, largest first, with the number of halvings from the largest.
const TILES: [(f64, f64, i32); 8] = [
    (256.0, 128.0, 0),
    (128.0, 256.0, 0),
    (128.0, 128.0, 1),
    (128.0, 64.0, 2),
    (64.0, 128.0, 2),
    (64.0, 64.0, 3),
    (64.0, 32.0, 4),
    (32.0, 64.0, 4),
];

/// Arithmetic time in seconds of `batch` products under a law: the best tile and split of the reduction.
pub fn compute_seconds(law: &GemmLaw, rates: Rates, m: f64, n: f64, k: f64, batch: f64) -> f64 {
    let unit_rate = rates.peak * law.compute / rates.units;
    // One unit takes one tile after another, and its own tiles are registers: a few rows.
    if rates.units <= 1.0 {
        return 2.0 * m * n * (k + law.prologue) * batch / unit_rate;
    }
    let mut best = f64::INFINITY;
    let mut halving_rate = [1.0; 5];
    for i in 1..5 {
        halving_rate[i] = halving_rate[i - 1] * law.small_tile;
    }
    for (tile_m, tile_n, halvings) in TILES {
        let tiles = (m / tile_m).ceil() * (n / tile_n).ceil() * batch;
        let tile_flops = 2.0 * tile_m * tile_n;
        let rate = unit_rate * halving_rate[halvings as usize];
        let mut split = 1.0;
        loop {
            let waves = tiles * split / rates.units;
            let spread = law.quantisation * waves.ceil() + (1.0 - law.quantisation) * waves.max(1.0);
            let time = spread * tile_flops * (k / split + law.prologue) / rate;
            best = best.min(time);
            // Splitting the reduction pays only while units idle.
            if tiles * split >= rates.units || split >= 8.0 {
                break;
            }
            split *= 2.0;
        }
    }
    best
}

/// Slow-down of 16-bit products whose rows do not start on 16-byte boundaries.
///
/// Vector loads of 8 or 4 bytes starve the matrix units. Batched products (unfused attention) of head width 108 (a
/// multiple of 4) run about 6 x and of widths 150 and 450 (multiples of 2) about 9 x slower than those of width 128
/// in the published A100 runs of BLOOM; a single large product falls to a half (the known gain of padding a GPT-2
/// vocabulary).
pub fn misalignment(dtype: DType, n: u64, k: u64, batch: u64) -> f64 {
    if dtype.bits() != 16 || (n.is_multiple_of(8) && k.is_multiple_of(8)) || n < 32 {
        return 1.0;
    }
    match (batch > 1, n.is_multiple_of(4) && k.is_multiple_of(4)) {
        (true, true) => 6.0,
        (true, false) => 9.0,
        (false, _) => 2.0,
    }
}

/// Smooth maximum of two overlapping demands (fourth-power norm): at most 19 % above the larger.
pub fn overlap(a: f64, b: f64) -> f64 {
    let (a2, b2) = (a * a, b * b);
    (a2 * a2 + b2 * b2).sqrt().sqrt()
}

/// Time of the law in seconds for `bytes` of unavoidable traffic.
pub fn law_seconds(law: &GemmLaw, rates: Rates, m: f64, n: f64, k: f64, batch: f64, bytes: f64) -> f64 {
    let compute = compute_seconds(law, rates, m, n, k, batch);
    let memory = bytes / (rates.bandwidth * law.memory);
    law.launch_us * 1e-6 + overlap(compute, memory)
}

/// A table made ready for pricing.
#[derive(Debug, Clone)]
pub struct GemmModel {
    law: GemmLaw,
    residual: Residual,
    input_gradient: (f64, Residual),
    weight_gradient: (f64, Residual),
    sustained: f64,
    /// Held-out error of the table.
    pub sigma: f64,
}

impl GemmModel {
    /// Prepares a table.
    pub fn new(table: &GemmTable) -> Self {
        Self {
            law: table.law,
            residual: Residual::new(table.residual.as_ref()),
            input_gradient: (table.input_gradient, Residual::new(table.input_gradient_residual.as_ref())),
            weight_gradient: (table.weight_gradient, Residual::new(table.weight_gradient_residual.as_ref())),
            sustained: table.sustained,
            sigma: table.fit.sigma,
        }
    }

    /// Seconds that a product takes however small.
    pub fn launch(&self) -> f64 {
        self.law.launch_us * 1e-6
    }

    /// The same table under a library that runs whole waves of tiles only.
    #[must_use]
    pub fn with_whole_waves(mut self) -> Self {
        self.law.quantisation = 1.0;
        self
    }

    /// Seconds under sustained load: the arithmetic part slows to the power limit, launches and memory do not.
    pub fn sustained_seconds(
        &self,
        rates: Rates,
        shape: [f64; 3],
        batch: f64,
        bytes: f64,
        role: GemmRole,
    ) -> (f64, bool) {
        let (burst, inside) = self.seconds(rates, shape, batch, bytes, role);
        let [m, n, k] = shape;
        let compute = 2.0 * m * n * k * batch / (rates.peak * self.law.compute);
        let share = (compute / burst).min(1.0);
        (burst * (1.0 + share * (1.0 / self.sustained - 1.0)), inside)
    }

    /// Seconds at burst clocks, and whether the shape lies inside the measured range.
    pub fn seconds(
        &self,
        rates: Rates,
        shape: [f64; 3],
        batch: f64,
        bytes: f64,
        role: GemmRole,
    ) -> (f64, bool) {
        let [m, n, k] = shape;
        // A fused accumulation reads the fp32 gradient as well as writing it.
        let again = if role == GemmRole::WeightGradient { 4.0 * m * n * batch } else { 0.0 };
        let base = law_seconds(&self.law, rates, m, n, k, batch, bytes + again);
        let ratio = |(constant, residual): &(f64, Residual)| {
            if residual.is_empty() { *constant } else { constant * residual.at(shape).exp() }
        };
        let factor = match role {
            GemmRole::Forward => 1.0,
            GemmRole::InputGradient => ratio(&self.input_gradient),
            GemmRole::WeightGradient => ratio(&self.weight_gradient),
        };
        (base * self.residual.at(shape).exp() * factor, self.residual.covers(shape))
    }
}
