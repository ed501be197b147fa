//! The speed job: GPT-3 175B on 512 A100-80G, every layout of the grid, the proven ten best.
//!
//! Runs on one thread, so that wall-clock seconds are CPU-seconds.
#![expect(clippy::print_stdout, reason = "the figures are for the person who runs it")]

use criterion::{Criterion, criterion_group, criterion_main};
use psim_cost_models::{ProfileLibrary, stacks};
use psim_hardware::Cluster;
use psim_hardware::catalogue;
use psim_models::plan::{ContextParallel, Precision, Recompute, Schedule, Sharding};
use psim_models::{Model, TrainingWorkload, presets};
use psim_planner::objective::Scorer;
use psim_planner::rules::Facts;
use psim_planner::search::{Stream, prepare};
use psim_planner::space::{Choices, ExpertTp, SearchSpace, divisors, enumerate};
use psim_planner::step_evaluator::StepEvaluator;
use psim_planner::{Objective, PlanRequest, Silent, plan};
use std::hint::black_box;

/// tp in {1, 2, 4, 8}; pp dividing 96; every vpp dividing 96 / pp; recompute full, selective, none; sharded optimizer
/// on and off; all-reduce or reduce-scatter and all-gather; every micro-batch dividing the local batch.
fn grid() -> SearchSpace {
    SearchSpace {
        tp: vec![1, 2, 4, 8],
        pp: divisors(96),
        cp: vec![1],
        ep: vec![1],
        etp: vec![ExpertTp::Fixed(1)],
        vpp: Choices::DivisorsUpTo(96),
        micro_batch: Choices::DivisorsUpTo(512),
        recompute: vec![Recompute::Full, Recompute::Selective, Recompute::None],
        recompute_quarters: false,
        sharding: vec![Sharding::None, Sharding::Optimizer],
        schedules: vec![Schedule::OneFOneB, Schedule::Interleaved],
        sequence_parallel: vec![true, false],
        cp_kind: vec![ContextParallel::Ring],
        precision: vec![Precision::Bf16],
        uneven: false,
        partial_pp: Vec::new(),
    }
}

struct Job {
    model: Model,
    cluster: Cluster,
    workload: TrainingWorkload,
    library: ProfileLibrary,
}

impl Job {
    fn new() -> Self {
        let (mut workload, _) = PlanRequest::default_workload();
        (workload.seq_len, workload.global_batch) = (2048, 512);
        Self {
            model: presets::find("gpt3-175b").expect("a preset"),
            cluster: catalogue::cluster("a100x512").expect("a built-in cluster").clone(),
            workload,
            library: ProfileLibrary::built_in(),
        }
    }

    fn request(&self) -> PlanRequest<'_> {
        let stack = self.library.stack(stacks::DEFAULT_TRAINING).expect("a built-in stack");
        let mut request = PlanRequest::new(&self.model, &self.cluster, &self.workload, stack, &self.library);
        request.space = Some(grid());
        request.pareto = false;
        request
    }
}

fn single_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread").install(work)
}

fn search(c: &mut Criterion) {
    let job = Job::new();
    let request = job.request();
    let report = single_thread(|| plan(&request, &Silent).expect("a plan"));
    let best = &report.plans[0];
    println!(
        "{} combinations, {} simulated at L1, {:?}; best tp {} pp {} dp {} vpp {} micro-batch {} {:?} {:?}: {:.3} s, {:.1} % MFU",
        report.searched,
        report.simulated,
        report.optimality,
        best.plan.tp,
        best.plan.pp,
        best.plan.dp,
        best.plan.vpp,
        best.plan.micro_batch,
        best.plan.recompute,
        best.plan.sharding,
        best.step_time_s.value,
        best.mfu
    );
    let mut group = c.benchmark_group("gpt3-175b on 512 a100");
    group.sample_size(20);
    group.bench_function("proven ten best, L2 included, one thread", |b| {
        single_thread(|| b.iter(|| black_box(plan(&request, &Silent).expect("a plan"))));
    });
    let stack = job.library.stack(stacks::DEFAULT_TRAINING).expect("a built-in stack");
    let evaluator = StepEvaluator::new(&job.model, &job.workload, &job.cluster, stack, &job.library);
    let facts = Facts::new(&job.model, &job.cluster, 2048);
    let scorer = Scorer::new(Objective::Time, &job.cluster, 2048, job.model.parameters().total);
    let space = grid();
    group.bench_function("enumeration and rules", |b| b.iter(|| black_box(enumerate(&space, &facts, 512))));
    group.bench_function("stage costs, memory and bounds of all", |b| {
        single_thread(|| {
            b.iter(|| {
                let enumeration = enumerate(&space, &facts, 512);
                black_box(prepare(&evaluator, &scorer, enumeration, false, &Silent).expect("not cancelled"))
            });
        });
    });
    let enumeration = enumerate(&space, &facts, 512);
    let prepared = prepare(&evaluator, &scorer, enumeration, false, &Silent).expect("not cancelled");
    group.bench_function("L1 of everything that fits (no bounds)", |b| {
        single_thread(|| {
            b.iter(|| black_box(Stream::exhaustive(&evaluator, &scorer, &prepared).next()));
        });
    });
    println!("{} candidates fit", prepared.candidates.len());
    group.finish();
}

criterion_group!(benches, search);
criterion_main!(benches);
