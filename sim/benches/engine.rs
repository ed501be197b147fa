//! How fast events, pipelines and task graphs are simulated.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use psim_hardware::Time;
use psim_models::plan::Schedule;
use psim_sim::engine::Engine;
use psim_sim::pipeline::{ChunkCost, PipelineCosts, PipelineSim, PipelineSpec};
use psim_sim::stream::{Contention, TaskClass, TaskGraph, TaskId, TaskSpec};
use std::hint::black_box;

/// A small generator, so that the bench measures the queue and not the random numbers.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Hold model: every event schedules one successor after a random delay; 1,000 (and more) are always pending.
fn hold(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    for pending in [10_u32, 1_000, 100_000] {
        const EVENTS: u64 = 1_000_000;
        group.throughput(Throughput::Elements(EVENTS));
        group.sample_size(20);
        group.bench_function(format!("hold, {pending} pending, 1M events"), |bencher| {
            let mut engine = Engine::new();
            let mut state = 1;
            for event in 0..pending {
                engine.schedule(Time(next_random(&mut state)), event).expect("within capacity");
            }
            bencher.iter(|| {
                for _ in 0..EVENTS {
                    let Some((_, event)) = engine.next() else { unreachable!("events are never used up") };
                    let delay = Time(next_random(&mut state));
                    engine.schedule_after(delay, black_box(event)).expect("within capacity");
                }
            });
        });
    }
    group.finish();
}

/// L1: one plan, from chunk costs to the makespan.
fn pipelines(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pipeline");
    let chunk = ChunkCost { forward: Time(1_000), backward_input: Time(1_100), backward_weight: Time(900) };
    let cases = [
        (Schedule::Gpipe, 8, 1, 64),
        (Schedule::OneFOneB, 8, 1, 64),
        (Schedule::Interleaved, 8, 4, 64),
        (Schedule::OneFOneB, 32, 1, 512),
    ];
    for (schedule, stages, chunks_per_stage, micro_batches) in cases {
        let spec = PipelineSpec { schedule, stages, chunks_per_stage, micro_batches, ..Default::default() };
        let costs = PipelineCosts {
            chunks: vec![chunk; (stages * chunks_per_stage) as usize],
            p2p: Time(20),
            p2p_overlap: true,
            ..Default::default()
        };
        let name = format!("{schedule:?} p{stages} v{chunks_per_stage} m{micro_batches}");
        let mut simulator = PipelineSim::new();
        group.throughput(Throughput::Elements(u64::from(2 * stages * chunks_per_stage * micro_batches)));
        group.bench_function(format!("{name}, makespan only"), |bencher| {
            bencher.iter(|| simulator.makespan(&spec, black_box(&costs)).expect("a legal pipeline"));
        });
        group.bench_function(format!("{name}, known schedule"), |bencher| {
            bencher.iter(|| simulator.run(&spec, black_box(&costs)).expect("a legal pipeline"));
        });
        group.bench_function(format!("{name}, new schedule"), |bencher| {
            bencher.iter(|| {
                simulator.forget();
                simulator.run(&spec, black_box(&costs)).expect("a legal pipeline")
            });
        });
    }
    group.finish();
}

/// L2: layers of compute with a collective beside each, on several devices.
fn graphs(criterion: &mut Criterion) {
    let mut graph = TaskGraph::new();
    for device in 0..8 {
        let mut before: Option<TaskId> = None;
        let compute = graph.stream(device, "compute");
        let comm = graph.stream(device, "tp");
        for layer in 0..1_000_u64 {
            for part in 0..4 {
                let spec =
                    TaskSpec::new(compute, Time(900 + 7 * layer + part), TaskClass::Compute, "forward");
                let gemm = graph.add(TaskSpec { after: before.as_slice(), ..spec });
                let spec =
                    TaskSpec::new(comm, Time(700 + 3 * layer), TaskClass::Communication, "communication");
                let reduce = graph.add(TaskSpec { after: &[gemm], ..spec });
                before = (part == 3).then_some(reduce);
            }
        }
    }
    let mut group = criterion.benchmark_group("streams");
    group.throughput(Throughput::Elements(graph.len() as u64));
    let cases = [
        ("without contention", Contention::none()),
        ("with contention", Contention::between_compute_and_communication(1.1, 1.3)),
    ];
    for (name, contention) in cases {
        group.bench_function(format!("{} tasks, {name}", graph.len()), |bencher| {
            bencher.iter(|| graph.run(black_box(&contention)).expect("a legal graph"));
        });
    }
    group.finish();
}

criterion_group!(benches, hold, pipelines, graphs);
criterion_main!(benches);
