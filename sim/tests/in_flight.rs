//! The closed form of micro-batches in flight against the simulated schedules.

use psim_hardware::Time;
use psim_models::memory::in_flight;
use psim_models::plan::{Plan, Schedule};
use psim_sim::pipeline::{ChunkCost, PipelineCosts, PipelineSpec, simulate};

fn plan(pp: u32, vpp: u32, m: u32, schedule: Schedule) -> Plan {
    Plan { pp, vpp, global_batch: m, schedule, ..Plan::default() }
}

#[test]
fn closed_form_totals_are_those_of_the_schedule() {
    let chunk = ChunkCost { forward: Time(10), backward_input: Time(20), backward_weight: Time(0) };
    for pp in [1u32, 2, 3, 4, 8] {
        for vpp in [1u32, 2, 3, 5] {
            for rounds in [1u32, 2, 3, 8] {
                let schedule = if vpp == 1 { Schedule::OneFOneB } else { Schedule::Interleaved };
                if vpp > 1 && pp == 1 {
                    continue;
                }
                let m = rounds * pp;
                let plan = plan(pp, vpp, m, schedule);
                let spec = PipelineSpec {
                    schedule,
                    stages: pp,
                    chunks_per_stage: vpp,
                    micro_batches: m,
                    ..Default::default()
                };
                let costs = PipelineCosts { chunks: vec![chunk; (pp * vpp) as usize], ..Default::default() };
                let result = simulate(&spec, &costs).unwrap();
                for (s, stage) in result.stages.iter().enumerate() {
                    let held = in_flight(&plan, s as u32);
                    let total: u32 = held.iter().sum();
                    assert_eq!(
                        total, stage.peak_total_in_flight,
                        "pp {pp} vpp {vpp} m {m} stage {s}: {held:?}"
                    );
                }
            }
        }
    }
}
