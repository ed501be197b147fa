//! Fused experts.

use super::super::kernels::{Datasheet, MoeCall, MoeLaw};
use super::super::tables::Found;
use super::pricing::Pricing;
use crate::grid::Residual;
use psim_models::serving::NumberFormat;
use psim_models::serving::lower::{Experts, ServingShape};

impl Pricing<'_> {
    /// Experts of one rank, for the tokens of all attention copies.
    pub(super) fn experts(&self, shape: &ServingShape, tokens: f64) -> f64 {
        let one = |e: &Experts| {
            let call = self.call(e, tokens);
            let timed = |formats: &[&str]| {
                let (found, rates) = self.moe_law(e.format, formats);
                let factor = Residual::new(found.residual).at(call.coordinates()).exp();
                factor * found.law.seconds(rates, &call)
            };
            if self.p.expert_rows > 0.0 {
                let (found, rates) = self.moe_law(e.format, formats(e.format));
                return e.layers
                    * found.law.seconds_contiguous(rates, &call, self.p.expert_rows, e.inner as f64);
            }
            let usual = timed(formats(e.format));
            // Kernels for few tokens and for many are both there: engines tune which one a batch takes.
            let best = match e.format {
                NumberFormat::Nvfp4 => usual.min(timed(&["nvfp4-low-latency", "nvfp4", "fp8", "bf16"])),
                _ => usual,
            };
            e.layers * best
        };
        shape.experts.iter().map(one).sum()
    }

    fn call(&self, e: &Experts, tokens: f64) -> MoeCall {
        let draws = tokens * e.top_k as f64;
        let spread = e.local as f64 / e.experts.max(1) as f64;
        let local = e.local as f64;
        let touched = MoeCall::hit(local, e.experts as f64, draws);
        // Zero stands for what spread popularity makes of it.
        let [more_rows, more_touched] = match (self.d.ep, self.p.expert_imbalance) {
            (0..=1, _) => [1.0; 2],
            (ranks, 0.0) => {
                MoeCall::busiest(local, e.experts as f64, ranks, touched / local.max(1.0), draws * spread)
            }
            (_, given) => [given; 2],
        };
        MoeCall {
            rows: (draws * spread * more_rows).max(1.0),
            touched: (touched * more_touched).min(local).max(1.0f64.min(draws)),
            parameters: (e.matrices * e.hidden * e.inner) as f64,
            weight_bytes: e.format.weight_bits() / 8.0,
            hidden: e.hidden as f64,
            local: e.local as f64,
        }
    }

    fn moe_law(&self, format: NumberFormat, formats: &[&str]) -> (Found<MoeLaw>, Datasheet) {
        let found = self.lookup.moe(self.library, formats);
        (found, Datasheet { peak: self.peak(format), ..self.rates })
    }

    /// Experts of one rank at the peak rate, as if weights came at once.
    pub(super) fn expert_arithmetic(&self, shape: &ServingShape, tokens: f64) -> f64 {
        let one = |e: &Experts| {
            let call = self.call(e, tokens);
            e.layers * 2.0 * call.rows * call.parameters / self.peak(e.format)
        };
        shape.experts.iter().map(one).sum()
    }

    pub(super) fn roofline_experts(&self, shape: &ServingShape, tokens: f64) -> f64 {
        let one = |e: &Experts| {
            let share = e.local as f64 / e.experts.max(1) as f64;
            let rows = tokens * e.top_k as f64 * share;
            let parameters = (e.matrices * e.hidden * e.inner) as f64;
            // A token may meet the same experts as all others: only its own top-k must be read.
            let least = (e.top_k as f64 * share).min(e.local as f64);
            let bytes = least * parameters * e.format.weight_bits() / 8.0;
            let flops = 2.0 * rows * parameters;
            e.layers * (flops / self.peak(e.format)).max(bytes / self.rates.bandwidth)
        };
        shape.experts.iter().map(one).sum()
    }
}

/// Formats whose kernels stand for one another, the nearest first.
fn formats(format: NumberFormat) -> &'static [&'static str] {
    match format {
        NumberFormat::Bf16 => &["bf16"],
        NumberFormat::Fp8 | NumberFormat::Int8 => &["fp8", "fp8-block", "bf16"],
        NumberFormat::Fp8Block => &["fp8-block", "fp8", "bf16"],
        NumberFormat::Nvfp4 => &["nvfp4", "fp8", "bf16"],
        NumberFormat::Mxfp4 => &["mxfp4", "nvfp4", "w4a16", "bf16"],
        _ => &["w4a16", "mxfp4", "bf16"],
    }
}
