//! Attention heads are whole on a rank: tp divides their number; Ulysses also splits them over cp.

use super::{Facts, Rule, Stage};
use psim_models::Plan;
use psim_models::plan::ContextParallel;

pub(super) struct Heads;

fn parts(plan: &Plan) -> u64 {
    let ulysses = plan.cp_kind == ContextParallel::Ulysses;
    u64::from(plan.tp) * if ulysses { u64::from(plan.cp) } else { 1 }
}

impl Rule for Heads {
    fn name(&self) -> &'static str {
        "attention heads"
    }
    fn stage(&self) -> Stage {
        Stage::Mesh
    }
    fn permits(&self, facts: &Facts, plan: &Plan) -> bool {
        facts.heads.iter().all(|h| h % parts(plan) == 0)
    }
    fn explain(&self, facts: &Facts, plan: &Plan) -> String {
        let parts = parts(plan);
        let heads = facts.heads.iter().find(|&h| h % parts != 0).copied().unwrap_or(0);
        format!("tp = {} splits heads into {parts} parts, and {parts} does not divide {heads} heads", plan.tp)
    }
}
