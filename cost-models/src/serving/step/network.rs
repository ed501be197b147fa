//! Collectives of a step.

use super::super::reduce::ReduceCurve;
use super::pricing::Pricing;
use psim_models::operator::CollectiveKind;
use psim_models::serving::NumberFormat;
use psim_models::serving::lower::ServingShape;

impl Pricing<'_> {
    /// One all-reduce of the residual stream over the tensor-parallel ranks.
    pub(super) fn all_reduce(&self, tokens: f64, hidden: u64) -> f64 {
        let bytes = 2.0 * tokens * hidden as f64;
        let nccl = || self.costs.collective(CollectiveKind::AllReduce, bytes as u64, &self.tp).time.0;
        let curve = |library: &str| -> Option<(&'static ReduceCurve, bool)> {
            if self.tp.is_local() { self.lookup.all_reduce(library, self.d.tp) } else { None }
        };
        match curve(self.library) {
            Some((curve, own)) => {
                let custom = curve.seconds(bytes);
                match (own, curve_of(&curve_nccl(self, self.d.tp), bytes)) {
                    // Engines switch to the library's own all-reduce where it is faster.
                    (true, Some(other)) => custom.min(other),
                    _ => custom,
                }
            }
            None => nccl(),
        }
    }

    /// Gathering the expert inputs of all attention copies, and scattering the results (the engines' default on a
    /// node). Inputs of four-bit experts travel cast. Beyond a node's ranks tokens go only where their experts are.
    pub(super) fn exchange(&self, shape: &ServingShape, tokens: f64) -> f64 {
        if shape.exchanges <= 0.0 {
            return 0.0;
        }
        let ranks = f64::from(self.d.tp * self.d.attention_dp);
        let met = shape.experts.first().filter(|_| ranks > 8.0).map_or(1.0, |e| {
            // Ranks that hold at least one of a token's experts, as a share of all.
            1.0 - (1.0 - 1.0 / ranks).powf(e.top_k as f64)
        });
        let width = match shape.experts.first().map(|e| e.format) {
            Some(NumberFormat::Nvfp4) if self.four_bit.is_some() => 0.5 + 1.0 / 16.0,
            Some(NumberFormat::Mxfp4) if self.four_bit.is_some() => 1.0 + 1.0 / 32.0,
            _ => 2.0,
        };
        let elements = met * tokens * shape.hidden as f64;
        let gather = self.costs.collective(CollectiveKind::AllGather, (width * elements) as u64, &self.all);
        let scatter =
            self.costs.collective(CollectiveKind::ReduceScatter, (2.0 * elements) as u64, &self.all);
        let (gather, scatter) = (gather.time.0, scatter.time.0);
        shape.exchanges * (gather + scatter)
    }
}

fn curve_nccl(pricing: &Pricing<'_>, ranks: u32) -> Option<&'static ReduceCurve> {
    pricing.lookup.all_reduce("nccl", ranks).map(|c| c.0).filter(|c| c.library == "nccl")
}

fn curve_of(curve: &Option<&'static ReduceCurve>, bytes: f64) -> Option<f64> {
    curve.map(|c| c.seconds(bytes))
}
