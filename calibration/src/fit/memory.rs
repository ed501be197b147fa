//! Memory-bound operators: launch, share of the bandwidth and ramp per class.

use super::Summary;
use super::law::{Measured, Problem};
use super::minimise::Bounded;
use super::surface::Smoothing;
use psim_hardware::profile::accelerator::{FitQuality, MemoryTable};

/// One measured operator.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Bytes moved.
    pub bytes: f64,
    /// Seconds.
    pub seconds: f64,
}

impl Measured for Sample {
    fn seconds(&self) -> f64 {
        self.seconds
    }
    fn weight(&self) -> f64 {
        if self.bytes >= 1e6 { 2.0 } else { 0.3 }
    }
    fn point(&self) -> [f64; 3] {
        [self.bytes, 1.0, 1.0]
    }
    fn family(&self) -> Vec<f64> {
        vec![self.bytes]
    }
    fn core(&self) -> bool {
        self.bytes >= 4e6
    }
}

/// The class of an operator of the measured table, where its kernel resembles what training stacks run.
pub fn class(op: &str) -> Option<&'static str> {
    match op {
        "residual_add" => Some("elementwise"),
        "gelu" => Some("activation"),
        "layernorm" => Some("norm"),
        "softmax" => Some("softmax"),
        "rope" => Some("rope"),
        _ => None,
    }
}

/// Fits one class on a machine with `bandwidth` bytes/s.
pub fn fit(machine: &str, class: &str, bandwidth: f64, samples: &[Sample]) -> (MemoryTable, Summary) {
    let bounds = [
        Bounded { low: 0.5, high: 60.0 },
        Bounded { low: 0.05, high: 0.97 },
        Bounded { low: 0.0, high: 20e6 },
    ];
    let problem = Problem::<Sample> {
        bounds: &bounds,
        start: &[2.0, 0.7, 1e6],
        law: &|p, s| p[0] * 1e-6 + (s.bytes + p[2]) / (bandwidth * p[1]),
        extra: None,
        axes: None,
        probe: None,
        smoothing: Smoothing { curvature: [1.0; 3], shrink: 1.0 },
    };
    let (fitted, errors) = problem.fit(samples);
    let p = &fitted.parameters;
    let text = format!("launch {:.1} us, efficiency {:.3}, half size {:.2} MB", p[0], p[1], p[2] / 1e6);
    let table = MemoryTable {
        class: class.to_owned(),
        launch_us: p[0].min(5.0),
        efficiency: p[1],
        half_bytes: p[2],
        half_width: 0.0,
        working_sets: None,
        fit: FitQuality { points: samples.len() as u32, sigma: errors.sigma() },
    };
    (table, errors.summary(machine, format!("memory {class}"), text))
}
