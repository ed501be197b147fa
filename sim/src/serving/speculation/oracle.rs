//! The oracle of speculation: an event loop of its own for one replica, whole prompts first, memory for whole sequences
//! at once. Slow, plain, and the same as the simulator where both can run.

use super::pearl::PearlState;
use super::{Acceptance, Drafter};
use crate::serving::{Extra, Histogram, Outcome, ServingRun};
use psim_cost_models::serving::{EngineProfile, KINDS, Lane, PromptChunk, StepCost};
use psim_hardware::Time;
use psim_models::serving::rng::Rng;
use psim_models::serving::{Request, Traffic};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Everything that a run needs.
#[derive(Debug, Clone)]
pub(super) struct SpeculativeInput<'a> {
    /// Prices of the target model.
    pub(super) target: &'a StepCost,
    /// Limits.
    pub(super) engine: &'a EngineProfile,
    /// Source of drafts.
    pub(super) drafter: Drafter<'a>,
    /// Chances that drafts are taken (a tree brings its own).
    pub(super) acceptance: Acceptance,
    /// Requests.
    pub(super) traffic: &'a Traffic,
    /// Seed of the draws.
    pub(super) seed: u64,
}

/// A finished run with what the drafts did.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SpeculativeRun {
    /// Outcomes and sums.
    pub(super) run: ServingRun,
    /// Rounds, summed over sequences.
    pub(super) rounds: u64,
    /// Tokens of those rounds, cut where an answer ends.
    pub(super) tokens: u64,
    /// Tokens of the rounds before the cut.
    pub(super) uncut_tokens: u64,
}

struct Sequence {
    id: u32,
    context: u64,
    left: u32,
    last: u64,
    rng: Rng,
    pearl: PearlState,
}

/// Serves the traffic on one replica.
pub(super) fn simulate(input: &SpeculativeInput<'_>) -> SpeculativeRun {
    let mut engine = Engine::new(input);
    engine.run();
    engine.result()
}

struct Engine<'a> {
    input: &'a SpeculativeInput<'a>,
    requests: &'a [Request],
    outcomes: Vec<Outcome>,
    waiting: VecDeque<u32>,
    /// Sent and not yet seen by the engine: (time, request).
    sent: BinaryHeap<Reverse<(u64, u32)>>,
    next: usize,
    delay: u64,
    active: Vec<Sequence>,
    used: f64,
    capacity: f64,
    peak: f64,
    windows: Vec<Option<u64>>,
    gaps: Histogram,
    now: u64,
    busy: u64,
    steps: u64,
    computed: u64,
    generated: u64,
    rounds: u64,
    tokens: u64,
    uncut: u64,
    backlog: u32,
    in_system: u32,
}

impl<'a> Engine<'a> {
    fn new(input: &'a SpeculativeInput<'a>) -> Self {
        let requests = &input.traffic.requests;
        let mut engine = Self {
            input,
            requests,
            outcomes: Outcome::none(requests.len()),
            waiting: VecDeque::new(),
            sent: BinaryHeap::new(),
            next: 0,
            delay: (input.target.parameters().ttft_ms * 1e9) as u64,
            active: Vec::new(),
            used: 0.0,
            // The draft model lives in the same memory.
            capacity: (input.target.cache_bytes() - input.drafter.weight_bytes(input.target.shape()))
                .max(0.0),
            peak: 0.0,
            windows: input.target.reads_at_most().collect(),
            gaps: Histogram::default(),
            now: 0,
            busy: 0,
            steps: 0,
            computed: 0,
            generated: 0,
            rounds: 0,
            tokens: 0,
            uncut: 0,
            backlog: 0,
            in_system: 0,
        };
        let first = input.traffic.clients.map_or(requests.len(), |c| c as usize);
        for _ in 0..first.min(requests.len()) {
            engine.send(0);
        }
        engine
    }

    fn send(&mut self, now: u64) {
        if let Some(request) = self.requests.get(self.next) {
            let at = now.max(request.arrival.0);
            self.outcomes[self.next].sent = Time(at);
            self.sent.push(Reverse((at + self.delay, self.next as u32)));
            self.next += 1;
        }
    }

    /// Bytes of a whole sequence with the drafts of one round, in the target's cache.
    fn bytes(&self, request: &Request) -> f64 {
        let drafts = u64::from(self.input.drafter.tokens());
        let whole = u64::from(request.input) + u64::from(request.output) + drafts;
        self.input.target.shape().sequence_bytes(whole)
    }

    fn finish(&mut self, id: u32, at: u64) {
        self.outcomes[id as usize].finish = Time(at);
        self.in_system -= 1;
        if self.input.traffic.clients.is_some() {
            self.send(at);
        }
    }

    fn run(&mut self) {
        loop {
            self.arrivals();
            if self.prompts() || self.round() {
                continue;
            }
            match self.sent.peek() {
                Some(Reverse((at, _))) => self.now = self.now.max(*at),
                None => break,
            }
        }
    }

    fn arrivals(&mut self) {
        while let Some(Reverse((at, id))) = self.sent.peek().copied() {
            if at > self.now {
                break;
            }
            self.sent.pop();
            self.in_system += 1;
            if self.sent.is_empty() && self.next >= self.requests.len() && self.backlog == 0 {
                self.backlog = self.in_system;
            }
            if self.bytes(&self.requests[id as usize]) > self.capacity {
                let outcome = &mut self.outcomes[id as usize];
                outcome.refused = true;
                outcome.first_token = Time(at);
                self.finish(id, at);
            } else {
                self.waiting.push_back(id);
            }
        }
    }

    /// One step with whole prompts, as many as the budget, the memory and the sequence limit allow.
    fn prompts(&mut self) -> bool {
        let budget = self.input.engine.token_budget.max(1);
        let (mut chunks, mut ids, mut total) = (Vec::new(), Vec::new(), 0u32);
        while let Some(&id) = self.waiting.front() {
            let request = &self.requests[id as usize];
            let bytes = self.bytes(request);
            let running = (self.active.len() + ids.len()) as u32;
            let full = total > 0 && total + request.input > budget;
            if full || running >= self.input.engine.max_sequences || self.used + bytes > self.capacity {
                break;
            }
            self.waiting.pop_front();
            self.used += bytes;
            total += request.input;
            chunks.push(PromptChunk { tokens: request.input, before: 0 });
            ids.push(id);
        }
        if ids.is_empty() {
            return false;
        }
        self.peak = self.peak.max(self.used / self.capacity);
        let lane = Lane { chunks: &chunks, ..Lane::default() };
        let mut seconds = self.input.target.seconds(&[lane]);
        // The draft model needs the prompt in its cache too.
        seconds += match &self.input.drafter {
            Drafter::Model { cost, .. } | Drafter::LayerParallel { cost, .. } => cost.seconds(&[lane]),
            Drafter::Parallel { cost, .. } => (cost.seconds(&[lane]) - seconds).max(0.0),
            _ => 0.0,
        };
        self.pass(seconds);
        self.computed += u64::from(total);
        for id in ids {
            let request = &self.requests[id as usize];
            self.outcomes[id as usize].first_token = Time(self.now);
            self.generated += 1;
            if request.output <= 1 {
                self.used -= self.bytes(request);
                self.finish(id, self.now);
            } else {
                self.active.push(Sequence {
                    id,
                    context: u64::from(request.input) + 1,
                    left: request.output - 1,
                    last: self.now,
                    rng: Rng::new(self.input.seed, u64::from(id) + 1),
                    pearl: PearlState::default(),
                });
            }
        }
        true
    }

    fn pass(&mut self, seconds: f64) {
        let duration = ((seconds * 1e12).round() as u64).max(1);
        self.now += duration;
        self.busy += duration;
        self.steps += 1;
    }

    /// One round of all sequences.
    fn round(&mut self) -> bool {
        if self.active.is_empty() {
            return false;
        }
        let mut context = [0u64; KINDS];
        for (slot, window) in context.iter_mut().zip(&self.windows) {
            *slot = self.active.iter().map(|s| window.map_or(s.context, |w| s.context.min(w))).sum();
        }
        let drafter = &self.input.drafter;
        let seconds = drafter.round_seconds(self.input.target, self.active.len() as u32, &context);
        self.pass(seconds);
        let gamma = drafter.tokens();
        let now = self.now;
        let mut index = 0;
        while index < self.active.len() {
            let s = &mut self.active[index];
            let came = match drafter {
                Drafter::Tree(tree) => tree.draw(&mut s.rng) + 1,
                Drafter::Parallel { .. } if gamma > 1 => {
                    s.pearl.round(gamma, &self.input.acceptance, &mut s.rng)
                }
                _ => self.input.acceptance.draw(gamma, &mut s.rng) + 1,
            };
            let taken = came.min(s.left);
            self.rounds += 1;
            self.uncut += u64::from(came);
            self.tokens += u64::from(taken);
            self.generated += u64::from(taken);
            // Tokens of one round come together: one gap and zeros.
            self.gaps.add(Histogram::bucket(now - s.last), 1);
            if taken > 1 {
                self.gaps.add(Histogram::bucket(0), u64::from(taken - 1));
            }
            s.last = now;
            s.context += u64::from(taken);
            s.left -= taken;
            if s.left == 0 {
                let id = s.id;
                self.active.remove(index);
                self.used = (self.used - self.bytes(&self.requests[id as usize])).max(0.0);
                self.finish(id, now);
            } else {
                index += 1;
            }
        }
        true
    }

    fn result(self) -> SpeculativeRun {
        let sojourn = |o: &Outcome| (o.finish.0 - o.sent.0) as f64 * 1e-12;
        let run = ServingRun {
            replica_seconds: self.now as f64 * 1e-12,
            most_replicas: 1,
            gaps: self.gaps,
            steps: self.steps,
            busy: self.busy as f64 * 1e-12,
            request_seconds: self.outcomes.iter().map(sojourn).sum(),
            computed_prompt_tokens: self.computed,
            cached_prompt_tokens: 0,
            generated_tokens: self.generated,
            peak_cache: self.peak,
            backlog: self.backlog,
            start: self.outcomes.iter().map(|o| o.sent).min().unwrap_or_default(),
            end: self.outcomes.iter().map(|o| o.finish).max().unwrap_or_default(),
            outcomes: self.outcomes,
            samples: Vec::new(),
            extra: Extra::default(),
        };
        SpeculativeRun { run, rounds: self.rounds, tokens: self.tokens, uncut_tokens: self.uncut }
    }
}
