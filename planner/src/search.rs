//! Best-first search with an admissible bound.
//!
//! Candidates are ordered by the score of their L0 bound. [`Stream`] yields them in the exact order of their L1
//! score: it simulates candidates in bound order until no bound can undercut the best one simulated. Whoever asks for
//! the first `k` pays only for the candidates whose bound is below the `k`-th score; nothing is cut by a heuristic.

pub mod refine;

use crate::evaluator::{CostKey, Evaluator};
use crate::objective::Scorer;
use crate::parallel;
use crate::progress::Progress;
use crate::result::Objective;
use crate::space::{Enumeration, Kills};
use psim_hardware::{Bytes, Time};
use psim_models::Plan;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// The search was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the search was cancelled")]
pub struct Cancelled;

/// A legal plan that fits into memory, with its bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The plan.
    pub plan: Plan,
    /// Index of its shared costs.
    pub costs: u32,
    /// Peak memory in closed form.
    pub memory: Bytes,
    /// L0 bound of the step time.
    pub l0: Time,
    /// Score of the bound.
    pub bound: f64,
}

/// Candidates of one global batch, in bound order.
#[derive(Debug)]
pub struct Prepared<C> {
    /// Candidates that fit, by bound, then by place in the enumeration.
    pub candidates: Vec<Candidate>,
    /// Shared costs (`None` where a key was refused; no candidate points there).
    pub costs: Vec<Option<C>>,
    /// Combinations looked at.
    pub considered: u64,
    /// What removed the others.
    pub kills: Kills,
    /// The smallest excess over the memory: (bytes needed, plan); for advice when nothing fits.
    pub nearest_memory: Option<(Bytes, Plan)>,
}

/// A candidate simulated at L1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Simulated {
    /// Index into [`Prepared::candidates`].
    pub candidate: usize,
    /// L1 step time.
    pub l1: Time,
    /// Its score.
    pub score: f64,
}

/// A score with a total order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Score(f64);
impl Eq for Score {}
impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Joules, asked for only where the objective needs them.
fn joules<E: Evaluator>(evaluator: &E, scorer: &Scorer, costs: &E::Costs, plan: &Plan, step: Time) -> f64 {
    if scorer.objective == Objective::Energy { evaluator.energy(costs, plan, step) } else { 0.0 }
}

/// Prices, checks memory and bounds every legal plan.
///
/// # Errors
/// [`Cancelled`].
pub fn prepare<E: Evaluator>(
    evaluator: &E,
    scorer: &Scorer,
    enumeration: Enumeration,
    uneven: bool,
    progress: &dyn Progress,
) -> Result<Prepared<E::Costs>, Cancelled> {
    let Enumeration { plans, mut considered, mut kills } = enumeration;
    let mut keys: BTreeMap<CostKey, u32> = BTreeMap::new();
    let mut samples: Vec<&Plan> = Vec::new();
    let mut places: Vec<u32> = Vec::with_capacity(plans.len());
    let mut last: Option<(CostKey, u32)> = None;
    for plan in &plans {
        let key = CostKey::of(plan);
        let place = match last {
            Some((known, place)) if known == key => place,
            _ => *keys.entry(key).or_insert_with(|| {
                samples.push(plan);
                samples.len() as u32 - 1
            }),
        };
        last = Some((key, place));
        places.push(place);
    }
    progress.report("stage costs", 0, samples.len() as u64);
    let priced = parallel::map_long(&samples, |plan| evaluator.costs(plan));
    if progress.cancelled() {
        return Err(Cancelled);
    }
    progress.report("memory and bounds", 0, plans.len() as u64);
    let capacity = evaluator.memory_capacity();
    let items: Vec<(Plan, u32)> = plans.into_iter().zip(places).collect();
    /// Outcome for one plan and perhaps its uneven sibling.
    enum Fate {
        Kept(Candidate),
        TooLarge(Bytes, Plan),
        Refused(String),
    }
    let one = |plan: &Plan, place: u32, costs: &E::Costs| {
        let memory = evaluator.memory(costs, plan);
        if memory > capacity {
            return Fate::TooLarge(memory, plan.clone());
        }
        let l0 = evaluator.l0(costs, plan);
        let bound = scorer.score(plan, l0, joules(evaluator, scorer, costs, plan, l0));
        Fate::Kept(Candidate { plan: plan.clone(), costs: place, memory, l0, bound })
    };
    let fates = parallel::map(&items, |(plan, place)| {
        let costs = match &priced[*place as usize] {
            Ok(costs) => costs,
            Err(cause) => return (Fate::Refused(cause.clone()), None),
        };
        let sibling = if uneven { evaluator.uneven_layers(costs, plan) } else { None };
        let sibling = sibling.map(|stage_layers| {
            let plan = Plan { stage_layers, ..plan.clone() };
            one(&plan, *place, costs)
        });
        (one(plan, *place, costs), sibling)
    });
    let mut candidates = Vec::new();
    let mut nearest_memory: Option<(Bytes, Plan)> = None;
    let mut take = |fate: Fate| match fate {
        Fate::Kept(candidate) => candidates.push(candidate),
        Fate::TooLarge(bytes, plan) => {
            kills.add("memory", 1, || too_large(bytes, capacity, &plan));
            if nearest_memory.as_ref().is_none_or(|(least, _)| bytes < *least) {
                nearest_memory = Some((bytes, plan));
            }
        }
        Fate::Refused(cause) => kills.add("cannot be lowered", 1, || cause),
    };
    for (even, sibling) in fates {
        take(even);
        if let Some(sibling) = sibling {
            considered += 1;
            take(sibling);
        }
    }
    if progress.cancelled() {
        return Err(Cancelled);
    }
    // A stable sort keeps the order of enumeration among equal bounds.
    candidates.sort_by(|a, b| a.bound.total_cmp(&b.bound));
    let costs = priced.into_iter().map(Result::ok).collect();
    Ok(Prepared { candidates, costs, considered, kills, nearest_memory })
}

/// Requested against available, with the plan.
fn too_large(bytes: Bytes, capacity: Bytes, plan: &Plan) -> String {
    format!(
        "tp {} pp {} dp {} micro-batch {} needs {bytes}, the accelerator has {capacity}",
        plan.tp, plan.pp, plan.dp, plan.micro_batch
    )
}

/// Candidates in the order of their L1 score, simulated as late as possible.
pub struct Stream<'a, E: Evaluator> {
    evaluator: &'a E,
    scorer: &'a Scorer,
    prepared: &'a Prepared<E::Costs>,
    next: usize,
    /// Simulated, not yet given out; ties go to the smaller bound, then to the earlier candidate.
    waiting: BinaryHeap<Reverse<(Score, usize)>>,
    times: BTreeMap<usize, Time>,
    batch: usize,
}

impl<'a, E: Evaluator> Stream<'a, E> {
    /// Candidates simulated between two looks at the bounds. Fixed, so that the work done does not depend on threads.
    const BATCH: usize = 16;

    /// Starts a stream.
    pub fn new(evaluator: &'a E, scorer: &'a Scorer, prepared: &'a Prepared<E::Costs>) -> Self {
        let (waiting, times) = (BinaryHeap::new(), BTreeMap::new());
        Self { evaluator, scorer, prepared, next: 0, waiting, times, batch: Self::BATCH }
    }

    /// The same without bounds: every candidate is simulated before the first is given out. The oracle of the tests.
    pub fn exhaustive(evaluator: &'a E, scorer: &'a Scorer, prepared: &'a Prepared<E::Costs>) -> Self {
        Self { batch: usize::MAX, ..Self::new(evaluator, scorer, prepared) }
    }

    /// Candidates simulated at L1 so far.
    pub fn simulated(&self) -> usize {
        self.next
    }

    /// What is searched.
    pub fn prepared(&self) -> &'a Prepared<E::Costs> {
        self.prepared
    }

    /// L1 times known so far, by candidate.
    pub fn times(&self) -> &BTreeMap<usize, Time> {
        &self.times
    }

    /// Simulates one candidate at L1; `None` if its costs were refused (it is then no candidate).
    pub fn l1(&self, candidate: usize) -> Option<Time> {
        let c = self.prepared.candidates.get(candidate)?;
        let costs = self.prepared.costs.get(c.costs as usize)?.as_ref()?;
        Some(self.evaluator.l1(costs, &c.plan))
    }

    /// Score of a candidate at some step time.
    pub fn score(&self, candidate: usize, step: Time) -> f64 {
        let c = &self.prepared.candidates[candidate];
        let joules = match self.prepared.costs.get(c.costs as usize).and_then(Option::as_ref) {
            Some(costs) => joules(self.evaluator, self.scorer, costs, &c.plan, step),
            None => 0.0,
        };
        self.scorer.score(&c.plan, step, joules)
    }

    /// Lower bound on the score of everything not simulated yet.
    pub fn frontier(&self) -> Option<f64> {
        self.prepared.candidates.get(self.next).map(|c| c.bound)
    }

    fn simulate_batch(&mut self) {
        let end = self.next.saturating_add(self.batch).min(self.prepared.candidates.len());
        let indices: Vec<usize> = (self.next..end).collect();
        let this: &Self = self;
        let results = parallel::map(&indices, |&i| this.l1(i).map(|time| (i, time, this.score(i, time))));
        for (i, time, score) in results.into_iter().flatten() {
            self.times.insert(i, time);
            self.waiting.push(Reverse((Score(score), i)));
        }
        self.next = end;
    }
}

impl<E: Evaluator> Iterator for Stream<'_, E> {
    type Item = Simulated;

    /// The best candidate not given out yet.
    fn next(&mut self) -> Option<Simulated> {
        loop {
            let best = self.waiting.peek().map(|Reverse((score, _))| score.0);
            match (best, self.frontier()) {
                // Equal bounds may hide an equal score with an earlier place: they are simulated first.
                (None, Some(_)) => self.simulate_batch(),
                (Some(score), Some(bound)) if bound <= score => self.simulate_batch(),
                _ => break,
            }
        }
        let Reverse((Score(score), candidate)) = self.waiting.pop()?;
        let l1 = self.times.get(&candidate).copied().unwrap_or_default();
        Some(Simulated { candidate, l1, score })
    }
}

#[cfg(test)]
mod tests;
