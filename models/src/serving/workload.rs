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

use super::lengths::Lengths;
use super::slo::ServiceLevel;
use super::trace::parse_trace;
use super::traffic::Request;
use psim_hardware::SourceError;
use psim_hardware::source_error::parse_toml;
use serde::Deserialize;
use std::ops::Range;
use toml::Spanned;

/// Version of the workload schema.
pub const WORKLOAD_SCHEMA: i64 = 1;

/// Most requests of one tenant.
pub const MAX_REQUESTS: u32 = 1 << 26;

/// When requests arrive.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrival {
    /// All at once (offline, maximum throughput).
    Burst,
    /// Equal gaps.
    Constant {
        /// Requests a second.
        rate: f64,
    },
    /// Exponential gaps.
    Poisson {
        /// Requests a second.
        rate: f64,
    },
    /// Gamma gaps: burstier than Poisson where `cv` is above 1.
    Gamma {
        /// Requests a second.
        rate: f64,
        /// Coefficient of variation of the gaps.
        cv: f64,
    },
    /// Clients that send their next request when the last is answered.
    ClosedLoop {
        /// Clients.
        concurrency: u32,
    },
    /// Poisson with a rate that changes linearly, then stays.
    Ramp {
        /// Requests a second at the start.
        from: f64,
        /// Requests a second at the end.
        to: f64,
        /// Seconds of the change.
        over_s: f64,
    },
    /// Poisson with a rate that follows a sine over a day.
    Diurnal {
        /// Mean requests a second.
        mean: f64,
        /// Peak over mean, 1 to 2.
        peak_ratio: f64,
        /// Seconds of a day.
        period_s: f64,
    },
    /// These requests.
    Trace(Vec<Request>),
}

impl Arrival {
    /// Mean rate over a long time, requests a second; `None` where it follows from the service.
    pub fn rate(&self) -> Option<f64> {
        match self {
            Self::Constant { rate } | Self::Poisson { rate } | Self::Gamma { rate, .. } => Some(*rate),
            Self::Ramp { to, .. } => Some(*to),
            Self::Diurnal { mean, .. } => Some(*mean),
            Self::Trace(rows) => {
                let last = rows.last()?.arrival.seconds().0;
                (last > 0.0).then(|| rows.len() as f64 / last)
            }
            Self::Burst | Self::ClosedLoop { .. } => None,
        }
    }

    /// The same process at another mean rate; traces are compressed in time.
    #[must_use]
    pub fn at_rate(&self, wanted: f64) -> Self {
        let mut out = self.clone();
        let factor = self.rate().map_or(1.0, |now| wanted / now);
        match &mut out {
            Self::Constant { rate } | Self::Poisson { rate } | Self::Gamma { rate, .. } => *rate = wanted,
            Self::Ramp { from, to, .. } => {
                *from *= factor;
                *to *= factor;
            }
            Self::Diurnal { mean, .. } => *mean = wanted,
            Self::Trace(rows) => {
                for row in rows {
                    row.arrival.0 = (row.arrival.0 as f64 / factor) as u64;
                }
            }
            Self::Burst | Self::ClosedLoop { .. } => out = Self::Poisson { rate: wanted },
        }
        out
    }
}

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
    /// Mean prompt and answer, tokens.
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
        match (&self.pairs, &self.arrival) {
            (_, Arrival::Trace(rows)) => mean(&mut rows.iter().map(|r| (r.input, r.output))),
            (Some(pairs), _) => mean(&mut pairs.iter().copied()),
            _ => {
                let prefix = self.prefix.map_or(0.0, |p| f64::from(p.tokens));
                (self.input.mean() + prefix, self.output.mean())
            }
        }
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

    /// Mean arrivals of all tenants, requests a second; `None` in a closed loop or burst.
    pub fn rate(&self) -> Option<f64> {
        self.tenants.iter().map(|t| t.arrival.rate()).sum()
    }

    /// All tenants sped up or slowed down so that together they send `rate` requests a second.
    #[must_use]
    pub fn at_rate(&self, rate: f64) -> Self {
        let mut out = self.clone();
        let share = 1.0 / self.tenants.len().max(1) as f64;
        let total = self.rate();
        for tenant in &mut out.tenants {
            let wanted = match (tenant.arrival.rate(), total) {
                (Some(own), Some(total)) if total > 0.0 => rate * own / total,
                _ => rate * share,
            };
            tenant.arrival = tenant.arrival.at_rate(wanted);
        }
        out
    }

    /// Longest prompt and answer together, where the distribution bounds it.
    pub fn mean_lengths(&self) -> (f64, f64) {
        let n = self.tenants.len().max(1) as f64;
        let sum =
            self.tenants.iter().map(Tenant::mean_lengths).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        (sum.0 / n, sum.1 / n)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadFile {
    #[expect(dead_code, reason = "checked before")]
    schema: i64,
    name: Option<String>,
    #[serde(default)]
    tenant: Vec<Spanned<TenantFile>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantFile {
    name: Option<String>,
    arrival: Spanned<String>,
    rate: Option<Spanned<f64>>,
    cv: Option<Spanned<f64>>,
    concurrency: Option<Spanned<u32>>,
    from: Option<Spanned<f64>>,
    to: Option<Spanned<f64>>,
    over_s: Option<Spanned<f64>>,
    peak_ratio: Option<Spanned<f64>>,
    period_s: Option<Spanned<f64>>,
    requests: Option<Spanned<u32>>,
    duration_s: Option<Spanned<f64>>,
    trace: Option<Spanned<String>>,
    lengths: Option<Spanned<String>>,
    input: Option<Spanned<Lengths>>,
    output: Option<Spanned<Lengths>>,
    prefix: Option<Spanned<SharedPrefix>>,
    sessions: Option<Spanned<Sessions>>,
    adapters: Option<Spanned<Adapters>>,
    slo: Option<Spanned<String>>,
}

/// Arrival names that the field uses and psim does not have, with the reason.
const NOT_BUILT: [(&str, &str); 3] = [
    (
        "sessions",
        "conversations are a table of the tenant, `sessions = { turns = { fixed = 4 }, think_s = 10.0 }`",
    ),
    (
        "multi-turn",
        "conversations are a table of the tenant, `sessions = { turns = { fixed = 4 }, think_s = 10.0 }`",
    ),
    ("weibull", "only gamma gaps are built for burstiness"),
];

/// Reads a workload file. `load` fetches the text of trace and length files named in it.
///
/// # Errors
/// Wrong syntax, unknown keys, impossible numbers, traces that cannot be read; each names its place.
pub fn parse_workload(
    file: &str,
    text: &str,
    load: &mut dyn FnMut(&str) -> Result<String, String>,
) -> Result<ServingWorkload, SourceError> {
    let hint = "a serving workload has [[tenant]] tables with arrival, input, output and slo";
    let raw: WorkloadFile = parse_toml(file, text, "serving workload", WORKLOAD_SCHEMA, hint)?;
    if raw.tenant.is_empty() {
        return Err(SourceError::whole(file, "the workload has no [[tenant]]", hint));
    }
    let mut reader = Reader { file, text, load };
    let mut tenants = Vec::new();
    for (index, tenant) in raw.tenant.iter().enumerate() {
        tenants.push(reader.tenant(index, tenant)?);
    }
    let closed = tenants.iter().filter(|t| matches!(t.arrival, Arrival::ClosedLoop { .. })).count();
    if closed > 0 && tenants.len() > 1 {
        return Err(SourceError::whole(
            file,
            "a closed loop cannot be mixed with other tenants",
            "give the closed loop a workload of its own",
        ));
    }
    Ok(ServingWorkload { name: raw.name.unwrap_or_else(|| "serving".to_owned()), tenants })
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    load: &'a mut dyn FnMut(&str) -> Result<String, String>,
}

impl Reader<'_> {
    fn at(&self, span: &Range<usize>, message: impl Into<String>, hint: &str) -> SourceError {
        SourceError::at(self.file, self.text, span, message, hint)
    }

    /// A number above zero that an arrival process needs.
    fn need(
        &self,
        value: Option<&Spanned<f64>>,
        whole: &Range<usize>,
        key: &str,
    ) -> Result<f64, SourceError> {
        let Some(value) = value else {
            return Err(self.at(whole, format!("this arrival needs `{key}`"), &format!("add `{key} = …`")));
        };
        let number = *value.get_ref();
        if number.is_finite() && number > 0.0 && number < 1e12 {
            Ok(number)
        } else {
            Err(self.at(
                &value.span(),
                format!("`{key}` must be a number above zero, not {number}"),
                "check the number",
            ))
        }
    }

    fn trace(&mut self, path: &Spanned<String>) -> Result<super::trace::Trace, SourceError> {
        let text = (self.load)(path.get_ref()).map_err(|e| {
            self.at(&path.span(), format!("`{}` cannot be read: {e}", path.get_ref()), "check the path")
        })?;
        parse_trace(path.get_ref(), &text).map_err(|e| {
            self.at(
                &path.span(),
                e.to_string(),
                "CSV with arrival_s, input_tokens, output_tokens is the plainest layout",
            )
        })
    }

    fn tenant(&mut self, index: usize, raw: &Spanned<TenantFile>) -> Result<Tenant, SourceError> {
        let whole = raw.get_ref().arrival.span();
        let t = raw.get_ref();
        let rate = |r: &Self| r.need(t.rate.as_ref(), &whole, "rate");
        let arrival = match t.arrival.get_ref().as_str() {
            "burst" | "offline" => Arrival::Burst,
            "constant" => Arrival::Constant { rate: rate(self)? },
            "poisson" => Arrival::Poisson { rate: rate(self)? },
            "gamma" => Arrival::Gamma { rate: rate(self)?, cv: self.need(t.cv.as_ref(), &whole, "cv")? },
            "closed-loop" => match t.concurrency.as_ref().map(|c| *c.get_ref()) {
                Some(n) if n > 0 && n <= 1 << 20 => Arrival::ClosedLoop { concurrency: n },
                _ => {
                    return Err(self.at(
                        &whole,
                        "a closed loop needs `concurrency` from 1 to 1048576",
                        "add `concurrency = 64`",
                    ));
                }
            },
            "ramp" => Arrival::Ramp {
                from: self.need(t.from.as_ref(), &whole, "from")?,
                to: self.need(t.to.as_ref(), &whole, "to")?,
                over_s: self.need(t.over_s.as_ref(), &whole, "over_s")?,
            },
            "diurnal" => {
                let peak_ratio = self.need(t.peak_ratio.as_ref(), &whole, "peak_ratio")?;
                if !(1.0..=2.0).contains(&peak_ratio) {
                    return Err(self.at(
                        &whole,
                        format!("`peak_ratio` is {peak_ratio}, a sine allows 1 to 2"),
                        "peak over mean",
                    ));
                }
                let period_s = match t.period_s.as_ref() {
                    Some(_) => self.need(t.period_s.as_ref(), &whole, "period_s")?,
                    None => 86_400.0,
                };
                Arrival::Diurnal { mean: rate(self)?, peak_ratio, period_s }
            }
            "trace" => {
                let Some(path) = &t.trace else {
                    return Err(self.at(
                        &whole,
                        "a trace needs `trace`, the path of its file",
                        "add `trace = \"requests.csv\"`",
                    ));
                };
                let trace = self.trace(path)?;
                if !trace.timed {
                    return Err(self.at(
                        &path.span(),
                        "the file has lengths but no arrival times",
                        "use it as `lengths = …` with another arrival",
                    ));
                }
                Arrival::Trace(trace.requests)
            }
            other => {
                let built =
                    ["burst", "constant", "poisson", "gamma", "closed-loop", "ramp", "diurnal", "trace"];
                let reason = NOT_BUILT.iter().find(|(name, _)| *name == other);
                let message = match reason {
                    Some((name, why)) => format!("arrival `{name}` is not built: {why}"),
                    None => format!("`{other}` is not an arrival process"),
                };
                return Err(self.at(&whole, message, &format!("use one of: {}", built.join(", "))));
            }
        };
        let pairs = match &t.lengths {
            Some(path) => Some(self.trace(path)?.requests.iter().map(|r| (r.input, r.output)).collect()),
            None => None,
        };
        let is_trace = matches!(arrival, Arrival::Trace(_));
        let lengths =
            |r: &Self, value: &Option<Spanned<Lengths>>, key: &str| -> Result<Lengths, SourceError> {
                match value {
                    None if is_trace || t.lengths.is_some() => Ok(Lengths::Fixed(1)),
                    None => Err(r.at(
                        &whole,
                        format!("the tenant has no `{key}` lengths"),
                        &format!("add `{key} = {{ fixed = 1024 }}`"),
                    )),
                    Some(l) => match l.get_ref().fault() {
                        Some(fault) => Err(r.at(&l.span(), fault, "lengths are whole tokens")),
                        None => Ok(l.get_ref().clone()),
                    },
                }
            };
        let (input, output) = (lengths(self, &t.input, "input")?, lengths(self, &t.output, "output")?);
        let duration_s = match &t.duration_s {
            Some(_) => Some(self.need(t.duration_s.as_ref(), &whole, "duration_s")?),
            None => None,
        };
        let requests = match &t.requests {
            Some(n) if *n.get_ref() == 0 || *n.get_ref() > MAX_REQUESTS => {
                return Err(self.at(
                    &n.span(),
                    format!("`requests` must be 1 to {MAX_REQUESTS}"),
                    "check the number",
                ));
            }
            Some(n) => Some(*n.get_ref()),
            None if is_trace => None,
            None if duration_s.is_some() && arrival.rate().is_some() => None,
            None => Some(1024),
        };
        let slo = match &t.slo {
            None => ServiceLevel::default(),
            Some(text) => ServiceLevel::parse(text.get_ref())
                .map_err(|m| self.at(&text.span(), m, "write it like \"ttft<500ms@p90, tpot<50ms@p90\""))?,
        };
        if let Some(prefix) = &t.prefix
            && (prefix.get_ref().tokens > 1 << 22 || prefix.get_ref().groups > 1 << 19)
        {
            return Err(self.at(
                &prefix.span(),
                "the shared prefix is out of range",
                "tokens up to 4194304, groups up to 524288",
            ));
        }
        if let Some(sessions) = &t.sessions {
            let fault = sessions.get_ref().turns.fault().or_else(|| {
                let think = sessions.get_ref().think_s;
                (!(0.0..=1e7).contains(&think)).then(|| format!("`think_s` must be 0 to 1e7, not {think}"))
            });
            if let Some(fault) = fault {
                return Err(self.at(
                    &sessions.span(),
                    fault,
                    "sessions = { turns = { fixed = 4 }, think_s = 10.0 }",
                ));
            }
            if is_trace || matches!(arrival, Arrival::ClosedLoop { .. }) {
                return Err(self.at(
                    &sessions.span(),
                    "conversations need arrivals of their own, not a trace or a closed loop",
                    "use arrival = \"poisson\"",
                ));
            }
        }
        if let Some(adapters) = &t.adapters
            && (!(1..=1 << 20).contains(&adapters.get_ref().count)
                || !(0.0..=10.0).contains(&adapters.get_ref().alpha))
        {
            return Err(self.at(
                &adapters.span(),
                "the adapters are out of range",
                "count from 1 to 1048576, alpha from 0 to 10",
            ));
        }
        Ok(Tenant {
            name: t.name.clone().unwrap_or_else(|| format!("tenant-{}", index + 1)),
            arrival,
            requests,
            duration_s,
            input,
            output,
            pairs,
            prefix: t.prefix.as_ref().map(|p| *p.get_ref()),
            sessions: t.sessions.as_ref().map(|s| s.get_ref().clone()),
            adapters: t.adapters.as_ref().map(|a| *a.get_ref()),
            slo,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::Traffic;

    fn read(body: &str) -> Result<ServingWorkload, SourceError> {
        let text = format!("schema = 1\n[[tenant]]\n{body}\n");
        parse_workload("w.toml", &text, &mut |path| match path {
            "t.csv" => Ok("arrival_s,input_tokens,output_tokens\n1,10,3\n2,20,4\n".to_owned()),
            other => Err(format!("no file {other}")),
        })
    }

    #[test]
    fn every_arrival_reads_and_keeps_its_rate() {
        for arrival in [
            "arrival = \"constant\"\nrate = 5.0",
            "arrival = \"poisson\"\nrate = 5.0",
            "arrival = \"gamma\"\nrate = 5.0\ncv = 2.0",
            "arrival = \"ramp\"\nfrom = 5.0\nto = 5.0\nover_s = 10.0",
            "arrival = \"diurnal\"\nrate = 5.0\npeak_ratio = 1.5\nperiod_s = 100.0",
        ] {
            let w = read(&format!(
                "{arrival}\nrequests = 20000\ninput = {{ fixed = 8 }}\noutput = {{ fixed = 2 }}"
            ))
            .unwrap();
            let traffic = Traffic::generate(&w, 3);
            assert_eq!(traffic.requests.len(), 20000);
            let rate = 20000.0 / traffic.requests[19999].arrival.seconds().0;
            assert!((rate / 5.0 - 1.0).abs() < 0.05, "{arrival}: {rate}");
            assert_eq!(traffic, Traffic::generate(&w, 3));
            assert_ne!(traffic.requests[0].input, 0);
        }
    }

    #[test]
    fn traces_and_lengths() {
        let w = read("arrival = \"trace\"\ntrace = \"t.csv\"").unwrap();
        let traffic = Traffic::generate(&w, 0);
        assert_eq!((traffic.input_tokens(), traffic.output_tokens()), (30, 7));
        let w = read("arrival = \"poisson\"\nrate = 2.0\nlengths = \"t.csv\"\nrequests = 100").unwrap();
        assert!(
            Traffic::generate(&w, 0)
                .requests
                .iter()
                .all(|r| (r.input, r.output) == (10, 3) || (r.input, r.output) == (20, 4))
        );
        let faster = w.at_rate(8.0);
        assert_eq!(faster.rate(), Some(8.0));
    }

    #[test]
    fn faults_point_at_their_line() {
        for (body, word) in [
            ("arrival = \"poison\"\nrate = 1.0", "not an arrival"),
            ("arrival = \"sessions\"", "not built"),
            ("arrival = \"poisson\"", "needs `rate`"),
            ("arrival = \"poisson\"\nrate = -1.0", "above zero"),
            ("arrival = \"poisson\"\nrate = 1.0", "no `input`"),
            ("arrival = \"poisson\"\nrate = 1.0\ninput = { fixed = 0 }\noutput = { fixed = 1 }", "outside"),
            ("arrival = \"trace\"\ntrace = \"x.csv\"", "no file"),
            ("arrival = \"burst\"\ninput = { fixed = 8 }\noutput = { fixed = 1 }\nslo = \"quick\"", "form"),
            ("arrival = \"burst\"\nspeed = 3", "unknown field"),
            (
                "arrival = \"burst\"\ninput = { fixed = 8 }\noutput = { fixed = 1 }\nsessions = { turns = { fixed = 2 }, think_s = -1.0 }",
                "think_s",
            ),
            (
                "arrival = \"closed-loop\"\nconcurrency = 2\ninput = { fixed = 8 }\noutput = { fixed = 1 }\nsessions = { turns = { fixed = 2 }, think_s = 1.0 }",
                "closed loop",
            ),
            (
                "arrival = \"burst\"\ninput = { fixed = 8 }\noutput = { fixed = 1 }\nadapters = { count = 0 }",
                "adapters",
            ),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.message.contains(word), "{body}: {}", error.message);
            assert!(error.location.is_some(), "{body}");
        }
    }
}
