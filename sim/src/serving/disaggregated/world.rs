//! The event loop of two pools: prompts, transfers, decode instances.

use super::prefill::{PrefillInstance, PromptPrice};
use super::{DisaggregatedInput, DisaggregatedRun};
use crate::serving::beside::Beside;
use crate::serving::clients::{Clients, FrontEnd};
use crate::serving::fleet::{cache_shape, limits};
use crate::serving::options::FleetOptions;
use crate::serving::placement::{Placement, Site};
use crate::serving::replica::{Limits, Replica};
use crate::serving::store::{Live, Store};
use crate::serving::transfer::{Route, TransferMode};
use crate::serving::watch::Watch;
use crate::serving::{Extra, Histogram, Outcome, ServingRun};
use psim_models::serving::{KvTransfer, Request};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A cache has arrived: (prefill instance, decode instance, prompt tokens).
    Moved(u32, u32, u32),
    /// A decode instance may have finished steps.
    Decode(u32),
    /// A prefill instance may go on.
    Prefill(u32),
}

pub(super) struct World<'a> {
    input: &'a DisaggregatedInput<'a>,
    clients: Clients<'a>,
    transfer: KvTransfer,
    sites: (Vec<Site>, Vec<Site>),
    store: Store,
    outcomes: Vec<Outcome>,
    /// Decode instance and lane with memory set aside before the prompt was done, per request alive.
    granted: Vec<Option<(u32, usize)>>,
    prefills: Vec<PrefillInstance>,
    decodes: Vec<Replica<'a>>,
    /// Prices of prompts.
    prompts: PromptPrice<'a>,
    watch: Option<Watch>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    /// Earliest event that is due for each prefill instance.
    wake: Vec<u64>,
    /// Prompts done without decode memory, oldest first: (request, prefill instance).
    held: VecDeque<(u32, u32)>,
    /// When the links of senders and receivers are free, by instance or by node.
    send_free: Vec<u64>,
    receive_free: Vec<u64>,
    out: Sums,
    finished: Vec<u32>,
}

#[derive(Default)]
struct Sums {
    transfer_seconds: Vec<f64>,
    bytes: f64,
    held_back: u64,
    computed: u64,
    first_tokens: u64,
}

impl<'a> World<'a> {
    pub(super) fn new(
        (input, beside): (&'a DisaggregatedInput<'a>, Beside<'a>),
        requests: &'a mut dyn Iterator<Item = Request>,
        transfer: KvTransfer,
        sites: (Vec<Site>, Vec<Site>),
    ) -> Self {
        let shape = cache_shape(input.decode.cost, input.decode.engine, beside.speculation);
        let options = FleetOptions { coalesce: input.coalesce, ..FleetOptions::default() };
        let fed = limits(input.decode.cost, input.decode.engine, &options, beside.speculation);
        let fed = Limits { fed: true, ..fed };
        let prompts = PromptPrice::new(input.prefill.cost, beside.prompts);
        let lanes = input.decode.cost.lanes();
        let prefill = || PrefillInstance::new(&prompts, input.prefill.engine, input.prefill.context_parallel);
        let links = (input.cluster.nodes() + input.prefill.instances + input.decode.instances) as usize;
        let mut store = Store::default();
        Self {
            clients: Clients::new(
                requests,
                input.traffic.clients,
                FrontEnd::of(input.prefill.cost, input.prefill.instances),
                &mut store,
            ),
            transfer,
            sites,
            store,
            outcomes: Outcome::none(input.traffic.requests.len()),
            granted: Vec::new(),
            prefills: (0..input.prefill.instances).map(|_| prefill()).collect(),
            prompts,
            watch: beside.stop.map(|stop| Watch::new(stop, &input.traffic.requests)),
            decodes: (0..input.decode.instances)
                .map(|i| Replica::new(i, lanes, &shape, fed.clone()))
                .collect(),
            events: BinaryHeap::new(),
            wake: vec![u64::MAX; input.prefill.instances as usize],
            held: VecDeque::new(),
            send_free: vec![0; links],
            receive_free: vec![0; links],
            out: Sums::default(),
            finished: Vec::new(),
            input,
        }
    }

    /// Runs to the end; false where it was given up.
    pub(super) fn run(&mut self) -> bool {
        loop {
            let arrival = self.clients.arrival();
            let event = self.events.peek().map(|Reverse((at, _))| *at);
            if let Some(watch) = &mut self.watch {
                let next = arrival.into_iter().chain(event).min();
                if watch.lost(next.unwrap_or(0), &self.store) {
                    return false;
                }
            }
            match (arrival, event) {
                (None, None) => return true,
                (Some(at), event) if event.is_none_or(|next| at <= next) => self.arrive(at),
                _ => {
                    if let Some(Reverse((at, event))) = self.events.pop() {
                        self.handle(at, event);
                    }
                }
            }
        }
    }

    fn arrive(&mut self, now: u64) {
        let Some(id) = self.clients.arrive(&mut self.store, now) else { return };
        self.clients.note_backlog();
        if let Some(watch) = &mut self.watch {
            watch.came(id, self.store.live(id));
        }
        let request = *self.store.request(id);
        if !self.prefills[0].fits(&self.prompts, &request) || !self.decodes[0].fits(&request) {
            for (id, live) in self.clients.refuse(&mut self.store, id, now) {
                self.keep(id, &live);
            }
            return;
        }
        // Join the shortest queue; ties go to the first.
        let index = (0..self.prefills.len()).min_by_key(|i| self.prefills[*i].load).unwrap_or(0);
        self.prefills[index].push(id, &request);
        // Arrivals of one instant are batched together.
        self.wake_prefill(index as u32, now);
    }

    fn wake_prefill(&mut self, index: u32, at: u64) {
        if at < self.wake[index as usize] {
            self.wake[index as usize] = at;
            self.events.push(Reverse((at, Event::Prefill(index))));
        }
    }

    /// Keeps what became of a request.
    fn keep(&mut self, id: u32, live: &Live) {
        if let Some(slot) = self.granted.get_mut(id as usize) {
            *slot = None;
        }
        self.outcomes[live.number as usize] = Outcome::of(&live.progress);
        if let Some(watch) = &mut self.watch {
            watch.gone(live);
        }
    }

    fn done(&mut self, id: u32, now: u64) {
        let live = self.store.remove(id);
        self.keep(id, &live);
        self.clients.answered(&mut self.store, live.next, now);
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
            Event::Moved(from, to, tokens) => {
                self.prefills[from as usize].release(&self.prompts, tokens);
                self.prefill(from, now);
                self.decode(to, now);
            }
        }
    }

    fn prefill(&mut self, index: u32, now: u64) {
        while let Some(batch) = self.prefills[index as usize].take_finished(now) {
            self.out.computed += batch.parts.iter().map(|p| u64::from(p.tokens)).sum::<u64>();
            for part in batch.parts.iter().filter(|p| p.last) {
                let request = *self.store.request(part.id);
                let progress = self.store.progress(part.id);
                progress.first_token = now;
                self.out.first_tokens += 1;
                let granted = self.granted.get(part.id as usize).copied().flatten();
                if request.output <= 1 {
                    progress.finish = now;
                    self.prefills[index as usize].release(&self.prompts, request.input);
                    self.done(part.id, now);
                } else if let Some((decode, lane)) = granted {
                    self.move_cache(part.id, index, (decode, lane), (now, Some(batch.start)));
                } else {
                    self.held.push_back((part.id, index));
                    self.out.held_back += u64::from(!self.release_held(now));
                }
            }
        }
        loop {
            let prompts = &self.prompts;
            let Some(batch) = self.prefills[index as usize].start(prompts, &self.store, now) else { break };
            if self.input.transfer == TransferMode::LayerWise && self.held.is_empty() {
                let last: Vec<u32> = batch.parts.iter().filter(|p| p.last).map(|p| p.id).collect();
                for id in last {
                    if self.store.request(id).output > 1 {
                        let granted = self.grant(id, index);
                        if self.granted.len() <= id as usize {
                            self.granted.resize(id as usize + 1, None);
                        }
                        self.granted[id as usize] = granted;
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
        let request = self.store.request(id);
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
        let input = self.store.request(id).input;
        let tokens = u64::from(input);
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
        let progress = self.store.progress(id);
        progress.replica = decode;
        let first_token = progress.first_token;
        self.out.transfer_seconds.push(ready.saturating_sub(first_token) as f64 * 1e-12);
        let replica = &mut self.decodes[decode as usize];
        let before = replica.end();
        replica.expect(self.input.decode.cost, &mut self.store, id, lane, (first_token, ready));
        if let (true, Some(end)) = (replica.end() != before, replica.end()) {
            self.events.push(Reverse((end, Event::Decode(decode))));
        }
        self.events.push(Reverse((ready, Event::Moved(from, decode, input))));
    }

    fn decode(&mut self, index: u32, now: u64) {
        let replica = &mut self.decodes[index as usize];
        if replica.end().is_some_and(|end| end > now) {
            return;
        }
        let mut finished = std::mem::take(&mut self.finished);
        replica.finish(&mut self.store, &mut finished);
        let any = !finished.is_empty();
        for id in finished.drain(..) {
            let end = self.store.live(id).progress.finish;
            self.done(id, end);
        }
        self.finished = finished;
        if any && !self.held.is_empty() {
            self.release_held(now);
        }
        let replica = &mut self.decodes[index as usize];
        if replica.start(self.input.decode.cost, &mut self.store, now)
            && let Some(end) = replica.end()
        {
            self.events.push(Reverse((end, Event::Decode(index))));
        }
    }

    pub(super) fn result(self) -> DisaggregatedRun {
        let mut gaps = Histogram::default();
        let (mut steps, mut prefill_busy, mut decode_busy) = (0, 0u64, 0u64);
        let mut generated = self.out.first_tokens;
        let (mut peak_cache, mut prefill_peak): (f64, f64) = (0.0, 0.0);
        let mut extra = Extra {
            unfinished: self.store.len() as u64,
            most_alive: self.store.most() as u64,
            ..Extra::default()
        };
        for p in &self.prefills {
            steps += p.steps;
            prefill_busy += p.busy;
            prefill_peak = prefill_peak.max(p.peak);
        }
        for d in &self.decodes {
            gaps.merge(&d.sums.gaps);
            steps += d.sums.steps;
            decode_busy += d.sums.busy;
            generated += d.sums.generated;
            peak_cache = peak_cache.max(d.sums.peak_cache);
            extra.leaked_bytes += d.leaked();
            extra.rounds += d.sums.rounds;
            extra.round_tokens += d.sums.round_tokens;
        }
        let (prefill_busy, decode_busy) = (prefill_busy as f64 * 1e-12, decode_busy as f64 * 1e-12);
        let end = self.outcomes.iter().map(|o| o.finish).max().unwrap_or_default();
        let instances = self.input.prefill.instances + self.input.decode.instances;
        DisaggregatedRun {
            run: ServingRun {
                replica_seconds: f64::from(instances) * end.0 as f64 * 1e-12,
                most_replicas: instances,
                gaps,
                steps,
                busy: prefill_busy + decode_busy,
                request_seconds: self.clients.request_seconds(),
                computed_prompt_tokens: self.out.computed,
                cached_prompt_tokens: 0,
                generated_tokens: generated,
                peak_cache,
                backlog: self.clients.backlog(),
                start: self.outcomes.iter().map(|o| o.sent).min().unwrap_or_default(),
                end,
                outcomes: self.outcomes,
                samples: Vec::new(),
                extra,
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
