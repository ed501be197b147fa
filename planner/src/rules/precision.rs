//! The accelerators have matrix units for the GEMM format.

use super::{Facts, Rule, Stage};
use psim_models::Plan;

pub(super) struct PrecisionRule;

impl Rule for PrecisionRule {
    fn name(&self) -> &'static str {
        "precision"
    }
    fn stage(&self) -> Stage {
        Stage::Execution
    }
    fn permits(&self, facts: &Facts, plan: &Plan) -> bool {
        facts.formats.contains(&plan.precision.gemm())
    }
    fn explain(&self, facts: &Facts, plan: &Plan) -> String {
        let have: Vec<&str> = facts.formats.iter().map(|d| d.name()).collect();
        format!(
            "precision {} needs {} matrix units; {} has {}",
            plan.precision.name(),
            plan.precision.gemm(),
            facts.accelerator,
            have.join(", ")
        )
    }
}
