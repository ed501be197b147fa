//! Laws of a training step: costs that are added never shorten it, better hardware never lengthens it, equal inputs give
//! equal bits, what is sent is received.
#![expect(clippy::unwrap_used, reason = "a test stops at what is wrong")]

use proptest::prelude::*;
use psim_cost_models::ProfileLibrary;
use psim_hardware::profile::StackProfile;
use psim_hardware::{BytesPerSec, Cluster, FlopPerSec, catalogue};
use psim_models::lowering::lower_block;
use psim_models::operator::{CollectiveKind, Operator, OperatorKind};
use psim_models::plan::{Plan, Recompute};
use psim_models::{Model, TrainingWorkload, presets};
use psim_sim::Level;
use psim_sim::step::StepModel;
use std::sync::OnceLock;

fn library() -> &'static ProfileLibrary {
    static LIBRARY: OnceLock<ProfileLibrary> = OnceLock::new();
    LIBRARY.get_or_init(ProfileLibrary::built_in)
}

/// A dense model and a mixture, with the cluster they run on.
fn jobs() -> &'static [(Model, Cluster)] {
    static JOBS: OnceLock<Vec<(Model, Cluster)>> = OnceLock::new();
    JOBS.get_or_init(|| {
        let job = |model: &str, part: &str| {
            (presets::find(model).unwrap(), catalogue::homogeneous(part, 64, &Default::default()).unwrap())
        };
        vec![job("llama3-8b", "h100"), job("mixtral-8x7b", "h100"), job("llama2-13b", "a100")]
    })
}

#[derive(Debug, Clone)]
struct Case {
    job: usize,
    stack: &'static str,
    plan: Plan,
}

fn case() -> impl Strategy<Value = Case> {
    let stacks = ["megatron-bridge-2025", "megatron-2022", "fsdp-generic", "nemo-25"];
    let recompute = [Recompute::None, Recompute::Selective, Recompute::Full];
    (0..3usize, 0..4usize, 0..4u32, 0..3u32, 0..2u32, 0..3usize, any::<bool>(), 1..5u32).prop_map(
        move |(job, stack, tp, pp, mb, again, sequence_parallel, rounds)| {
            let (tp, pp) = (1 << tp, 1 << pp);
            let dp = 64 / (tp * pp);
            let micro_batch = 1 << mb;
            let plan = Plan {
                tp,
                pp,
                dp,
                ep: if job == 1 { dp.min(8) } else { 1 },
                micro_batch,
                global_batch: dp * micro_batch * pp * rounds,
                sequence_parallel: sequence_parallel && tp > 1,
                recompute: recompute[again],
                ..Plan::default()
            };
            Case { job, stack: stacks[stack], plan }
        },
    )
}

fn time(case: &Case, cluster: &Cluster, stack: &StackProfile, level: Level) -> f64 {
    let workload =
        TrainingWorkload { seq_len: 4096, global_batch: case.plan.global_batch, ..Default::default() };
    let model = StepModel::new(&jobs()[case.job].0, &workload, cluster, stack, library());
    if level == Level::L0 {
        return model.lower_bound(&case.plan, &model.layer_times(&case.plan)).unwrap();
    }
    model.predict(&case.plan, level, false).unwrap().step_time.value
}

fn stack_of(case: &Case) -> StackProfile {
    library().stack(case.stack).unwrap().clone()
}

/// Costs that are added one at a time.
fn dearer(stack: &StackProfile, which: usize, more: f64) -> StackProfile {
    let mut s = stack.clone();
    match which {
        0 => s.host.launch.0 *= 1.0 + more,
        1 => s.host.gap.0 += more * 1e-6,
        2 => s.host.per_micro_batch.0 += more * 1e-4,
        3 => s.host.per_step.0 += more * 1e-2,
        4 => s.host.moe_sync.0 += more * 1e-5,
        5 => s.efficiency.contention += 0.1 * more,
        6 => s.efficiency.dispatch_contention += 0.1 * more,
        7 => s.efficiency.straggler += 0.01 * more,
        8 => s.efficiency.memory /= 1.0 + more,
        9 => s.efficiency.network /= 1.0 + more,
        10 => s.fusion.norm = false,
        11 => s.fusion.activation = false,
        12 => s.overlap.grad_reduce = false,
        _ => s.overlap.input_reduce = false,
    }
    s
}

/// Mechanisms taken out one at a time.
fn without(stack: &StackProfile, which: usize) -> StackProfile {
    let mut s = stack.clone();
    let w = &mut s.without;
    for (i, out) in [
        &mut w.optimizer,
        &mut w.dp,
        &mut w.pp,
        &mut w.imbalance,
        &mut w.bubble,
        &mut w.ep,
        &mut w.cp,
        &mut w.tp,
        &mut w.recompute,
        &mut w.memory,
        &mut w.inefficiency,
    ]
    .into_iter()
    .enumerate()
    {
        *out |= i == which;
    }
    s
}

/// At operator level, work that shares links may trade places; nothing else may.
fn slack(level: Level) -> f64 {
    if level == Level::L2 { 2e-3 } else { 1e-9 }
}

const SHORT: [Level; 2] = [Level::L1, Level::L2];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        rng_seed: proptest::test_runner::RngSeed::Fixed(21),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn an_added_cost_never_shortens_the_step(case in case(), which in 0..14usize, more in 0.1..2.0f64) {
        let (cluster, stack) = (&jobs()[case.job].1, stack_of(&case));
        for level in SHORT {
            let (before, after) = (time(&case, cluster, &stack, level), time(&case, cluster, &dearer(&stack, which, more), level));
            prop_assert!(after >= before * (1.0 - slack(level)), "{level:?}: {before} s, then {after} s with cost {which}");
        }
    }

    #[test]
    fn a_mechanism_taken_out_never_lengthens_the_step(case in case(), which in 0..11usize) {
        let (cluster, stack) = (&jobs()[case.job].1, stack_of(&case));
        for level in SHORT {
            let (with, out) = (time(&case, cluster, &stack, level), time(&case, cluster, &without(&stack, which), level));
            prop_assert!(out <= with * (1.0 + slack(level)), "{level:?}: {with} s, {out} s without {which}");
        }
    }

    #[test]
    fn better_parts_never_lengthen_the_step(case in case(), factor in 1.0..3.0f64, which in 0..4usize) {
        let stack = stack_of(&case);
        let cluster = &jobs()[case.job].1;
        let mut better = cluster.clone();
        let node = &mut better.groups[0].node;
        match which {
            0 => node.accelerator.peak.values_mut().for_each(|rate| *rate = FlopPerSec(rate.0 * factor)),
            1 => node.accelerator.memory_bandwidth = BytesPerSec(node.accelerator.memory_bandwidth.0 * factor),
            2 => node.scale_up.bandwidth = BytesPerSec(node.scale_up.bandwidth.0 * factor),
            _ => node.nics.rate = BytesPerSec(node.nics.rate.0 * factor),
        }
        for level in [Level::L0, Level::L1, Level::L2] {
            let (usual, quick) = (time(&case, cluster, &stack, level), time(&case, &better, &stack, level));
            prop_assert!(quick <= usual * (1.0 + slack(level)), "{level:?}: {usual} s, {quick} s with {which} times {factor}");
        }
    }

    #[test]
    fn nodes_under_another_name_change_nothing(case in case(), cut in 1..8u32) {
        let (cluster, stack) = (&jobs()[case.job].1, stack_of(&case));
        // The same nodes as two groups: ranks are numbered through both, and any of them may be called the first.
        let mut relabelled = cluster.clone();
        relabelled.groups.push(relabelled.groups[0].clone());
        relabelled.groups[0].count = cut;
        relabelled.groups[1].count = 8 - cut;
        for level in [Level::L0, Level::L1, Level::L2, Level::L3] {
            let (one, two) = (time(&case, cluster, &stack, level), time(&case, &relabelled, &stack, level));
            prop_assert!((two / one - 1.0).abs() < 1e-9, "{level:?}: {one} as one group, {two} as two");
        }
    }

    #[test]
    fn the_bound_is_below_every_depth_and_bits_repeat(case in case()) {
        let (cluster, stack) = (&jobs()[case.job].1, stack_of(&case));
        let bound = time(&case, cluster, &stack, Level::L0);
        for level in SHORT {
            let value = time(&case, cluster, &stack, level);
            prop_assert!(bound <= value * (1.0 + 1e-9), "L0 {bound}, {level:?} {value}");
            prop_assert_eq!(value.to_bits(), time(&case, cluster, &stack, level).to_bits());
        }
    }

    /// What a forward pass gathers or exchanges, the backward pass scatters or sends back: per dimension the same bytes.
    #[test]
    fn bytes_sent_forward_come_back(case in case()) {
        let workload = TrainingWorkload { seq_len: 4096, global_batch: case.plan.global_batch, ..Default::default() };
        let (stack, (model, cluster)) = (stack_of(&case), &jobs()[case.job]);
        let shape = StepModel::new(model, &workload, cluster, &stack, library()).shape(&case.plan);
        let program = lower_block(&model.kinds[0], model, &shape);
        let sent = |list: &[Operator], name: &str, kinds: &[CollectiveKind]| -> u64 {
            list.iter().filter(|o| o.name == name).filter_map(|o| match o.kind {
                OperatorKind::Collective { kind, bytes, .. } if kinds.contains(&kind) => Some(bytes),
                _ => None,
            }).sum()
        };
        use CollectiveKind::{AllGather, AllToAll, ReduceScatter};
        for name in ["dispatch", "combine"] {
            prop_assert_eq!(sent(&program.forward, name, &[AllToAll]), sent(&program.backward, name, &[AllToAll]));
        }
        prop_assert_eq!(
            sent(&program.forward, "tp-gather", &[AllGather]),
            sent(&program.backward, "tp-scatter", &[ReduceScatter])
        );
    }
}
