//! Prefill and decode on different instances: a prefill pool, a decode pool, and caches that move between them.
//!
//! A request goes to the prefill instance with the fewest prompt tokens. Its cache stays there until a decode instance
//! (the least loaded one) has memory for the whole sequence and has received it; a full decode pool therefore fills the
//! prefill memory, which stops prompts: back-pressure. Sources: DistServe (Zhong et al., OSDI 2024), Splitwise (Patel
//! et al., ISCA 2024).

mod context_parallel;
mod decode;
mod prefill;
#[cfg(test)]
mod tests;

use super::fleet::cache_shape;
use super::transfer::{Placement, Route, Site, TransferMode, place};
use super::{Histogram, Outcome, ServingError, ServingRun};
use decode::DecodeInstance;
use prefill::PrefillInstance;
use psim_cost_models::serving::{EngineProfile, StepCost};
use psim_hardware::{Cluster, Time};
use psim_models::serving::{KvTransfer, KvTransferError, Request, Traffic};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Instances of one role.
#[derive(Debug, Clone, Copy)]
pub struct Pool<'a> {
    /// Prices of its steps.
    pub cost: &'a StepCost,
    /// Policy and limits.
    pub engine: &'a EngineProfile,
    /// Instances.
    pub instances: u32,
    /// Ranks that share each prompt's tokens (prefill only; 1 without context parallelism).
    pub context_parallel: u32,
}

impl Pool<'_> {
    /// Accelerators of one instance.
    pub fn size(&self) -> u32 {
        self.cost.shape().deployment.accelerators_per_replica() * self.context_parallel.max(1)
    }
}

/// Everything that a run needs.
#[derive(Debug, Clone, Copy)]
pub struct DisaggregatedInput<'a> {
    /// Prompts.
    pub prefill: Pool<'a>,
    /// Answers.
    pub decode: Pool<'a>,
    /// Machines, for the routes.
    pub cluster: &'a Cluster,
    /// Where the roles lie.
    pub placement: Placement,
    /// When caches start to move.
    pub transfer: TransferMode,
    /// Requests.
    pub traffic: &'a Traffic,
}

/// Why a run cannot be done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DisaggregatedError {
    /// As of any run.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The cache of one side is no use to the other.
    #[error(transparent)]
    Transfer(#[from] KvTransferError),
    /// More instances than accelerators.
    #[error("the pools need more than the {0} accelerators of the cluster")]
    Cluster(u32),
    /// Later turns depend on answers, which these pools do not wait for.
    #[error("conversations of several turns are not built for separate pools of prompts and answers")]
    Conversations,
}

/// A finished run with what the transfers did.
#[derive(Debug, Clone, PartialEq)]
pub struct DisaggregatedRun {
    /// Outcomes and sums over both pools; `peak_cache` is the decode pool's.
    pub run: ServingRun,
    /// Seconds from the end of a prompt to its cache being there, per moved cache, in order of arrival there.
    pub transfer_seconds: Vec<f64>,
    /// Bytes sent, which are the bytes received.
    pub bytes: f64,
    /// Caches that found no decode memory when they were ready.
    pub held_back: u64,
    /// Highest share of the memory of a prefill instance in use.
    pub prefill_peak: f64,
    /// Seconds that prefill instances worked, summed.
    pub prefill_busy: f64,
    /// Seconds that decode instances worked, summed.
    pub decode_busy: f64,
}

/// Serves the traffic.
///
/// # Errors
/// No requests, instances or clients; caches that cannot move; a cluster that is too small.
pub fn simulate_disaggregated(
    input: &DisaggregatedInput<'_>,
) -> Result<DisaggregatedRun, DisaggregatedError> {
    let requests = input.traffic.requests.len();
    if requests == 0 {
        return Err(ServingError::NoRequests.into());
    }
    if input.prefill.instances == 0 || input.decode.instances == 0 {
        return Err(ServingError::NoReplicas.into());
    }
    if requests >= u32::MAX as usize {
        return Err(ServingError::TooMany(requests).into());
    }
    if input.traffic.clients == Some(0) {
        return Err(ServingError::NoClients.into());
    }
    if input.traffic.requests.iter().any(|r| r.turn > 0) {
        return Err(DisaggregatedError::Conversations);
    }
    let transfer = KvTransfer::between(input.prefill.cost.shape(), input.decode.cost.shape())?;
    let sites = place(
        input.cluster,
        input.placement,
        (input.prefill.instances, input.prefill.size()),
        (input.decode.instances, input.decode.size()),
    )
    .ok_or(DisaggregatedError::Cluster(input.cluster.accelerators()))?;
    let mut world = World::new(input, transfer, sites);
    world.run();
    Ok(world.result())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A cache has arrived: (prefill instance, decode instance, request).
    Moved(u32, u32, u32),
    /// A decode instance may have finished steps.
    Decode(u32),
    /// A prefill instance may go on.
    Prefill(u32),
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    sent: u64,
    first_token: u64,
    finish: u64,
    refused: bool,
    decode: u32,
    /// Decode instance and lane with memory set aside before the prompt was done.
    granted: Option<(u32, usize)>,
}

struct World<'a> {
    input: &'a DisaggregatedInput<'a>,
    requests: &'a [Request],
    transfer: KvTransfer,
    sites: (Vec<Site>, Vec<Site>),
    states: Vec<State>,
    prefills: Vec<PrefillInstance>,
    decodes: Vec<DecodeInstance>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    /// Earliest event that is due for each prefill instance.
    wake: Vec<u64>,
    /// Prompts done without decode memory, oldest first: (request, prefill instance).
    held: VecDeque<(u32, u32)>,
    /// When the links of senders and receivers are free, by instance or by node.
    send_free: Vec<u64>,
    receive_free: Vec<u64>,
    next: usize,
    sent: VecDeque<(u64, u32)>,
    delay: u64,
    in_system: u32,
    integral: u128,
    last_change: u64,
    backlog: u32,
    out: Extra,
    finished: Vec<(u32, u64)>,
}

#[derive(Default)]
struct Extra {
    transfer_seconds: Vec<f64>,
    bytes: f64,
    held_back: u64,
    computed: u64,
    first_tokens: u64,
}

impl<'a> World<'a> {
    fn new(input: &'a DisaggregatedInput<'a>, transfer: KvTransfer, sites: (Vec<Site>, Vec<Site>)) -> Self {
        let shape = cache_shape(input.decode.cost, input.decode.engine);
        let lanes = input.decode.cost.lanes();
        let prefill =
            || PrefillInstance::new(input.prefill.cost, input.prefill.engine, input.prefill.context_parallel);
        let links = (input.cluster.nodes() + input.prefill.instances + input.decode.instances) as usize;
        let mut world = Self {
            requests: &input.traffic.requests,
            transfer,
            sites,
            states: vec![State::default(); input.traffic.requests.len()],
            prefills: (0..input.prefill.instances).map(|_| prefill()).collect(),
            decodes: (0..input.decode.instances)
                .map(|_| DecodeInstance::new(&shape, lanes, input.decode.engine.max_sequences))
                .collect(),
            events: BinaryHeap::new(),
            wake: vec![u64::MAX; input.prefill.instances as usize],
            held: VecDeque::new(),
            send_free: vec![0; links],
            receive_free: vec![0; links],
            next: 0,
            sent: VecDeque::new(),
            delay: (input.prefill.cost.parameters().ttft_ms * 1e9) as u64,
            in_system: 0,
            integral: 0,
            last_change: 0,
            backlog: 0,
            out: Extra::default(),
            finished: Vec::new(),
            input,
        };
        for _ in 0..input.traffic.clients.unwrap_or(0) {
            world.send(0);
        }
        world
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
            self.states[id as usize].sent = at;
            self.sent.push_back((at + self.delay, id));
        }
    }

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
            let event = self.events.peek().map(|Reverse((at, _))| *at);
            match (arrival, event) {
                (None, None) => break,
                (Some((at, id)), event) if event.is_none_or(|next| at <= next) => self.arrive(at, id),
                _ => {
                    if let Some(Reverse((at, event))) = self.events.pop() {
                        self.handle(at, event);
                    }
                }
            }
        }
    }

    fn count(&mut self, now: u64, by: i32) {
        self.integral += u128::from(self.in_system) * u128::from(now.saturating_sub(self.last_change));
        self.last_change = self.last_change.max(now);
        self.in_system = self.in_system.saturating_add_signed(by);
    }

    fn arrive(&mut self, now: u64, id: u32) {
        if self.closed() {
            self.sent.pop_front();
        } else {
            self.next += 1;
            self.states[id as usize].sent = self.requests[id as usize].arrival.0;
        }
        self.count(now, 1);
        // The time before the engine saw it counts too.
        self.integral += u128::from(now - self.states[id as usize].sent);
        if self.next >= self.requests.len() && self.backlog == 0 {
            self.backlog = self.in_system;
        }
        let request = &self.requests[id as usize];
        if !self.prefills[0].fits(self.input.prefill.cost, request) || !self.decodes[0].fits(request) {
            let state = &mut self.states[id as usize];
            state.refused = true;
            (state.first_token, state.finish) = (now, now);
            self.done(now);
            return;
        }
        // Join the shortest queue; ties go to the first.
        let index = (0..self.prefills.len()).min_by_key(|i| self.prefills[*i].load).unwrap_or(0);
        self.prefills[index].push(id, request);
        // Arrivals of one instant are batched together.
        self.wake_prefill(index as u32, now);
    }

    fn wake_prefill(&mut self, index: u32, at: u64) {
        if at < self.wake[index as usize] {
            self.wake[index as usize] = at;
            self.events.push(Reverse((at, Event::Prefill(index))));
        }
    }

    fn done(&mut self, now: u64) {
        self.count(now, -1);
        if self.closed() {
            self.send(now);
        }
    }

    fn handle(&mut self, now: u64, event: Event) {
        match event {
            Event::Prefill(index) => {
                if self.wake[index as usize] == now {
                    self.wake[index as usize] = u64::MAX;
                }
                self.prefill(index, now);
            }
            Event::Decode(index) => self.decode(index, now),
            Event::Moved(from, to, id) => {
                self.prefills[from as usize].release(self.input.prefill.cost, &self.requests[id as usize]);
                self.prefill(from, now);
                self.decode(to, now);
            }
        }
    }

    fn prefill(&mut self, index: u32, now: u64) {
        while let Some(batch) = self.prefills[index as usize].take_finished(now) {
            self.out.computed += batch.parts.iter().map(|p| u64::from(p.tokens)).sum::<u64>();
            for part in batch.parts.iter().filter(|p| p.last) {
                let state = &mut self.states[part.id as usize];
                state.first_token = now;
                self.out.first_tokens += 1;
                let request = &self.requests[part.id as usize];
                if request.output <= 1 {
                    state.finish = now;
                    self.prefills[index as usize].release(self.input.prefill.cost, request);
                    self.done(now);
                } else if let Some((decode, lane)) = state.granted {
                    self.move_cache(part.id, index, (decode, lane), (now, Some(batch.start)));
                } else {
                    self.held.push_back((part.id, index));
                    self.out.held_back += u64::from(!self.release_held(now));
                }
            }
        }
        loop {
            let cost = self.input.prefill.cost;
            let Some(batch) = self.prefills[index as usize].start(cost, self.requests, now) else { break };
            if self.input.transfer == TransferMode::LayerWise && self.held.is_empty() {
                let last: Vec<u32> = batch.parts.iter().filter(|p| p.last).map(|p| p.id).collect();
                for id in last {
                    if self.requests[id as usize].output > 1 {
                        self.states[id as usize].granted = self.grant(id, index);
                    }
                }
            }
        }
        if let Some(next) = self.prefills[index as usize].next(now) {
            self.wake_prefill(index, next.max(now));
        }
    }

    /// Memory on the least loaded decode instance, those of the same domain first where roles are paired.
    fn grant(&mut self, id: u32, from: u32) -> Option<(u32, usize)> {
        let request = &self.requests[id as usize];
        let here = self.sites.0[from as usize].domain;
        let near = |s: &Self, d: usize| s.sites.1[d].domain == here;
        let paired =
            self.input.placement == Placement::Paired && (0..self.decodes.len()).any(|d| near(self, d));
        let mut order: Vec<usize> = (0..self.decodes.len()).filter(|d| !paired || near(self, *d)).collect();
        order.sort_by_key(|d| (self.decodes[*d].load(), !near(self, *d), *d));
        order.into_iter().find_map(|d| self.decodes[d].grant(request).map(|lane| (d as u32, lane)))
    }

    /// Gives memory to the prompts that wait for it, oldest first; true when none is left waiting.
    fn release_held(&mut self, now: u64) -> bool {
        // One that finds no room does not block those of other domains.
        let mut index = 0;
        while index < self.held.len() {
            let (id, from) = self.held[index];
            match self.grant(id, from) {
                Some(to) => {
                    self.held.remove(index);
                    self.move_cache(id, from, to, (now, None));
                }
                None if self.input.placement == Placement::Paired => index += 1,
                None => break,
            }
        }
        self.held.is_empty()
    }

    /// Puts a cache on the wire; `start` is when its last step began, where the transfer overlaps it.
    fn move_cache(&mut self, id: u32, from: u32, to: (u32, usize), (now, start): (u64, Option<u64>)) {
        let (decode, lane) = to;
        let request = &self.requests[id as usize];
        let tokens = u64::from(request.input);
        let (a, b) = (self.sites.0[from as usize], self.sites.1[decode as usize]);
        let route = Route::new(self.input.cluster, &self.transfer, a, b);
        let wire = (route.seconds(&self.transfer, tokens) * 1e12).round() as u64;
        let nodes = self.input.cluster.nodes() as usize;
        let (sender, receiver) = if route.shared {
            (a.node as usize, b.node as usize)
        } else {
            (nodes + from as usize, nodes + self.prefills.len() + decode as usize)
        };
        let free = self.send_free[sender].max(self.receive_free[receiver]);
        let layers = u64::from(self.transfer.layers);
        let ready = match start {
            // Layers leave while later ones are computed; the last one leaves when the prompt is done.
            Some(start) => {
                let first_layer = start + (now - start) / layers;
                (first_layer.max(free) + wire).max(now + wire / layers)
            }
            None => now.max(free) + wire,
        };
        self.send_free[sender] = ready;
        self.receive_free[receiver] = ready;
        self.out.bytes += self.transfer.bytes(tokens);
        let first_token = self.states[id as usize].first_token;
        self.out.transfer_seconds.push(ready.saturating_sub(first_token) as f64 * 1e-12);
        self.states[id as usize].decode = decode;
        let instance = &mut self.decodes[decode as usize];
        let before = instance.end();
        instance.expect(self.input.decode.cost, id, request, lane, (first_token, ready));
        if let (true, Some(end)) = (instance.end() != before, instance.end()) {
            self.events.push(Reverse((end, Event::Decode(decode))));
        }
        self.events.push(Reverse((ready, Event::Moved(from, decode, id))));
    }

    fn decode(&mut self, index: u32, now: u64) {
        let mut finished = std::mem::take(&mut self.finished);
        let before = self.decodes[index as usize].end();
        self.decodes[index as usize].advance(self.input.decode.cost, now, &mut finished);
        let after = self.decodes[index as usize].end();
        if let (true, Some(end)) = (before != after, after) {
            self.events.push(Reverse((end, Event::Decode(index))));
        }
        let any = !finished.is_empty();
        for (id, end) in finished.drain(..) {
            self.states[id as usize].finish = end;
            self.done(end);
        }
        self.finished = finished;
        if any && !self.held.is_empty() {
            self.release_held(now);
        }
    }

    fn result(self) -> DisaggregatedRun {
        let mut gaps = Histogram::default();
        let (mut steps, mut prefill_busy, mut decode_busy) = (0, 0u64, 0u64);
        let mut generated = self.out.first_tokens;
        let (mut peak_cache, mut prefill_peak): (f64, f64) = (0.0, 0.0);
        for p in &self.prefills {
            steps += p.steps;
            prefill_busy += p.busy;
            prefill_peak = prefill_peak.max(p.peak);
        }
        for d in &self.decodes {
            gaps.merge(&d.gaps);
            steps += d.steps;
            decode_busy += d.busy;
            generated += d.generated;
            peak_cache = peak_cache.max(d.peak);
        }
        let outcomes: Vec<Outcome> = self
            .states
            .iter()
            .map(|s| Outcome {
                sent: Time(s.sent),
                first_token: Time(s.first_token),
                finish: Time(s.finish),
                preemptions: 0,
                refused: s.refused,
                replica: s.decode,
            })
            .collect();
        let (prefill_busy, decode_busy) = (prefill_busy as f64 * 1e-12, decode_busy as f64 * 1e-12);
        let end = outcomes.iter().map(|o| o.finish).max().unwrap_or_default();
        let instances = self.input.prefill.instances + self.input.decode.instances;
        DisaggregatedRun {
            run: ServingRun {
                replica_seconds: f64::from(instances) * end.0 as f64 * 1e-12,
                most_replicas: instances,
                gaps,
                steps,
                busy: prefill_busy + decode_busy,
                request_seconds: self.integral as f64 * 1e-12,
                computed_prompt_tokens: self.out.computed,
                cached_prompt_tokens: 0,
                generated_tokens: generated,
                peak_cache,
                backlog: self.backlog,
                start: outcomes.iter().map(|o| o.sent).min().unwrap_or_default(),
                end: outcomes.iter().map(|o| o.finish).max().unwrap_or_default(),
                outcomes,
                samples: Vec::new(),
                extra: super::Extra::default(),
            },
            transfer_seconds: self.out.transfer_seconds,
            bytes: self.out.bytes,
            held_back: self.out.held_back,
            prefill_peak,
            prefill_busy,
            decode_busy,
        }
    }
}
