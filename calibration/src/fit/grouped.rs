//! Grouped products of the experts: a few measured shapes per machine, so a law without residual.

use super::law::{Measured, Problem};
use super::minimise::Bounded;
use super::surface::Smoothing;
use super::{Summary, round};
use crate::tables::kernels::MoeRow;
use psim_cost_models::gemm::Rates;
use psim_cost_models::grouped::{GroupedShape, law_seconds};
use psim_hardware::profile::accelerator::{FitQuality, GemmLaw, GroupedGemmTable};
use psim_hardware::{DType, Scaling};
use psim_models::operator::{GemmRole, OperatorKind};

/// One measured call.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Shape.
    pub shape: GroupedShape,
    /// Seconds.
    pub seconds: f64,
}

impl Measured for Sample {
    fn seconds(&self) -> f64 {
        self.seconds
    }
    fn weight(&self) -> f64 {
        1.0
    }
    fn point(&self) -> [f64; 3] {
        [self.shape.rows / self.shape.groups, self.shape.n, self.shape.k]
    }
    fn family(&self) -> Vec<f64> {
        vec![self.shape.groups, self.shape.rows, self.shape.n]
    }
    fn core(&self) -> bool {
        self.shape.rows >= 256.0 * self.shape.groups
    }
}

/// Reads `grouped-gemm:ROLE:ng=G:M=M:N=N:K=K`; `None` for other rows.
pub fn sample(row: &MoeRow, dtype: DType, scaling: Scaling) -> Option<Sample> {
    let mut parts = row.op.strip_prefix("grouped-gemm:")?.split(':');
    let role = match parts.next()? {
        "bwd_grad_act" => GemmRole::InputGradient,
        "bwd_grad_w" => GemmRole::WeightGradient,
        _ => GemmRole::Forward,
    };
    let mut number = |key: &str| parts.next()?.strip_prefix(key)?.parse::<u64>().ok();
    let (groups, each, n, k) = (number("ng=")?, number("M=")?, number("N=")?, number("K=")?);
    let rows = groups * each;
    let bytes = OperatorKind::GroupedGemm { groups, rows, n, k, dtype, scaling, role }.bytes();
    let shape =
        GroupedShape { groups: groups as f64, rows: rows as f64, n: n as f64, k: k as f64, bytes, role };
    Some(Sample { shape, seconds: row.time_us * 1e-6 })
}

/// Of repeated shapes the slowest: the variant that accumulates in fp32, as training does.
pub fn slowest(mut samples: Vec<Sample>) -> Vec<Sample> {
    samples.sort_by(|a, b| {
        let key = |s: &Sample| (s.shape.role, s.shape.groups as u64, s.shape.rows as u64, s.shape.n as u64);
        key(a).cmp(&key(b)).then(b.seconds.total_cmp(&a.seconds))
    });
    samples.dedup_by(|b, a| {
        a.shape.role == b.shape.role
            && a.shape.groups == b.shape.groups
            && a.shape.rows == b.shape.rows
            && a.shape.n == b.shape.n
            && a.shape.k == b.shape.k
    });
    samples
}

const COMPUTE: Bounded = Bounded { low: 0.1, high: 0.98 };
const PROLOGUE: Bounded = Bounded { low: 0.0, high: 1200.0 };
const GROUP: Bounded = Bounded { low: 0.0, high: 20.0 };
const ROLE: Bounded = Bounded { low: 0.7, high: 1.6 };
const MEMORY: Bounded = Bounded { low: 0.3, high: 0.95 };
const SMALL: Bounded = Bounded { low: 0.5, high: 1.0 };

/// Fits compute share, pipeline fill, cost per group, memory share and the two backward layouts on top of the
/// machine's dense law.
pub fn fit(
    machine: &str,
    dense: &GemmLaw,
    dtype: DType,
    scaling: Scaling,
    rates: Rates,
    samples: &[Sample],
) -> (GroupedGemmTable, Summary) {
    let build =
        |p: &[f64]| GemmLaw { compute: p[0], prologue: p[1], memory: p[5], small_tile: p[6], ..*dense };
    let factor = |p: &[f64], role: GemmRole| match role {
        GemmRole::Forward => 1.0,
        GemmRole::InputGradient => p[3],
        GemmRole::WeightGradient => p[4],
    };
    let problem = Problem::<Sample> {
        bounds: &[COMPUTE, PROLOGUE, GROUP, ROLE, ROLE, MEMORY, SMALL],
        start: &[0.9 * dense.compute, dense.prologue.max(50.0), 0.5, 1.0, 1.05, dense.memory, 0.9],
        law: &|p, s| law_seconds(&build(p), p[2], rates, &s.shape) * factor(p, s.shape.role),
        extra: None,
        axes: None,
        probe: None,
        smoothing: Smoothing { curvature: [1.0; 3], shrink: 1.0 },
    };
    let (fitted, errors) = problem.fit(samples);
    let mut p = fitted.parameters;
    // Layouts that were not measured cost what they cost on machines where they were.
    for (index, role, usual) in [(3, GemmRole::InputGradient, 1.03), (4, GemmRole::WeightGradient, 1.12)] {
        if !samples.iter().any(|s| s.shape.role == role) {
            p[index] = usual;
        }
    }
    let law = build(&p);
    let text = format!(
        "compute {:.3}, memory {:.3}, prologue {:.0}, small tile {:.2}, {:.2} us per group, input gradient {:.2}, weight gradient {:.2}",
        law.compute, law.memory, law.prologue, law.small_tile, p[2], p[3], p[4]
    );
    let summary = errors.summary(machine, format!("grouped {dtype} {scaling:?}").to_lowercase(), text);
    let table = GroupedGemmTable {
        dtype,
        scaling,
        law,
        group_us: round(p[2], 3),
        residual: None,
        input_gradient: round(p[3], 3),
        weight_gradient: round(p[4], 3),
        fit: FitQuality { points: samples.len() as u32, sigma: errors.sigma() },
    };
    (table, summary)
}
