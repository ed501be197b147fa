//! When requests arrive.

use crate::serving::shared::SharedPrefixes;
use crate::serving::traffic::Request;

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
    Trace(Replay),
}

/// Requests of a trace, by arrival.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Replay {
    /// The requests.
    pub requests: Vec<Request>,
    /// Which leading tokens they share.
    pub prefixes: SharedPrefixes,
}

impl From<Vec<Request>> for Replay {
    fn from(requests: Vec<Request>) -> Self {
        Self { requests, prefixes: SharedPrefixes::default() }
    }
}

impl Arrival {
    /// Mean rate over a long time, requests a second; `None` where it follows from the service.
    pub fn rate(&self) -> Option<f64> {
        match self {
            Self::Constant { rate } | Self::Poisson { rate } | Self::Gamma { rate, .. } => Some(*rate),
            Self::Ramp { to, .. } => Some(*to),
            Self::Diurnal { mean, .. } => Some(*mean),
            Self::Trace(rows) => {
                let rows = &rows.requests;
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
                for row in &mut rows.requests {
                    row.arrival.0 = (row.arrival.0 as f64 / factor) as u64;
                }
            }
            Self::Burst | Self::ClosedLoop { .. } => out = Self::Poisson { rate: wanted },
        }
        out
    }
}
