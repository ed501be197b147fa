//! Replicas behind a router: the event loop of a serving run.

use super::lane::CacheShape;
use super::replica::{Limits, Progress, Replica};
use super::rules::Rules;
use super::{Histogram, Outcome, Sample, ServingRun};
use psim_cost_models::serving::{EngineProfile, KINDS, StepCost};
use psim_hardware::{BytesPerSec, Time};
use psim_models::serving::{Request, Traffic};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

/// How requests are given to replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Router {
    /// One after another.
    #[default]
    RoundRobin,
    /// The replica with the fewest requests in it.
    LeastLoad,
    /// The replica that has seen the prefix, unless it has twice the mean load; else the least loaded.
    PrefixAware,
}

impl Router {
    /// Reads a name.
    ///
    /// # Errors
    /// A sentence with the known names.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "round-robin" => Ok(Self::RoundRobin),
            "least-load" => Ok(Self::LeastLoad),
            "prefix-aware" => Ok(Self::PrefixAware),
            other => Err(format!("`{other}` is not a router; known: round-robin, least-load, prefix-aware")),
        }
    }
}

/// What happens to a sequence that is thrown out of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Preemption {
    /// Its prompt and answer so far are computed again.
    #[default]
    Recompute,
    /// Its cache goes to host memory and comes back over a link of this rate; then it is computed as a prompt whose
    /// cost stands for the copy's bookkeeping.
    Swap(BytesPerSec),
}

/// Options of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FleetOptions {
    /// Router.
    pub router: Router,
    /// Treatment of thrown-out sequences.
    pub preemption: Preemption,
    /// Treat decoding steps between events as one event. The result is the same.
    pub coalesce: bool,
    /// Timeline points to keep, at most; 0 keeps none.
    pub samples: usize,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self { router: Router::RoundRobin, preemption: Preemption::Recompute, coalesce: true, samples: 0 }
    }
}

/// Everything that a run needs.
#[derive(Debug, Clone, Copy)]
pub struct ServingInput<'a> {
    /// Prices of steps.
    pub cost: &'a StepCost,
    /// Policy and limits.
    pub engine: &'a EngineProfile,
    /// Requests.
    pub traffic: &'a Traffic,
    /// Replicas.
    pub replicas: u32,
    /// Options.
    pub options: FleetOptions,
}

/// Why a run cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServingError {
    /// Nothing to do.
    #[error("there are no requests to serve")]
    NoRequests,
    /// No replicas.
    #[error("there are no replicas")]
    NoReplicas,
    /// Too many requests for the numbering.
    #[error("{0} requests are more than a run can number")]
    TooMany(usize),
    /// A closed loop without clients.
    #[error("a closed loop needs at least one client")]
    NoClients,
}

/// Serves the traffic.
///
/// # Errors
/// No requests, no replicas, no clients.
pub fn simulate(input: &ServingInput<'_>) -> Result<ServingRun, ServingError> {
    if input.traffic.requests.is_empty() {
        return Err(ServingError::NoRequests);
    }
    if input.replicas == 0 {
        return Err(ServingError::NoReplicas);
    }
    if input.traffic.requests.len() >= u32::MAX as usize {
        return Err(ServingError::TooMany(input.traffic.requests.len()));
    }
    if input.traffic.clients == Some(0) {
        return Err(ServingError::NoClients);
    }
    let mut fleet = Fleet::new(input);
    fleet.run();
    Ok(fleet.result())
}

pub(super) fn cache_shape(cost: &StepCost, engine: &EngineProfile) -> CacheShape {
    let shape = cost.shape();
    let block = engine.block_tokens.max(1);
    let mut reads = [None; KINDS];
    let mut kinds = 0;
    for (slot, most) in reads.iter_mut().zip(cost.reads_at_most()) {
        *slot = most;
        kinds += 1;
    }
    CacheShape {
        // Lanes of a pipeline share the accelerators' memory.
        capacity: (cost.cache_bytes() / f64::from(shape.deployment.pp.max(1))) as u64,
        block,
        block_bytes: (shape.kv_bytes_per_token * f64::from(block)).ceil() as u64,
        windows: shape.kv_windowed.clone(),
        state: shape.state_bytes_per_sequence as u64,
        reads,
        kinds,
    }
}

struct Fleet<'a> {
    input: &'a ServingInput<'a>,
    requests: &'a [Request],
    progress: Vec<Progress>,
    replicas: Vec<Replica>,
    loads: Vec<u32>,
    by_load: BTreeSet<(u32, u32)>,
    homes: BTreeMap<u32, u32>,
    turn: u32,
    events: BinaryHeap<Reverse<(u64, u32)>>,
    /// Next request of the open loop.
    next: usize,
    /// Requests that clients of a closed loop have sent and that have not arrived: (arrival, request).
    sent: VecDeque<(u64, u32)>,
    delay: u64,
    in_system: u32,
    integral: u128,
    last_change: u64,
    backlog: u32,
    finished: Vec<u32>,
    touched: Vec<u32>,
    samples: Vec<Sample>,
    stride: u64,
    seen: u64,
}

impl<'a> Fleet<'a> {
    fn new(input: &'a ServingInput<'a>) -> Self {
        let shape = cache_shape(input.cost, input.engine);
        let limits = Limits {
            rules: Rules::of(input.engine.policy),
            max_sequences: input.engine.max_sequences.max(1),
            token_budget: input.engine.token_budget.max(1),
            coalesce: input.options.coalesce,
            swap_seconds_per_byte: match input.options.preemption {
                Preemption::Recompute => None,
                Preemption::Swap(rate) => Some(1.0 / rate.0.max(1.0)),
            },
        };
        let lanes = input.cost.lanes();
        let replicas: Vec<Replica> =
            (0..input.replicas).map(|i| Replica::new(i, lanes, &shape, limits.clone())).collect();
        let mut fleet = Self {
            input,
            requests: &input.traffic.requests,
            progress: vec![Progress::default(); input.traffic.requests.len()],
            loads: vec![0; replicas.len()],
            by_load: (0..input.replicas).map(|i| (0, i)).collect(),
            replicas,
            homes: BTreeMap::new(),
            turn: 0,
            events: BinaryHeap::new(),
            next: 0,
            sent: VecDeque::new(),
            delay: (input.cost.parameters().ttft_ms * 1e9) as u64,
            in_system: 0,
            integral: 0,
            last_change: 0,
            backlog: 0,
            finished: Vec::new(),
            touched: Vec::new(),
            samples: Vec::new(),
            stride: 1,
            seen: 0,
        };
        if let Some(clients) = input.traffic.clients {
            for _ in 0..clients {
                fleet.send(0);
            }
        }
        fleet
    }

    fn closed(&self) -> bool {
        self.input.traffic.clients.is_some()
    }

    /// A client of a closed loop sends the next request, if any is left.
    fn send(&mut self, now: u64) {
        if self.next < self.requests.len() {
            let id = self.next as u32;
            self.next += 1;
            let at = now.max(self.requests[id as usize].arrival.0);
            self.progress[id as usize].sent = at;
            self.count(at, 1);
            self.sent.push_back((at + self.delay, id));
        }
    }

    /// The next arrival at an engine.
    fn arrival(&self) -> Option<(u64, u32)> {
        if self.closed() {
            return self.sent.front().copied();
        }
        let request = self.requests.get(self.next)?;
        Some((request.arrival.0 + self.delay, self.next as u32))
    }

    fn run(&mut self) {
        loop {
            let arrival = self.arrival();
            let event = self.events.peek().map(|Reverse(e)| *e);
            match (arrival, event) {
                (None, None) => break,
                (Some((at, _)), event) if event.is_none_or(|(end, _)| at <= end) => self.arrive(at),
                _ => self.step(),
            }
        }
    }

    /// All arrivals of one instant; only then do idle engines start.
    fn arrive(&mut self, now: u64) {
        self.touched.clear();
        while let Some((at, id)) = self.arrival().filter(|(at, _)| *at == now) {
            if self.closed() {
                self.sent.pop_front();
            } else {
                self.next += 1;
                self.progress[id as usize].sent = self.requests[id as usize].arrival.0;
                self.count(self.requests[id as usize].arrival.0, 1);
            }
            let _ = at;
            let request = &self.requests[id as usize];
            if !self.replicas[0].fits(request) {
                self.refuse(id, now);
                continue;
            }
            let replica = self.route(request);
            self.progress[id as usize].replica = replica;
            self.set_load(replica, self.loads[replica as usize] + 1);
            self.replicas[replica as usize].waiting.push_back(id);
            self.touched.push(replica);
        }
        if self.next >= self.requests.len() && self.backlog == 0 {
            self.backlog = self.in_system;
        }
        let touched = std::mem::take(&mut self.touched);
        for &index in &touched {
            let replica = &mut self.replicas[index as usize];
            if replica.idle() {
                self.start(index, now);
            } else {
                let before = replica.end();
                replica.shorten(self.input.cost, now);
                let after = replica.end();
                if let (true, Some(end)) = (after != before, after) {
                    self.events.push(Reverse((end, index)));
                }
            }
        }
        self.touched = touched;
    }

    fn refuse(&mut self, id: u32, now: u64) {
        let p = &mut self.progress[id as usize];
        p.refused = true;
        p.first_token = now;
        p.finish = now;
        self.count(now, -1);
        if self.closed() {
            self.send(now);
        }
    }

    fn set_load(&mut self, replica: u32, load: u32) {
        if self.input.options.router != Router::RoundRobin {
            self.by_load.remove(&(self.loads[replica as usize], replica));
            self.by_load.insert((load, replica));
        }
        self.loads[replica as usize] = load;
    }

    fn route(&mut self, request: &Request) -> u32 {
        let least = |s: &Self| s.by_load.first().map_or(0, |(_, r)| *r);
        match self.input.options.router {
            Router::RoundRobin => {
                let turn = self.turn;
                self.turn = (turn + 1) % self.input.replicas;
                turn
            }
            Router::LeastLoad => least(self),
            Router::PrefixAware => {
                let home = self.homes.get(&request.prefix_group).copied().filter(|_| request.prefix > 0);
                let total: u64 = u64::from(self.in_system);
                let crowded = |r: u32| {
                    u64::from(self.loads[r as usize]) * u64::from(self.input.replicas) > 2 * total + 8
                };
                match home {
                    Some(home) if !crowded(home) => home,
                    _ => {
                        let chosen = least(self);
                        self.homes.insert(request.prefix_group, chosen);
                        chosen
                    }
                }
            }
        }
    }

    fn start(&mut self, index: u32, now: u64) {
        let replica = &mut self.replicas[index as usize];
        if replica.start(self.input.cost, self.requests, &mut self.progress, now)
            && let Some(end) = replica.end()
        {
            self.events.push(Reverse((end, index)));
        }
        self.sample(index, now);
    }

    fn sample(&mut self, index: u32, now: u64) {
        let most = self.input.options.samples;
        if most == 0 {
            return;
        }
        self.seen += 1;
        if !self.seen.is_multiple_of(self.stride) {
            return;
        }
        let r = &self.replicas[index as usize];
        self.samples.push(Sample {
            time: Time(now),
            replica: r.number(),
            waiting: r.waiting.len() as u32,
            running: r.running(),
            cache: r.cache_share() as f32,
        });
        if self.samples.len() >= 2 * most {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride *= 2;
        }
    }

    /// Books the earliest finished step and starts the engine's next one.
    fn step(&mut self) {
        let Some(Reverse((end, index))) = self.events.pop() else { return };
        if self.replicas[index as usize].end() != Some(end) {
            return;
        }
        let mut finished = std::mem::take(&mut self.finished);
        self.replicas[index as usize].finish(self.requests, &mut self.progress, &mut finished);
        for &id in &finished {
            let _ = id;
            self.count(end, -1);
            self.set_load(index, self.loads[index as usize] - 1);
            if self.closed() {
                self.send(end);
            }
        }
        finished.clear();
        self.finished = finished;
        self.start(index, end);
    }

    /// Requests in the system change by `by` at `now`.
    fn count(&mut self, now: u64, by: i32) {
        // Open-loop requests are counted when sent, which is one delay before they are seen here.
        if now >= self.last_change {
            self.integral += u128::from(self.in_system) * u128::from(now - self.last_change);
            self.last_change = now;
            self.in_system = self.in_system.saturating_add_signed(by);
        } else {
            self.in_system = self.in_system.saturating_add_signed(by);
            let late = u128::from(self.last_change - now);
            self.integral = if by > 0 { self.integral + late } else { self.integral.saturating_sub(late) };
        }
    }

    fn result(self) -> ServingRun {
        let mut gaps = Histogram::default();
        let (mut steps, mut busy, mut computed, mut cached, mut generated) = (0, 0u64, 0, 0, 0);
        let mut peak_cache: f64 = 0.0;
        for r in &self.replicas {
            gaps.merge(&r.sums.gaps);
            steps += r.sums.steps;
            busy += r.sums.busy;
            computed += r.sums.computed;
            cached += r.sums.cached;
            generated += r.sums.generated;
            peak_cache = peak_cache.max(r.sums.peak_cache);
        }
        let outcomes: Vec<Outcome> = self
            .progress
            .iter()
            .map(|p| Outcome {
                sent: Time(p.sent),
                first_token: Time(p.first_token),
                finish: Time(p.finish),
                preemptions: p.preemptions,
                refused: p.refused,
                replica: p.replica,
            })
            .collect();
        ServingRun {
            gaps,
            steps,
            busy: busy as f64 * 1e-12,
            request_seconds: self.integral as f64 * 1e-12,
            computed_prompt_tokens: computed,
            cached_prompt_tokens: cached,
            generated_tokens: generated,
            peak_cache,
            backlog: self.backlog,
            start: outcomes.iter().map(|o| o.sent).min().unwrap_or_default(),
            end: outcomes.iter().map(|o| o.finish).max().unwrap_or_default(),
            outcomes,
            samples: self.samples,
        }
    }
}
