//! The search against exhaustive search on synthetic evaluators.

use super::*;
use crate::capacity::failures::FailureModel;
use crate::progress::Silent;
use crate::rules::Facts;
use crate::space::{Choices, ExpertTp, SearchSpace, enumerate};
use proptest::prelude::*;
use psim_hardware::DType;
use psim_models::plan::{ContextParallel, Precision, Recompute, Schedule, Sharding};
use psim_sim::StepPrediction;

/// Times from a hash of the plan: rough ground, with a bound that is loose by a random share.
struct Synthetic {
    seed: u64,
    looseness: f64,
    capacity: u64,
}

fn hash(seed: u64, plan: &Plan) -> u64 {
    let mut h = seed ^ 0x9e37_79b9_7f4a_7c15;
    let sizes =
        [plan.tp, plan.pp, plan.dp, plan.vpp, plan.micro_batch, plan.recompute_code(), plan.sharding as u32];
    for n in sizes {
        h = (h ^ u64::from(n)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h ^= h >> 32;
    }
    h
}

trait Code {
    fn recompute_code(&self) -> u32;
}
impl Code for Plan {
    fn recompute_code(&self) -> u32 {
        match self.recompute {
            Recompute::None => 0,
            Recompute::Selective => 1,
            Recompute::Full => 2,
            Recompute::Layers(n) => 3 + n,
        }
    }
}

/// Shared costs belong to the plan.
fn check(costs: &CostKey, mesh: &MeshKey, plan: &Plan) {
    assert_eq!(*costs, CostKey::of(plan));
    assert_eq!(*mesh, MeshKey::of(plan));
}

impl Evaluator for Synthetic {
    type Costs = CostKey;
    type Mesh = MeshKey;
    fn mesh(&self, plan: &Plan) -> Result<MeshKey, String> {
        if plan.tp == 4 && plan.pp == 4 && plan.vpp == 3 {
            Err("no layout".to_owned())
        } else {
            Ok(MeshKey::of(plan))
        }
    }
    fn costs(&self, plan: &Plan) -> Result<CostKey, String> {
        if plan.tp == 2 && plan.micro_batch == 8 { Err("refused".to_owned()) } else { Ok(CostKey::of(plan)) }
    }
    fn uneven_layers(&self, _: &CostKey, plan: &Plan) -> Option<Vec<u32>> {
        (plan.pp == 2 && plan.vpp == 1).then(|| vec![5, 7])
    }
    fn memory(&self, costs: &CostKey, mesh: &MeshKey, plan: &Plan) -> Bytes {
        check(costs, mesh, plan);
        Bytes(hash(self.seed + 1, plan) % 1000)
    }
    fn memory_capacity(&self) -> Bytes {
        Bytes(self.capacity)
    }
    fn l0(&self, costs: &CostKey, mesh: &MeshKey, plan: &Plan) -> Time {
        let share = 1.0 - self.looseness * (hash(self.seed + 2, plan) % 100) as f64 / 100.0;
        Time((self.l1(costs, mesh, plan).0 as f64 * share) as u64)
    }
    fn l1(&self, costs: &CostKey, mesh: &MeshKey, plan: &Plan) -> Time {
        check(costs, mesh, plan);
        // Few distinct values: ties are common and must be broken alike.
        Time(1_000_000 + hash(self.seed, plan) % 50 * 1000 + plan.stage_layers.len() as u64)
    }
    fn energy(&self, costs: &CostKey, mesh: &MeshKey, plan: &Plan, step: Time) -> f64 {
        check(costs, mesh, plan);
        f64::from(plan.world()) * (step.0 as f64 + (hash(self.seed + 3, plan) % 1000) as f64 * 500.0)
    }
    fn l2(&self, _: &Plan) -> Result<StepPrediction, String> {
        Err("not part of this test".to_owned())
    }
}

fn space() -> SearchSpace {
    SearchSpace {
        tp: vec![1, 2, 4],
        pp: vec![1, 2, 4],
        cp: vec![1],
        ep: vec![1],
        etp: vec![ExpertTp::Fixed(1)],
        vpp: Choices::DivisorsUpTo(6),
        micro_batch: Choices::DivisorsUpTo(8),
        recompute: vec![Recompute::None, Recompute::Selective, Recompute::Full],
        recompute_quarters: true,
        sharding: vec![Sharding::None, Sharding::Optimizer],
        schedules: vec![Schedule::OneFOneB, Schedule::Interleaved],
        sequence_parallel: vec![true, false],
        cp_kind: vec![ContextParallel::Ring],
        precision: vec![Precision::Bf16],
        uneven: true,
        partial_pp: Vec::new(),
    }
}

fn facts() -> Facts {
    Facts {
        heads: vec![32],
        kv_heads: vec![8],
        ffn_widths: vec![4096],
        layers: 12,
        experts: None,
        seq_len: 2048,
        accelerators: 16,
        per_node: 8,
        may_idle: false,
        formats: vec![DType::Bf16],
        accelerator: "test".to_owned(),
    }
}

fn scorer(objective: Objective) -> Scorer {
    Scorer {
        objective,
        seq_len: 2048,
        price_per_gpu_hour: 2.0,
        per_node: 8,
        failures: FailureModel { mtbf_per_gpu_hours: 5e4, restart: 900.0, write_rate: 1e10 },
        checkpoint_bytes: 1e12,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn bounds_never_change_the_answer(
        seed in any::<u32>(),
        looseness in 0.0..0.9f64,
        capacity in 0u64..1000,
        objective in prop::sample::select(vec![Objective::Time, Objective::Cost, Objective::Energy, Objective::Goodput]),
        top in 1usize..30,
    ) {
        let evaluator = Synthetic { seed: seed.into(), looseness, capacity };
        let scorer = scorer(objective);
        let enumeration = enumerate(&space(), &facts(), 64);
        let total = enumeration.considered;
        let prepared = prepare(&evaluator, &scorer, enumeration, true, &Silent).unwrap();
        let siblings = prepared.considered - total;
        prop_assert_eq!(prepared.considered, prepared.kills.total() + prepared.candidates.len() as u64);
        prop_assert!(siblings > 0);
        let mut stream = Stream::new(&evaluator, &scorer, &prepared);
        let found: Vec<Simulated> = stream.by_ref().take(top).collect();
        let oracle: Vec<Simulated> = Stream::exhaustive(&evaluator, &scorer, &prepared).take(top).collect();
        prop_assert_eq!(&found, &oracle);
        // An oracle that shares nothing with the stream.
        let mut all: Vec<f64> = prepared.candidates.iter().map(|c| {
            let (costs, mesh) = (CostKey::of(&c.plan), MeshKey::of(&c.plan));
            let l1 = evaluator.l1(&costs, &mesh, &c.plan);
            scorer.score(&c.plan, l1, evaluator.energy(&costs, &mesh, &c.plan, l1))
        }).collect();
        all.sort_by(f64::total_cmp);
        all.truncate(top);
        prop_assert_eq!(found.iter().map(|s| s.score).collect::<Vec<_>>(), all);
        prop_assert!(stream.simulated() <= prepared.candidates.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_pareto_set_is_exactly_what_nothing_covers(
        seed in any::<u32>(),
        looseness in 0.0..0.9f64,
        capacity in 0u64..1000,
    ) {
        let evaluator = Synthetic { seed: seed.into(), looseness, capacity };
        let scorer = scorer(Objective::Time);
        let prepared = prepare(&evaluator, &scorer, enumerate(&space(), &facts(), 64), true, &Silent).unwrap();
        let mut stream = Stream::new(&evaluator, &scorer, &prepared);
        stream.by_ref().take(3).count();
        let front = crate::pareto::front(&scorer, &prepared, &stream, true);
        // Every candidate's point, from scratch.
        let all: Vec<(f64, u64, f64)> = prepared.candidates.iter().map(|c| {
            let l1 = evaluator.l1(&CostKey::of(&c.plan), &MeshKey::of(&c.plan), &c.plan);
            (scorer.time_per_token(&c.plan, l1), c.memory.0, scorer.cost_per_btok(&c.plan, l1.seconds().0))
        }).collect();
        let covers = |p: &(f64, u64, f64), q: &(f64, u64, f64)| p.0 <= q.0 && p.1 <= q.1 && p.2 <= q.2;
        let mut oracle: Vec<(f64, u64, f64)> =
            all.iter().filter(|q| !all.iter().any(|p| covers(p, q) && p != *q)).copied().collect();
        oracle.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        oracle.dedup();
        let found: Vec<(f64, u64, f64)> = front.iter().map(|f| (f.time, f.memory, f.cost)).collect();
        prop_assert_eq!(found, oracle);
    }
}

#[test]
fn tight_bounds_spare_most_simulations() {
    let evaluator = Synthetic { seed: 7, looseness: 0.01, capacity: 1000 };
    let scorer = scorer(Objective::Time);
    let prepared = prepare(&evaluator, &scorer, enumerate(&space(), &facts(), 64), false, &Silent).unwrap();
    let mut stream = Stream::new(&evaluator, &scorer, &prepared);
    assert!(stream.next().is_some());
    let (done, all) = (stream.simulated(), prepared.candidates.len());
    assert!(done * 4 < all, "{done} of {all}");
}
