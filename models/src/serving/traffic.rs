//! From a workload to requests: who arrives when, with how many tokens.

use super::lengths::MAX_LENGTH;
use super::rng::Rng;
use super::shared::SharedPrefixes;
use super::workload::{Arrival, ServingWorkload, Sessions, Tenant};
use psim_hardware::{Seconds, Time};
use serde::Serialize;
use std::collections::VecDeque;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Request {
    /// When it arrives; in a closed loop the earliest time at which its client may send it.
    pub arrival: Time,
    /// Prompt, tokens (at least 1).
    pub input: u32,
    /// Answer, tokens (at least 1).
    pub output: u32,
    /// Leading prompt tokens shared with other requests of `prefix_group` (0: none).
    pub prefix: u32,
    /// Which shared prefix.
    pub prefix_group: u32,
    /// Index of the tenant.
    pub tenant: u16,
    /// Turn of its conversation, from 0. Later turns follow the first one directly in the traffic, with its arrival.
    pub turn: u16,
    /// Conversation, from 1; 0 for a request that stands alone.
    pub session: u32,
    /// Leading prompt tokens that are earlier prompts and answers of the conversation, shared prefix included.
    pub history: u32,
    /// From the last answer of the conversation to this turn.
    pub think: Time,
    /// Adapter (low-rank fine-tuning) that it asks for, from 1; 0 for the base model.
    pub adapter: u32,
}

/// Requests of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    /// By arrival, then by tenant and number.
    pub requests: Vec<Request>,
    /// Closed loop: so many clients, each sending its next request when the last one is answered.
    pub clients: Option<u32>,
    /// Which leading tokens they share, where their prefixes branch.
    pub prefixes: SharedPrefixes,
}

impl Traffic {
    /// Draws the requests of a workload. Same seed, same requests.
    pub fn generate(workload: &ServingWorkload, seed: u64) -> Self {
        let mut requests = Vec::new();
        for stream in streams(workload, seed) {
            requests.extend(stream);
        }
        // Stable: equal times keep the order of tenants and numbers, and turns stay together.
        requests.sort_by_key(|r: &Request| r.arrival);
        Self { requests, clients: clients(workload), prefixes: prefixes(workload) }
    }

    /// The same requests one by one, in the same order, without holding them: for runs of many millions. Traces must be
    /// sorted by time.
    pub fn stream(workload: &ServingWorkload, seed: u64) -> impl Iterator<Item = Request> + '_ {
        let mut tenants: Vec<_> = streams(workload, seed).map(Iterator::peekable).collect();
        // The tenant whose conversation is being handed out.
        let mut current = 0;
        std::iter::from_fn(move || {
            let follows = tenants.get_mut(current).and_then(|t| t.peek()).is_some_and(|r| r.turn > 0);
            if !follows {
                let mut least: Option<(Time, usize)> = None;
                for (index, tenant) in tenants.iter_mut().enumerate() {
                    if let Some(r) = tenant.peek()
                        && least.is_none_or(|(time, _)| r.arrival < time)
                    {
                        least = Some((r.arrival, index));
                    }
                }
                current = least?.1;
            }
            tenants.get_mut(current)?.next()
        })
    }

    /// Prompt tokens of all requests.
    pub fn input_tokens(&self) -> u64 {
        self.requests.iter().map(|r| u64::from(r.input)).sum()
    }

    /// Answer tokens of all requests.
    pub fn output_tokens(&self) -> u64 {
        self.requests.iter().map(|r| u64::from(r.output)).sum()
    }
}

/// Clients of a closed loop.
pub fn clients(workload: &ServingWorkload) -> Option<u32> {
    let mut sum = None;
    for tenant in &workload.tenants {
        if let Arrival::ClosedLoop { concurrency } = tenant.arrival {
            sum = Some(sum.unwrap_or(0) + concurrency);
        }
    }
    sum
}

/// The trees of prefixes of all tenants.
pub fn prefixes(workload: &ServingWorkload) -> SharedPrefixes {
    let trees: Vec<&SharedPrefixes> = workload.tenants.iter().filter_map(tree).collect();
    SharedPrefixes::beside(&trees)
}

fn tree(tenant: &Tenant) -> Option<&SharedPrefixes> {
    match &tenant.arrival {
        Arrival::Trace(rows) => Some(&rows.prefixes),
        _ => None,
    }
}

fn streams(workload: &ServingWorkload, seed: u64) -> impl Iterator<Item = TenantStream<'_>> {
    let mut places = 0;
    workload.tenants.iter().enumerate().map(move |(index, t)| {
        let before = places;
        places += tree(t).map_or(0, SharedPrefixes::len) as u32;
        TenantStream { places: before, ..TenantStream::new(t, index as u16, seed) }
    })
}

/// Draws the requests of one tenant in the order of their arrival.
#[derive(Debug)]
pub(super) struct TenantStream<'a> {
    tenant: &'a Tenant,
    index: u16,
    times: Rng,
    sizes: Rng,
    extras: Rng,
    /// Cumulative chances of the adapters.
    popularity: Vec<f64>,
    now: f64,
    row: usize,
    /// Places of the trees of tenants before this one.
    places: u32,
    left: u64,
    conversations: u32,
    /// Later turns of the conversation that was begun.
    turns: VecDeque<Request>,
}

impl Iterator for TenantStream<'_> {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        self.left = self.left.checked_sub(1)?;
        if let Some(turn) = self.turns.pop_front() {
            return Some(turn);
        }
        if let Arrival::Trace(rows) = &self.tenant.arrival {
            let row = rows.requests.get(self.row)?;
            self.row += 1;
            let prefix_group = SharedPrefixes::moved(row.prefix_group, self.places);
            return Some(Request { tenant: self.index, prefix_group, ..*row });
        }
        let horizon = self.tenant.duration_s.unwrap_or(f64::INFINITY);
        self.now = next_arrival(&self.tenant.arrival, self.now, &mut self.times).filter(|t| *t < horizon)?;
        let (input, output) = self.lengths();
        let (prefix, prefix_group) = match &self.tenant.prefix {
            Some(p) => {
                let group = self.sizes.between(0, u64::from(p.groups.max(1)) - 1) as u32;
                (p.tokens, group + 1 + (u32::from(self.index) << 20))
            }
            None => (0, 0),
        };
        let adapter = if self.popularity.is_empty() {
            0
        } else {
            let draw = self.extras.unit();
            self.popularity.partition_point(|c| *c < draw).min(self.popularity.len() - 1) as u32 + 1
        };
        let first = Request {
            arrival: Time::from(Seconds(self.now)),
            input: input.saturating_add(prefix),
            output,
            prefix,
            prefix_group,
            tenant: self.index,
            adapter,
            ..Request::default()
        };
        Some(match &self.tenant.sessions {
            Some(sessions) => self.converse(first, sessions),
            None => first,
        })
    }
}

impl<'a> TenantStream<'a> {
    /// The requests of a tenant that is the `index`-th of its workload.
    pub(super) fn new(tenant: &'a Tenant, index: u16, seed: u64) -> Self {
        let stream = u64::from(index);
        Self {
            tenant,
            index,
            times: Rng::new(seed, 2 * stream + 1),
            sizes: Rng::new(seed, 2 * stream + 2),
            // A stream of its own: adapters and turns leave the other draws as they are.
            extras: Rng::new(seed, 2 * stream + 0x1_0000_0001),
            popularity: tenant.adapters.map(super::workload::Adapters::cumulative).unwrap_or_default(),
            now: 0.0,
            row: 0,
            places: 0,
            left: match (&tenant.arrival, tenant.requests) {
                (Arrival::Trace(rows), limit) => {
                    let all = rows.requests.len() as u64;
                    limit.map_or(all, |n| u64::from(n).min(all))
                }
                (_, limit) => u64::from(limit.unwrap_or(u32::MAX)),
            },
            conversations: 0,
            turns: VecDeque::new(),
        }
    }
}

impl TenantStream<'_> {
    fn lengths(&mut self) -> (u32, u32) {
        match &self.tenant.pairs {
            Some(pairs) => {
                let pick = self.sizes.between(0, pairs.len().max(1) as u64 - 1) as usize;
                pairs.get(pick).copied().unwrap_or((1, 1))
            }
            None => (self.tenant.input.draw(&mut self.sizes), self.tenant.output.draw(&mut self.sizes)),
        }
    }

    /// Draws the later turns of a conversation: each prompt is all that was said, and a new question.
    fn converse(&mut self, mut first: Request, sessions: &Sessions) -> Request {
        self.conversations += 1;
        first.session = self.conversations + (u32::from(self.index) << 26);
        let count = sessions.turns.draw(&mut self.extras).min(u32::from(u16::MAX));
        let mut last = first;
        for turn in 1..count {
            let (input, output) = self.lengths();
            let history = last.input.saturating_add(last.output);
            let whole = u64::from(history) + u64::from(input) + u64::from(output);
            if whole > u64::from(sessions.max_tokens.unwrap_or(MAX_LENGTH as u32)) {
                break;
            }
            last = Request {
                input: history + input,
                output,
                history,
                turn: turn as u16,
                think: Time::from(Seconds(sessions.think_s * self.extras.exponential())),
                ..first
            };
            self.turns.push_back(last);
        }
        first
    }
}

/// Time of the next arrival after `now`, seconds.
fn next_arrival(arrival: &Arrival, now: f64, rng: &mut Rng) -> Option<f64> {
    match *arrival {
        Arrival::Burst | Arrival::ClosedLoop { .. } => Some(0.0),
        Arrival::Constant { rate } => Some(now + 1.0 / rate),
        Arrival::Poisson { rate } => Some(now + rng.exponential() / rate),
        Arrival::Gamma { rate, cv } => Some(now + rng.gamma(1.0 / (cv * cv)) / rate),
        Arrival::Ramp { from, to, over_s } => {
            thin(now, from.max(to), rng, |t| from + (to - from) * (t / over_s).min(1.0))
        }
        Arrival::Diurnal { mean, peak_ratio, period_s } => {
            // A sine about the mean; the peak over the mean is given.
            let swing = peak_ratio - 1.0;
            thin(now, mean * peak_ratio, rng, |t| {
                mean * (1.0 - swing * (std::f64::consts::TAU * t / period_s).cos())
            })
        }
        Arrival::Trace(_) => None,
    }
}

/// A Poisson process of varying rate by thinning (Lewis and Shedler 1979).
fn thin(now: f64, highest: f64, rng: &mut Rng, rate: impl Fn(f64) -> f64) -> Option<f64> {
    let mut t = now;
    for _ in 0..10_000_000u32 {
        t += rng.exponential() / highest;
        if rng.unit() * highest <= rate(t) {
            return Some(t);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::lengths::Lengths;
    use super::super::workload::{Adapters, SharedPrefix};
    use super::*;

    fn chat() -> ServingWorkload {
        let mut w = ServingWorkload::fixed("chat", Arrival::Poisson { rate: 3.0 }, 500, 40, 20);
        w.tenants[0].sessions = Some(Sessions { turns: Lengths::Fixed(4), think_s: 5.0, max_tokens: None });
        w.tenants[0].prefix = Some(SharedPrefix { tokens: 100, groups: 2 });
        w.tenants
            .push(ServingWorkload::fixed("b", Arrival::Constant { rate: 2.0 }, 300, 7, 9).tenants.remove(0));
        w
    }

    #[test]
    fn turns_carry_all_that_was_said_and_follow_their_first() {
        let traffic = Traffic::generate(&chat(), 3);
        assert_eq!(traffic.requests.len(), 800);
        for pair in traffic.requests.windows(2).filter(|p| p[1].turn > 0) {
            let (a, b) = (pair[0], pair[1]);
            assert_eq!((a.session, a.turn + 1, a.arrival), (b.session, b.turn, b.arrival));
            assert_eq!(b.history, a.input + a.output);
            assert_eq!(b.input, b.history + 40);
            assert!(b.think.0 > 0 && a.prefix == 100);
        }
        let thinks: Vec<f64> =
            traffic.requests.iter().filter(|r| r.turn > 0).map(|r| r.think.seconds().0).collect();
        let mean = thinks.iter().sum::<f64>() / thinks.len() as f64;
        assert!((mean / 5.0 - 1.0).abs() < 0.2, "{mean}");
    }

    #[test]
    fn streamed_and_held_traffic_are_the_same() {
        let held = Traffic::generate(&chat(), 9).requests;
        assert_eq!(Traffic::stream(&chat(), 9).collect::<Vec<_>>(), held);
    }

    #[test]
    fn popular_adapters_come_as_often_as_their_power_law_says() {
        let mut w = ServingWorkload::fixed("w", Arrival::Burst, 40_000, 1, 1);
        w.tenants[0].adapters = Some(Adapters { count: 4, alpha: 1.0 });
        let traffic = Traffic::generate(&w, 1);
        // 1, 1/2, 1/3, 1/4 of a sum of 25/12.
        for (adapter, share) in [(1, 0.48), (2, 0.24), (3, 0.16), (4, 0.12)] {
            let seen = traffic.requests.iter().filter(|r| r.adapter == adapter).count() as f64 / 4e4;
            assert!((seen - share).abs() < 0.01, "{adapter}: {seen}");
        }
    }
}
