//! Automatic zero-bubble schedules: a greedy list schedule under a memory limit.
//!
//! In the spirit of the heuristic of Qi et al. 2024 (§3.1): every stage, whenever it is free, takes a backward pass if
//! one is there, else a forward pass if its memory allows, and fills what would be idle time with weight passes, which
//! it also takes to free memory. A few decisions that may go either way are [`Policy`]; the caller tries all of them
//! and keeps the best. Works for one chunk per stage and for the V placement, and uses the real durations.

use super::{Order, Pass, PassKind, model_chunk, stage_of_chunk};
use crate::passes::{PipelineCosts, PipelineSpec};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// An arrival that is not known yet.
const UNKNOWN: u64 = u64::MAX;

/// Decisions that may go either way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// A weight pass is taken while waiting if at most this share (in quarters) of it delays the pass waited for.
    pub(super) weight_delay: u64,
    /// The same for a forward pass while a backward pass is on its way.
    pub(super) forward_delay: u64,
    /// After a backward pass, an available forward pass goes before the next backward pass.
    pub(super) alternate: bool,
}

/// All policies.
pub(super) fn policies() -> impl Iterator<Item = Policy> {
    [0, 2, 4].into_iter().flat_map(|weight_delay| {
        [1, 4].into_iter().flat_map(move |forward_delay| {
            [false, true].into_iter().map(move |alternate| Policy { weight_delay, forward_delay, alternate })
        })
    })
}

/// One stage while it is scheduled.
#[derive(Debug, Clone, Default)]
struct Stage {
    passes: Vec<Pass>,
    free: u64,
    held: u32,
    /// Next micro-batch per chunk and kind.
    next: Vec<[u32; 3]>,
    last_was_backward: bool,
}

struct Greedy<'a> {
    spec: &'a PipelineSpec,
    costs: &'a PipelineCosts,
    policy: Policy,
    limit: u32,
    /// Arrival of the input of each pass: `[kind][model chunk][micro-batch]`, kinds forward and backward.
    arrivals: Vec<u64>,
    stages: Vec<Stage>,
    wake: BinaryHeap<Reverse<(u64, u32)>>,
}

/// Writes a schedule in which no stage holds activations of more than `limit` chunk passes (at least one per chunk).
pub(super) fn schedule(
    spec: &PipelineSpec,
    costs: &PipelineCosts,
    limit: u32,
    policy: Policy,
    order: &mut Order,
) {
    let chunks = (spec.stages * spec.chunks_per_stage) as usize;
    let batches = spec.micro_batches as usize;
    let mut greedy = Greedy {
        spec,
        costs,
        policy,
        limit: limit.max(spec.chunks_per_stage),
        arrivals: vec![UNKNOWN; 2 * chunks * batches],
        stages: vec![
            Stage { next: vec![[0; 3]; spec.chunks_per_stage as usize], ..Default::default() };
            spec.stages as usize
        ],
        wake: (0..spec.stages).map(|stage| Reverse((0, stage))).collect(),
    };
    greedy.arrivals[..batches].fill(0);
    while let Some(Reverse((now, stage))) = greedy.wake.pop() {
        if greedy.stages[stage as usize].free <= now {
            greedy.advance(stage, now);
        }
    }
    order.split_backward = true;
    for stage in &greedy.stages {
        order.starts.push(order.passes.len());
        order.passes.extend(&stage.passes);
    }
    order.starts.push(order.passes.len());
}

impl Greedy<'_> {
    fn slot(&self, kind: PassKind, chunk: u32, micro_batch: u32) -> usize {
        let chunks = (self.spec.stages * self.spec.chunks_per_stage) as usize;
        let line = kind as usize * chunks + chunk as usize;
        line * self.spec.micro_batches as usize + micro_batch as usize
    }

    /// The pass of `kind` with the earliest arrival, among the chunks of a stage; later chunks win ties, since their
    /// activations are released sooner.
    fn candidate(&self, stage: u32, kind: PassKind) -> Option<(u64, Pass)> {
        let state = &self.stages[stage as usize];
        let mut best: Option<(u64, Pass)> = None;
        for local in (0..self.spec.chunks_per_stage).rev() {
            let micro_batch = state.next[local as usize][kind as usize];
            if micro_batch == self.spec.micro_batches {
                continue;
            }
            // One place is kept for the last chunk, or first chunks could fill the memory and wait for ever.
            let reserve = self.spec.chunks_per_stage - 1 - local;
            if kind == PassKind::Forward && state.held + 1 + reserve > self.limit {
                continue;
            }
            let arrival = self.arrivals[self.slot(kind, model_chunk(self.spec, stage, local), micro_batch)];
            if arrival != UNKNOWN && best.is_none_or(|(least, _)| arrival < least) {
                best = Some((arrival, Pass { micro_batch, chunk: local as u16, kind }));
            }
        }
        best
    }

    /// The oldest weight pass that is due, if any.
    fn weight(&self, stage: u32) -> Option<Pass> {
        let state = &self.stages[stage as usize];
        (0..self.spec.chunks_per_stage as usize)
            .rev()
            .filter(|&c| {
                state.next[c][PassKind::Weight as usize] < state.next[c][PassKind::Backward as usize]
            })
            .min_by_key(|&c| state.next[c][PassKind::Weight as usize])
            .map(|c| Pass {
                micro_batch: state.next[c][PassKind::Weight as usize],
                chunk: c as u16,
                kind: PassKind::Weight,
            })
    }

    fn duration(&self, stage: u32, pass: Pass) -> u64 {
        let cost = self.costs.chunks[model_chunk(self.spec, stage, u32::from(pass.chunk)) as usize];
        match pass.kind {
            PassKind::Forward => cost.forward.0,
            PassKind::Backward => cost.backward_input.0,
            PassKind::Weight => cost.backward_weight.0,
        }
    }

    /// Lets a free stage take its next pass, or sleep until something arrives.
    fn advance(&mut self, stage: u32, now: u64) {
        let backward = self.candidate(stage, PassKind::Backward);
        let forward = self.candidate(stage, PassKind::Forward);
        let here = |candidate: Option<(u64, Pass)>| candidate.filter(|c| c.0 <= now).map(|c| c.1);
        let alternate = self.policy.alternate && self.stages[stage as usize].last_was_backward;
        let tolerated = |pass: Pass, quarters: u64, until: u64| {
            let duration = self.duration(stage, pass);
            now.saturating_add(duration) <= until.saturating_add(duration / 4 * quarters)
        };
        let next_backward = backward.map_or(UNKNOWN, |c| c.0);
        let forward_now =
            here(forward).filter(|&pass| tolerated(pass, self.policy.forward_delay, next_backward));
        let chosen = match (here(backward), forward_now) {
            (Some(_), Some(forward)) if alternate => Some(forward),
            (Some(backward), _) => Some(backward),
            (None, forward) => forward,
        };
        // A forward pass that is here but was put off waits for the backward pass.
        let next = next_backward.min(forward.filter(|c| c.0 > now).map_or(UNKNOWN, |c| c.0));
        let chosen = chosen
            .or_else(|| self.weight(stage).filter(|&pass| tolerated(pass, self.policy.weight_delay, next)));
        match chosen {
            Some(pass) => self.take(stage, pass, now),
            None if next != UNKNOWN => self.wake.push(Reverse((next, stage))),
            None => {}
        }
    }

    /// Runs a pass and tells whoever waits for it.
    fn take(&mut self, stage: u32, pass: Pass, now: u64) {
        let end = now.saturating_add(self.duration(stage, pass));
        let chunk = model_chunk(self.spec, stage, u32::from(pass.chunk));
        let chunks = self.spec.stages * self.spec.chunks_per_stage;
        let target = match pass.kind {
            PassKind::Forward if chunk + 1 < chunks => Some((PassKind::Forward, chunk + 1, chunk)),
            PassKind::Forward => Some((PassKind::Backward, chunk, chunk)),
            PassKind::Backward if chunk > 0 => Some((PassKind::Backward, chunk - 1, chunk - 1)),
            _ => None,
        };
        let mut free = end;
        if let Some((kind, to, boundary)) = target {
            let consumer = stage_of_chunk(self.spec, to);
            let transfer = if consumer == stage { 0 } else { self.costs.boundary(boundary).0 };
            let slot = self.slot(kind, to, pass.micro_batch);
            let arrival = end.saturating_add(transfer).min(UNKNOWN - 1);
            self.arrivals[slot] = arrival;
            if !self.costs.p2p_overlap {
                free = arrival;
            }
            // The consumer looks now, since a known arrival changes what it does while it waits, and on arrival.
            self.wake.push(Reverse((now, consumer)));
            self.wake.push(Reverse((arrival, consumer)));
        }
        let state = &mut self.stages[stage as usize];
        state.next[usize::from(pass.chunk)][pass.kind as usize] += 1;
        state.passes.push(pass);
        state.free = free.max(now);
        state.last_was_backward = match pass.kind {
            PassKind::Forward => false,
            PassKind::Backward => true,
            PassKind::Weight => state.last_was_backward,
        };
        match pass.kind {
            PassKind::Forward => state.held += 1,
            PassKind::Weight => state.held -= 1,
            PassKind::Backward => {}
        }
        let free = state.free;
        self.wake.push(Reverse((free, stage)));
    }
}
