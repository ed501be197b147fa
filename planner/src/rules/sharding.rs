//! Sharding needs replicas to share with. Sharded gradients are reduced after every micro-batch, which frameworks with
//! pipelines refuse (DeepSpeed documentation, "Pipeline Parallelism": ZeRO-2 and ZeRO-3 are incompatible with it).

use super::{Facts, Rule, Stage};
use psim_models::Plan;
use psim_models::plan::Sharding;

pub(super) struct ShardingRule;

impl Rule for ShardingRule {
    fn name(&self) -> &'static str {
        "sharding"
    }
    fn stage(&self) -> Stage {
        Stage::Execution
    }
    fn permits(&self, _facts: &Facts, plan: &Plan) -> bool {
        match plan.sharding {
            Sharding::None => true,
            Sharding::Optimizer => plan.dp * plan.cp > 1,
            Sharding::Gradients | Sharding::Parameters => plan.dp * plan.cp > 1 && plan.pp == 1,
        }
    }
    fn explain(&self, _facts: &Facts, plan: &Plan) -> String {
        if plan.dp * plan.cp == 1 {
            format!("{:?} sharding needs more than one data-parallel rank; dp = 1", plan.sharding)
        } else {
            format!("{:?} sharding does not go with a pipeline; pp = {}", plan.sharding, plan.pp)
        }
    }
}
