//! tp · pp · cp · dp uses every accelerator (or, when idling is allowed, no more than there are).

use super::{Facts, Rule, Stage};
use psim_models::Plan;

pub(super) struct ClusterSize;

impl Rule for ClusterSize {
    fn name(&self) -> &'static str {
        "cluster size"
    }
    fn stage(&self) -> Stage {
        Stage::Mesh
    }
    fn permits(&self, facts: &Facts, plan: &Plan) -> bool {
        let world = [plan.pp, plan.dp, plan.cp].iter().try_fold(plan.tp, |w, &n| w.checked_mul(n));
        world.is_some_and(|w| {
            w > 0 && (w == facts.accelerators || (facts.may_idle && w <= facts.accelerators))
        })
    }
    fn explain(&self, facts: &Facts, plan: &Plan) -> String {
        let model_ranks = u64::from(plan.tp) * u64::from(plan.pp) * u64::from(plan.cp);
        format!(
            "tp {} × pp {} × cp {} = {model_ranks} accelerators per replica; {} accelerators are not a multiple of that",
            plan.tp, plan.pp, plan.cp, facts.accelerators
        )
    }
}
