//! Laws that every pipeline schedule obeys, on random pipelines, and the event-driven executor as an oracle.
#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

use proptest::prelude::*;
use psim_hardware::{Bytes, Time};
use psim_models::plan::Schedule;
use psim_sim::pipeline::vocabulary::{
    VocabularyCosts, VocabularySchedule, VocabularyStageCost, simulate_vocabulary,
};
use psim_sim::pipeline::{
    ChunkCost, ChunkMemory, PipelineCosts, PipelineSim, PipelineSpec, build_order, simulate,
    simulate_with_timeline,
};
use psim_sim::schedule::{Order, PassKind, model_chunk, stage_of_chunk};
use psim_sim::stream::{Contention, TaskClass, TaskGraph, TaskId, TaskSpec};
use std::collections::BTreeMap;

const SCHEDULES: [Schedule; 6] = [
    Schedule::Gpipe,
    Schedule::OneFOneB,
    Schedule::Interleaved,
    Schedule::ZbH1,
    Schedule::ZbH2,
    Schedule::ZbV,
];

/// Pipelines of up to 6 stages with random costs per chunk and boundary.
fn pipeline(automatic: bool) -> impl Strategy<Value = (PipelineSpec, PipelineCosts)> {
    let shape = (prop::sample::select(&SCHEDULES[..]), 1..7_u32, 1..5_u32, 1..20_u32, 0..4_u32);
    shape
        .prop_map(move |(schedule, stages, chunks, batches, extra)| {
            let chunks_per_stage = match schedule {
                Schedule::Interleaved => chunks,
                Schedule::ZbV => 2,
                _ => 1,
            };
            // Groups of at least the stages, and a rest that is nothing or at least the stages.
            let group = stages + extra;
            let rest = batches % group;
            let micro_batches = if schedule == Schedule::Interleaved && rest < stages {
                batches - rest + group
            } else {
                batches
            };
            PipelineSpec {
                schedule,
                stages,
                chunks_per_stage,
                micro_batches,
                micro_batch_group: group,
                automatic,
            }
        })
        .prop_flat_map(|spec| {
            let chunks = (spec.stages * spec.chunks_per_stage) as usize;
            let chunk = (0..50_u64, 0..50_u64, 0..50_u64).prop_map(|(f, b, w)| ChunkCost {
                forward: Time(f),
                backward_input: Time(b),
                backward_weight: Time(w),
            });
            let costs = (
                prop::collection::vec(chunk, chunks),
                prop::collection::vec((0..9_u64).prop_map(Time), chunks - 1),
                any::<bool>(),
            );
            costs.prop_map(move |(chunks, p2p_per_boundary, p2p_overlap)| {
                let memory = Vec::new();
                (spec, PipelineCosts { chunks, p2p: Time(1), p2p_overlap, p2p_per_boundary, memory })
            })
        })
}

/// All durations as one list, to change them one at a time.
fn durations(costs: &mut PipelineCosts) -> Vec<&mut Time> {
    let chunks = costs.chunks.iter_mut();
    let passes = chunks.flat_map(|c| [&mut c.forward, &mut c.backward_input, &mut c.backward_weight]);
    passes.chain(&mut costs.p2p_per_boundary).collect()
}

/// Starts of all passes, by a task graph with contention switched on (of a class that nothing uses), so that every
/// end is an event of the queue.
fn event_driven(spec: &PipelineSpec, costs: &PipelineCosts, order: &Order) -> Vec<Vec<Time>> {
    let mut graph = TaskGraph::new();
    let mut ids = BTreeMap::new();
    let mut transfers = Vec::new();
    for stage in 0..spec.stages {
        let stream = graph.stream(stage, "compute");
        for pass in order.stage(stage as usize) {
            let chunk = model_chunk(spec, stage, u32::from(pass.chunk));
            let cost = costs.chunks[chunk as usize];
            let (duration, to) = match pass.kind {
                PassKind::Forward => (cost.forward, Some(chunk + 1)),
                PassKind::Backward if order.split_backward => (cost.backward_input, chunk.checked_sub(1)),
                PassKind::Backward => (cost.backward_input + cost.backward_weight, chunk.checked_sub(1)),
                PassKind::Weight => (cost.backward_weight, None),
            };
            let id = graph.add(TaskSpec::new(stream, duration, TaskClass::Compute, "pass"));
            ids.insert((pass.kind, chunk, pass.micro_batch), (id, id));
            let to = to.filter(|&to| to < spec.stages * spec.chunks_per_stage);
            if let Some(to) = to.filter(|&to| stage_of_chunk(spec, to) != stage) {
                let time = costs.p2p_per_boundary[chunk.min(to) as usize];
                // A blocking send occupies the stage; another one has the wire for itself.
                let wire = if costs.p2p_overlap { graph.stream(stage, "wire") } else { stream };
                let send = graph.add(TaskSpec {
                    after: &[id],
                    ..TaskSpec::new(wire, time, TaskClass::Communication, "send")
                });
                ids.insert((pass.kind, chunk, pass.micro_batch), (id, send));
            }
            transfers.push((pass.kind, chunk, pass.micro_batch));
        }
    }
    let last = spec.stages * spec.chunks_per_stage - 1;
    for &(kind, chunk, batch) in &transfers {
        let needs = match kind {
            PassKind::Forward => chunk.checked_sub(1).map(|c| (PassKind::Forward, c, batch)),
            PassKind::Backward if chunk == last => Some((PassKind::Forward, chunk, batch)),
            PassKind::Backward => Some((PassKind::Backward, chunk + 1, batch)),
            PassKind::Weight => Some((PassKind::Backward, chunk, batch)),
        };
        if let Some(needs) = needs {
            graph.depend(ids[&(kind, chunk, batch)].0, ids[&needs].1);
        }
    }
    let contention = Contention::none().with(TaskClass::Copy, TaskClass::Copy, 2.0);
    let times = graph.run(&contention).unwrap();
    let start = |stage: u32, pass: &psim_sim::schedule::Pass| {
        let id: TaskId =
            ids[&(pass.kind, model_chunk(spec, stage, u32::from(pass.chunk)), pass.micro_batch)].0;
        times.start(id)
    };
    (0..spec.stages).map(|s| order.stage(s as usize).iter().map(|pass| start(s, pass)).collect()).collect()
}

proptest! {
    #[test]
    fn relaxation_agrees_with_the_event_driven_executor((spec, costs) in pipeline(false)) {
        let mut order = Order::default();
        build_order(&spec, &mut order).unwrap();
        let (_, timeline) = simulate_with_timeline(&spec, &costs).unwrap();
        for (stage, expected) in event_driven(&spec, &costs, &order).iter().enumerate() {
            let mut found: Vec<Time> =
                timeline.spans.iter().filter(|s| s.track as usize == stage).map(|s| s.start).collect();
            found.sort_unstable();
            prop_assert_eq!(&found, expected);
        }
    }

    #[test]
    fn rounds_agree_with_the_relaxation((spec, mut costs) in pipeline(false)) {
        // With a timeline the relaxation runs; without one 1F1B advances by rounds.
        costs.memory = (0..costs.chunks.len() as u64)
            .map(|c| ChunkMemory { forward: Bytes(7 + c % 3), weight: Bytes(2) }).collect();
        let (relaxed, _) = simulate_with_timeline(&spec, &costs).unwrap();
        prop_assert_eq!(PipelineSim::new().makespan(&spec, &costs).unwrap(), relaxed.makespan);
        prop_assert_eq!(simulate(&spec, &costs).unwrap(), relaxed);
    }

    #[test]
    fn every_pass_runs_once_and_memory_is_empty_afterwards((spec, _) in pipeline(false)) {
        let mut order = Order::default();
        build_order(&spec, &mut order).unwrap();
        for stage in 0..spec.stages as usize {
            let mut passes = order.stage(stage).to_vec();
            let kinds = if order.split_backward { 3 } else { 2 };
            prop_assert_eq!(passes.len(), (kinds * spec.chunks_per_stage * spec.micro_batches) as usize);
            // F before B before W of the same micro-batch and chunk, as often: nothing is left held.
            let place = |kind, p: &psim_sim::schedule::Pass| {
                order.stage(stage).iter().position(|q| (q.kind, q.chunk, q.micro_batch) == (kind, p.chunk, p.micro_batch))
            };
            for pass in order.stage(stage) {
                prop_assert!(place(PassKind::Forward, pass) < place(PassKind::Backward, pass));
                if order.split_backward {
                    prop_assert!(place(PassKind::Backward, pass) < place(PassKind::Weight, pass));
                }
            }
            passes.sort_unstable();
            passes.dedup();
            prop_assert_eq!(passes.len(), order.stage(stage).len());
        }
    }

    #[test]
    fn no_step_is_shorter_than_its_busiest_stage_or_one_micro_batch((spec, costs) in pipeline(true)) {
        let result = simulate(&spec, &costs).unwrap();
        for stage in &result.stages {
            prop_assert!(stage.last_end - stage.first_start >= stage.busy);
            prop_assert!(result.makespan >= stage.last_end);
        }
        let split = matches!(spec.schedule, Schedule::ZbH1 | Schedule::ZbH2 | Schedule::ZbV);
        let passes: Time = costs.chunks.iter()
            .map(|c| c.forward + c.backward_input + if split { Time::ZERO } else { c.backward_weight }).sum();
        let moves = |&boundary: &u32| stage_of_chunk(&spec, boundary) != stage_of_chunk(&spec, boundary + 1);
        let wires: Time = (0..costs.chunks.len() as u32 - 1).filter(moves)
            .map(|b| costs.p2p_per_boundary[b as usize]).sum();
        prop_assert!(result.makespan >= passes + wires + wires);
    }

    #[test]
    fn a_longer_pass_or_transfer_never_shortens_the_step((spec, costs) in pipeline(false), which in any::<prop::sample::Index>(), more in 1..40_u64) {
        let before = simulate(&spec, &costs).unwrap();
        let mut slower = costs.clone();
        let mut all = durations(&mut slower);
        let which = which.index(all.len());
        *all[which] += Time(more);
        let after = simulate(&spec, &slower).unwrap();
        prop_assert!(after.makespan >= before.makespan);
        for (before, after) in before.stages.iter().zip(&after.stages) {
            prop_assert!(after.last_end >= before.last_end);
        }
    }

    #[test]
    fn twice_the_durations_take_twice_as_long((spec, costs) in pipeline(false)) {
        let mut twice = costs.clone();
        for duration in durations(&mut twice) {
            *duration = *duration * 2;
        }
        prop_assert_eq!(
            simulate(&spec, &twice).unwrap().makespan,
            simulate(&spec, &costs).unwrap().makespan * 2
        );
    }

    #[test]
    fn a_reused_simulator_gives_what_a_fresh_one_gives(cases in prop::collection::vec(pipeline(true), 1..5)) {
        let mut reused = PipelineSim::new();
        for (spec, costs) in &cases {
            prop_assert_eq!(reused.run(spec, costs), simulate(spec, costs));
        }
    }

    #[test]
    fn vocabulary_schedules_never_deadlock_and_obey_the_bounds(
        passes in prop::collection::vec((0..40_u64, 0..80_u64, 0..30_u64, 0..30_u64), 1..9),
        micro_batches in 1..24_u32,
        p2p in 0..4_u64,
        barrier in 0..9_u64,
    ) {
        let stages = passes.len() as u32;
        let costs = VocabularyCosts {
            stages: passes.iter().map(|&(f, b, s, t)| VocabularyStageCost {
                forward: Time(f),
                backward: Time(b),
                softmax: Time(s),
                gradient: Time(t),
                input_layer: Time(1),
                activation: Bytes(10),
            }).collect(),
            p2p: Time(p2p),
            barrier: Time(barrier),
        };
        let kinds = [(VocabularySchedule::OneBarrier, 1), (VocabularySchedule::TwoBarriers, 2), (VocabularySchedule::Interlaced, stages)];
        for (schedule, extra) in kinds {
            let result = simulate_vocabulary(schedule, &costs, micro_batches).unwrap();
            let exchanges = if schedule == VocabularySchedule::OneBarrier { 2 } else { 3 };
            let chain: u64 = passes.iter().map(|p| p.0 + p.1).sum::<u64>()
                + exchanges * barrier + 2 * u64::from(stages - 1) * p2p;
            prop_assert!(result.makespan >= Time(chain));
            for (s, stage) in result.stages.iter().enumerate() {
                prop_assert!(stage.last_end - stage.first_start >= stage.busy);
                prop_assert!(stage.peak_total_in_flight <= (stages - s as u32 + extra).min(micro_batches));
            }
        }
    }
}
