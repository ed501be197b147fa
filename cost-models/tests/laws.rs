//! Laws that every price obeys, on every accelerator of the catalogue.

use proptest::prelude::*;
use psim_cost_models::{CostModel, ProfileLibrary};
use psim_hardware::catalogue::{HomogeneousOptions, accelerators, homogeneous};
use psim_hardware::profile::StackProfile;
use psim_hardware::{BytesPerSec, Cluster, DType, FlopPerSec, GroupShape, Scaling};
use psim_models::OperatorKind;
use psim_models::operator::{CollectiveKind, GemmRole, MemoryClass};
use std::sync::OnceLock;

/// Kinds with a size that means the same for any rank count.
const KINDS: [CollectiveKind; 6] = [
    CollectiveKind::AllReduce,
    CollectiveKind::AllGather,
    CollectiveKind::ReduceScatter,
    CollectiveKind::AllToAll,
    CollectiveKind::Broadcast,
    CollectiveKind::SendRecv,
];

fn library() -> &'static ProfileLibrary {
    static LIBRARY: OnceLock<ProfileLibrary> = OnceLock::new();
    LIBRARY.get_or_init(ProfileLibrary::built_in)
}

fn stack() -> StackProfile {
    let mut stack = library().stack("megatron-core-2024").expect("a modern stack ships").clone();
    // Laws are about the tables; a stack may not scale below them here.
    stack.efficiency.gemm = 1.0;
    stack.efficiency.attention = 1.0;
    stack.efficiency.memory = 1.0;
    stack.efficiency.network = 1.0;
    stack.efficiency.grouped_gemm = 1.0;
    stack
}

/// Every accelerator of the catalogue in 64-GPU clusters (or the nearest that its nodes fill).
fn clusters() -> &'static Vec<Cluster> {
    static CLUSTERS: OnceLock<Vec<Cluster>> = OnceLock::new();
    CLUSTERS.get_or_init(|| {
        accelerators()
            .iter()
            .filter_map(|a| {
                [64, 72, 256]
                    .into_iter()
                    .find_map(|n| homogeneous(&a.name, n, &HomogeneousOptions::default()).ok())
            })
            .collect()
    })
}

fn models() -> &'static Vec<CostModel> {
    static MODELS: OnceLock<Vec<CostModel>> = OnceLock::new();
    MODELS.get_or_init(|| {
        clusters().iter().map(|c| CostModel::new(c, c.first_node(), &stack(), library())).collect()
    })
}

fn index() -> impl Strategy<Value = usize> {
    any::<prop::sample::Index>().prop_map(|i| i.index(models().len()))
}

fn format() -> impl Strategy<Value = (DType, Scaling)> {
    prop_oneof![
        Just((DType::Bf16, Scaling::None)),
        Just((DType::Fp16, Scaling::None)),
        Just((DType::Fp8, Scaling::Tensor)),
        Just((DType::Fp8, Scaling::MicroBlock)),
        Just((DType::Fp8, Scaling::Block128)),
        Just((DType::Fp4, Scaling::MicroBlock)),
    ]
}

fn role() -> impl Strategy<Value = GemmRole> {
    prop_oneof![Just(GemmRole::Forward), Just(GemmRole::InputGradient), Just(GemmRole::WeightGradient)]
}

/// Sizes spread evenly over the decades.
fn size(low: f64, high: f64) -> impl Strategy<Value = u64> {
    (low.ln()..high.ln()).prop_map(|x| x.exp().round() as u64)
}

/// Multiples of 8: other widths pay for their alignment, which doubling can cure.
fn aligned(high: f64) -> impl Strategy<Value = u64> {
    size(2.0, high / 8.0).prop_map(|x| 8 * x)
}

fn sane(cost: psim_cost_models::Cost) -> Result<(), TestCaseError> {
    prop_assert!(cost.time.0.is_finite() && cost.time.0 >= 0.0, "{cost:?}");
    prop_assert!(cost.time.0 >= cost.roofline.0 * (1.0 - 1e-12), "{cost:?}");
    prop_assert!((0.0..2.0).contains(&cost.sigma), "{cost:?}");
    Ok(())
}

/// Residuals are monotone on their grid lines for the forward pass; between lines, in other roles and on relatives'
/// machines they may cost a little of the strict order.
const SLACK: f64 = 0.90;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        rng_seed: proptest::test_runner::RngSeed::Fixed(20),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn gemm_obeys_roofline_and_grows(i in index(), (dtype, scaling) in format(), role in role(),
                                     m in size(1.0, 131_072.0), n in aligned(262_144.0), k in aligned(65_536.0),
                                     batch in 1u64..64) {
        let model = &models()[i];
        let price = |m, n, k, batch| model.gemm(m, n, k, batch, dtype, scaling, 2.0, role);
        let base = price(m, n, k, batch);
        sane(base)?;
        for larger in [price(2 * m, n, k, batch), price(m, 2 * n, k, batch), price(m, n, 2 * k, batch), price(m, n, k, 2 * batch)] {
            prop_assert!(larger.time.0 >= SLACK * base.time.0, "{base:?} then {larger:?}");
        }
    }

    #[test]
    fn grouped_gemm_obeys_roofline_and_grows(i in index(), (dtype, scaling) in format(), role in role(), groups in 1u64..257,
                                             rows in size(1.0, 262_144.0), n in size(64.0, 16_384.0), k in size(64.0, 16_384.0)) {
        let model = &models()[i];
        let price = |groups, rows, n, k| model.grouped_gemm(groups, rows, n, k, dtype, scaling, role);
        let base = price(groups, rows, n, k);
        sane(base)?;
        for larger in [price(groups, 2 * rows, n, k), price(groups, rows, 2 * n, k), price(groups, rows, n, 2 * k)] {
            prop_assert!(larger.time.0 >= SLACK * base.time.0, "{base:?} then {larger:?}");
        }
    }

    #[test]
    fn attention_obeys_roofline_and_grows(i in index(), batch in 1u64..17, kv_heads in 1u64..17, group in 1u64..17,
                                          head_dim in prop_oneof![Just(64u64), Just(96), Just(128), Just(192), Just(256)],
                                          seq in size(1.0, 131_072.0), kv in size(16.0, 131_072.0),
                                          causal in any::<bool>(), backward in any::<bool>()) {
        let model = &models()[i];
        let op = |batch: u64, seq_q: u64, seq_kv: u64| OperatorKind::Attention {
            batch, q_heads: kv_heads * group, kv_heads, head_dim, head_dim_v: head_dim.min(128), seq_q,
            seq_kv, density: if causal { 0.5 } else { 1.0 }, backward, dtype: DType::Bf16,
        };
        let base = model.price(&op(batch, seq, kv));
        sane(base)?;
        for larger in [op(2 * batch, seq, kv), op(batch, seq, 2 * kv)] {
            let larger = model.price(&larger);
            prop_assert!(larger.time.0 >= SLACK * base.time.0, "{base:?} then {larger:?}");
        }
    }

    #[test]
    fn memory_bound_obeys_roofline_and_grows(i in index(), bytes in size(1.0, 1e12), kernels in 1u32..50) {
        let model = &models()[i];
        for class in [MemoryClass::Norm, MemoryClass::Elementwise, MemoryClass::CrossEntropy, MemoryClass::Quantize] {
            let base = model.memory(class, bytes, kernels, 0.0);
            sane(base)?;
            prop_assert!(model.memory(class, 2 * bytes, kernels, 0.0).time >= base.time);
            prop_assert!(model.memory(class, bytes, kernels + 1, 0.0).time >= base.time);
        }
    }

    #[test]
    fn collectives_obey_roofline_and_grow_with_bytes(i in index(), bytes in size(1.0, 1e11), ranks in 2u32..65, stride in 1u32..9) {
        let (cluster, model) = (&clusters()[i], &models()[i]);
        let group = GroupShape::place(cluster, cluster.first_node(), ranks, stride);
        for kind in KINDS {
            let base = model.collective(kind, bytes, &group);
            sane(base)?;
            let more = model.collective(kind, bytes + bytes / 1000 + 1, &group);
            prop_assert!(more.time.0 >= base.time.0 * (1.0 - 1e-9), "{kind:?} {group:?}: {base:?} then {more:?}");
            // Continuous: a thousandth more bytes never costs more than two hundredths, protocol switches included.
            prop_assert!(bytes < 10_000 || more.time.0 <= base.time.0 * 1.02, "{kind:?} {group:?}: {base:?} then {more:?}");
        }
    }

    #[test]
    fn faster_parts_are_never_slower(i in index(), (dtype, scaling) in format(), m in size(1.0, 65_536.0), n in size(64.0, 65_536.0),
                                     k in size(64.0, 32_768.0), bytes in size(1e3, 1e10), ranks in 2u32..65, factor in 1.0f64..4.0) {
        let mut cluster = clusters()[i].clone();
        let node = &mut cluster.groups[0].node;
        for rate in node.accelerator.peak.values_mut() {
            *rate = FlopPerSec(rate.0 * factor);
        }
        node.accelerator.memory_bandwidth = BytesPerSec(node.accelerator.memory_bandwidth.0 * factor);
        node.scale_up.bandwidth = BytesPerSec(node.scale_up.bandwidth.0 * factor);
        node.nics.rate = BytesPerSec(node.nics.rate.0 * factor);
        let fast = CostModel::new(&cluster, cluster.first_node(), &stack(), library());
        let slow = &models()[i];
        let gemm = |c: &CostModel| c.gemm(m, n, k, 1, dtype, scaling, 2.0, GemmRole::Forward).time.0;
        prop_assert!(gemm(&fast) <= gemm(slow) * (1.0 + 1e-9));
        let memory = |c: &CostModel| c.memory(MemoryClass::Norm, bytes, 1, 0.0).time.0;
        prop_assert!(memory(&fast) <= memory(slow) * (1.0 + 1e-9));
        let group = GroupShape::place(&cluster, cluster.first_node(), ranks, 1);
        for kind in KINDS {
            let (quick, usual) = (fast.collective(kind, bytes, &group).time.0, slow.collective(kind, bytes, &group).time.0);
            prop_assert!(quick <= usual * (1.0 + 1e-6), "{kind:?} {group:?}: {quick} against {usual}");
        }
    }
}

#[test]
fn a_single_rank_communicates_for_free() {
    let (cluster, model) = (&clusters()[0], &models()[0]);
    let group = GroupShape::place(cluster, cluster.first_node(), 1, 1);
    for kind in KINDS {
        assert_eq!(model.collective(kind, 1 << 30, &group).time.0, 0.0);
    }
}

#[test]
fn bus_bandwidth_exceeds_the_links_only_with_in_switch_reduction() {
    for (cluster, model) in clusters().iter().zip(models()) {
        let node = cluster.first_node();
        let ranks = node.scale_up.domain.min(8);
        if ranks < 2 {
            continue;
        }
        let group = GroupShape::place(cluster, node, ranks, 1);
        let bytes = 1u64 << 33;
        let n = f64::from(ranks);
        let bus = bytes as f64 * 2.0 * (n - 1.0)
            / n
            / model.collective(CollectiveKind::AllReduce, bytes, &group).time.0;
        assert!(
            bus <= node.scale_up.bandwidth.0 * 1.001 || node.scale_up.in_switch_reduction,
            "{}: {bus:.3e} over {:?}",
            cluster.name,
            node.scale_up
        );
    }
}

#[test]
fn tensor_parallel_pairs_of_nodes_drive_all_cards_together() {
    let cluster = homogeneous("H100-SXM-80GB", 64, &HomogeneousOptions::default()).expect("built in");
    let node = cluster.first_node();
    let model = CostModel::new(&cluster, node, &stack(), library());
    let wide = GroupShape::place(&cluster, node, 16, 1);
    let thin = GroupShape::place(&cluster, node, 2, 8);
    let time = |group| model.collective(CollectiveKind::AllGather, 1 << 30, group).time.0;
    assert!(time(&wide) < 0.35 * time(&thin), "{} against {}", time(&wide), time(&thin));
}
