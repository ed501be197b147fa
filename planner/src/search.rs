//! Best-first search with an admissible bound.
//!
//! Candidates are ordered by the score of their L0 bound. [`Stream`] yields them in the exact order of their L1
//! score: it simulates candidates in bound order until no bound can undercut the best one simulated. Whoever asks for
//! the first `k` pays only for the candidates whose bound is below the `k`-th score; nothing is cut by a heuristic.

pub mod refine;

use crate::evaluator::{CostKey, Evaluator, MeshKey};
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
    /// Index of its mesh.
    pub mesh: u32,
    /// Peak memory in closed form.
    pub memory: Bytes,
    /// L0 bound of the step time.
    pub l0: Time,
    /// Score of the bound.
    pub bound: f64,
}

/// Candidates of one global batch, in bound order.
#[derive(Debug)]
pub struct Prepared<C, M> {
    /// Candidates that fit, by bound, then by place in the enumeration.
    pub candidates: Vec<Candidate>,
    /// Shared costs (`None` where a key was refused; no candidate points there).
    pub costs: Vec<Option<C>>,
    /// Mesh costs, likewise.
    pub meshes: Vec<Option<M>>,
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

/// The search of an evaluator.
pub type PreparedFor<E> = Prepared<<E as Evaluator>::Costs, <E as Evaluator>::Mesh>;

/// Joules, asked for only where the objective needs them.
fn joules<E: Evaluator>(
    evaluator: &E,
    scorer: &Scorer,
    costs: &E::Costs,
    mesh: &E::Mesh,
    plan: &Plan,
    step: Time,
) -> f64 {
    if scorer.objective == Objective::Energy { evaluator.energy(costs, mesh, plan, step) } else { 0.0 }
}

/// Gives equal keys one place each, in order of first appearance.
fn places<K: Ord>(plans: &[Plan], key: impl Fn(&Plan) -> K) -> (Vec<u32>, Vec<&Plan>) {
    let mut known: BTreeMap<K, u32> = BTreeMap::new();
    let mut samples = Vec::new();
    let places = plans
        .iter()
        .map(|plan| {
            *known.entry(key(plan)).or_insert_with(|| {
                samples.push(plan);
                samples.len() as u32 - 1
            })
        })
        .collect();
    (places, samples)
}

/// What became of a legal plan.
enum Fate {
    Kept(Candidate),
    TooLarge(Bytes, Plan),
    Refused(String),
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
) -> Result<PreparedFor<E>, Cancelled> {
    let Enumeration { mut plans, mut considered, mut kills } = enumeration;
    let (mut cost_places, samples) = places(&plans, CostKey::of);
    progress.report("stage costs", 0, samples.len() as u64);
    let priced = parallel::map_long(&samples, |plan| evaluator.costs(plan));
    if progress.cancelled() {
        return Err(Cancelled);
    }
    if uneven {
        let indices: Vec<usize> = (0..plans.len()).collect();
        let siblings = parallel::map(&indices, |&i| {
            let costs = priced[cost_places[i] as usize].as_ref().ok()?;
            evaluator.uneven_layers(costs, &plans[i])
        });
        for (i, stage_layers) in siblings.into_iter().enumerate() {
            let Some(stage_layers) = stage_layers else { continue };
            considered += 1;
            plans.push(Plan { stage_layers, ..plans[i].clone() });
            cost_places.push(cost_places[i]);
        }
    }
    let (mesh_places, samples) = places(&plans, MeshKey::of);
    progress.report("meshes", 0, samples.len() as u64);
    let meshes = parallel::map(&samples, |plan| evaluator.mesh(plan));
    if progress.cancelled() {
        return Err(Cancelled);
    }
    progress.report("memory and bounds", 0, plans.len() as u64);
    let capacity = evaluator.memory_capacity();
    let indices: Vec<usize> = (0..plans.len()).collect();
    let fates = parallel::map(&indices, |&i| {
        let plan = &plans[i];
        let (costs, mesh) = match (&priced[cost_places[i] as usize], &meshes[mesh_places[i] as usize]) {
            (Ok(costs), Ok(mesh)) => (costs, mesh),
            (Err(cause), _) | (_, Err(cause)) => return Fate::Refused(cause.clone()),
        };
        let memory = evaluator.memory(costs, mesh, plan);
        if memory > capacity {
            return Fate::TooLarge(memory, plan.clone());
        }
        let l0 = evaluator.l0(costs, mesh, plan);
        let bound = scorer.score(plan, l0, joules(evaluator, scorer, costs, mesh, plan, l0));
        let (costs, mesh) = (cost_places[i], mesh_places[i]);
        Fate::Kept(Candidate { plan: plan.clone(), costs, mesh, memory, l0, bound })
    });
    let mut candidates = Vec::new();
    let mut nearest_memory: Option<(Bytes, Plan)> = None;
    for fate in fates {
        match fate {
            Fate::Kept(candidate) => candidates.push(candidate),
            Fate::TooLarge(bytes, plan) => {
                kills.add("memory", 1, || too_large(bytes, capacity, &plan));
                if nearest_memory.as_ref().is_none_or(|(least, _)| bytes < *least) {
                    nearest_memory = Some((bytes, plan));
                }
            }
            Fate::Refused(cause) => kills.add("cannot be lowered", 1, || cause),
        }
    }
    if progress.cancelled() {
        return Err(Cancelled);
    }
    // A stable sort keeps the order of enumeration among equal bounds.
    candidates.sort_by(|a, b| a.bound.total_cmp(&b.bound));
    let costs = priced.into_iter().map(Result::ok).collect();
    let meshes = meshes.into_iter().map(Result::ok).collect();
    Ok(Prepared { candidates, costs, meshes, considered, kills, nearest_memory })
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
    prepared: &'a PreparedFor<E>,
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
    pub fn new(evaluator: &'a E, scorer: &'a Scorer, prepared: &'a PreparedFor<E>) -> Self {
        let (waiting, times) = (BinaryHeap::new(), BTreeMap::new());
        Self { evaluator, scorer, prepared, next: 0, waiting, times, batch: Self::BATCH }
    }

    /// The same without bounds: every candidate is simulated before the first is given out. The oracle of the tests.
    pub fn exhaustive(evaluator: &'a E, scorer: &'a Scorer, prepared: &'a PreparedFor<E>) -> Self {
        Self { batch: usize::MAX, ..Self::new(evaluator, scorer, prepared) }
    }

    /// Candidates simulated at L1 so far.
    pub fn simulated(&self) -> usize {
        self.next
    }

    /// What is searched.
    pub fn prepared(&self) -> &'a PreparedFor<E> {
        self.prepared
    }

    /// L1 times known so far, by candidate.
    pub fn times(&self) -> &BTreeMap<usize, Time> {
        &self.times
    }

    /// What a candidate shares with others.
    fn shared(&self, candidate: &Candidate) -> Option<(&'a E::Costs, &'a E::Mesh)> {
        let costs = self.prepared.costs.get(candidate.costs as usize)?.as_ref()?;
        let mesh = self.prepared.meshes.get(candidate.mesh as usize)?.as_ref()?;
        Some((costs, mesh))
    }

    /// Simulates one candidate at L1; `None` where there is no such candidate.
    pub fn l1(&self, candidate: usize) -> Option<Time> {
        let c = self.prepared.candidates.get(candidate)?;
        let (costs, mesh) = self.shared(c)?;
        Some(self.evaluator.l1(costs, mesh, &c.plan))
    }

    /// Score of a candidate at some step time.
    pub fn score(&self, candidate: usize, step: Time) -> f64 {
        let c = &self.prepared.candidates[candidate];
        let joules = self
            .shared(c)
            .map_or(0.0, |(costs, mesh)| joules(self.evaluator, self.scorer, costs, mesh, &c.plan, step));
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
