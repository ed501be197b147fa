//! Replicas behind a router: the event loop of a serving run.

mod groups;
mod routing;

pub use groups::{MixedInput, ReplicaGroup, simulate_mixed};

use super::autoscale::Scaler;
use super::beside::Beside;
use super::clients::{Clients, FrontEnd};
use super::lane::CacheShape;
use super::options::{FleetOptions, Preemption};
use super::replica::{Limits, Replica};
use super::rules::Rules;
use super::sink::{Outcomes, Sink};
use super::speculation::Speculating;
use super::store::{Live, Store};
use super::watch::Watch;
use super::{Extra, Histogram, Outcome, Sample, ServingRun};
use psim_cost_models::serving::{EngineProfile, KINDS, StepCost};
use psim_hardware::Time;
use psim_models::serving::{Request, SharedPrefixes, Traffic};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

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
    /// An impossible rule for the number of replicas.
    #[error("{0}")]
    Autoscale(String),
    /// A closed loop without clients.
    #[error("a closed loop needs at least one client")]
    NoClients,
    /// Prompts and answers apart under a policy whose batches end together where they began.
    #[error("static batches cannot be parted: prompts and answers of a batch run and end together")]
    WholeBatches,
    /// The run was given up: its promises are lost.
    #[error("the promises can no longer be kept")]
    Lost,
}

/// A run whose requests come one by one and are not kept.
#[derive(Debug, Clone, Copy)]
pub struct StreamInput<'a> {
    /// Prices of steps.
    pub cost: &'a StepCost,
    /// Policy and limits.
    pub engine: &'a EngineProfile,
    /// Clients of a closed loop.
    pub clients: Option<u32>,
    /// Which leading tokens requests share, where their prefixes branch.
    pub prefixes: Option<&'a SharedPrefixes>,
    /// Replicas.
    pub replicas: u32,
    /// Options.
    pub options: FleetOptions,
}

/// Serves the traffic.
///
/// # Errors
/// No requests, no replicas, no clients.
pub fn simulate(input: &ServingInput<'_>) -> Result<ServingRun, ServingError> {
    simulate_with(input, Beside::default())
}

/// As [`simulate`], with speculation, or until the promises are lost.
///
/// # Errors
/// As [`simulate`]; [`ServingError::Lost`] where the run was given up.
pub fn simulate_with(input: &ServingInput<'_>, beside: Beside<'_>) -> Result<ServingRun, ServingError> {
    let requests = &input.traffic.requests;
    if requests.len() >= u32::MAX as usize {
        return Err(ServingError::TooMany(requests.len()));
    }
    let one = ReplicaGroup { cost: input.cost, engine: input.engine, replicas: input.replicas, weight: 1.0 };
    let mut outcomes = Outcomes::of(requests.len());
    let mut run = serve(
        &[one],
        (input.traffic.clients, Some(&input.traffic.prefixes)),
        (input.options, beside.speculation, beside.stop.map(|stop| Watch::new(stop, requests))),
        &mut requests.iter().copied(),
        &mut outcomes,
    )?;
    run.outcomes = outcomes.0;
    Ok(run)
}

/// Serves requests as they come, in order of arrival, later turns of a conversation directly behind its first. What
/// becomes of each goes to the sink; memory follows the requests that are alive at once.
///
/// # Errors
/// No requests, no replicas, no clients.
pub fn simulate_stream(
    input: &StreamInput<'_>,
    requests: &mut dyn Iterator<Item = Request>,
    sink: &mut dyn Sink,
) -> Result<ServingRun, ServingError> {
    let one = ReplicaGroup { cost: input.cost, engine: input.engine, replicas: input.replicas, weight: 1.0 };
    serve(&[one], (input.clients, input.prefixes), (input.options, None, None), requests, sink)
}

/// Serves requests on replicas of one or several kinds.
fn serve(
    groups: &[ReplicaGroup<'_>],
    (clients, prefixes): (Option<u32>, Option<&SharedPrefixes>),
    (options, speculation, watch): (FleetOptions, Option<&Speculating<'_>>, Option<Watch>),
    requests: &mut dyn Iterator<Item = Request>,
    sink: &mut dyn Sink,
) -> Result<ServingRun, ServingError> {
    let replicas = groups.iter().map(|g| g.replicas).sum();
    if replicas == 0 {
        return Err(ServingError::NoReplicas);
    }
    if clients == Some(0) {
        return Err(ServingError::NoClients);
    }
    if let Some(fault) = options.autoscale.and_then(|a| a.fault(replicas)) {
        return Err(ServingError::Autoscale(fault));
    }
    let prefixes = prefixes.cloned().unwrap_or_default();
    let mut fleet = Fleet::new(groups, (clients, options), (prefixes, speculation), requests, sink);
    fleet.watch = watch;
    if fleet.clients.none_left() {
        return Err(ServingError::NoRequests);
    }
    if fleet.run() { Ok(fleet.result()) } else { Err(ServingError::Lost) }
}

/// Geometry of the cache of one lane, with what drafts keep in it.
pub(super) fn cache_shape(
    cost: &StepCost,
    engine: &EngineProfile,
    speculation: Option<&Speculating<'_>>,
) -> CacheShape {
    let shape = &speculation.map_or_else(|| cost.shape().clone(), |s| s.cached(cost));
    let bytes = speculation.map_or_else(|| cost.cache_bytes(), |s| s.cache_bytes(cost));
    let block = engine.block_tokens.max(1);
    let mut reads = [None; KINDS];
    let mut kinds = 0;
    for (slot, most) in reads.iter_mut().zip(cost.reads_at_most()) {
        *slot = most;
        kinds += 1;
    }
    CacheShape {
        // Lanes of a pipeline share the accelerators' memory.
        capacity: (bytes / f64::from(shape.deployment.pp.max(1))) as u64,
        block,
        block_bytes: (shape.kv_bytes_per_token * f64::from(block)).ceil() as u64,
        windows: shape.kv_windowed.clone(),
        state: shape.state_bytes_per_sequence as u64,
        reads,
        kinds,
    }
}

/// Limits and switches of an engine that prices its steps with `cost`.
pub(super) fn limits<'a>(
    cost: &StepCost,
    engine: &EngineProfile,
    options: &FleetOptions,
    speculation: Option<&'a Speculating<'a>>,
) -> Limits<'a> {
    let copies = cost.shape().deployment.attention_dp > 1;
    let of_copies = |steps: Option<u32>| steps.filter(|_| copies).map_or(0, u64::from);
    Limits {
        rules: Rules::of(engine.policy),
        max_sequences: engine.max_sequences.max(1),
        token_budget: engine.token_budget.max(1),
        prompt_wait: of_copies(engine.prompt_wait_steps),
        prompt_batch: of_copies(engine.prompt_batch_steps),
        lookahead: engine.lookahead,
        receive_steps: u64::from(engine.receive_steps.unwrap_or(1)),
        coalesce: options.coalesce,
        swap_seconds_per_byte: match options.preemption {
            Preemption::Recompute => None,
            Preemption::Swap(rate) => Some(1.0 / rate.0.max(1.0)),
        },
        swap: options.swap,
        layers: cost.shape().layers,
        priority_steps: options.priority_steps.max(1),
        adapters: options.adapters,
        co_serving: options.co_serving,
        tiers: options.tiers,
        expert_offload: options.expert_offload,
        pace: options.pace.filter(|span| *span > 0),
        prefixes: SharedPrefixes::default(),
        fed: false,
        speculation,
    }
}

struct Fleet<'a> {
    groups: &'a [ReplicaGroup<'a>],
    /// Group of every replica.
    group_of: Vec<u32>,
    clients: Clients<'a>,
    options: FleetOptions,
    prefixes: SharedPrefixes,
    sink: &'a mut dyn Sink,
    store: Store,
    replicas: Vec<Replica<'a>>,
    watch: Option<Watch>,
    loads: Vec<u32>,
    /// Replicas that take requests by load over speed.
    by_load: BTreeSet<(u64, u32)>,
    /// Thousandths of a turn that each replica is ahead, for routing in turn by weight.
    ahead: Vec<i64>,
    /// Where a prefix or a conversation was served last.
    homes: BTreeMap<u64, u32>,
    scaler: Option<Scaler>,
    turn: u32,
    events: BinaryHeap<Reverse<(u64, u32)>>,
    first_sent: u64,
    last_finish: u64,
    finished: Vec<u32>,
    touched: Vec<u32>,
    samples: Vec<Sample>,
    stride: u64,
    seen: u64,
}

impl<'a> Fleet<'a> {
    fn new(
        groups: &'a [ReplicaGroup<'a>],
        (clients, options): (Option<u32>, FleetOptions),
        (prefixes, speculation): (SharedPrefixes, Option<&'a Speculating<'a>>),
        requests: &'a mut dyn Iterator<Item = Request>,
        sink: &'a mut dyn Sink,
    ) -> Self {
        let (mut replicas, mut group_of) = (Vec::new(), Vec::new());
        for (index, group) in groups.iter().enumerate() {
            let shape = cache_shape(group.cost, group.engine, speculation);
            let limits = limits(group.cost, group.engine, &options, speculation);
            let limits = Limits { prefixes: prefixes.clone(), ..limits };
            for _ in 0..group.replicas {
                let number = replicas.len() as u32;
                replicas.push(Replica::new(number, group.cost.lanes(), &shape, limits.clone()));
                group_of.push(index as u32);
            }
        }
        let all = replicas.len() as u32;
        let mut store = Store::default();
        // The front ends are alike; they are taken to be the first group's.
        let front = groups.first().map_or_else(FrontEnd::default, |g| FrontEnd::of(g.cost, all));
        Self {
            groups,
            group_of,
            clients: Clients::new(requests, clients, front, &mut store),
            options,
            prefixes,
            ahead: vec![0; replicas.len()],
            sink,
            store,
            loads: vec![0; replicas.len()],
            by_load: (0..options.autoscale.map_or(all, |a| a.least)).map(|i| (0, i)).collect(),
            scaler: options.autoscale.map(|a| Scaler::new(a, all)),
            replicas,
            watch: None,
            homes: BTreeMap::new(),
            turn: 0,
            events: BinaryHeap::new(),
            first_sent: u64::MAX,
            last_finish: 0,
            finished: Vec::new(),
            touched: Vec::new(),
            samples: Vec::new(),
            stride: 1,
            seen: 0,
        }
    }

    /// Runs to the end; false where it was given up.
    fn run(&mut self) -> bool {
        loop {
            let arrival = self.clients.arrival();
            let event = self.events.peek().map(|Reverse(e)| *e);
            if let Some(watch) = &mut self.watch {
                let next = arrival.into_iter().chain(event.map(|(end, _)| end)).min();
                if watch.lost(next.unwrap_or(0), &self.store) {
                    return false;
                }
            }
            match (arrival, event) {
                (None, None) => return true,
                (Some(at), event) if event.is_none_or(|(end, _)| at <= end) => self.arrive(at),
                _ => self.step(),
            }
        }
    }

    /// All arrivals of one instant; only then do idle engines start.
    fn arrive(&mut self, now: u64) {
        self.touched.clear();
        while let Some(id) = self.clients.arrive(&mut self.store, now) {
            let request = *self.store.request(id);
            if let Some(watch) = &mut self.watch {
                watch.came(id, self.store.live(id));
            }
            self.scale(now);
            let Some(replica) = self.route(&request) else {
                for (_, live) in self.clients.refuse(&mut self.store, id, now) {
                    self.report(&live);
                }
                continue;
            };
            self.store.progress(id).replica = replica;
            self.set_load(replica, self.loads[replica as usize] + 1);
            self.replicas[replica as usize].waiting.push_back(id);
            self.touched.push(replica);
        }
        self.clients.note_backlog();
        let touched = std::mem::take(&mut self.touched);
        for &index in &touched {
            let replica = &mut self.replicas[index as usize];
            if replica.idle() {
                self.start(index, now);
            } else {
                let before = replica.end();
                let cost = self.groups[self.group_of[index as usize] as usize].cost;
                replica.shorten(cost, &self.store, now);
                let after = replica.end();
                if let (true, Some(end)) = (after != before, after) {
                    self.events.push(Reverse((end, index)));
                }
            }
        }
        self.touched = touched;
    }

    /// Reports what became of a request.
    fn report(&mut self, live: &Live) {
        self.first_sent = self.first_sent.min(live.progress.sent);
        self.last_finish = self.last_finish.max(live.progress.finish);
        self.sink.take(live.number, &live.request, &Outcome::of(&live.progress));
        if let Some(watch) = &mut self.watch {
            watch.gone(live);
        }
    }

    fn start(&mut self, index: u32, now: u64) {
        let replica = &mut self.replicas[index as usize];
        let cost = self.groups[self.group_of[index as usize] as usize].cost;
        if replica.start(cost, &mut self.store, now)
            && let Some(end) = replica.end()
        {
            self.events.push(Reverse((end, index)));
        }
        self.sample(index, now);
    }

    fn sample(&mut self, index: u32, now: u64) {
        let most = self.options.samples;
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
        self.replicas[index as usize].finish(&mut self.store, &mut finished);
        for &id in &finished {
            self.set_load(index, self.loads[index as usize] - 1);
            if let Some(scaler) = &mut self.scaler {
                scaler.emptied(index, self.loads[index as usize], end);
            }
            let live = self.store.remove(id);
            self.report(&live);
            self.clients.answered(&mut self.store, live.next, end);
        }
        finished.clear();
        self.finished = finished;
        self.start(index, end);
    }

    fn result(mut self) -> ServingRun {
        let mut gaps = Histogram::default();
        let (mut steps, mut busy, mut computed, mut cached, mut generated) = (0, 0u64, 0, 0, 0);
        let mut peak_cache: f64 = 0.0;
        let mut extra = Extra {
            unfinished: self.store.len() as u64,
            most_alive: self.store.most() as u64,
            ..Extra::default()
        };
        for (r, group) in self.replicas.iter_mut().zip(&self.group_of) {
            r.tune_idle(self.groups[*group as usize].cost, self.last_finish);
            gaps.merge(&r.sums.gaps);
            steps += r.sums.steps;
            busy += r.sums.busy;
            computed += r.sums.computed;
            cached += r.sums.cached;
            generated += r.sums.generated;
            peak_cache = peak_cache.max(r.sums.peak_cache);
            extra.moved_bytes += r.sums.moved;
            extra.tuned_tokens += r.sums.tuned;
            extra.rounds += r.sums.rounds;
            extra.round_tokens += r.sums.round_tokens;
            extra.leaked_bytes += r.leaked();
        }
        let end = self.last_finish;
        let all = self.replicas.len() as u32;
        let fixed = f64::from(all) * end as f64 * 1e-12;
        let replica_seconds = self.scaler.as_ref().map_or(fixed, |s| s.replica_seconds(end));
        let most_replicas = self.scaler.as_ref().map_or(all, |s| s.most_on);
        ServingRun {
            replica_seconds,
            most_replicas,
            outcomes: Vec::new(),
            gaps,
            steps,
            busy: busy as f64 * 1e-12,
            request_seconds: self.clients.request_seconds(),
            computed_prompt_tokens: computed,
            cached_prompt_tokens: cached,
            generated_tokens: generated,
            peak_cache,
            backlog: self.clients.backlog(),
            start: Time(self.first_sent.min(self.last_finish)),
            end: Time(self.last_finish),
            samples: self.samples,
            extra,
        }
    }
}
