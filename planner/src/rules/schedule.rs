//! Interleaving needs a pipeline and the interleaved schedule; ZB-V has exactly two chunks per stage.

use super::{Facts, Rule, Stage};
use psim_models::Plan;
use psim_models::plan::Schedule;

pub(super) struct Schedules;

impl Rule for Schedules {
    fn name(&self) -> &'static str {
        "schedule"
    }
    fn stage(&self) -> Stage {
        Stage::Chunks
    }
    fn permits(&self, _facts: &Facts, plan: &Plan) -> bool {
        match plan.schedule {
            Schedule::Interleaved => plan.vpp > 1 && plan.pp > 1,
            Schedule::ZbV => plan.vpp == 2 && plan.pp > 1,
            Schedule::ZbH1 | Schedule::ZbH2 => plan.vpp == 1 && plan.pp > 1,
            Schedule::Gpipe | Schedule::OneFOneB => plan.vpp == 1,
        }
    }
    fn explain(&self, _facts: &Facts, plan: &Plan) -> String {
        let wants = match plan.schedule {
            Schedule::Interleaved => "pp ≥ 2 and vpp ≥ 2",
            Schedule::ZbV => "pp ≥ 2 and vpp = 2",
            Schedule::ZbH1 | Schedule::ZbH2 => "pp ≥ 2 and vpp = 1",
            Schedule::Gpipe | Schedule::OneFOneB => "vpp = 1",
        };
        format!("schedule {:?} needs {wants}; pp = {}, vpp = {}", plan.schedule, plan.pp, plan.vpp)
    }
}
