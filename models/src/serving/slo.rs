//! Service levels: percentiles of latencies that a deployment promises.

use serde::{Deserialize, Serialize};

impl Metric {
    /// As people write it: `TTFT`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ttft => "TTFT",
            Self::Tpot => "TPOT",
            Self::Itl => "ITL",
            Self::E2e => "E2E",
        }
    }
}

/// A latency of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Time to first token: arrival to first token.
    Ttft,
    /// Time per output token: (last token − first token) / (tokens − 1) of one request.
    Tpot,
    /// Inter-token latency: every gap between two tokens counts on its own.
    Itl,
    /// End to end: arrival to last token.
    E2e,
}

/// `percentile` of `metric` is at most `limit_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Which latency.
    pub metric: Metric,
    /// 0 < percentile <= 100.
    pub percentile: f64,
    /// Limit, milliseconds.
    pub limit_ms: f64,
}

/// What is promised to a tenant. Goodput counts requests that keep every limit.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServiceLevel {
    /// Promises; all must hold.
    pub promises: Vec<Promise>,
}

impl ServiceLevel {
    /// The tightest limit on a metric, milliseconds.
    pub fn limit_ms(&self, metric: Metric) -> Option<f64> {
        self.promises.iter().filter(|p| p.metric == metric).map(|p| p.limit_ms).reduce(f64::min)
    }

    /// Reads `ttft<500ms@p90,tpot<50ms` or `ttft_p90<500ms`; the percentile defaults to 90.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut promises = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (name, rest) = part
                .split_once(['<', '=', ':'])
                .ok_or_else(|| format!("`{part}` is not of the form ttft<500ms@p90"))?;
            let lower = name.trim().to_lowercase();
            let (name, named) = match lower.split_once(['_', ' ']) {
                Some((metric, p)) => (metric, Some(p)),
                None => (lower.as_str(), None),
            };
            let metric = match name {
                "ttft" => Metric::Ttft,
                "tpot" => Metric::Tpot,
                "itl" => Metric::Itl,
                "e2e" => Metric::E2e,
                other => return Err(format!("`{other}` is not a latency; known: ttft, tpot, itl, e2e")),
            };
            let rest = rest.trim_start_matches('=').trim();
            let number = |p: &str| {
                let digits = p.trim().trim_start_matches(['p', 'P']);
                digits.parse::<f64>().map_err(|_| format!("`{p}` is not a percentile like p90"))
            };
            let (limit, percentile) = match (rest.split_once('@'), named) {
                (Some(_), Some(p)) => return Err(format!("`{part}` gives two percentiles, `{p}` is one")),
                (Some((limit, p)), None) => (limit.trim(), number(p)?),
                (None, Some(p)) => (rest.trim(), number(p)?),
                (None, None) => (rest.trim(), 90.0),
            };
            let (number, factor) = match (limit.strip_suffix("ms"), limit.strip_suffix('s')) {
                (Some(n), _) => (n, 1.0),
                (None, Some(n)) => (n, 1000.0),
                _ => (limit, 1.0),
            };
            let limit_ms = number
                .trim()
                .parse::<f64>()
                .map_err(|_| format!("`{limit}` is not a time like 500ms or 2s"))?
                * factor;
            promises.push(Promise { metric, percentile, limit_ms });
        }
        let level = Self { promises };
        match level.fault() {
            Some(fault) => Err(fault),
            None => Ok(level),
        }
    }

    /// What is wrong with the numbers, if anything.
    pub fn fault(&self) -> Option<String> {
        self.promises.iter().find_map(|p| {
            if !(p.limit_ms.is_finite() && p.limit_ms > 0.0) {
                Some(format!("a limit of {} ms is not a time above zero", p.limit_ms))
            } else if !(p.percentile > 0.0 && p.percentile <= 100.0) {
                Some(format!("percentile {} is outside 0 to 100", p.percentile))
            } else {
                None
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_form() {
        let level = ServiceLevel::parse("ttft<500ms@p95, tpot<0.05s").unwrap();
        assert_eq!(
            level.promises,
            [
                Promise { metric: Metric::Ttft, percentile: 95.0, limit_ms: 500.0 },
                Promise { metric: Metric::Tpot, percentile: 90.0, limit_ms: 50.0 },
            ]
        );
        assert_eq!(ServiceLevel::parse("ttft_p95<500ms, tpot<=50ms@p90"), Ok(level));
        for bad in [
            "ttft_p95<1s@p90",
            "ttft_often<1s",
            "ttft",
            "speed<3ms",
            "ttft<fast",
            "ttft<5ms@p900",
            "ttft<-5ms",
        ] {
            assert!(ServiceLevel::parse(bad).is_err(), "{bad}");
        }
    }
}
