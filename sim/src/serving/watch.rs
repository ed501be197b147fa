//! Whether promises can still be kept while a run goes on.

use super::beside::StopWhenLost;
use super::store::{Live, Store};
use psim_models::serving::{Metric, Request};
use std::collections::VecDeque;

/// Milliseconds of a picosecond.
const MS: f64 = 1e-9;

/// One promise.
#[derive(Debug, Clone)]
struct Watched {
    /// Whose requests are meant; all of them where there is one service level only.
    tenant: Option<u16>,
    metric: Metric,
    limit_ms: f64,
    /// The promise is lost with so many requests beyond the limit.
    fatal: u64,
    broken: u64,
    /// When requests that have come are beyond the limit: (time, request, its place in the traffic).
    deadlines: VecDeque<(u64, u32, u64)>,
}

/// Follows the promises of a run.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    promises: Vec<Watched>,
    lost: bool,
}

/// Requests beyond the limit that push the percentile of `all` beyond it, whatever the others are: the percentile lies
/// between two order statistics, and the lower one is beyond it too.
fn fatal(all: u64, percentile: f64) -> u64 {
    let Some(last) = all.checked_sub(1) else { return u64::MAX };
    let position = (percentile / 100.0).clamp(0.0, 1.0) * last as f64;
    all - position.floor() as u64
}

impl Watch {
    pub(super) fn new(stop: StopWhenLost<'_>, requests: &[Request]) -> Self {
        let several = stop.levels.len() > 1;
        let mut promises = Vec::new();
        for (index, level) in stop.levels.iter().enumerate() {
            let tenant = several.then_some(index as u16);
            for promise in level.promises.iter().filter(|p| p.metric != Metric::Itl) {
                let meant = |r: &&Request| {
                    tenant.is_none_or(|t| r.tenant == t) && (promise.metric != Metric::Tpot || r.output > 1)
                };
                promises.push(Watched {
                    tenant,
                    metric: promise.metric,
                    limit_ms: stop.slack * promise.limit_ms,
                    fatal: fatal(requests.iter().filter(meant).count() as u64, promise.percentile),
                    broken: 0,
                    deadlines: VecDeque::new(),
                });
            }
        }
        Self { promises, lost: false }
    }

    /// A request has come.
    pub(super) fn came(&mut self, id: u32, live: &Live) {
        for promise in &mut self.promises {
            let waits = matches!(promise.metric, Metric::Ttft | Metric::E2e);
            if waits && promise.tenant.is_none_or(|t| live.request.tenant == t) {
                // A picosecond more than enough, so that rounding never brings it forward.
                let limit = (promise.limit_ms / MS).ceil().clamp(0.0, 9e18) as u64;
                let at = live.progress.sent.saturating_add(limit).saturating_add(1);
                promise.deadlines.push_back((at, id, live.number));
            }
        }
    }

    /// A request has gone; `refused` ends every hope.
    pub(super) fn gone(&mut self, live: &Live) {
        self.lost |= live.progress.refused;
        let (p, output) = (&live.progress, live.request.output);
        for promise in &mut self.promises {
            if promise.metric == Metric::Tpot
                && output > 1
                && promise.tenant.is_none_or(|t| live.request.tenant == t)
                && (p.finish - p.first_token) as f64 * MS / f64::from(output - 1) > promise.limit_ms
            {
                promise.broken += 1;
                self.lost |= promise.broken >= promise.fatal;
            }
        }
    }

    /// The promises are lost, whatever happens from `now` on; nothing that happens at `now` has been booked.
    pub(super) fn lost(&mut self, now: u64, store: &Store) -> bool {
        for promise in &mut self.promises {
            while let Some((at, id, number)) = promise.deadlines.front().copied()
                && at <= now
            {
                promise.deadlines.pop_front();
                let late = store.known(id).is_some_and(|live| {
                    live.number == number && (promise.metric == Metric::E2e || live.progress.first_token == 0)
                });
                promise.broken += u64::from(late);
                self.lost |= promise.broken >= promise.fatal;
            }
        }
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::report::at;

    #[test]
    fn as_many_broken_limits_as_are_fatal_break_the_percentile_and_no_fewer_surely_do() {
        for all in [1usize, 2, 9, 10, 11, 100, 101] {
            for percentile in [0.0, 50.0, 90.0, 95.0, 99.0, 100.0] {
                let reached = |broken: usize| {
                    let values: Vec<f64> = (0..all).map(|i| f64::from(u8::from(i >= all - broken))).collect();
                    at(&values, percentile)
                };
                let fatal = fatal(all as u64, percentile) as usize;
                assert_eq!(reached(fatal), 1.0, "{all} {percentile}");
                assert!(reached(fatal - 1) < 1.0, "{all} {percentile}");
            }
        }
    }
}
