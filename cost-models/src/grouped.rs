//! Grouped matrix products: the tiles of all groups share the units.

use crate::gemm::{Rates, compute_seconds, overlap};
use crate::grid::Residual;
use psim_hardware::profile::accelerator::{GemmLaw, GroupedGemmTable};
use psim_models::operator::GemmRole;

/// Shape of a call, with the forward pass's names: `rows` tokens over all groups, `n` outputs, `k` inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupedShape {
    /// Experts.
    pub groups: f64,
    /// Rows over all of them.
    pub rows: f64,
    /// Outputs of the forward product.
    pub n: f64,
    /// Inputs of the forward product.
    pub k: f64,
    /// Unavoidable bytes.
    pub bytes: f64,
    /// Which of the three products.
    pub role: GemmRole,
}

/// Law time in seconds.
pub fn law_seconds(law: &GemmLaw, group_us: f64, rates: Rates, s: &GroupedShape) -> f64 {
    let each = s.rows / s.groups.max(1.0);
    let (m, n, k) = match s.role {
        GemmRole::Forward => (each, s.n, s.k),
        GemmRole::InputGradient => (each, s.k, s.n),
        GemmRole::WeightGradient => (s.n, s.k, each),
    };
    let compute = compute_seconds(law, rates, m, n, k, s.groups);
    // A fused accumulation reads the fp32 gradient as well as writing it.
    let again = if s.role == GemmRole::WeightGradient { 4.0 * s.groups * s.n * s.k } else { 0.0 };
    let memory = (s.bytes + again) / (rates.bandwidth * law.memory);
    law.launch_us * 1e-6 + s.groups * group_us * 1e-6 + overlap(compute, memory)
}

/// A table made ready for pricing.
#[derive(Debug, Clone)]
pub struct GroupedGemmModel {
    law: GemmLaw,
    group_us: f64,
    residual: Residual,
    input_gradient: f64,
    weight_gradient: f64,
    /// Held-out error of the table.
    pub sigma: f64,
}

impl GroupedGemmModel {
    /// Prepares a table.
    pub fn new(table: &GroupedGemmTable) -> Self {
        Self {
            law: table.law,
            group_us: table.group_us,
            residual: Residual::new(table.residual.as_ref()),
            input_gradient: table.input_gradient,
            weight_gradient: table.weight_gradient,
            sigma: table.fit.sigma,
        }
    }

    /// Measured on kernels that take all experts at once: no cost per expert.
    pub fn is_fused(&self) -> bool {
        self.group_us <= 0.0
    }

    /// Seconds, and whether the shape lies inside the measured range.
    pub fn seconds(&self, rates: Rates, shape: &GroupedShape) -> (f64, bool) {
        let base = law_seconds(&self.law, self.group_us, rates, shape);
        let point = [shape.rows / shape.groups.max(1.0), shape.n, shape.k];
        let factor = match shape.role {
            GemmRole::Forward => 1.0,
            GemmRole::InputGradient => self.input_gradient,
            GemmRole::WeightGradient => self.weight_gradient,
        };
        (
            base * self.residual.at(point).exp() * factor,
            self.residual.is_empty() || self.residual.covers(point),
        )
    }
}
