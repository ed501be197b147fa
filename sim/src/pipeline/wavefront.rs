//! 1F1B without a list of passes: all stages advance by one micro-batch per round.
//!
//! In round `r` stage `s` of `p` runs F of micro-batch `r + p - 1 - s` and then B of micro-batch `r`. The input of that
//! F left the stage before in the last round, and the input of that B leaves the stage behind in this one, so two
//! sweeps over the stages per round see every dependency: a handful of instructions per pass, and no memory that grows
//! with the number of micro-batches. Same results as the general relaxation (tested), several times faster.

use super::{PipelineCosts, PipelineSpec};
use psim_models::plan::Schedule;

/// One stage.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lane {
    /// From when the stage is free.
    free: u64,
    /// Arrival of its next forward input.
    arrival: u64,
    forward: u64,
    backward: u64,
    /// Transfer to the next stage, and how much of it blocks this one.
    up: (u64, u64),
    /// Transfer to the stage before.
    down: (u64, u64),
    /// Start of its first pass.
    pub(super) first_start: u64,
    /// End of its last pass.
    pub(super) last_end: u64,
}

/// The schedule is one that rounds describe.
pub(super) fn applies(spec: &PipelineSpec) -> bool {
    matches!(spec.schedule, Schedule::OneFOneB | Schedule::Interleaved) && spec.chunks_per_stage == 1
}

/// Runs 1F1B; `lanes` is scratch and holds the outcome.
pub(super) fn run(spec: &PipelineSpec, costs: &PipelineCosts, lanes: &mut Vec<Lane>) {
    let (stages, batches) = (spec.stages as usize, i64::from(spec.micro_batches));
    let last = stages - 1;
    lanes.clear();
    lanes.extend(costs.chunks.iter().enumerate().map(|(stage, cost)| {
        let transfer = |boundary: Option<usize>| {
            let latency = boundary.map_or(0, |boundary| costs.boundary(boundary as u32).0);
            (latency, if costs.p2p_overlap { 0 } else { latency })
        };
        Lane {
            forward: cost.forward.0,
            backward: (cost.backward_input + cost.backward_weight).0,
            up: transfer((stage < last).then_some(stage)),
            down: transfer(stage.checked_sub(1)),
            ..Lane::default()
        }
    }));
    for round in -(last as i64)..batches {
        // Stages whose micro-batch of this round exists, from the last: it takes its input before the next arrives.
        let low = (last as i64 + 1 + round - batches).max(0) as usize;
        let high = (last as i64 + round.min(0)) as usize;
        let first = round + last as i64;
        if low <= high {
            for stage in (low..=high).rev() {
                let lane = &mut lanes[stage];
                let start = lane.free.max(lane.arrival);
                let end = start.saturating_add(lane.forward);
                lane.free = end.saturating_add(lane.up.1);
                if first == stage as i64 {
                    lane.first_start = start;
                }
                let arrival = end.saturating_add(lane.up.0);
                if stage < last {
                    lanes[stage + 1].arrival = arrival;
                }
            }
        }
        if round >= 0 {
            let mut arrival = 0;
            for lane in lanes.iter_mut().rev() {
                let end = lane.free.max(arrival).saturating_add(lane.backward);
                arrival = end.saturating_add(lane.down.0);
                lane.last_end = end;
                lane.free = end.saturating_add(lane.down.1);
            }
        }
    }
}
