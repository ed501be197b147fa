//! Zero-bubble schedules against the formulas of their papers.
#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

use psim_hardware::{Bytes, Time};
use psim_models::plan::Schedule;
use psim_sim::pipeline::{ChunkCost, ChunkMemory, PipelineCosts, PipelineResult, PipelineSpec, simulate};

fn spec(schedule: Schedule, stages: u32, micro_batches: u32) -> PipelineSpec {
    let chunks_per_stage = if schedule == Schedule::ZbV { 2 } else { 1 };
    PipelineSpec { schedule, stages, chunks_per_stage, micro_batches, ..Default::default() }
}

fn run(spec: &PipelineSpec, forward: u64, input: u64, weight: u64, p2p: u64) -> PipelineResult {
    let chunk =
        ChunkCost { forward: Time(forward), backward_input: Time(input), backward_weight: Time(weight) };
    let costs = PipelineCosts {
        chunks: vec![chunk; (spec.stages * spec.chunks_per_stage) as usize],
        p2p: Time(p2p),
        p2p_overlap: true,
        ..Default::default()
    };
    simulate(spec, &costs).unwrap()
}

/// Idle time of the stage that takes longest.
fn bubble(spec: &PipelineSpec, forward: u64, input: u64, weight: u64) -> u64 {
    let result = run(spec, forward, input, weight, 0);
    (result.period() - result.stages[0].busy).0
}

#[test]
fn bubbles_by_hand_are_those_of_the_paper() {
    for stages in [2_u32, 3, 4, 8] {
        for micro_batches in [2 * stages, 3 * stages + 1, 6 * stages] {
            for (f, b, w) in [(10, 10, 10), (10, 12, 8), (18, 18, 9), (11, 11, 8)] {
                let many = u64::from(stages - 1);
                let plain = bubble(&spec(Schedule::OneFOneB, stages, micro_batches), f, b, w);
                let one = bubble(&spec(Schedule::ZbH1, stages, micro_batches), f, b, w);
                let two = bubble(&spec(Schedule::ZbH2, stages, micro_batches), f, b, w);
                assert_eq!(plain, many * (f + b + w));
                assert_eq!(one, many * (f + b - w), "H1 {stages} {micro_batches} {f} {b} {w}");
                assert_eq!(two, many * (f + b - 2 * w), "H2 {stages} {micro_batches} {f} {b} {w}");
            }
        }
    }
}

#[test]
fn memory_by_hand_is_that_of_the_paper() {
    for stages in [2_u32, 4, 8] {
        let micro_batches = 4 * stages;
        let one = run(&spec(Schedule::ZbH1, stages, micro_batches), 1, 1, 1, 0);
        let two = run(&spec(Schedule::ZbH2, stages, micro_batches), 1, 1, 1, 0);
        let v = run(&spec(Schedule::ZbV, stages, micro_batches), 1, 1, 1, 0);
        for stage in 0..stages as usize {
            assert_eq!(one.stages[stage].peak_total_in_flight, stages);
            assert_eq!(two.stages[stage].peak_total_in_flight, 2 * stages - 1);
            // Chunks of half a stage: the memory of 1F1B's first stage, on every stage.
            assert!(v.stages[stage].peak_total_in_flight <= 2 * stages);
        }
        assert_eq!(v.stages[0].peak_total_in_flight, 2 * stages);
    }
}

#[test]
fn zb_v_has_no_bubble_for_equal_passes() {
    for stages in [2_u32, 4, 6, 8] {
        for micro_batches in [2 * stages, 3 * stages, 5 * stages + 1] {
            assert_eq!(
                bubble(&spec(Schedule::ZbV, stages, micro_batches), 10, 10, 10),
                0,
                "{stages} {micro_batches}"
            );
        }
    }
}

#[test]
fn automatic_schedules_are_never_worse_and_keep_to_the_memory() {
    for schedule in [Schedule::ZbH1, Schedule::ZbH2, Schedule::ZbV] {
        for stages in [1_u32, 2, 4, 8] {
            for micro_batches in [1, 2, stages, 2 * stages, 3 * stages, 8 * stages] {
                for (f, b, w, p2p) in
                    [(10, 10, 10, 0), (18, 18, 9, 1), (11, 11, 8, 1), (5, 20, 9, 3), (20, 5, 9, 0)]
                {
                    let by_hand = spec(schedule, stages, micro_batches);
                    let automatic = PipelineSpec { automatic: true, ..by_hand };
                    let (hand, auto) = (run(&by_hand, f, b, w, p2p), run(&automatic, f, b, w, p2p));
                    assert!(auto.period() <= hand.period(), "{by_hand:?}");
                    let limit = if schedule == Schedule::ZbH1 { stages } else { 2 * stages };
                    assert!(
                        auto.stages.iter().all(|s| s.peak_total_in_flight <= limit),
                        "{by_hand:?} {auto:?}"
                    );
                    assert!(auto.period() >= auto.stages[0].busy);
                }
            }
        }
    }
}

#[test]
fn weight_passes_keep_a_part_of_the_activations() {
    let spec = spec(Schedule::ZbH1, 4, 8);
    let chunk = ChunkCost { forward: Time(1), backward_input: Time(1), backward_weight: Time(1) };
    let memory = ChunkMemory { forward: Bytes(10), weight: Bytes(4) };
    let costs = PipelineCosts { chunks: vec![chunk; 4], memory: vec![memory; 4], ..Default::default() };
    let result = simulate(&spec, &costs).unwrap();
    // The first stage holds four before B; the last one before B and three that wait for W.
    assert_eq!(result.stages[0].peak_activations, Bytes(40));
    assert_eq!(result.stages[3].peak_activations, Bytes(10 + 3 * 4));
}
