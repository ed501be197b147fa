//! What `plan` and `capacity` answer.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use psim_cost_models::{ProfileLibrary, stacks};
use psim_hardware::{BytesPerSec, Cluster, FlopPerSec, catalogue};
use psim_models::plan::Precision;
use psim_models::{TrainingWorkload, presets};
use psim_planner::capacity::{CapacityRequest, Offer, capacity};
use psim_planner::explain::{difference, waterfall};
use psim_planner::rules::Facts;
use psim_planner::space::SearchSpace;
use psim_planner::{Objective, Optimality, PlanError, PlanReport, PlanRequest, Progress, Silent, plan};
use std::sync::atomic::{AtomicU32, Ordering};

fn cluster(name: &str, count: u32) -> Cluster {
    catalogue::homogeneous(name, count, &Default::default()).unwrap()
}

fn workload(seq_len: u64, global_batch: u32) -> TrainingWorkload {
    let (mut workload, _) = PlanRequest::default_workload();
    (workload.seq_len, workload.global_batch) = (seq_len, global_batch);
    workload
}

fn answer(
    model: &str,
    cluster: &Cluster,
    workload: &TrainingWorkload,
    change: impl FnOnce(&mut PlanRequest<'_>),
) -> Result<PlanReport, PlanError> {
    let model = presets::find(model).unwrap();
    let library = ProfileLibrary::built_in();
    let stack = library.stack(stacks::DEFAULT_TRAINING).unwrap();
    let mut request = PlanRequest::new(&model, cluster, workload, stack, &library);
    change(&mut request);
    plan(&request, &Silent)
}

#[test]
fn the_first_question_has_a_practitioner_s_answer() {
    let (workload, assumptions) = PlanRequest::default_workload();
    let report = answer("70b", catalogue::cluster("h100x64").unwrap(), &workload, |r| {
        r.assumptions = assumptions;
    })
    .unwrap();
    let best = &report.plans[0];
    assert_eq!(report.plans.len(), 10);
    assert!(best.plan.tp <= 8 && best.plan.world() == 64, "{:?}", best.plan);
    assert!((30.0..60.0).contains(&best.mfu), "{}", best.mfu);
    assert!(best.peak_mem_gb <= best.mem_capacity_gb);
    assert!(matches!(report.optimality, Optimality::Proven { .. }));
    assert!(report.plans.is_sorted_by(|a, b| a.step_time_s.value <= b.step_time_s.value));
    assert_eq!(report.searched, report.pruned + report.simulated);
    // 15 T tokens at 4 Mi a step.
    let days = 15e12 / f64::from(512 * 8192) * best.step_time_s.value / 86_400.0;
    assert!((best.days.unwrap() / days - 1.0).abs() < 1e-9);
    let price = 64.0 * catalogue::cluster("h100x64").unwrap().first_node().price_per_gpu_hour;
    let cost = 1e9 / f64::from(512 * 8192) * best.step_time_s.value / 3600.0 * price;
    assert!((best.cost_usd_per_btok / cost - 1.0).abs() < 1e-9);
    assert!(report.question.assumptions.iter().any(|a| a.name == "sequence length"));
    assert!(report.pareto.first().is_some_and(|p| p.rank == Some(0)), "{:?}", report.pareto.first());
    assert!(report.pareto.is_sorted_by(|a, b| a.peak_mem_gb >= b.peak_mem_gb));
}

#[test]
fn answers_are_the_same_bits_with_any_number_of_threads() {
    let cluster = cluster("h100", 32);
    let workload = workload(4096, 64);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| answer("mixtral-8x7b", &cluster, &workload, |_| {}).unwrap())
    };
    let one = with(1);
    assert!(!one.plans.is_empty());
    for threads in [2, 5] {
        assert_eq!(one, with(threads), "{threads} threads");
    }
}

#[test]
fn terms_sum_to_the_step_and_to_the_gap_exactly() {
    let report = answer("llama3-8b", &cluster("a100", 16), &workload(4096, 64), |_| {}).unwrap();
    for pair in report.plans.windows(2) {
        let (a, b) = (&pair[0].prediction, &pair[1].prediction);
        for w in [waterfall(a), difference(a, b)] {
            assert_eq!(w.start + w.terms.iter().map(|t| t.picoseconds).sum::<i64>(), w.end);
            let rounding = w.terms.iter().find(|t| t.term == "rounding").map_or(0, |t| t.picoseconds);
            assert!(rounding.abs() <= 64, "{rounding} ps are unexplained");
        }
    }
}

#[test]
fn a_model_larger_than_the_cluster_says_what_is_needed() {
    let report = answer("llama3.1-405b", &cluster("h100", 8), &workload(8192, 64), |_| {}).unwrap();
    let why = report.infeasible.expect("405 billion parameters do not fit 8 accelerators");
    assert!(report.plans.is_empty());
    assert_eq!(why.constraints[0].constraint, "memory");
    assert!(why.constraints[0].example.contains("needs"), "{}", why.constraints[0].example);
    assert!(why.constraints.is_sorted_by(|a, b| a.candidates >= b.candidates));
    let change = &why.nearest.first().expect("more nodes help").change;
    assert!(change.contains("nodes"), "{change}");
}

#[test]
fn seven_accelerators_for_tp_4_say_so() {
    let mut seven = cluster("h100", 8);
    seven.groups[0].node.accelerators = 7;
    let report = answer("llama3-8b", &seven, &workload(2048, 16), |r| {
        let facts = Facts::new(r.model, r.cluster, 2048);
        let mut space = SearchSpace::default_for(&facts, 7, &[Precision::Bf16]).on_all_accelerators();
        space.tp = vec![4];
        space.pp = vec![1];
        r.space = Some(space);
    })
    .unwrap();
    let why = report.infeasible.expect("7 is no multiple of 4");
    assert_eq!(why.constraints[0].constraint, "cluster size");
    assert!(why.constraints[0].example.contains('7'), "{}", why.constraints[0].example);
    assert!(why.nearest.iter().any(|n| n.change.contains("4 of the 7")), "{:?}", why.nearest);
}

#[test]
fn a_range_of_batches_gives_the_curve() {
    let report = answer("llama3-8b", &cluster("h100", 64), &workload(8192, 64), |r| {
        r.global_batch = Some((64, 1024));
        r.top = 3;
    })
    .unwrap();
    let curve = &report.throughput_curve;
    assert_eq!(curve.iter().map(|p| p.global_batch).collect::<Vec<_>>(), [64, 128, 256, 512, 1024]);
    assert!(curve.is_sorted_by(|a, b| a.tokens_per_s <= b.tokens_per_s), "{curve:?}");
    assert_eq!(report.plans[0].plan.global_batch, 1024);
}

#[test]
fn malformed_questions_are_refused_with_a_hint() {
    let cluster = cluster("h100", 8);
    type Change = fn(&mut PlanRequest<'_>);
    let changes: [Change; 5] = [
        |r| r.global_batch = Some((0, 4)),
        |r| r.global_batch = Some((8, 4)),
        |r| r.global_batch = Some((1, u32::MAX)),
        |r| r.top = 0,
        |r| r.precision.clear(),
    ];
    for change in changes {
        let error = answer("llama3-8b", &cluster, &workload(8192, 64), change).unwrap_err();
        assert!(matches!(&error, PlanError::Question { hint, .. } if !hint.is_empty()), "{error}");
    }
    for (seq_len, tokens) in [(0, 1e12), (u64::MAX, 1e12), (4096, f64::NAN), (4096, -1.0)] {
        let mut w = workload(seq_len, 64);
        w.tokens = Some(tokens);
        assert!(answer("llama3-8b", &cluster, &w, |_| {}).is_err(), "{seq_len} {tokens}");
    }
}

/// Cancels at the `n`-th look.
struct Impatient(AtomicU32);
impl Progress for Impatient {
    fn report(&self, _: &'static str, _: u64, _: u64) {}
    fn cancelled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) <= 1
    }
}

#[test]
fn a_search_can_be_cancelled_at_any_look() {
    let model = presets::find("llama3-8b").unwrap();
    let library = ProfileLibrary::built_in();
    let stack = library.stack(stacks::DEFAULT_TRAINING).unwrap();
    let (cluster, workload) = (cluster("h100", 8), workload(4096, 32));
    let request = PlanRequest::new(&model, &cluster, &workload, stack, &library);
    for looks in 1..4 {
        let outcome = plan(&request, &Impatient(AtomicU32::new(looks)));
        assert_eq!(outcome.unwrap_err(), PlanError::Cancelled);
    }
}

#[test]
fn better_hardware_never_makes_the_optimum_slower() {
    let base = cluster("a100", 32);
    let w = workload(4096, 64);
    let time = |c: &Cluster| {
        answer("llama2-13b", c, &w, |r| {
            r.pareto = false;
            r.top = 1;
        })
        .unwrap()
        .plans[0]
            .step_time_s
            .value
    };
    let before = time(&base);
    type Change = fn(&mut Cluster);
    let better: [(&str, Change); 5] = [
        ("scale-up links", |c| c.groups[0].node.scale_up.bandwidth = BytesPerSec(6e11)),
        ("network", |c| c.groups[0].node.nics.rate = BytesPerSec(1e11)),
        ("compute", |c| {
            for rate in c.groups[0].node.accelerator.peak.values_mut() {
                *rate = FlopPerSec(rate.0 * 1.5);
            }
        }),
        ("memory", |c| c.groups[0].node.accelerator.memory = "160GiB".parse().unwrap()),
        ("memory bandwidth", |c| {
            let node = &mut c.groups[0].node;
            node.accelerator.memory_bandwidth = BytesPerSec(node.accelerator.memory_bandwidth.0 * 1.5);
        }),
    ];
    for (what, change) in better {
        let mut improved = base.clone();
        change(&mut improved);
        let after = time(&improved);
        assert!(after <= before * (1.0 + 1e-9), "more {what}: {before} s became {after} s");
    }
}

#[test]
fn objectives_choose_by_their_own_measure() {
    let cluster = cluster("h100", 16);
    let w = workload(8192, 64);
    let best = |objective| {
        let report = answer("llama3-8b", &cluster, &w, |r| {
            r.objective = objective;
            r.top = 5;
        });
        report.unwrap().plans
    };
    let time = best(Objective::Time);
    let energy = best(Objective::Energy);
    let memory = best(Objective::Memory);
    assert!(energy[0].energy_j_per_token <= time[0].energy_j_per_token);
    assert!(memory[0].peak_mem_gb <= time[0].peak_mem_gb);
    assert!(memory[0].step_time_s.value <= 1.11 * time[0].step_time_s.value);
    assert!(best(Objective::Cost)[0].cost_usd_per_btok <= time[0].cost_usd_per_btok);
    assert!(energy.is_sorted_by(|a, b| a.energy_j_per_token <= b.energy_j_per_token));
}

fn capacity_of(deadline: Option<f64>, budget: Option<f64>, most: u32) -> psim_planner::CapacityReport {
    let model = presets::find("llama3-8b").unwrap();
    let library = ProfileLibrary::built_in();
    let stack = library.stack(stacks::DEFAULT_TRAINING).unwrap();
    let (mut workload, _) = PlanRequest::default_workload();
    workload.tokens = Some(1e12);
    let offer = |name: &str| Offer::Type { name: name.to_owned(), options: Default::default() };
    let request = CapacityRequest {
        model: &model,
        workload: &workload,
        global_batch: None,
        stack,
        library: &library,
        precision: vec![Precision::Bf16],
        deadline_days: deadline,
        budget_usd: budget,
        offers: vec![offer("A100-SXM-80GB"), offer("H100-SXM-80GB")],
        most_accelerators: most,
        assumptions: Vec::new(),
    };
    capacity(&request, &Silent).unwrap()
}

#[test]
fn capacity_meets_a_deadline_at_the_least_price() {
    let report = capacity_of(Some(20.0), None, 512);
    let chosen = &report.options[report.recommended.expect("512 accelerators are plenty")];
    assert!(chosen.days <= 20.0 && chosen.meets);
    let misses: Vec<f64> = report.options.iter().filter(|o| !o.meets).map(|o| o.days).collect();
    assert!(misses.is_sorted(), "{misses:?}");
    for option in &report.options {
        assert!(!option.meets || option.cost_usd >= chosen.cost_usd);
        assert_eq!(option.meets, option.days <= 20.0, "{option:?}");
        assert!(option.failures.goodput > 0.9 && option.failures.goodput < 1.0);
        let cost = f64::from(option.rented) * option.price_per_gpu_hour * option.days * 24.0;
        assert!((option.cost_usd / cost - 1.0).abs() < 1e-9);
        assert!(option.energy_mwh > 0.0 && option.rented >= option.accelerators);
    }
}

#[test]
fn capacity_spends_a_budget_on_the_least_time_and_more_accelerators_are_never_slower() {
    let report = capacity_of(None, Some(300_000.0), 512);
    let chosen = &report.options[report.recommended.expect("300,000 dollars are plenty")];
    assert!(chosen.cost_usd <= 300_000.0);
    assert!(report.options.iter().all(|o| !o.meets || o.days >= chosen.days));
    for name in ["A100-SXM-80GB", "H100-SXM-80GB"] {
        let mut of: Vec<_> = report.options.iter().filter(|o| o.accelerator == name).collect();
        assert!(of.len() > 3, "{name}: {}", of.len());
        of.sort_by_key(|o| o.accelerators);
        assert!(of.is_sorted_by(|a, b| a.days > b.days), "{name}");
    }
    // The least time with at most n accelerators never grows with n.
    let fastest = |most: u32| {
        let days =
            capacity_of(Some(1.0), None, most).options.iter().map(|o| o.days).fold(f64::INFINITY, f64::min);
        (most, days)
    };
    let sizes = [8, 32, 128, 512].map(fastest);
    assert!(sizes.is_sorted_by(|a, b| a.1 >= b.1), "{sizes:?}");
}

/// One node of H100, one of A100: every stage is priced on its own part, and the fast one takes more layers.
#[test]
fn a_mixed_cluster_is_planned_with_its_own_parts() {
    let (fast, slow) = (cluster("h100", 8), cluster("a100", 8));
    let mut mixed = fast.clone();
    mixed.groups.extend(slow.groups.clone());
    let workload = workload(4096, 64);
    let with = |cluster: &Cluster| {
        let report = answer("llama3-8b", cluster, &workload, |r| {
            let facts = Facts::new(r.model, r.cluster, 4096);
            let mut space = SearchSpace::default_for(&facts, 8, &[Precision::Bf16]);
            space.pp.retain(|pp| *pp <= 2);
            r.space = Some(space);
            r.top = 3;
        });
        report.unwrap()
    };
    let (both, slow_pair) = (
        with(&mixed),
        with(&{
            let mut pair = slow.clone();
            pair.groups[0].count = 2;
            pair
        }),
    );
    let best = &both.plans[0];
    assert_eq!(best.prediction.level, psim_sim::Level::L3);
    assert!(both.question.assumptions.iter().any(|a| a.name == "mixed cluster"));
    assert!(best.step_time_s.value < 0.95 * slow_pair.plans[0].step_time_s.value);
    // Stages on nodes of their own: the first lies on H100.
    let staged = both.plans.iter().find(|p| p.plan.pp == 2 && p.plan.vpp == 1);
    if let Some(layers) = staged.map(|p| &p.plan.stage_layers).filter(|l| !l.is_empty()) {
        assert!(layers[0] > layers[1], "{layers:?}");
    }
    // No slower than the faster node alone with the same batch.
    let alone = with(&fast);
    assert!(best.step_time_s.value <= 1.001 * alone.plans[0].step_time_s.value);
}

#[test]
fn a_part_of_the_cluster_is_used_where_all_of_it_divides_badly() {
    let cluster = cluster("h100", 104);
    let workload = workload(8192, 512);
    let free = answer("70b", &cluster, &workload, |_| {}).unwrap();
    let full = answer("70b", &cluster, &workload, |r| {
        let facts = Facts::new(r.model, r.cluster, r.workload.seq_len);
        r.space = Some(SearchSpace::default_for(&facts, 8, &[Precision::Bf16]).on_all_accelerators());
    })
    .unwrap();
    let (part, all) = (&free.plans[0], &full.plans[0]);
    assert_eq!((part.plan.world(), part.idle_accelerators), (96, 8), "{:?}", part.plan);
    assert_eq!(all.plan.world(), 104);
    assert!(part.step_time_s.value < all.step_time_s.value);
    assert_eq!(free.searched, free.pruned + free.simulated);
    // Whole nodes, and never more than a quarter idle where something is legal on all.
    for p in &free.plans {
        assert!(p.plan.world().is_multiple_of(8) && p.idle_accelerators <= 26, "{:?}", p.plan);
    }
    // The same plan on a cluster of 96.
    let exact = answer("70b", &self::cluster("h100", 96), &workload, |_| {}).unwrap();
    assert!((exact.plans[0].step_time_s.value / part.step_time_s.value - 1.0).abs() < 1e-6);
    // Nothing is legal on 127 nodes: an answer all the same.
    let odd = answer("llama3-8b", &self::cluster("h100", 7 * 8), &self::workload(8192, 64), |_| {}).unwrap();
    assert!(odd.plans[0].plan.world() >= 28, "{:?}", odd.plans[0].plan);
}

#[test]
fn how_many_plans_are_shown_does_not_change_the_best() {
    let cluster = cluster("h100", 16_384);
    let workload = workload(8192, 512);
    let with =
        |top: usize| answer("405b", &cluster, &workload, |r| (r.top, r.pareto) = (top, false)).unwrap();
    let few = with(3);
    let plan = &few.plans[0].plan;
    assert_eq!((plan.tp, plan.pp, plan.dp, plan.cp, plan.vpp), (8, 8, 64, 4, 8), "{plan:?}");
    assert!((few.plans[0].step_time_s.value - 1.64).abs() < 0.1, "{}", few.plans[0].step_time_s.value);
    let rows = |r: &PlanReport| -> Vec<_> {
        r.plans.iter().take(3).map(|p| (p.plan.clone(), p.step_time_s.value)).collect()
    };
    assert_eq!(rows(&few), rows(&with(10)));
}
