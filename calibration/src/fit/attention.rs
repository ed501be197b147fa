//! Fused attention: forward, backward and decode tables per kernel generation.

use super::law::{Fitted, Measured, Problem};
use super::minimise::Bounded;
use super::surface::Smoothing;
use super::{Summary, round};
use crate::tables::kernels::AttentionRow;
use psim_cost_models::attention::{AttentionShape, QUERY_TILE, law_seconds};
use psim_cost_models::gemm::Rates;
use psim_hardware::DType;
use psim_hardware::profile::accelerator::{AttentionLaw, AttentionPass, AttentionTable, FitQuality};
use psim_hardware::profile::stack::AttentionKernel;

/// One measured call.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Shape.
    pub shape: AttentionShape,
    /// Seconds.
    pub seconds: f64,
    /// Weight.
    pub weight: f64,
}

impl Measured for Sample {
    fn seconds(&self) -> f64 {
        self.seconds
    }
    fn weight(&self) -> f64 {
        self.weight
    }
    fn point(&self) -> [f64; 3] {
        self.shape.coordinates()
    }
    fn family(&self) -> Vec<f64> {
        vec![self.shape.heads, self.shape.groups, self.shape.width, self.shape.seq_kv]
    }
    fn core(&self) -> bool {
        self.shape.seq_kv >= 1024.0 && self.shape.heads >= 4.0
    }
}

/// The shape of a row, forward or backward; the share computed comes from the row's own flop count.
pub fn shape(row: &AttentionRow, pass: AttentionPass, dtype: DType) -> AttentionShape {
    let width = f64::midpoint(row.head_dim, row.head_dim_v);
    // Decoding with a sliding window reads the window only.
    let seq_kv = match row.window {
        Some(window) if pass == AttentionPass::Decode && window > 0.0 => row.seq_kv.min(window),
        _ => row.seq_kv,
    };
    let heads = row.batch * row.q_heads;
    let rectangle = 4.0 * heads * row.seq_q * seq_kv * width;
    let factor = if pass == AttentionPass::Backward { 2.5 } else { 1.0 };
    let nominal = rectangle * if row.causal > 0.0 { 0.5 } else { 1.0 };
    // Rows of both passes together count 3.5 forward passes; their share computed is the nominal one.
    let counted = match row.tflops {
        Some(t) if row.phase != "train-fwd+bwd" => t * row.time_us * 1e6 / factor,
        _ => nominal,
    };
    let density = if pass == AttentionPass::Decode { 1.0 } else { (counted / rectangle).clamp(1e-6, 1.0) };
    let q = heads * row.seq_q * (row.head_dim + row.head_dim_v);
    // The absorbed latent form reads one tensor for keys and values.
    let kv_width = if row.variant == "mla-absorbed" { row.head_dim } else { row.head_dim + row.head_dim_v };
    let kv = row.batch * row.kv_heads * seq_kv * kv_width;
    let bytes = dtype.size() * if pass == AttentionPass::Backward { 3.0 * q + 2.0 * kv } else { q + kv };
    AttentionShape {
        heads,
        groups: row.batch * row.kv_heads,
        seq_q: row.seq_q,
        seq_kv,
        density,
        width,
        flops_per: if pass == AttentionPass::Backward { 10.0 } else { 4.0 },
        bytes,
    }
}

const BOUNDS: [Bounded; 8] = [
    Bounded { low: 0.5, high: 20.0 },
    Bounded { low: 0.05, high: 0.95 },
    Bounded { low: 0.4, high: 0.95 },
    Bounded { low: 0.0, high: 1500.0 },
    Bounded { low: 0.5, high: 1.0 },
    Bounded { low: 0.0, high: 1.0 },
    // Rotation and cache write beside the kernel: launch and passes over queries, keys and values.
    Bounded { low: 0.0, high: 20.0 },
    Bounded { low: 0.0, high: 6.0 },
];

/// Launch of a bare attention kernel in microseconds, where the measured call holds more than it.
const BARE_LAUNCH_US: f64 = 5.0;

fn law(p: &[f64]) -> AttentionLaw {
    AttentionLaw {
        launch_us: round(p[0], 2),
        compute: round(p[1], 4),
        memory: round(p[2], 4),
        prologue: round(p[3], 1),
        narrow_head: round(p[4], 4),
        quantisation: round(p[5], 4),
    }
}

/// Fits one table; few points get a law without residual. `prepares`: the measured call also rotates and writes the
/// cache (serving engines), which is fitted beside the law and left out of the table.
pub fn fit(
    machine: &str,
    kernel: AttentionKernel,
    pass: AttentionPass,
    dtype: DType,
    rates: Rates,
    samples: &[Sample],
    prepares: bool,
) -> (AttentionTable, Summary) {
    let extra = |p: &[f64], s: &Sample| p[6] * 1e-6 + p[7] * s.shape.bytes / rates.bandwidth;
    let read = |p: &[f64]| {
        let mut law = law(p);
        if prepares {
            law.launch_us = law.launch_us.min(BARE_LAUNCH_US);
        }
        law
    };
    let tiles = vec![1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 131_072.0];
    let keys = vec![
        1.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 65536.0, 262_144.0,
    ];
    let width = vec![64.0, 96.0, 128.0, 160.0, 256.0, 544.0];
    let compute = if pass == AttentionPass::Backward { 0.4 } else { 0.55 };
    let start = [4.5, compute, 0.8, 150.0, 0.8, 0.5, 6.0, 2.0];
    let decode = pass == AttentionPass::Decode;
    let probe = |at: [f64; 3]| {
        let [tiles, keys, width] = at;
        let seq_q = if decode { 1.0 } else { QUERY_TILE };
        let elements = 2.0 * width * tiles * if decode { keys } else { QUERY_TILE };
        let shape = AttentionShape {
            heads: tiles,
            groups: tiles,
            seq_q,
            seq_kv: keys,
            density: 1.0,
            width,
            flops_per: if pass == AttentionPass::Backward { 10.0 } else { 4.0 },
            bytes: dtype.size() * elements,
        };
        Sample { shape, seconds: 0.0, weight: 0.0 }
    };
    let mut bounds = BOUNDS;
    if !samples.iter().any(|s| s.shape.width < 96.0) {
        // No narrow head was measured: heads of 64 reach 0.9 of the rate of 128 (Dao 2023, figure 4, A100).
        bounds[4] = Bounded { low: 0.899, high: 0.901 };
    }
    let problem = Problem::<Sample> {
        bounds: if prepares { &bounds } else { &bounds[..6] },
        start: if prepares { &start } else { &start[..6] },
        law: &|p, s| law_seconds(&read(p), rates, &s.shape),
        extra: if prepares { Some(&extra) } else { None },
        axes: (samples.len() >= 60).then_some([tiles, keys, width]),
        probe: Some(&probe),
        smoothing: Smoothing { curvature: [0.5, 0.5, 0.2], shrink: 0.05 },
    };
    let (Fitted { parameters, residual }, errors) = problem.fit(samples);
    let law = read(&parameters);
    let text = format!(
        "launch {:.1} us, compute {:.3}, memory {:.3}, prologue {:.0}, narrow head {:.2}, quantisation {:.2}",
        law.launch_us, law.compute, law.memory, law.prologue, law.narrow_head, law.quantisation
    );
    let text = match (parameters.get(6), parameters.get(7)) {
        (Some(launch), Some(passes)) => format!("{text}, preparation {launch:.1} us + {passes:.1} passes"),
        _ => text,
    };
    let summary =
        errors.summary(machine, format!("attention {kernel:?} {pass:?} {dtype}").to_lowercase(), text);
    let fit = FitQuality { points: samples.len() as u32, sigma: errors.sigma() };
    (AttentionTable { kernel, pass, dtype, law, residual, fit }, summary)
}
