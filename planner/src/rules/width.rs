//! Feed-forward matrices are cut into equal columns: tp divides the inner width.

use super::{Facts, Rule, Stage};
use psim_models::Plan;

pub(super) struct Width;

impl Rule for Width {
    fn name(&self) -> &'static str {
        "feed-forward width"
    }
    fn stage(&self) -> Stage {
        Stage::Mesh
    }
    fn permits(&self, facts: &Facts, plan: &Plan) -> bool {
        facts.ffn_widths.iter().all(|w| w % u64::from(plan.tp) == 0)
    }
    fn explain(&self, facts: &Facts, plan: &Plan) -> String {
        let tp = u64::from(plan.tp);
        let width = facts.ffn_widths.iter().find(|&w| w % tp != 0).copied().unwrap_or(0);
        format!("tp = {tp} does not divide the feed-forward width {width}")
    }
}
