//! A replica's sequences are cut into equal micro-batches.

use super::{Facts, Rule, Stage};
use psim_models::Plan;

pub(super) struct MicroBatch;

impl Rule for MicroBatch {
    fn name(&self) -> &'static str {
        "micro-batch"
    }
    fn stage(&self) -> Stage {
        Stage::Batch
    }
    fn permits(&self, _facts: &Facts, plan: &Plan) -> bool {
        let local = plan.global_batch / plan.dp.max(1);
        plan.micro_batch > 0 && local.is_multiple_of(plan.micro_batch) && local >= plan.micro_batch
    }
    fn explain(&self, _facts: &Facts, plan: &Plan) -> String {
        let local = plan.global_batch / plan.dp.max(1);
        format!("micro-batch {} does not divide the {local} sequences of a replica", plan.micro_batch)
    }
}
