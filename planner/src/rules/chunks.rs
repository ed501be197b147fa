//! Every model chunk holds at least one layer. Chunks may differ: the last ones get one layer less where the layers do
//! not divide (Llama 3 405B: 126 layers in 16 × 8 places).

use super::{Facts, Rule, Stage};
use psim_models::Plan;

pub(super) struct Chunks;

impl Rule for Chunks {
    fn name(&self) -> &'static str {
        "layers per stage"
    }
    fn stage(&self) -> Stage {
        Stage::Chunks
    }
    fn permits(&self, facts: &Facts, plan: &Plan) -> bool {
        let Some(chunks) = plan.pp.checked_mul(plan.vpp) else { return false };
        chunks > 0 && facts.layers >= chunks
    }
    fn explain(&self, facts: &Facts, plan: &Plan) -> String {
        let chunks = u64::from(plan.pp) * u64::from(plan.vpp);
        format!(
            "pp {} × vpp {} = {chunks} model chunks need at least one layer each; the model has {} layers",
            plan.pp, plan.vpp, facts.layers
        )
    }
}
