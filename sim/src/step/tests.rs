//! The operator-level simulation against the one in full, the depth below it, and its own bound.

use super::predict::costs;
use super::{StageCosts, StepModel};
use crate::Level;
use crate::pipeline::PipelineSim;
use psim_cost_models::{ProfileLibrary, stacks};
use psim_hardware::profile::StackProfile;
use psim_hardware::{Bytes, Cluster, catalogue};
use psim_models::plan::{Plan, Precision, Recompute, Schedule, Sharding};
use psim_models::{Model, TrainingWorkload, presets};

struct Case {
    model: &'static str,
    accelerator: &'static str,
    stack: &'static str,
    plan: Plan,
}

pub(super) fn plan(tp: u32, pp: u32, dp: u32, vpp: u32, micro_batch: u32, global_batch: u32) -> Plan {
    Plan { tp, pp, dp, vpp, micro_batch, global_batch, ..Plan::default() }
}

fn cases() -> Vec<Case> {
    let case = |model, accelerator, stack, plan| Case { model, accelerator, stack, plan };
    let default = stacks::DEFAULT_TRAINING;
    vec![
        case("llama3-8b", "h100", default, plan(1, 1, 8, 1, 1, 32)),
        case("llama3-8b", "h100", default, plan(2, 2, 8, 1, 1, 128)),
        case("llama3-70b", "h100", default, plan(8, 4, 4, 1, 1, 128)),
        case(
            "llama3-70b",
            "h100",
            "nemo-25",
            Plan { schedule: Schedule::Interleaved, ..plan(4, 4, 8, 5, 1, 256) },
        ),
        case(
            "llama3-70b",
            "h100",
            "megatron-2021",
            Plan { recompute: Recompute::Full, ..plan(8, 8, 2, 1, 2, 128) },
        ),
        case(
            "llama2-13b",
            "a100",
            "fsdp-generic",
            Plan { sharding: Sharding::Parameters, ..plan(1, 1, 32, 1, 2, 64) },
        ),
        case(
            "llama3-8b",
            "a100",
            "zero-bubble",
            Plan { schedule: Schedule::ZbH1, ..plan(1, 8, 2, 1, 1, 64) },
        ),
        case(
            "mixtral-8x7b",
            "h100",
            default,
            Plan { ep: 8, recompute: Recompute::Selective, ..plan(2, 2, 16, 1, 1, 256) },
        ),
        case("deepseek-v3", "h100", "megatron-bridge-2025", Plan { ep: 32, ..plan(1, 8, 32, 1, 1, 512) }),
    ]
}

struct Setting {
    model: Model,
    cluster: Cluster,
    stack: StackProfile,
    library: ProfileLibrary,
    workload: TrainingWorkload,
}

fn setting(case: &Case) -> Setting {
    let library = ProfileLibrary::built_in();
    Setting {
        model: presets::find(case.model).unwrap(),
        cluster: catalogue::homogeneous(case.accelerator, case.plan.world(), &Default::default()).unwrap(),
        stack: library.stack(case.stack).unwrap().clone(),
        library,
        workload: TrainingWorkload {
            seq_len: 4096,
            global_batch: case.plan.global_batch,
            ..Default::default()
        },
    }
}

/// Runs a test on a model of 4,096-token sequences on `ranks` accelerators with the default stack.
pub(super) fn with_model<T>(
    model: &str,
    accelerator: &str,
    ranks: u32,
    test: impl FnOnce(&StepModel<'_>) -> T,
) -> T {
    let library = ProfileLibrary::built_in();
    let setting = Setting {
        model: presets::find(model).unwrap(),
        cluster: catalogue::homogeneous(accelerator, ranks, &Default::default()).unwrap(),
        stack: library.stack(stacks::DEFAULT_TRAINING).unwrap().clone(),
        library,
        workload: TrainingWorkload { seq_len: 4096, ..Default::default() },
    };
    test(&setting.step())
}

impl Setting {
    fn step(&self) -> StepModel<'_> {
        StepModel::new(&self.model, &self.workload, &self.cluster, &self.stack, &self.library)
    }
}

/// The slow way: every operator of every layer in every micro-batch.
#[test]
fn folded_layers_and_micro_batches_equal_the_simulation_in_full() {
    for case in cases() {
        let setting = setting(&case);
        let step = setting.step();
        let mesh = step.mesh_costs(&case.plan).unwrap();
        let shared = StageCosts { shape: step.shape(&case.plan), layers: step.layer_times(&case.plan) };
        let mut sim = PipelineSim::new();
        let mut run = |fold: bool| {
            let mut prepared = step.prepare(&case.plan, &shared, &mesh);
            let deep = step.deepen_with(&case.plan, &mut prepared, fold).unwrap();
            let costs = costs(&prepared, setting.stack.overlap.p2p);
            let end = if deep.has_events(&prepared) {
                step.events_with(&case.plan, &deep, &prepared, &costs, None, &mut sim, !fold).unwrap().end
            } else {
                0.0
            };
            (prepared.chunks.iter().map(|c| c.total().time).sum::<f64>(), end)
        };
        let (folded, full) = (run(true), run(false));
        let apart = |a: f64, b: f64| if b == 0.0 { a.abs() } else { (a / b - 1.0).abs() };
        assert!(
            apart(folded.0, full.0) < 1e-6,
            "{} {}: chunks {folded:?}, in full {full:?}",
            case.model,
            case.stack
        );
        assert!(
            apart(folded.1, full.1) < 1e-6,
            "{} {}: steps {folded:?}, in full {full:?}",
            case.model,
            case.stack
        );
    }
}

#[test]
fn without_contention_and_data_parallelism_l2_is_near_l1_and_no_depth_beats_the_bound() {
    for case in cases() {
        let mut setting = setting(&case);
        setting.stack.efficiency.contention = 0.0;
        let step = setting.step();
        let one = step.predict(&case.plan, Level::L1, false).unwrap().step_time.value;
        let two = step.predict(&case.plan, Level::L2, false).unwrap().step_time.value;
        let bound = step.lower_bound(&case.plan, &step.layer_times(&case.plan)).unwrap();
        assert!(bound <= one && bound <= two, "{}: L0 {bound}, L1 {one}, L2 {two}", case.model);
        assert!((two / one - 1.0).abs() < 0.05, "{}: L1 {one}, L2 {two}", case.model);
    }
}

#[test]
fn contention_slows_l2_and_more_of_it_more() {
    for case in cases() {
        let mut setting = setting(&case);
        let mut last = 0.0;
        for contention in [0.0, 0.1, 0.3] {
            setting.stack.efficiency.contention = contention;
            let time = setting.step().predict(&case.plan, Level::L2, false).unwrap().step_time.value;
            assert!(time >= last, "{}: {last} s, then {time} s at {contention}", case.model);
            last = time;
        }
    }
}

#[test]
fn the_bf16_optimizer_of_deepspeed_converts_the_gradient_of_its_largest_weight() {
    let memory = |precision, on: bool| {
        let plan = Plan { precision, sequence_parallel: false, ..plan(2, 2, 8, 1, 1, 64) };
        let mut setting = setting(&Case {
            model: "llama2-13b",
            accelerator: "a100",
            stack: "megatron-deepspeed",
            plan: plan.clone(),
        });
        setting.stack.states.bf16_gradient_copy = on;
        setting.step().predict(&plan, Level::L1, false).unwrap().memory[0].total.as_f64()
    };
    // The embedding of 32,000 by 5,120 over two ranks, four bytes an element, and what fragmentation adds.
    let copy = 4.0 * 32_000.0 * 5_120.0 / 2.0;
    let more = (memory(Precision::Bf16, true) - memory(Precision::Bf16, false)) / copy;
    assert!((1.0..1.2).contains(&more), "{more}");
    assert_eq!(memory(Precision::Fp16, true), memory(Precision::Fp16, false));
}

#[test]
fn buckets_grow_with_the_ranks_that_reduce_them() {
    let buckets = |per_rank: u64, dp: u32| {
        let plan = plan(1, 1, dp, 1, 1, dp);
        let mut setting = setting(&Case {
            model: "llama3-8b",
            accelerator: "h100",
            stack: "megatron-core-2025",
            plan: plan.clone(),
        });
        setting.stack.overlap.bucket = Bytes(160_000_000);
        setting.stack.overlap.bucket_per_rank = Bytes(per_rank);
        setting.step().mesh_costs(&plan).unwrap().reductions[0].buckets
    };
    // Forty ranks of four megabytes each make the bucket of old; beyond that it grows.
    assert_eq!(buckets(4_000_000, 32), buckets(0, 32));
    assert!(buckets(4_000_000, 512) < buckets(0, 512));
}

#[test]
fn zero_1_of_deepspeed_sums_whole_gradients_on_every_rank() {
    let reduction = |whole: bool| {
        let plan = Plan { sequence_parallel: false, ..plan(4, 1, 8, 1, 1, 64) };
        let mut setting = setting(&Case {
            model: "llama2-13b",
            accelerator: "a100",
            stack: "megatron-deepspeed",
            plan: plan.clone(),
        });
        setting.stack.states.whole_reduction = whole;
        setting.step().mesh_costs(&plan).unwrap().reductions[0]
    };
    let (scattered, whole) = (reduction(false), reduction(true));
    // An all-reduce is a scatter and a gather: twice the traffic in a ring, less in trees; the gather of parameters stays.
    assert!((1.4..2.2).contains(&(whole.reduce / scattered.reduce)), "{whole:?} {scattered:?}");
    assert_eq!(whole.gather, scattered.gather);
}

#[test]
fn gradients_of_a_tied_embedding_are_summed_over_its_two_stages() {
    let tied = |tied: bool, pp: u32| {
        let plan = plan(2, pp, 16 / pp, 1, 1, 64);
        let mut setting = setting(&Case {
            model: "llama3-8b",
            accelerator: "h100",
            stack: "megatron-core-2025",
            plan: plan.clone(),
        });
        setting.model.tied_embeddings = tied;
        setting.step().mesh_costs(&plan).unwrap().tied
    };
    assert_eq!((tied(false, 4), tied(true, 1)), (0.0, 0.0));
    // Half of 128,256 by 4,096 numbers of four bytes over one 50 GB/s link: 21 ms at the line rate.
    assert!((0.021..0.06).contains(&tied(true, 4)), "{}", tied(true, 4));
}

/// A host that is always behind launches nothing while it is busy with the micro-batch itself, wherever the pass is laid.
#[test]
fn events_of_a_host_bound_step_end_no_earlier_than_its_pipeline() {
    let plan = Plan { schedule: Schedule::Interleaved, ep: 8, ..plan(1, 2, 8, 8, 1, 64) };
    let mut setting = setting(&Case {
        model: "qwen3-30b-a3b",
        accelerator: "h100",
        stack: "megatron-bridge-2025",
        plan: plan.clone(),
    });
    setting.stack.host.launch = psim_hardware::Seconds(40e-6);
    setting.stack.host.per_micro_batch = psim_hardware::Seconds(4e-3);
    let step = setting.step();
    let mesh = step.mesh_costs(&plan).unwrap();
    let shared = StageCosts { shape: step.shape(&plan), layers: step.layer_times(&plan) };
    let mut prepared = step.prepare(&plan, &shared, &mesh);
    let deep = step.deepen(&plan, &mut prepared).unwrap();
    let costs = costs(&prepared, setting.stack.overlap.p2p);
    let mut sim = PipelineSim::new();
    let events = step.events(&plan, &deep, &prepared, &costs, None, &mut sim).unwrap();
    let pipeline = sim.run(&super::program::spec(&plan), &costs).unwrap().step(plan.schedule).seconds().0;
    assert!(events.end >= pipeline * (1.0 - 1e-9), "{} before {pipeline}", events.end);
}
