//! Plans that no other beats in time, memory and money at once.
//!
//! Candidates are visited from small to large memory. Whoever comes later can only be on the front if it is faster or
//! cheaper than everything found so far, so a candidate whose bounds are no better is skipped without simulation.

use crate::evaluator::Evaluator;
use crate::objective::Scorer;
use crate::search::{PreparedFor, Stream};
use psim_hardware::Time;

/// A candidate on the front.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrontPoint {
    /// Index into the candidates.
    pub candidate: usize,
    /// L1 step time.
    pub l1: Time,
    /// Seconds per token.
    pub time: f64,
    /// Peak memory, bytes.
    pub memory: u64,
    /// US dollars per 10⁹ tokens.
    pub cost: f64,
}

impl FrontPoint {
    /// No worse in everything.
    fn covers(&self, time: f64, memory: u64, cost: f64) -> bool {
        self.time <= time && self.memory <= memory && self.cost <= cost
    }
}

/// The front of `prepared` at L1, fastest first. `bounds` false simulates everything (the oracle of the tests).
pub fn front<E: Evaluator>(
    scorer: &Scorer,
    prepared: &PreparedFor<E>,
    stream: &Stream<'_, E>,
    bounds: bool,
) -> Vec<FrontPoint> {
    let candidates = &prepared.candidates;
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|&i| (candidates[i].memory, candidates[i].l0, i));
    let mut front: Vec<FrontPoint> = Vec::new();
    for i in order {
        let c = &candidates[i];
        let point = |step: Time| {
            (scorer.time_per_token(&c.plan, step), scorer.cost_per_btok(&c.plan, step.seconds().0))
        };
        let (time, cost) = point(c.l0);
        if bounds && front.iter().any(|f| f.covers(time, c.memory.0, cost)) {
            continue;
        }
        let Some(l1) = stream.times().get(&i).copied().or_else(|| stream.l1(i)) else { continue };
        let (time, cost) = point(l1);
        if !front.iter().any(|f| f.covers(time, c.memory.0, cost)) {
            let found = FrontPoint { candidate: i, l1, time, memory: c.memory.0, cost };
            // Equal memory may be beaten by a later visitor.
            front.retain(|f| !found.covers(f.time, f.memory, f.cost));
            front.push(found);
        }
    }
    sorted(front)
}

/// Joins fronts of several global batches.
pub fn join<T>(points: Vec<(T, FrontPoint)>) -> Vec<(T, FrontPoint)> {
    let all: Vec<FrontPoint> = points.iter().map(|p| p.1).collect();
    let mut out: Vec<(T, FrontPoint)> = points
        .into_iter()
        .enumerate()
        .filter(|(i, (_, p))| {
            !all.iter().enumerate().any(|(j, q)| {
                j != *i
                    && q.covers(p.time, p.memory, p.cost)
                    && (!p.covers(q.time, q.memory, q.cost) || j < *i)
            })
        })
        .map(|(_, p)| p)
        .collect();
    out.sort_by(|a, b| a.1.time.total_cmp(&b.1.time));
    out
}

fn sorted(mut front: Vec<FrontPoint>) -> Vec<FrontPoint> {
    front.sort_by(|a, b| a.time.total_cmp(&b.time).then(a.memory.cmp(&b.memory)));
    front
}
