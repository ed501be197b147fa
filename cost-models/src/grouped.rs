//! Grouped matrix products: the tiles of all groups share the units.

use crate::gemm::{Rates, compute_seconds, overlap};
use crate::grid::Residual;
use psim_hardware::profile::accelerator::{GemmLaw, GroupedGemmTable};
use psim_models::operator::GemmRole;

/// Law time in seconds of `groups` products with `rows` rows in all.
pub fn law_seconds(
    law: &GemmLaw,
    group_us: f64,
    rates: Rates,
    groups: f64,
    rows: f64,
    n: f64,
    k: f64,
    bytes: f64,
) -> f64 {
    let each = rows / groups.max(1.0);
    let compute = compute_seconds(law, rates, each, n, k, groups);
    let memory = bytes / (rates.bandwidth * law.memory);
    law.launch_us * 1e-6 + groups * group_us * 1e-6 + overlap(compute, memory)
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

    /// Seconds, and whether the shape lies inside the measured range.
    pub fn seconds(
        &self,
        rates: Rates,
        groups: f64,
        rows: f64,
        n: f64,
        k: f64,
        bytes: f64,
        role: GemmRole,
    ) -> (f64, bool) {
        let base = law_seconds(&self.law, self.group_us, rates, groups, rows, n, k, bytes);
        let point = [rows / groups.max(1.0), n, k];
        let factor = match role {
            GemmRole::Forward => 1.0,
            GemmRole::InputGradient => self.input_gradient,
            GemmRole::WeightGradient => self.weight_gradient,
        };
        (base * self.residual.at(point).exp() * factor, self.residual.covers(point))
    }
}
