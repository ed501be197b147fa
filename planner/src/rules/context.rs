//! Context parallelism gives each rank two mirrored slices of the sequence (causal balance), each long enough to be
//! worth a kernel: shorter slices than one attention tile row would only add messages.

use super::{Facts, Rule, Stage};
use psim_models::Plan;

pub(super) struct Context;

/// Tokens of the shortest slice, one query tile of FlashAttention kernels.
const SHORTEST_SLICE: u64 = 128;

impl Rule for Context {
    fn name(&self) -> &'static str {
        "context-parallel slices"
    }
    fn stage(&self) -> Stage {
        Stage::Mesh
    }
    fn permits(&self, facts: &Facts, plan: &Plan) -> bool {
        let slices = 2 * u64::from(plan.cp);
        plan.cp == 1 || (facts.seq_len.is_multiple_of(slices) && facts.seq_len / slices >= SHORTEST_SLICE)
    }
    fn explain(&self, facts: &Facts, plan: &Plan) -> String {
        let slices = 2 * plan.cp;
        format!(
            "cp = {} cuts {} tokens into {slices} slices, which must be equal and of at least {SHORTEST_SLICE} tokens",
            plan.cp, facts.seq_len
        )
    }
}
