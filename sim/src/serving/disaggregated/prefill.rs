//! A prefill instance: prompts in order of arrival, batched up to the token budget, their caches kept until they have
//! moved away.

use crate::serving::rules::Rules;
use crate::serving::store::Store;
use psim_cost_models::serving::{EngineProfile, Lane as LaneWork, PromptChunk, StepCost};
use psim_models::serving::Request;
use std::collections::VecDeque;

/// A piece of a prompt in a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) id: u32,
    pub(super) tokens: u32,
    before: u32,
    /// The prompt is done with this piece.
    pub(super) last: bool,
}

/// A batch on its way through the stages.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy)]
struct Queued {
    id: u32,
    done: u32,
    admitted: bool,
}

pub(super) struct PrefillInstance {
    queue: VecDeque<Queued>,
    /// Prompt tokens that wait or run.
    pub(super) load: u64,
    capacity: f64,
    used: f64,
    /// Highest share of the memory in use.
    pub(super) peak: f64,
    flights: VecDeque<Batch>,
    stages: u64,
    copies: usize,
    entry_free: u64,
    budget: u32,
    chunked: bool,
    context_parallel: u32,
    pub(super) busy: u64,
    pub(super) steps: u64,
}

impl PrefillInstance {
    pub(super) fn new(cost: &StepCost, engine: &EngineProfile, context_parallel: u32) -> Self {
        let d = cost.shape().deployment;
        Self {
            queue: VecDeque::new(),
            load: 0,
            capacity: cost.cache_bytes() * f64::from(d.attention_dp) * f64::from(context_parallel.max(1)),
            used: 0.0,
            peak: 0.0,
            flights: VecDeque::new(),
            stages: u64::from(d.pp.max(1)),
            copies: d.attention_dp.max(1) as usize,
            entry_free: 0,
            budget: engine.token_budget.max(1),
            chunked: Rules::of(engine.policy).chunked,
            context_parallel: context_parallel.max(1),
            busy: 0,
            steps: 0,
        }
    }

    /// The prompt alone fits the memory of one attention copy.
    pub(super) fn fits(&self, cost: &StepCost, request: &Request) -> bool {
        cost.shape().sequence_bytes(u64::from(request.input)) <= self.capacity / self.copies as f64
    }

    pub(super) fn push(&mut self, id: u32, request: &Request) {
        self.load += u64::from(request.input);
        self.queue.push_back(Queued { id, done: 0, admitted: false });
    }

    /// The batch that ends first, if it ends by `now`.
    pub(super) fn take_finished(&mut self, now: u64) -> Option<Batch> {
        if self.flights.front().is_some_and(|b| b.end <= now) {
            let batch = self.flights.pop_front()?;
            self.load -= batch.parts.iter().map(|p| u64::from(p.tokens)).sum::<u64>();
            Some(batch)
        } else {
            None
        }
    }

    /// The cache of a prompt has left.
    pub(super) fn release(&mut self, cost: &StepCost, prompt_tokens: u32) {
        self.used = (self.used - cost.shape().sequence_bytes(u64::from(prompt_tokens))).max(0.0);
    }

    /// Starts a batch if a stage is free, prompts wait and memory allows. Prompts whose last piece is in it are in
    /// the answer.
    pub(super) fn start(&mut self, cost: &StepCost, store: &Store, now: u64) -> Option<&Batch> {
        if now < self.entry_free || self.flights.len() as u64 >= self.stages {
            return None;
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut left = self.budget.saturating_mul(self.copies as u32);
        let mut index = 0;
        while index < self.queue.len() && left > 0 {
            let q = self.queue[index];
            let input = store.request(q.id).input;
            let bytes = cost.shape().sequence_bytes(u64::from(input));
            if !q.admitted {
                if self.used + bytes > self.capacity {
                    break;
                }
                self.used += bytes;
                self.queue[index].admitted = true;
            }
            let rest = input - q.done;
            let tokens = if self.chunked { rest.min(left) } else { rest };
            if tokens > left && !parts.is_empty() {
                break;
            }
            self.queue[index].done += tokens;
            parts.push(Part { id: q.id, tokens, before: q.done, last: q.done + tokens == input });
            left = left.saturating_sub(tokens);
            index += 1;
        }
        if parts.is_empty() {
            return None;
        }
        self.peak = self.peak.max(self.used / self.capacity.max(1.0));
        self.queue.retain(|q| q.done < store.request(q.id).input);
        let seconds = self.seconds(cost, &parts);
        let duration = ((seconds * 1e12).round() as u64).max(1);
        // The next batch may enter when this one has left the first stage; batches leave in order.
        let end = (now + duration).max(self.flights.back().map_or(0, |b| b.end));
        self.entry_free = now + duration / self.stages;
        self.busy += duration / self.stages;
        self.steps += 1;
        self.flights.push_back(Batch { start: now, end, parts });
        self.flights.back()
    }

    /// When to look again: the first batch's end, or the moment at which the first stage is free.
    pub(super) fn next(&self, now: u64) -> Option<u64> {
        let end = self.flights.front().map(|b| b.end);
        let entry =
            (!self.queue.is_empty() && self.entry_free > now && (self.flights.len() as u64) < self.stages)
                .then_some(self.entry_free);
        match (end, entry) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Seconds of a batch: its pieces are spread over the attention copies, longest first to the emptiest, and every
    /// piece over the ranks of a context-parallel group.
    fn seconds(&self, cost: &StepCost, parts: &[Part]) -> f64 {
        let chunk = |p: &Part| PromptChunk { tokens: p.tokens, before: p.before };
        if self.context_parallel > 1 {
            let chunks: Vec<PromptChunk> = parts.iter().map(chunk).collect();
            return super::context_parallel::seconds(cost, &chunks, self.context_parallel);
        }
        let mut lanes: Vec<Vec<PromptChunk>> = vec![Vec::new(); self.copies];
        let mut order: Vec<&Part> = parts.iter().collect();
        order.sort_by_key(|p| std::cmp::Reverse(p.tokens));
        let mut loads = vec![0u64; self.copies];
        for part in order {
            let least = (0..self.copies).min_by_key(|i| loads[*i]).unwrap_or(0);
            loads[least] += u64::from(part.tokens);
            lanes[least].push(chunk(part));
        }
        let work: Vec<LaneWork<'_>> =
            lanes.iter().map(|chunks| LaneWork { chunks, ..LaneWork::default() }).collect();
        cost.seconds(&work)
    }
}
