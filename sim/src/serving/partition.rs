//! Prompts and answers as two processes on the same accelerators, each with a share of the multiprocessors (semi-PD,
//! Hong et al. 2025, arXiv 2504.19867): no cache moves and no weight is held twice, and a long prompt does not stop
//! decoding.
//!
//! Both processes see one pool of memory. Each runs at its share: arithmetic in proportion, memory up to the rate that so
//! many multiprocessors can draw ([`Share::of_multiprocessors`]); while both run, what they ask of the memory together
//! is cut to its rate. A controller compares the time to the first token and the time per token of each window with what
//! is promised and moves the border towards the side that is worse off. The cache of a whole answer is set aside at
//! admission. Both processes' collectives are taken to fit the links.

mod controller;
#[cfg(test)]
mod tests;

use super::clients::{Clients, FrontEnd};
use super::fleet::{cache_shape, limits};
use super::options::FleetOptions;
use super::replica::{Limits, Replica};
use super::rules::Rules;
use super::store::{Live, Store};
use super::{Extra, Outcome, ServingError, ServingRun};
use controller::Border;
pub use controller::Controller;
use psim_cost_models::serving::{EngineProfile, Lane, PromptChunk, Share, StepCost};
use psim_hardware::Time;
use psim_models::serving::{Request, Traffic};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// How an engine is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Partition {
    /// Share of the multiprocessors that prompts have at the start; answers have the rest.
    pub prompts: f64,
    /// Share of the multiprocessors that draws the memory's whole rate: a property of the accelerator, about one half.
    pub saturation: f64,
    /// Moves the border; without it the border stays.
    pub controller: Option<Controller>,
}

impl Default for Partition {
    fn default() -> Self {
        Self { prompts: 0.5, saturation: 0.5, controller: None }
    }
}

/// Everything that a run needs.
#[derive(Debug, Clone, Copy)]
pub struct PartitionInput<'a> {
    /// Prices of steps on the whole accelerators; one lane.
    pub cost: &'a StepCost,
    /// Limits.
    pub engine: &'a EngineProfile,
    /// Requests.
    pub traffic: &'a Traffic,
    /// The cut.
    pub partition: Partition,
    /// Treat decoding steps between events as one event. The result is the same.
    pub coalesce: bool,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionRun {
    /// Outcomes and sums.
    pub run: ServingRun,
    /// When prompts had which share of the multiprocessors.
    pub border: Vec<(Time, f64)>,
}

/// Why a run cannot be done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PartitionError {
    /// As of any run.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// Attention copies or pipeline stages.
    #[error(
        "a partition of the multiprocessors is built for engines without pipeline stages or attention copies"
    )]
    Lanes,
    /// Not a share.
    #[error("a share of {0} of the multiprocessors is not between 0.05 and 0.95")]
    Share(f64),
    /// Later turns depend on answers.
    #[error("conversations of several turns are not built for a partition of the multiprocessors")]
    Conversations,
}

/// Serves the traffic on one engine that is cut in two.
///
/// # Errors
/// No requests or clients; static batches; an engine with several lanes; a share out of bounds.
pub fn simulate_partitioned(input: &PartitionInput<'_>) -> Result<PartitionRun, PartitionError> {
    let requests = input.traffic.requests.len();
    if requests == 0 {
        return Err(ServingError::NoRequests.into());
    }
    if requests >= u32::MAX as usize {
        return Err(ServingError::TooMany(requests).into());
    }
    if input.traffic.clients == Some(0) {
        return Err(ServingError::NoClients.into());
    }
    if Rules::of(input.engine.policy).whole_batches {
        return Err(ServingError::WholeBatches.into());
    }
    if input.cost.lanes() != 1 {
        return Err(PartitionError::Lanes);
    }
    if !(0.05..=0.95).contains(&input.partition.prompts) {
        return Err(PartitionError::Share(input.partition.prompts));
    }
    if input.traffic.requests.iter().any(|r| r.turn > 0) {
        return Err(PartitionError::Conversations);
    }
    let mut requests = input.traffic.requests.iter().copied();
    let mut engine = Engine::new(input, &mut requests);
    engine.run();
    Ok(engine.result())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The prompt process has finished a batch.
    Prompts,
    /// The decoding process may have finished steps.
    Answers,
    /// A window of the controller ends.
    Window,
}

struct Engine<'a> {
    input: &'a PartitionInput<'a>,
    clients: Clients<'a>,
    store: Store,
    outcomes: Vec<Outcome>,
    waiting: VecDeque<u32>,
    /// Requests of the batch of prompts that runs, with the share of the memory's rate that it draws.
    batch: Option<(Vec<u32>, f64)>,
    answers: Replica<'a>,
    /// Prices of the decoding process as it runs now.
    price: StepCost,
    border: Border,
    /// A window has ended and waits for the running step.
    due: bool,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    busy: u64,
    steps: u64,
    computed: u64,
    first_tokens: u64,
    finished: Vec<u32>,
}

impl<'a> Engine<'a> {
    fn new(input: &'a PartitionInput<'a>, requests: &'a mut dyn Iterator<Item = Request>) -> Self {
        let options = FleetOptions { coalesce: input.coalesce, ..FleetOptions::default() };
        let fed = Limits { fed: true, ..limits(input.cost, input.engine, &options, None) };
        let shape = cache_shape(input.cost, input.engine, None);
        let mut store = Store::default();
        let mut engine = Self {
            input,
            clients: Clients::new(requests, input.traffic.clients, FrontEnd::of(input.cost, 1), &mut store),
            store,
            outcomes: Outcome::none(input.traffic.requests.len()),
            waiting: VecDeque::new(),
            batch: None,
            answers: Replica::new(0, 1, &shape, fed),
            price: input.cost.clone(),
            border: Border::new(input.partition.prompts, input.partition.controller),
            due: false,
            events: BinaryHeap::new(),
            busy: 0,
            steps: 0,
            computed: 0,
            first_tokens: 0,
            finished: Vec::new(),
        };
        if let Some(window) = engine.border.window() {
            engine.events.push(Reverse((window, Event::Window)));
        }
        engine
    }

    fn run(&mut self) {
        loop {
            let arrival = self.clients.arrival();
            let event = self.events.peek().map(|Reverse((at, _))| *at);
            match (arrival, event) {
                (None, None) => break,
                (Some(at), event) if event.is_none_or(|next| at <= next) => self.arrive(at),
                _ => {
                    if let Some(Reverse((at, event))) = self.events.pop() {
                        match event {
                            Event::Prompts => self.prompts_done(at),
                            Event::Answers => self.step(at),
                            Event::Window => self.window(at),
                        }
                    }
                }
            }
        }
    }

    fn arrive(&mut self, now: u64) {
        let Some(id) = self.clients.arrive(&mut self.store, now) else { return };
        self.clients.note_backlog();
        if !self.answers.fits(self.store.request(id)) {
            for (_, live) in self.clients.refuse(&mut self.store, id, now) {
                self.keep(&live);
            }
            return;
        }
        self.waiting.push_back(id);
        self.start_prompts(now);
    }

    /// Keeps what became of a request.
    fn keep(&mut self, live: &Live) {
        self.outcomes[live.number as usize] = Outcome::of(&live.progress);
    }

    fn done(&mut self, id: u32, now: u64) {
        let live = self.store.remove(id);
        self.keep(&live);
        self.clients.answered(&mut self.store, live.next, now);
    }

    /// The share of each process; what both ask of the memory is cut to its rate while both run.
    fn share(&self, prompts: bool) -> Share {
        let x = if prompts { self.border.prompts } else { 1.0 - self.border.prompts };
        Share::of_multiprocessors(x, self.input.partition.saturation)
    }

    /// Starts a batch of whole prompts if none runs: as many as the budget and the memory allow.
    fn start_prompts(&mut self, now: u64) {
        if self.batch.is_some() {
            return;
        }
        let budget = self.input.engine.token_budget.max(1);
        let (mut ids, mut chunks, mut total) = (Vec::new(), Vec::new(), 0u32);
        while let Some(&id) = self.waiting.front() {
            let request = *self.store.request(id);
            if total > 0 && total.saturating_add(request.input) > budget {
                break;
            }
            if self.answers.grant(&request).is_none() {
                break;
            }
            self.waiting.pop_front();
            total = total.saturating_add(request.input);
            chunks.push(PromptChunk { tokens: request.input, before: 0 });
            ids.push(id);
        }
        if ids.is_empty() {
            return;
        }
        let lane = Lane { chunks: &chunks, ..Lane::default() };
        let mut share = self.share(true);
        let resources = self.input.cost.resources(&lane);
        // Prompts draw the memory less, the smaller their share.
        let draws = (resources.traffic() * resources.in_turn() / resources.on(share).max(1e-12)).min(1.0);
        if self.answers.end().is_some() {
            share.memory = crowded(share.memory, draws, self.share(false).memory);
        }
        let duration = ((self.input.cost.seconds_on(&lane, share) * 1e12).round() as u64).max(1);
        self.computed += u64::from(total);
        self.busy += duration;
        self.steps += 1;
        self.batch = Some((ids, draws));
        self.events.push(Reverse((now + duration, Event::Prompts)));
        self.reprice(now);
    }

    fn prompts_done(&mut self, now: u64) {
        let Some((ids, _)) = self.batch.take() else { return };
        for id in ids {
            let request = *self.store.request(id);
            let progress = self.store.progress(id);
            progress.first_token = now;
            self.border.first_token(now - progress.sent);
            self.first_tokens += 1;
            if request.output <= 1 {
                progress.finish = now;
                self.answers.forgo(0, &request);
                self.done(id, now);
            } else {
                self.answers.expect(&self.price, &mut self.store, id, 0, (now, now));
                self.push_end();
            }
        }
        self.start_prompts(now);
        self.reprice(now);
        self.step(now);
    }

    /// The decoding process runs at another price from its next step on, because the border or its neighbour changed.
    fn reprice(&mut self, now: u64) {
        self.answers.shorten(&self.price, &self.store, now);
        self.push_end();
    }

    fn push_end(&mut self) {
        if let Some(end) = self.answers.end() {
            self.events.push(Reverse((end, Event::Answers)));
        }
    }

    /// Books the decoding steps that have ended and starts the next.
    fn step(&mut self, now: u64) {
        if self.answers.end().is_some_and(|end| end > now) {
            return;
        }
        let mut finished = std::mem::take(&mut self.finished);
        self.answers.finish(&mut self.store, &mut finished);
        let any = !finished.is_empty();
        for id in finished.drain(..) {
            let end = self.store.live(id).progress.finish;
            self.done(id, end);
        }
        self.finished = finished;
        if self.due {
            self.move_border(now);
        }
        if any {
            self.start_prompts(now);
        }
        let mut share = self.share(false);
        if let Some((_, draws)) = &self.batch {
            share.memory = crowded(share.memory, share.memory, *draws);
        }
        self.price = self.input.cost.on_share(share);
        let price = &self.price;
        if self.answers.start(price, &mut self.store, now) {
            self.push_end();
        }
    }

    /// A window ends: the border moves when the running step ends.
    fn window(&mut self, now: u64) {
        self.due = true;
        match self.answers.end() {
            Some(end) if end > now => self.reprice(now),
            _ => self.move_border(now),
        }
    }

    fn move_border(&mut self, now: u64) {
        self.due = false;
        self.border.move_on(now, (self.answers.sums.busy, self.answers.sums.steps), self.waiting.len());
        let open = self.clients.in_system() > 0 || !self.clients.none_left();
        if let (true, Some(window)) = (open, self.border.window()) {
            self.events.push(Reverse((now + window, Event::Window)));
        }
    }

    fn result(self) -> PartitionRun {
        let sums = &self.answers.sums;
        let extra = Extra {
            unfinished: self.store.len() as u64,
            most_alive: self.store.most() as u64,
            leaked_bytes: self.answers.leaked(),
            ..Extra::default()
        };
        let end = self.outcomes.iter().map(|o| o.finish).max().unwrap_or_default();
        let run = ServingRun {
            replica_seconds: end.0 as f64 * 1e-12,
            most_replicas: 1,
            gaps: sums.gaps.clone(),
            steps: self.steps + sums.steps,
            busy: (self.busy + sums.busy) as f64 * 1e-12,
            request_seconds: self.clients.request_seconds(),
            computed_prompt_tokens: self.computed,
            cached_prompt_tokens: 0,
            generated_tokens: self.first_tokens + sums.generated,
            peak_cache: sums.peak_cache,
            backlog: self.clients.backlog(),
            start: self.outcomes.iter().map(|o| o.sent).min().unwrap_or_default(),
            end,
            outcomes: self.outcomes,
            samples: Vec::new(),
            extra,
        };
        PartitionRun { run, border: self.border.history }
    }
}

/// What is left of `memory`, the rate that a process could draw alone, beside a neighbour: both ask for `own` and
/// `other`, and are cut in proportion where the sum is more than all.
fn crowded(memory: f64, own: f64, other: f64) -> f64 {
    memory / (own + other).max(1.0)
}
