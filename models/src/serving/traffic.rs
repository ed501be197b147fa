//! From a workload to requests: who arrives when, with how many tokens.

use super::rng::Rng;
use super::workload::{Arrival, ServingWorkload, Tenant};
use psim_hardware::{Seconds, Time};
use serde::Serialize;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
}

/// Requests of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    /// By arrival, then by tenant and number.
    pub requests: Vec<Request>,
    /// Closed loop: so many clients, each sending its next request when the last one is answered.
    pub clients: Option<u32>,
}

impl Traffic {
    /// Draws the requests of a workload. Same seed, same requests.
    pub fn generate(workload: &ServingWorkload, seed: u64) -> Self {
        let mut requests = Vec::new();
        let mut clients = None;
        for (index, tenant) in workload.tenants.iter().enumerate() {
            let mut times = Rng::new(seed, 2 * index as u64 + 1);
            let mut sizes = Rng::new(seed, 2 * index as u64 + 2);
            if let Arrival::ClosedLoop { concurrency } = tenant.arrival {
                clients = Some(clients.unwrap_or(0) + concurrency);
            }
            one(tenant, index as u16, &mut times, &mut sizes, &mut requests);
        }
        // Stable: equal times keep the order of tenants and numbers.
        requests.sort_by_key(|r| r.arrival);
        Self { requests, clients }
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

fn one(tenant: &Tenant, index: u16, times: &mut Rng, sizes: &mut Rng, out: &mut Vec<Request>) {
    if let Arrival::Trace(rows) = &tenant.arrival {
        let limit = tenant.requests.map_or(usize::MAX, |n| n as usize);
        out.extend(rows.iter().take(limit).map(|r| Request { tenant: index, ..*r }));
        return;
    }
    let count = u64::from(tenant.requests.unwrap_or(u32::MAX));
    let horizon = tenant.duration_s.unwrap_or(f64::INFINITY);
    let mut now = 0.0;
    for _ in 0..count {
        now = match next_arrival(&tenant.arrival, now, times) {
            Some(time) if time < horizon => time,
            _ => break,
        };
        let paired = tenant.pairs.as_ref().map(|pairs| {
            let pick = sizes.between(0, pairs.len().max(1) as u64 - 1) as usize;
            pairs.get(pick).copied().unwrap_or((1, 1))
        });
        let (input, output) = paired.unwrap_or_else(|| (tenant.input.draw(sizes), tenant.output.draw(sizes)));
        let (prefix, prefix_group) = match &tenant.prefix {
            Some(p) => {
                let group = sizes.between(0, u64::from(p.groups.max(1)) - 1) as u32;
                (p.tokens, group + 1 + (u32::from(index) << 20))
            }
            None => (0, 0),
        };
        out.push(Request {
            arrival: Time::from(Seconds(now)),
            input: input.saturating_add(prefix),
            output,
            prefix,
            prefix_group,
            tenant: index,
        });
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
