//! Reads a workload file: every key checked, none ignored.

use super::{
    Adapters, Arrival, MAX_REQUESTS, Replay, ServingWorkload, Sessions, SharedPrefix, Tenant, WORKLOAD_SCHEMA,
};
use crate::serving::lengths::Lengths;
use crate::serving::slo::ServiceLevel;
use crate::serving::trace::{Trace, parse_trace};
use psim_hardware::source_error::parse_toml;
use psim_hardware::suggest::closest;
use psim_hardware::{Seconds, SourceError, Time};
use serde::Deserialize;
use std::ops::Range;
use toml::Spanned;

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
    input: Option<Spanned<Given>>,
    output: Option<Spanned<Given>>,
    prefix: Option<Spanned<SharedPrefix>>,
    sessions: Option<Spanned<Sessions>>,
    adapters: Option<Spanned<Adapters>>,
    slo: Option<Spanned<String>>,
}

/// A key: its name, its place where it is given, the arrivals that use it.
type Particular = (&'static str, Option<Range<usize>>, &'static [&'static str]);

impl TenantFile {
    /// Keys that only some arrivals use.
    fn particular(&self) -> [Particular; 9] {
        fn span<T>(value: &Option<Spanned<T>>) -> Option<Range<usize>> {
            value.as_ref().map(Spanned::span)
        }
        [
            ("rate", span(&self.rate), &["constant", "poisson", "gamma", "diurnal", "trace"]),
            ("cv", span(&self.cv), &["gamma"]),
            ("concurrency", span(&self.concurrency), &["closed-loop"]),
            ("from", span(&self.from), &["ramp"]),
            ("to", span(&self.to), &["ramp"]),
            ("over_s", span(&self.over_s), &["ramp"]),
            ("peak_ratio", span(&self.peak_ratio), &["diurnal"]),
            ("period_s", span(&self.period_s), &["diurnal"]),
            ("trace", span(&self.trace), &["trace"]),
        ]
    }
}

/// Arrival processes.
const ARRIVALS: [&str; 8] =
    ["burst", "constant", "poisson", "gamma", "closed-loop", "ramp", "diurnal", "trace"];

const CONVERSATIONS: &str =
    "conversations are a table of the tenant, `sessions = { turns = { fixed = 4 }, think_s = 10.0 }`";

/// Arrival names that the field uses and psim does not have, with the reason.
const NOT_BUILT: [(&str, &str); 5] = [
    ("sessions", CONVERSATIONS),
    ("multi-turn", CONVERSATIONS),
    ("weibull", "only gamma gaps are built for burstiness"),
    ("pareto", "only gamma gaps are built for burstiness"),
    ("mmpp", "only gamma gaps are built for burstiness; a rate that changes is a ramp or diurnal"),
];

/// Lengths as written: a number of tokens, or a distribution.
struct Given(Lengths);

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Given;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(
                    "a number of tokens, or a distribution such as { lognormal = { mean = 1000, cv = 1.0 } }",
                )
            }

            fn visit_i64<E: serde::de::Error>(self, tokens: i64) -> Result<Given, E> {
                // A number below zero is refused as a length of 0 tokens is.
                Ok(Given(Lengths::Fixed(u64::try_from(tokens).unwrap_or(0))))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Given, A::Error> {
                Lengths::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Given)
            }
        }
        from.deserialize_any(Visitor)
    }
}

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
        tenants.push(reader.tenant(index, tenant.get_ref())?);
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

    fn read_trace(&mut self, path: &Spanned<String>) -> Result<Trace, SourceError> {
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

    fn tenant(&mut self, index: usize, t: &TenantFile) -> Result<Tenant, SourceError> {
        let arrival = self.arrival(t)?;
        self.no_idle_keys(t)?;
        let pairs = match &t.lengths {
            Some(path) => Some(self.read_trace(path)?.requests.iter().map(|r| (r.input, r.output)).collect()),
            None => None,
        };
        let whole = t.arrival.span();
        let free = matches!(arrival, Arrival::Trace(_)) || t.lengths.is_some();
        let input = self.lengths(t.input.as_ref(), "input", free, &whole)?;
        let output = self.lengths(t.output.as_ref(), "output", free, &whole)?;
        let duration_s = match &t.duration_s {
            Some(_) => Some(self.need(t.duration_s.as_ref(), &whole, "duration_s")?),
            None => None,
        };
        let slo = match &t.slo {
            None => ServiceLevel::default(),
            Some(text) => ServiceLevel::parse(text.get_ref())
                .map_err(|m| self.at(&text.span(), m, "write it like \"ttft<500ms@p90, tpot<50ms@p90\""))?,
        };
        self.extras(t)?;
        Ok(Tenant {
            name: t.name.clone().unwrap_or_else(|| format!("tenant-{}", index + 1)),
            requests: self.requests(t, &arrival, duration_s)?,
            arrival,
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

    fn arrival(&mut self, t: &TenantFile) -> Result<Arrival, SourceError> {
        let whole = t.arrival.span();
        let rate = |r: &Self| r.need(t.rate.as_ref(), &whole, "rate");
        Ok(match t.arrival.get_ref().as_str() {
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
            "trace" => self.replay(t)?,
            other => {
                let message = match NOT_BUILT.iter().find(|(name, _)| *name == other) {
                    Some((name, why)) => format!("arrival `{name}` is not built: {why}"),
                    None => match closest(other, ARRIVALS.iter().copied()) {
                        Some(near) => {
                            format!("`{other}` is not an arrival process; did you mean `{near}`?")
                        }
                        None => format!("`{other}` is not an arrival process"),
                    },
                };
                return Err(self.at(&whole, message, &format!("use one of: {}", ARRIVALS.join(", "))));
            }
        })
    }

    /// The requests of a trace, cut at `duration_s` and brought to `rate` where they are given.
    fn replay(&mut self, t: &TenantFile) -> Result<Arrival, SourceError> {
        let whole = t.arrival.span();
        let Some(path) = &t.trace else {
            return Err(self.at(
                &whole,
                "a trace needs `trace`, the path of its file",
                "add `trace = \"requests.csv\"`",
            ));
        };
        let mut trace = self.read_trace(path)?;
        if !trace.timed {
            return Err(self.at(
                &path.span(),
                "the file has lengths but no arrival times",
                "use it as `lengths = …` with another arrival",
            ));
        }
        if t.duration_s.is_some() {
            let end = Time::from(Seconds(self.need(t.duration_s.as_ref(), &whole, "duration_s")?));
            trace.requests.retain(|r| r.arrival < end);
        }
        let replayed = Arrival::Trace(Replay { requests: trace.requests, prefixes: trace.prefixes });
        match &t.rate {
            None => Ok(replayed),
            Some(_) if replayed.rate().is_none() => Err(self.at(
                &whole,
                "all requests of the trace arrive at once, so that it has no rate to change",
                "leave `rate` out",
            )),
            Some(_) => Ok(replayed.at_rate(self.need(t.rate.as_ref(), &whole, "rate")?)),
        }
    }

    /// Refuses what would be read and not used.
    fn no_idle_keys(&self, t: &TenantFile) -> Result<(), SourceError> {
        let name = t.arrival.get_ref().as_str();
        for (key, place, users) in t.particular() {
            if let Some(span) = place.filter(|_| !users.contains(&name)) {
                return Err(self.at(
                    &span,
                    format!("`{key}` means nothing to arrival `{name}`"),
                    &format!("it belongs to {}; leave it out", users.join(", ")),
                ));
            }
        }
        let source = match (name, &t.lengths) {
            ("trace", _) => Some("a trace brings its own lengths and prefixes"),
            (_, Some(_)) => Some("`lengths` brings prompts and answers"),
            _ => None,
        };
        let lengths = [
            ("input", t.input.as_ref().map(Spanned::span)),
            ("output", t.output.as_ref().map(Spanned::span)),
        ];
        let requests = [
            ("lengths", t.lengths.as_ref().map(Spanned::span)),
            ("prefix", t.prefix.as_ref().map(Spanned::span)),
            ("adapters", t.adapters.as_ref().map(Spanned::span)),
        ];
        let beside = lengths.into_iter().chain(requests.into_iter().filter(|_| name == "trace"));
        if let Some(why) = source {
            for (key, place) in beside {
                if let Some(span) = place {
                    return Err(self.at(
                        &span,
                        format!("{why}, so `{key}` would not be used"),
                        "leave it out",
                    ));
                }
            }
        }
        if let Some(duration) =
            t.duration_s.as_ref().filter(|_| ["burst", "offline", "closed-loop"].contains(&name))
        {
            return Err(self.at(
                &duration.span(),
                format!("arrival `{name}` ends with its requests, not after a time"),
                "give `requests` in place of `duration_s`",
            ));
        }
        Ok(())
    }

    fn lengths(
        &self,
        value: Option<&Spanned<Given>>,
        key: &str,
        free: bool,
        whole: &Range<usize>,
    ) -> Result<Lengths, SourceError> {
        match value {
            None if free => Ok(Lengths::Fixed(1)),
            None => Err(self.at(
                whole,
                format!("the tenant has no `{key}` lengths"),
                &format!("add `{key} = 1024`, or `lengths = \"FILE\"` for both"),
            )),
            Some(l) => match l.get_ref().0.fault() {
                Some(fault) => Err(self.at(&l.span(), fault, "lengths are whole tokens")),
                None => Ok(l.get_ref().0.clone()),
            },
        }
    }

    fn requests(
        &self,
        t: &TenantFile,
        arrival: &Arrival,
        duration_s: Option<f64>,
    ) -> Result<Option<u32>, SourceError> {
        match &t.requests {
            Some(n) if *n.get_ref() == 0 || *n.get_ref() > MAX_REQUESTS => {
                Err(self.at(&n.span(), format!("`requests` must be 1 to {MAX_REQUESTS}"), "check the number"))
            }
            Some(n) => Ok(Some(*n.get_ref())),
            None if matches!(arrival, Arrival::Trace(_)) => Ok(None),
            None if duration_s.is_some() && arrival.rate().is_some() => Ok(None),
            None => Ok(Some(1024)),
        }
    }

    /// Prefixes, conversations, adapters.
    fn extras(&self, t: &TenantFile) -> Result<(), SourceError> {
        if let Some(prefix) = &t.prefix
            && (prefix.get_ref().tokens > 1 << 22 || !(1..=1 << 19).contains(&prefix.get_ref().groups))
        {
            return Err(self.at(
                &prefix.span(),
                "the shared prefix is out of range",
                "tokens up to 4194304, groups from 1 to 524288",
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
            if ["trace", "closed-loop"].contains(&t.arrival.get_ref().as_str()) {
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
        Ok(())
    }
}
