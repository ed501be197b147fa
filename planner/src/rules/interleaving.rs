//! The interleaved schedule runs micro-batches in rounds of pp (Narayanan et al. 2021, section 2.2): their number is a
//! multiple of pp.

use super::{Facts, Rule, Stage};
use psim_models::Plan;
use psim_models::plan::Schedule;

pub(super) struct Interleaving;

impl Rule for Interleaving {
    fn name(&self) -> &'static str {
        "interleaved rounds"
    }
    fn stage(&self) -> Stage {
        Stage::Batch
    }
    fn permits(&self, _facts: &Facts, plan: &Plan) -> bool {
        plan.schedule != Schedule::Interleaved || plan.micro_batches().is_multiple_of(plan.pp.max(1))
    }
    fn explain(&self, _facts: &Facts, plan: &Plan) -> String {
        format!(
            "the interleaved schedule needs a multiple of pp = {} micro-batches; there are {}",
            plan.pp,
            plan.micro_batches()
        )
    }
}
