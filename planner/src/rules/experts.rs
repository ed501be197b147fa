//! Experts are whole or cut by etp: ep divides their number, etp their width, and ep · etp lies inside tp · cp · dp.

use super::{Facts, Rule, Stage};
use psim_models::Plan;

pub(super) struct Experts;

impl Rule for Experts {
    fn name(&self) -> &'static str {
        "experts"
    }
    fn stage(&self) -> Stage {
        Stage::Experts
    }
    fn permits(&self, facts: &Facts, plan: &Plan) -> bool {
        let Some((experts, width)) = facts.experts else { return plan.ep == 1 && plan.etp == 1 };
        let inside = u64::from(plan.tp) * u64::from(plan.cp) * u64::from(plan.dp);
        let (ep, etp) = (u64::from(plan.ep), u64::from(plan.etp));
        experts % ep == 0 && width % etp == 0 && inside % (ep * etp) == 0
    }
    fn explain(&self, facts: &Facts, plan: &Plan) -> String {
        let Some((experts, width)) = facts.experts else {
            return format!("ep = {}, etp = {}, but the model has no experts", plan.ep, plan.etp);
        };
        let inside = u64::from(plan.tp) * u64::from(plan.cp) * u64::from(plan.dp);
        format!(
            "ep = {} must divide {experts} experts, etp = {} their width {width}, and ep × etp = {} the tp × cp × dp = {inside} ranks of a stage",
            plan.ep,
            plan.etp,
            u64::from(plan.ep) * u64::from(plan.etp)
        )
    }
}
