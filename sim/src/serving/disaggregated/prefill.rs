//! A prefill instance: prompts in order of arrival, batched up to the token budget, their caches kept until they have
//! moved away.

use crate::serving::rules::Rules;
use crate::serving::speculation::Drafter;
use crate::serving::store::Store;
use psim_cost_models::serving::{EngineProfile, Lane as LaneWork, PromptChunk, StepCost};
use psim_models::serving::{Request, ServingShape};
use std::collections::VecDeque;

/// What prompts cost, with a draft model that reads them too.
pub(super) struct PromptPrice<'a> {
    cost: &'a StepCost,
    drafter: Option<&'a Drafter<'a>>,
    /// What the cache of a prompt consists of.
    cached: ServingShape,
}

impl<'a> PromptPrice<'a> {
    pub(super) fn new(cost: &'a StepCost, drafter: Option<&'a Drafter<'a>>) -> Self {
        let cached = drafter.map_or_else(|| cost.shape().clone(), |d| d.cached(cost.shape()));
        Self { cost, drafter, cached }
    }

    fn bytes(&self, prompt_tokens: u32) -> f64 {
        self.cached.sequence_bytes(u64::from(prompt_tokens))
    }

    /// Bytes for caches on one accelerator.
    fn capacity(&self) -> f64 {
        let drafts = self.drafter.map_or(0.0, |d| d.weight_bytes(self.cost.shape()));
        (self.cost.cache_bytes() - drafts).max(0.0)
    }

    fn seconds(&self, lanes: &[LaneWork<'_>]) -> f64 {
        self.cost.seconds(lanes) + self.drafter.map_or(0.0, |d| d.prompt_seconds(lanes))
    }
}

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
    pub(super) fn new(price: &PromptPrice<'_>, engine: &EngineProfile, context_parallel: u32) -> Self {
        let d = price.cost.shape().deployment;
        Self {
            queue: VecDeque::new(),
            load: 0,
            capacity: price.capacity() * f64::from(d.attention_dp) * f64::from(context_parallel.max(1)),
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
    pub(super) fn fits(&self, price: &PromptPrice<'_>, request: &Request) -> bool {
        price.bytes(request.input) <= self.capacity / self.copies as f64
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
    pub(super) fn release(&mut self, price: &PromptPrice<'_>, prompt_tokens: u32) {
        self.used = (self.used - price.bytes(prompt_tokens)).max(0.0);
    }

    /// Starts a batch if a stage is free, prompts wait and memory allows. Prompts whose last piece is in it are in
    /// the answer.
    pub(super) fn start(&mut self, price: &PromptPrice<'_>, store: &Store, now: u64) -> Option<&Batch> {
        if now < self.entry_free || self.flights.len() as u64 >= self.stages {
            return None;
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut left = self.budget.saturating_mul(self.copies as u32);
        let mut index = 0;
        while index < self.queue.len() && left > 0 {
            let q = self.queue[index];
            let input = store.request(q.id).input;
            let bytes = price.bytes(input);
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
        let seconds = self.seconds(price, &parts);
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
    fn seconds(&self, price: &PromptPrice<'_>, parts: &[Part]) -> f64 {
        let chunk = |p: &Part| PromptChunk { tokens: p.tokens, before: p.before };
        if self.context_parallel > 1 {
            let chunks: Vec<PromptChunk> = parts.iter().map(chunk).collect();
            return super::context_parallel::seconds(price.cost, &chunks, self.context_parallel);
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
        price.seconds(&work)
    }
}
