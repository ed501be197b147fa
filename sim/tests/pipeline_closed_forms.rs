//! Pipeline schedules against what the literature derives on paper.
#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

use psim_hardware::{Bytes, Time};
use psim_models::plan::Schedule;
use psim_sim::pipeline::{
    ChunkCost, ChunkMemory, PipelineCosts, PipelineError, PipelineResult, PipelineSpec, simulate,
    simulate_with_timeline,
};

fn spec(schedule: Schedule, stages: u32, chunks_per_stage: u32, micro_batches: u32) -> PipelineSpec {
    PipelineSpec { schedule, stages, chunks_per_stage, micro_batches, ..Default::default() }
}

fn uniform(spec: &PipelineSpec, forward: u64, backward_input: u64, backward_weight: u64) -> PipelineCosts {
    let chunk = ChunkCost {
        forward: Time(forward),
        backward_input: Time(backward_input),
        backward_weight: Time(backward_weight),
    };
    PipelineCosts {
        chunks: vec![chunk; (spec.stages * spec.chunks_per_stage) as usize],
        p2p_overlap: true,
        ..Default::default()
    }
}

fn run(spec: &PipelineSpec, costs: &PipelineCosts) -> PipelineResult {
    simulate(spec, costs).unwrap()
}

#[test]
fn uniform_1f1b_and_gpipe_take_m_plus_p_minus_1_slots() {
    for stages in [1, 2, 3, 4, 8, 16] {
        for micro_batches in [1, 2, 3, 5, 8, 16, 40] {
            for schedule in [Schedule::OneFOneB, Schedule::Gpipe] {
                let spec = spec(schedule, stages, 1, micro_batches);
                let result = run(&spec, &uniform(&spec, 10, 13, 9));
                let slots = u64::from(micro_batches + stages - 1);
                assert_eq!(result.makespan, Time(slots * 32), "{spec:?}");
            }
        }
    }
}

#[test]
fn interleaving_divides_the_bubble_by_the_chunks() {
    // Narayanan et al. 2021, §2.2.2: the bubble is (p - 1)(F + B)/v with F and B of a whole stage.
    for stages in [2_u32, 4, 8] {
        for chunks in [1_u32, 2, 3, 6] {
            for groups in [1, 2, 5] {
                let micro_batches = stages * groups;
                let spec = spec(Schedule::Interleaved, stages, chunks, micro_batches);
                let result = run(&spec, &uniform(&spec, 10, 13, 7));
                let work = u64::from(micro_batches * chunks) * 30;
                assert_eq!(result.makespan, Time(work + u64::from(stages - 1) * 30), "{spec:?}");
            }
        }
    }
}

#[test]
fn gpipe_holds_all_micro_batches_and_1f1b_as_many_as_stages_follow() {
    for stages in [1, 2, 4, 8] {
        for micro_batches in [1, 3, 4, 8, 20] {
            let gpipe = spec(Schedule::Gpipe, stages, 1, micro_batches);
            let flush = spec(Schedule::OneFOneB, stages, 1, micro_batches);
            let (all, few) = (run(&gpipe, &uniform(&gpipe, 1, 1, 1)), run(&flush, &uniform(&flush, 1, 1, 1)));
            for stage in 0..stages {
                assert_eq!(all.stages[stage as usize].peak_total_in_flight, micro_batches);
                assert_eq!(
                    few.stages[stage as usize].peak_total_in_flight,
                    micro_batches.min(stages - stage)
                );
            }
        }
    }
}

#[test]
fn interleaved_holds_megatrons_warm_up_and_one_more() {
    let (stages, chunks, micro_batches) = (8_u32, 3_u32, 64_u32);
    let spec = spec(Schedule::Interleaved, stages, chunks, micro_batches);
    let result = run(&spec, &uniform(&spec, 1, 1, 1));
    for stage in 0..stages {
        let warm_up = 2 * (stages - stage - 1) + (chunks - 1) * stages;
        assert_eq!(result.stages[stage as usize].peak_total_in_flight, warm_up + 1);
    }
    // The first stage holds p(1 + (p - 1)/(p v)) micro-batches of all its chunks (Narayanan et al. 2021, §2.2).
    assert_eq!(result.stages[0].peak_total_in_flight, stages * chunks + stages - 1);
}

#[test]
fn latency_is_paid_twice_per_boundary_of_the_fill() {
    let spec = spec(Schedule::Gpipe, 4, 1, 6);
    let mut costs = uniform(&spec, 10, 10, 10);
    costs.p2p = Time(3);
    assert_eq!(run(&spec, &costs).makespan, Time((6 + 3) * 30 + 2 * 3 * 3));
    // Different boundaries: only their sum counts.
    costs.p2p_per_boundary = vec![Time(1), Time(7), Time(2)];
    assert_eq!(run(&spec, &costs).makespan, Time((6 + 3) * 30 + 2 * 10));
}

#[test]
fn blocking_exchange_costs_two_transfers_per_micro_batch_in_the_steady_state() {
    let period = |overlap: bool| {
        let makespan = |micro_batches| {
            let spec = spec(Schedule::OneFOneB, 4, 1, micro_batches);
            let mut costs = uniform(&spec, 100, 100, 100);
            costs.p2p = Time(5);
            costs.p2p_overlap = overlap;
            run(&spec, &costs).makespan
        };
        (makespan(140) - makespan(40)).0 / 100
    };
    assert_eq!(period(false), 300 + 2 * 5);
    // Overlapped transfers still delay 1F1B where a stage waits for the answer to what it has just sent.
    assert!(period(true) <= 300 + 2 * 5);
}

#[test]
fn the_slowest_stage_sets_the_pace() {
    let spec = spec(Schedule::OneFOneB, 4, 1, 50);
    let mut costs = uniform(&spec, 10, 10, 10);
    costs.chunks[3] = ChunkCost { forward: Time(20), backward_input: Time(30), backward_weight: Time(10) };
    let result = run(&spec, &costs);
    // Fill and drain through the other stages, then 50 times the slow one.
    assert_eq!(result.makespan, Time(3 * 30 + 50 * 60));
    assert_eq!(result.stages[3].busy, Time(50 * 60));
    assert_eq!(result.stages[3].first_start, Time(30));
    assert_eq!(result.stages[3].last_end, Time(30 + 50 * 60));
    assert_eq!(result.stages[3].chunk_done, [Time(30 + 50 * 60)]);
}

#[test]
fn activation_bytes_follow_the_micro_batches_in_flight() {
    let spec = spec(Schedule::Interleaved, 2, 2, 4);
    let mut costs = uniform(&spec, 1, 1, 1);
    costs.memory = (1..=4).map(|c| ChunkMemory { forward: Bytes(c * 100), weight: Bytes(7) }).collect();
    let result = run(&spec, &costs);
    // Stage 0 runs chunks 0 and 2: F0.0 F1.0 F0.1 F1.1 and one more, F2.0, before the first backward pass.
    // Chunk 0 peaks later, when chunk 2 has already released one: 4 at 100 bytes beside 1 at 300.
    assert_eq!(result.stages[0].peak_in_flight, [4, 2]);
    assert_eq!(result.stages[0].peak_activations, Bytes(3 * 100 + 2 * 300));
    assert_eq!(result.stages[1].peak_activations, Bytes(2 * 200 + 400));
}

#[test]
fn groups_of_micro_batches_follow_megatrons_rule() {
    let with_group = |micro_batches, micro_batch_group| {
        let spec = PipelineSpec { micro_batch_group, ..spec(Schedule::Interleaved, 4, 2, micro_batches) };
        simulate(&spec, &uniform(&spec, 2, 2, 2)).map(|result| result.makespan)
    };
    assert!(matches!(with_group(6, 0), Err(PipelineError::Remainder { remainder: 2, .. })));
    assert!(matches!(with_group(8, 3), Err(PipelineError::Group { group: 3, stages: 4 })));
    assert!(matches!(with_group(9, 6), Err(PipelineError::Remainder { remainder: 3, .. })));
    // A last group of at least the stages is allowed; the work and the fill bound it from below.
    assert!(with_group(11, 7).unwrap() >= Time(11 * 2 * 6 + 3 * 6));
    assert_eq!(with_group(8, 4), with_group(8, 0));
}

#[test]
fn wrong_input_is_refused() {
    let good = spec(Schedule::OneFOneB, 4, 1, 8);
    let costs = uniform(&good, 1, 1, 1);
    assert_eq!(simulate(&PipelineSpec::default(), &costs), Err(PipelineError::Empty));
    assert!(matches!(
        simulate(&PipelineSpec { stages: 5, ..good }, &costs),
        Err(PipelineError::Length { .. })
    ));
    assert!(matches!(
        simulate(&PipelineSpec { chunks_per_stage: 2, ..good }, &costs),
        Err(PipelineError::Chunks { .. })
    ));
    let huge = PipelineSpec { micro_batches: u32::MAX, stages: u32::MAX, ..good };
    assert!(matches!(simulate(&huge, &costs), Err(PipelineError::TooLarge { .. })));
    let uneven = PipelineCosts { p2p_per_boundary: vec![Time(1); 4], ..costs };
    assert!(matches!(simulate(&good, &uneven), Err(PipelineError::Length { .. })));
}

#[test]
fn the_timeline_has_every_pass_once_and_agrees_with_the_result() {
    let spec = spec(Schedule::Interleaved, 2, 2, 4);
    let (result, timeline) = simulate_with_timeline(&spec, &uniform(&spec, 3, 4, 5)).unwrap();
    assert_eq!(timeline.tracks.len(), 2);
    assert_eq!(timeline.spans.len(), 2 * 2 * 4 * 2);
    assert!(timeline.spans.is_sorted_by_key(|span| span.start));
    assert_eq!(timeline.spans.iter().map(|span| span.end).max(), Some(result.makespan));
    for (track, stage) in result.stages.iter().enumerate() {
        let spans: Vec<_> = timeline.spans.iter().filter(|span| span.track as usize == track).collect();
        assert!(spans.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert_eq!(spans.iter().map(|span| span.end - span.start).sum::<Time>(), stage.busy);
    }
    assert_eq!(timeline.spans[0].name, "F0.0");
}
