//! Serving workloads: traffic with a service level, as a TOML file.
//!
//! ```toml
//! schema = 1
//! name = "chat"
//!
//! [[tenant]]
//! name = "interactive"
//! arrival = "poisson"              # burst, constant, poisson, gamma, closed-loop, ramp, diurnal, trace
//! rate = 20.0                      # requests a second
//! requests = 4096
//! input = { lognormal = { mean = 1000, cv = 1.2 } }
//! output = { geometric = 200 }
//! slo = "ttft<500ms@p90, tpot<50ms@p90"
//! ```
//!
//! | arrival | keys beside it |
//! |---|---|
//! | `burst` | none: all requests at once |
//! | `constant`, `poisson` | `rate` |
//! | `gamma` | `rate`, `cv` (standard deviation over mean of the gaps) |
//! | `closed-loop` | `concurrency` |
//! | `ramp` | `from`, `to`, `over_s` |
//! | `diurnal` | `rate` (mean), `peak_ratio`, `period_s` (a day) |
//! | `trace` | `trace` (a file, see [`super::trace`]), `rate` to compress or stretch it |
//!
//! Lengths come from `input` and `output` (`fixed`, `uniform`, `normal`, `lognormal`, `geometric`, `values`), from
//! `lengths` (a trace whose pairs are drawn), or from the trace that is replayed. `prefix`, `sessions` and `adapters` add
//! shared prompts, conversations and low-rank adapters. A key that its arrival does not use is refused.

mod arrival;
mod file;
#[cfg(test)]
mod tests;

pub use arrival::{Arrival, Replay};
pub use file::parse_workload;

use super::lengths::Lengths;
use super::slo::ServiceLevel;
use super::traffic::{Request, TenantStream};
use serde::Deserialize;

/// Version of the workload schema.
pub const WORKLOAD_SCHEMA: i64 = 1;

/// Most requests of one tenant.
pub const MAX_REQUESTS: u32 = 1 << 26;

/// A prefix that requests share (system prompt, document).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedPrefix {
    /// Tokens of the prefix, in front of the drawn prompt.
    pub tokens: u32,
    /// Different prefixes; each request takes one at random.
    #[serde(default = "one")]
    pub groups: u32,
}

fn one() -> u32 {
    1
}

/// Conversations: an arrival begins one, and every later turn is sent a while after the last answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sessions {
    /// Turns of a conversation.
    pub turns: Lengths,
    /// Mean time between an answer and the next question, seconds; exponential.
    pub think_s: f64,
    /// A conversation ends before its prompt and answer together exceed this.
    pub max_tokens: Option<u32>,
}

/// Adapters that requests ask for.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapters {
    /// Different adapters.
    pub count: u32,
    /// Popularity of the n-th is in proportion to n^-alpha; 0 is uniform.
    #[serde(default)]
    pub alpha: f64,
}

impl Adapters {
    /// Chance that an adapter is this one or one before it.
    pub(super) fn cumulative(self) -> Vec<f64> {
        let weights: Vec<f64> = (1..=self.count).map(|n| f64::from(n).powf(-self.alpha)).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        weights
            .into_iter()
            .map(|w| {
                sum += w / total;
                sum
            })
            .collect()
    }
}

/// One kind of traffic with its service level.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant {
    /// Name.
    pub name: String,
    /// Arrivals.
    pub arrival: Arrival,
    /// Requests to send; `None` with a duration or a trace.
    pub requests: Option<u32>,
    /// Seconds after which no more are sent.
    pub duration_s: Option<f64>,
    /// Prompt lengths.
    pub input: Lengths,
    /// Answer lengths.
    pub output: Lengths,
    /// Prompt and answer lengths drawn together (a data set), in place of the two above.
    pub pairs: Option<Vec<(u32, u32)>>,
    /// Shared prefix.
    pub prefix: Option<SharedPrefix>,
    /// Conversations of several turns; `input` is then what each turn adds.
    pub sessions: Option<Sessions>,
    /// Adapters.
    pub adapters: Option<Adapters>,
    /// Service level.
    pub slo: ServiceLevel,
}

impl Tenant {
    /// Mean prompt and answer, tokens; of conversations the prompts of all turns, with what was said before.
    pub fn mean_lengths(&self) -> (f64, f64) {
        let mean = |pairs: &mut dyn Iterator<Item = (u32, u32)>| {
            let (mut n, mut input, mut output) = (0.0f64, 0.0, 0.0);
            for (i, o) in pairs {
                n += 1.0;
                input += f64::from(i);
                output += f64::from(o);
            }
            (input / n.max(1.0), output / n.max(1.0))
        };
        let prefix = self.prefix.map_or(0.0, |p| f64::from(p.tokens));
        match (&self.pairs, &self.arrival) {
            (_, Arrival::Trace(rows)) => mean(&mut rows.requests.iter().map(|r| (r.input, r.output))),
            _ if self.sessions.is_some() => mean(&mut self.sample().iter().map(|r| (r.input, r.output))),
            (Some(pairs), _) => {
                let (input, output) = mean(&mut pairs.iter().copied());
                (input + prefix, output)
            }
            _ => (self.input.mean() + prefix, self.output.mean()),
        }
    }

    /// Requests drawn to know the means of conversations, whose lengths grow turn by turn.
    fn sample(&self) -> Vec<Request> {
        const DRAWN: u32 = 8192;
        let tenant =
            Self { requests: Some(DRAWN), arrival: Arrival::Burst, duration_s: None, ..self.clone() };
        TenantStream::new(&tenant, 0, 0).collect()
    }

    /// Mean requests of an arrival: the turns of a conversation, else 1.
    pub fn requests_per_arrival(&self) -> f64 {
        if self.sessions.is_none() {
            return 1.0;
        }
        let drawn = self.sample();
        // The last conversation may have been cut.
        let whole = drawn.iter().rposition(|r| r.turn == 0).unwrap_or(0);
        let begun = drawn[..whole].iter().filter(|r| r.turn == 0).count();
        if begun == 0 { 1.0 } else { whole as f64 / begun as f64 }
    }

    /// Mean requests a second, turns of conversations included; `None` in a closed loop or burst.
    pub fn rate(&self) -> Option<f64> {
        self.arrival.rate().map(|rate| rate * self.requests_per_arrival())
    }

    /// Mean seconds from the first to the last question of a conversation, answers not counted.
    pub fn session_span_s(&self) -> f64 {
        self.sessions.as_ref().map_or(0.0, |s| s.think_s * (self.requests_per_arrival() - 1.0).max(0.0))
    }
}

/// Traffic with service levels.
#[derive(Debug, Clone, PartialEq)]
pub struct ServingWorkload {
    /// Name.
    pub name: String,
    /// Tenants, at least one.
    pub tenants: Vec<Tenant>,
}

impl ServingWorkload {
    /// One tenant with fixed lengths.
    pub fn fixed(name: &str, arrival: Arrival, requests: u32, input: u64, output: u64) -> Self {
        Self {
            name: name.to_owned(),
            tenants: vec![Tenant {
                name: name.to_owned(),
                arrival,
                requests: Some(requests),
                duration_s: None,
                input: Lengths::Fixed(input),
                output: Lengths::Fixed(output),
                pairs: None,
                prefix: None,
                sessions: None,
                adapters: None,
                slo: ServiceLevel::default(),
            }],
        }
    }

    /// Mean requests a second of all tenants, turns of conversations included; `None` in a closed loop or burst.
    pub fn rate(&self) -> Option<f64> {
        self.tenants.iter().map(Tenant::rate).sum()
    }

    /// All tenants sped up or slowed down so that together they send `rate` requests a second.
    #[must_use]
    pub fn at_rate(&self, rate: f64) -> Self {
        let mut out = self.clone();
        let share = 1.0 / self.tenants.len().max(1) as f64;
        let total = self.rate();
        for (tenant, now) in out.tenants.iter_mut().zip(&self.tenants) {
            let wanted = match (now.rate(), total) {
                (Some(own), Some(total)) if total > 0.0 => rate * own / total,
                _ => rate * share,
            };
            tenant.arrival = now.arrival.at_rate(wanted / now.requests_per_arrival());
        }
        out
    }

    /// Mean prompt and answer of all requests, tokens: tenants count by their rates, or by their requests where one has
    /// no rate.
    pub fn mean_lengths(&self) -> (f64, f64) {
        let rates: Option<Vec<f64>> = self.tenants.iter().map(Tenant::rate).collect();
        let weights = rates
            .unwrap_or_else(|| self.tenants.iter().map(|t| f64::from(t.requests.unwrap_or(1024))).collect());
        let total: f64 = weights.iter().sum();
        let (mut input, mut output) = (0.0, 0.0);
        for (tenant, weight) in self.tenants.iter().zip(weights) {
            let (i, o) = tenant.mean_lengths();
            input += i * weight / total.max(f64::MIN_POSITIVE);
            output += o * weight / total.max(f64::MIN_POSITIVE);
        }
        (input, output)
    }

    /// The longest mean conversation of any tenant, seconds ([`Tenant::session_span_s`]).
    pub fn session_span_s(&self) -> f64 {
        self.tenants.iter().map(Tenant::session_span_s).fold(0.0, f64::max)
    }
}
