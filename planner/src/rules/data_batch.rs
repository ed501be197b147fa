//! Every replica gets equally many sequences: dp divides the global batch.

use super::{Facts, Rule, Stage};
use psim_models::Plan;

pub(super) struct DataBatch;

impl Rule for DataBatch {
    fn name(&self) -> &'static str {
        "global batch over replicas"
    }
    fn stage(&self) -> Stage {
        Stage::Batch
    }
    fn permits(&self, _facts: &Facts, plan: &Plan) -> bool {
        plan.dp > 0 && plan.global_batch >= plan.dp && plan.global_batch.is_multiple_of(plan.dp)
    }
    fn explain(&self, _facts: &Facts, plan: &Plan) -> String {
        format!(
            "a global batch of {} sequences cannot be shared equally by dp = {} replicas",
            plan.global_batch, plan.dp
        )
    }
}
