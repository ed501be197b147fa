//! Key-value heads are split over tp, or replicated where there are fewer than ranks: one number divides the other.

use super::{Facts, Rule, Stage};
use psim_models::Plan;

pub(super) struct KvHeads;

impl Rule for KvHeads {
    fn name(&self) -> &'static str {
        "key-value heads"
    }
    fn stage(&self) -> Stage {
        Stage::Mesh
    }
    fn permits(&self, facts: &Facts, plan: &Plan) -> bool {
        let tp = u64::from(plan.tp);
        facts.kv_heads.iter().all(|&kv| kv > 0 && (kv % tp == 0 || tp % kv == 0))
    }
    fn explain(&self, facts: &Facts, plan: &Plan) -> String {
        let list: Vec<String> = facts.kv_heads.iter().map(u64::to_string).collect();
        format!(
            "tp = {} neither divides nor is a multiple of {} key-value heads",
            plan.tp,
            list.join(" and ")
        )
    }
}
