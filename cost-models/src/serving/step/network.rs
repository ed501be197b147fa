//! Collectives of a step.

use super::super::reduce::ReduceCurve;
use super::pricing::Pricing;
use psim_models::operator::CollectiveKind;
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

    /// Gathering the expert inputs of all attention copies, and scattering the results (the engines' default on a node).
    pub(super) fn exchange(&self, shape: &ServingShape, tokens: f64) -> f64 {
        if shape.exchanges <= 0.0 {
            return 0.0;
        }
        let bytes = (2.0 * tokens * shape.hidden as f64) as u64;
        let gather = self.costs.collective(CollectiveKind::AllGather, bytes, &self.all).time.0;
        let scatter = self.costs.collective(CollectiveKind::ReduceScatter, bytes, &self.all).time.0;
        shape.exchanges * (gather + scatter)
    }
}

fn curve_nccl(pricing: &Pricing<'_>, ranks: u32) -> Option<&'static ReduceCurve> {
    pricing.lookup.all_reduce("nccl", ranks).map(|c| c.0).filter(|c| c.library == "nccl")
}

fn curve_of(curve: &Option<&'static ReduceCurve>, bytes: f64) -> Option<f64> {
    curve.map(|c| c.seconds(bytes))
}
