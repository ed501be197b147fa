//! Megatron sequence parallelism shards tokens over tp: it needs tp ≥ 2, and tp divides a rank's tokens.

use super::{Facts, Rule, Stage};
use psim_models::Plan;

pub(super) struct SequenceParallel;

impl Rule for SequenceParallel {
    fn name(&self) -> &'static str {
        "sequence parallelism"
    }
    fn stage(&self) -> Stage {
        Stage::Execution
    }
    fn permits(&self, facts: &Facts, plan: &Plan) -> bool {
        let tokens = facts.seq_len * u64::from(plan.micro_batch) / u64::from(plan.cp.max(1));
        if plan.sequence_parallel { tokens.is_multiple_of(u64::from(plan.tp)) } else { true }
    }
    fn explain(&self, facts: &Facts, plan: &Plan) -> String {
        let tokens = facts.seq_len * u64::from(plan.micro_batch) / u64::from(plan.cp.max(1));
        format!("sequence parallelism cannot cut {tokens} tokens into tp = {} equal parts", plan.tp)
    }
}
