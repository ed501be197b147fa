//! Walks the space and keeps what the rules permit; counts what each rule removes.

use super::{Choices, ExpertTp, SearchSpace, divisors};
use crate::result::KilledBy;
use crate::rules::{ALL, Facts, Rule, Stage};
use psim_models::Plan;
use psim_models::plan::{ContextParallel, Precision, Recompute, Schedule, Sharding};
use std::collections::BTreeMap;

/// How many candidates each constraint removed, with one example each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kills(BTreeMap<&'static str, (u64, String)>);

impl Kills {
    /// Adds `count` candidates removed by `constraint`; the example of the first call is kept.
    pub fn add(&mut self, constraint: &'static str, count: u64, example: impl FnOnce() -> String) {
        let entry = self.0.entry(constraint).or_insert_with(|| (0, example()));
        entry.0 = entry.0.saturating_add(count);
    }

    /// All candidates removed.
    pub fn total(&self) -> u64 {
        self.0.values().map(|k| k.0).fold(0, u64::saturating_add)
    }

    /// Largest first.
    pub fn ranked(&self) -> Vec<KilledBy> {
        let mut list: Vec<KilledBy> = self
            .0
            .iter()
            .map(|(&constraint, (candidates, example))| KilledBy {
                constraint,
                candidates: *candidates,
                example: example.clone(),
            })
            .collect();
        list.sort_by_key(|k| std::cmp::Reverse(k.candidates));
        list
    }

    /// Adds another count.
    pub fn merge(&mut self, other: &Self) {
        for (name, (count, example)) in &other.0 {
            self.add(name, *count, || example.clone());
        }
    }
}

/// The legal plans of a space.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Enumeration {
    /// Legal plans, in a fixed order.
    pub plans: Vec<Plan>,
    /// Combinations looked at, legal or not.
    pub considered: u64,
    /// What the rules removed.
    pub kills: Kills,
}

struct Walk<'a> {
    space: &'a SearchSpace,
    facts: &'a Facts,
    rules: [Vec<&'static dyn Rule>; 5],
    out: Enumeration,
}

/// Every legal plan with `global_batch` sequences per step. Those that leave accelerators idle come last.
pub fn enumerate(space: &SearchSpace, facts: &Facts, global_batch: u32) -> Enumeration {
    let of = |stage: Stage| ALL.iter().copied().filter(|r| r.stage() == stage).collect();
    let rules =
        [of(Stage::Mesh), of(Stage::Experts), of(Stage::Chunks), of(Stage::Batch), of(Stage::Execution)];
    let mut walk = Walk { space, facts, rules, out: Enumeration::default() };
    let world = facts.accelerators;
    walk.meshes(&space.pp, global_batch, |ranks| Some(world / ranks));
    if !space.partial_pp.is_empty() {
        let idle = Facts { may_idle: true, ..facts.clone() };
        let mut walk = Walk { facts: &idle, ..walk };
        // What leaves a quarter idle is hardly ever faster; where nothing else is legal, half may idle.
        let three_quarters = world - world / 4;
        walk.meshes(&space.partial_pp, global_batch, |ranks| {
            partial(facts, ranks, global_batch, three_quarters)
        });
        if walk.out.plans.is_empty() {
            let half = world / 2;
            walk.meshes(&space.partial_pp, global_batch, |ranks| {
                partial(facts, ranks, global_batch, half).filter(|dp| dp * ranks <= three_quarters)
            });
        }
        return walk.out;
    }
    walk.out
}

/// A mesh with the neutral value of everything else.
fn first_plan(tp: u32, pp: u32, cp: u32, cp_kind: ContextParallel, dp: u32, global_batch: u32) -> Plan {
    Plan {
        tp,
        pp,
        cp,
        cp_kind,
        dp,
        ep: 1,
        etp: 1,
        vpp: 1,
        micro_batch: 1,
        global_batch,
        sequence_parallel: true,
        recompute: Recompute::None,
        sharding: Sharding::None,
        shard_group: 0,
        schedule: Schedule::OneFOneB,
        precision: Precision::Bf16,
        stage_layers: Vec::new(),
        vocabulary_parallel: false,
    }
}

/// The most replicas of `ranks` accelerators that share `batch` sequences equally, fill whole nodes and leave some of the
/// accelerators idle, but use more than `least`; `None` where such replicas can fill the cluster, or too few fit.
fn partial(facts: &Facts, ranks: u32, batch: u32, least: u32) -> Option<u32> {
    let all = facts.accelerators / ranks;
    if facts.accelerators.is_multiple_of(ranks) && batch.is_multiple_of(all) {
        return None;
    }
    let node = facts.per_node.max(1);
    let whole = |used: u32| used < node || used.is_multiple_of(node);
    let most = divisors(batch).into_iter().filter(|&dp| dp <= all && whole(dp * ranks)).max()?;
    (most * ranks > least && most * ranks < facts.accelerators).then_some(most)
}

impl Walk<'_> {
    /// Walks the meshes with the replicas that `replicas` gives for the accelerators of one.
    fn meshes(&mut self, stages: &[u32], global_batch: u32, replicas: impl Fn(u32) -> Option<u32>) {
        let (space, world) = (self.space, self.facts.accelerators);
        for &tp in &space.tp {
            for &pp in stages {
                for &cp in &space.cp {
                    let Some(ranks) = tp.checked_mul(pp).and_then(|n| n.checked_mul(cp)) else { continue };
                    if ranks == 0 || ranks > world {
                        continue;
                    }
                    let Some(dp) = replicas(ranks) else { continue };
                    let exchanges = if cp > 1 { &space.cp_kind[..] } else { &[ContextParallel::Ring] };
                    for &cp_kind in exchanges {
                        self.mesh(&first_plan(tp, pp, cp, cp_kind, dp, global_batch));
                    }
                }
            }
        }
    }

    /// The plan passes the rules of `stage`; otherwise `weight` candidates are counted against the first that fails.
    fn passes(&mut self, stage: Stage, plan: &Plan, weight: impl FnOnce(&Self) -> u64) -> bool {
        let Some(rule) = self.rules[stage as usize].iter().copied().find(|r| !r.permits(self.facts, plan))
        else {
            return true;
        };
        let weight = weight(self);
        self.out.considered += weight;
        let facts = self.facts;
        self.out.kills.add(rule.name(), weight, || rule.explain(facts, plan));
        false
    }

    fn mesh(&mut self, plan: &Plan) {
        if !self.passes(Stage::Mesh, plan, |w| w.expert_count() * w.below_experts(plan)) {
            return;
        }
        for &ep in &self.space.ep {
            let mut seen = Vec::with_capacity(self.space.etp.len());
            for &choice in &self.space.etp {
                let etp = match choice {
                    ExpertTp::Fixed(n) => n,
                    ExpertTp::SameAsTp => plan.tp,
                };
                if seen.contains(&etp) {
                    continue;
                }
                seen.push(etp);
                let plan = Plan { ep, etp, ..plan.clone() };
                if self.passes(Stage::Experts, &plan, |w| w.below_experts(&plan)) {
                    self.chunks(&plan);
                }
            }
        }
    }

    fn chunks(&mut self, plan: &Plan) {
        for &schedule in &self.space.schedules {
            for vpp in self.chunk_choices(plan, schedule) {
                let plan = Plan { vpp, schedule, ..plan.clone() };
                if self.passes(Stage::Chunks, &plan, |w| w.batch_count(&plan) * w.execution_count(&plan)) {
                    self.batch(&plan);
                }
            }
        }
    }

    fn batch(&mut self, plan: &Plan) {
        for micro_batch in self.micro_batches(plan) {
            let plan = Plan { micro_batch, ..plan.clone() };
            if self.passes(Stage::Batch, &plan, |w| w.execution_count(&plan)) {
                self.execution(&plan);
            }
        }
    }

    fn execution(&mut self, plan: &Plan) {
        let recompute = self.recompute_choices(plan);
        for &precision in &self.space.precision {
            for &sequence_parallel in self.sequence_choices(plan) {
                for sharding in self.sharding_choices(plan) {
                    let legal = Plan { precision, sequence_parallel, sharding, ..plan.clone() };
                    let weight = recompute.len() as u64;
                    if !self.passes(Stage::Execution, &legal, |_| weight) {
                        continue;
                    }
                    self.out.considered += weight;
                    self.out
                        .plans
                        .extend(recompute.iter().map(|&recompute| Plan { recompute, ..legal.clone() }));
                }
            }
        }
    }

    /// Chunks per stage that a schedule can be given.
    fn chunk_choices(&self, plan: &Plan, schedule: Schedule) -> Vec<u32> {
        match schedule {
            Schedule::Interleaved if plan.pp == 1 => Vec::new(),
            Schedule::Interleaved => {
                let mut list = self.space.vpp.values(self.facts.layers.div_ceil(plan.pp.max(1)));
                list.retain(|&v| v > 1);
                list
            }
            Schedule::ZbV => {
                if plan.pp > 1 {
                    vec![2]
                } else {
                    Vec::new()
                }
            }
            Schedule::ZbH1 | Schedule::ZbH2 => {
                if plan.pp > 1 {
                    vec![1]
                } else {
                    Vec::new()
                }
            }
            Schedule::Gpipe | Schedule::OneFOneB => vec![1],
        }
    }

    fn micro_batches(&self, plan: &Plan) -> Vec<u32> {
        match &self.space.micro_batch {
            Choices::List(list) => list.clone(),
            // A batch that does not divide is tried with 1, so that its rule names it.
            choices => {
                let list = choices.values(plan.global_batch / plan.dp.max(1));
                if list.is_empty() { vec![1] } else { list }
            }
        }
    }

    fn sequence_choices(&self, plan: &Plan) -> &'static [bool] {
        match &self.space.sequence_parallel[..] {
            // Without tensor parallelism the two are the same program.
            _ if plan.tp == 1 => &[false],
            [true] => &[true],
            [false] => &[false],
            _ => &[true, false],
        }
    }

    /// What the rules would refuse anyway is no candidate, unless nothing else was asked for.
    fn sharding_choices(&self, plan: &Plan) -> Vec<Sharding> {
        let possible = |s: &Sharding| match s {
            Sharding::None => true,
            Sharding::Optimizer => plan.dp * plan.cp > 1,
            Sharding::Gradients | Sharding::Parameters => plan.dp * plan.cp > 1 && plan.pp == 1,
        };
        let list: Vec<Sharding> = self.space.sharding.iter().copied().filter(possible).collect();
        if list.is_empty() { self.space.sharding.clone() } else { list }
    }

    fn recompute_choices(&self, plan: &Plan) -> Vec<Recompute> {
        let mut list = self.space.recompute.clone();
        if self.space.recompute_quarters {
            let layers = self.facts.layers / plan.chunks().max(1);
            let mut quarters: Vec<u32> = [layers / 4, layers / 2, 3 * layers / 4]
                .into_iter()
                .filter(|&n| n > 0 && n < layers)
                .collect();
            quarters.dedup();
            list.extend(quarters.into_iter().map(Recompute::Layers));
        }
        list
    }

    fn expert_count(&self) -> u64 {
        (self.space.ep.len() * self.space.etp.len()) as u64
    }
    fn execution_count(&self, plan: &Plan) -> u64 {
        let each = self.space.precision.len()
            * self.sharding_choices(plan).len()
            * self.sequence_choices(plan).len();
        (each * self.recompute_choices(plan).len()) as u64
    }
    fn batch_count(&self, plan: &Plan) -> u64 {
        self.micro_batches(plan).len() as u64
    }
    fn below_experts(&self, plan: &Plan) -> u64 {
        let chunks: usize = self.space.schedules.iter().map(|&s| self.chunk_choices(plan, s).len()).sum();
        chunks as u64 * self.batch_count(plan) * self.execution_count(plan)
    }
}
