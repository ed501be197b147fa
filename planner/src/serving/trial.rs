//! The traffic of one trial of a search: the workload at some rate, as long as it must be to show how it is carried.

use psim_models::serving::{Arrival, Replay, ServingWorkload};
use psim_sim::serving::ServingReport;

/// Fewest requests of a tenant: below, its percentiles are noise.
const LEAST: f64 = 40.0;
/// Most requests of a trial, however slow its slowest tenant.
const MOST: f64 = 40_000.0;
/// Conversations of a trial follow one another for so many times their own length, so that most requests see others
/// of every turn beside them.
const SPANS: f64 = 10.0;

/// Requests come for so many times the mean time of an answer, so that a replica fills and stays full for a while.
const ANSWERS: f64 = 3.0;

/// Requests that a trial at `rate` needs to last, where those that it had were over before the replica was full. A trial
/// that breaks a promise already is long enough: its beginning, from empty queues, is its best part.
pub(super) fn lasting(rate: f64, had: u32, report: &ServingReport) -> Option<u32> {
    // Some margin, so that trials that nearly last are not repeated.
    const NEARLY: f64 = 0.75;
    if report.refused > 0 || report.promises.iter().any(|p| p.reached_ms > p.limit_ms) {
        return None;
    }
    let needed = (ANSWERS * rate * report.e2e_ms.mean * 1e-3).min(MOST);
    (NEARLY * needed > f64::from(had)).then(|| needed.ceil() as u32)
}

/// A rate at which requests come one after another.
pub(super) const TRICKLE: f64 = 1e-3;

/// The highest rate to 2 per cent with its trial, from a first guess; `None` where even a trickle breaks a promise. `kept`
/// gives the trial at a rate that keeps every promise.
pub(super) fn highest_from<T>(kept: impl Fn(f64) -> Option<T>, guess: f64) -> Option<(f64, T)> {
    const FACTOR: f64 = 1.4;
    let mut rate = guess.max(TRICKLE);
    let mut high = None;
    let low = loop {
        match kept(rate) {
            Some(trial) => break (rate, trial),
            None if rate <= TRICKLE => return None,
            None => {
                high = Some(rate);
                rate = (rate / FACTOR / FACTOR).max(TRICKLE);
            }
        }
    };
    Some(match high {
        Some(high) => between(kept, low, high),
        None => climb(kept, low, FACTOR * rate, FACTOR),
    })
}

/// The highest rate to 2 per cent with its trial, where it is above `floor` by as much.
pub(super) fn highest_above<T>(kept: impl Fn(f64) -> Option<T>, floor: f64) -> Option<(f64, T)> {
    let rate = 1.02 * floor;
    let low = (rate, kept(rate)?);
    Some(climb(kept, low, 1.1 * rate, 1.3))
}

/// From a rate that keeps every promise to the highest one, to 2 per cent: by `factor` from `rate`, then by halving.
pub(super) fn climb<T>(
    kept: impl Fn(f64) -> Option<T>,
    mut low: (f64, T),
    mut rate: f64,
    factor: f64,
) -> (f64, T) {
    for _ in 0..40 {
        match kept(rate) {
            Some(trial) => {
                low = (rate, trial);
                rate *= factor;
            }
            None => break,
        }
    }
    between(kept, low, rate)
}

/// The highest rate that keeps every promise between one that does and one that does not, to 2 per cent.
pub(super) fn between<T>(kept: impl Fn(f64) -> Option<T>, mut low: (f64, T), mut high: f64) -> (f64, T) {
    while high / low.0 > 1.02 {
        let middle = (low.0 * high).sqrt();
        match kept(middle) {
            Some(trial) => low = (middle, trial),
            None => high = middle,
        }
    }
    low
}

/// The workload at `rate` requests a second (its mean), about `requests` of them. All tenants send for the same time,
/// so that each is always beside the others. Where the rate changes (ramp, day) the trial stays at the highest: that is
/// when the promises must hold.
pub(super) fn at_rate(workload: &ServingWorkload, rate: f64, requests: u32) -> ServingWorkload {
    let mut out = workload.at_rate(rate);
    let rates: Vec<f64> = out.tenants.iter().map(|t| t.rate().unwrap_or(rate)).collect();
    let total: f64 = rates.iter().sum();
    let slowest = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let several = out.tenants.len() > 1;
    let mut seconds = f64::from(requests.max(LEAST as u32)) / total.max(f64::MIN_POSITIVE);
    if several {
        seconds = seconds.max(LEAST / slowest.max(f64::MIN_POSITIVE));
    }
    seconds = seconds.max(SPANS * workload.session_span_s());
    seconds = seconds.min(MOST.max(f64::from(requests)) / total.max(f64::MIN_POSITIVE));
    for (tenant, own) in out.tenants.iter_mut().zip(rates) {
        // A trace has no more than its rows; what is drawn may go on.
        let replayed = matches!(tenant.arrival, Arrival::Trace(_)) && !several && tenant.sessions.is_none();
        let most = tenant.requests.filter(|_| replayed).unwrap_or(u32::MAX);
        let wanted = ((own * seconds).ceil().clamp(1.0, f64::from(u32::MAX)) as u32).min(most);
        tenant.requests = Some(wanted);
        tenant.duration_s = None;
        tenant.arrival = match &tenant.arrival {
            Arrival::Diurnal { mean, peak_ratio, .. } => Arrival::Poisson { rate: mean * peak_ratio },
            Arrival::Ramp { from, to, .. } => Arrival::Poisson { rate: from.max(*to) },
            // The first rows alone, at the rate asked for, whatever theirs was in the whole trace.
            Arrival::Trace(rows) if rows.requests.len() > wanted as usize => {
                let requests = rows.requests[..wanted as usize].to_vec();
                let first = Arrival::Trace(Replay { requests, prefixes: rows.prefixes.clone() });
                let arrival_rate = own;
                if first.rate().is_some() { first.at_rate(arrival_rate) } else { first }
            }
            other => other.clone(),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_models::serving::Traffic;

    fn two() -> ServingWorkload {
        let mut w = ServingWorkload::fixed("a", Arrival::Poisson { rate: 8.0 }, 3000, 100, 10);
        w.tenants.push(
            ServingWorkload::fixed("b", Arrival::Constant { rate: 0.5 }, 400, 100, 10).tenants.remove(0),
        );
        w
    }

    #[test]
    fn tenants_end_together_and_keep_their_shares() {
        let trial = at_rate(&two(), 17.0, 400);
        let traffic = Traffic::generate(&trial, 1);
        let of = |t: u16| traffic.requests.iter().filter(move |r| r.tenant == t);
        let last = |t: u16| of(t).map(|r| r.arrival.seconds().0).fold(0.0, f64::max);
        assert!(of(1).count() >= 40);
        assert!((of(0).count() as f64 / of(1).count() as f64 / 16.0 - 1.0).abs() < 0.05);
        assert!((last(0) / last(1) - 1.0).abs() < 0.15, "{} {}", last(0), last(1));
    }

    #[test]
    fn a_day_is_tried_at_its_peak() {
        let day = Arrival::Diurnal { mean: 1.0, peak_ratio: 1.5, period_s: 86_400.0 };
        let w = ServingWorkload::fixed("d", day, 400, 100, 10);
        assert_eq!(at_rate(&w, 4.0, 400).tenants[0].arrival, Arrival::Poisson { rate: 6.0 });
        let ramp = ServingWorkload::fixed("r", Arrival::Ramp { from: 1.0, to: 2.0, over_s: 60.0 }, 9, 1, 1);
        assert_eq!(at_rate(&ramp, 4.0, 400).tenants[0].arrival, Arrival::Poisson { rate: 4.0 });
    }

    #[test]
    fn conversations_are_tried_for_many_of_their_lengths() {
        use psim_models::serving::Lengths;
        use psim_models::serving::workload::Sessions;
        let mut w = ServingWorkload::fixed("c", Arrival::Poisson { rate: 1.0 }, 100, 100, 10);
        w.tenants[0].sessions = Some(Sessions { turns: Lengths::Fixed(4), think_s: 10.0, max_tokens: None });
        let trial = at_rate(&w, 8.0, 400);
        // Thirty seconds of thinking, ten times, at eight requests a second.
        assert_eq!(trial.tenants[0].requests, Some(2400));
        let traffic = Traffic::generate(&trial, 1);
        let begun = traffic.requests.iter().filter(|r| r.turn == 0).count();
        let last = traffic.requests.last().unwrap().arrival.seconds().0;
        assert!((begun as f64 / last / 2.0 - 1.0).abs() < 0.15);
    }
}
