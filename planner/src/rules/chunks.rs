//! Every model chunk holds at least one layer; interleaved chunks are equal.

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
        chunks > 0 && facts.layers >= chunks && (plan.vpp == 1 || facts.layers % chunks == 0)
    }
    fn explain(&self, facts: &Facts, plan: &Plan) -> String {
        let chunks = u64::from(plan.pp) * u64::from(plan.vpp);
        let what = if plan.vpp == 1 { "at least one layer each" } else { "equally many layers each" };
        format!(
            "pp {} × vpp {} = {chunks} model chunks need {what}; the model has {} layers",
            plan.pp, plan.vpp, facts.layers
        )
    }
}
