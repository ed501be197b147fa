//! Figures of a run: percentiles, throughput, goodput, saturation.

use super::{Histogram, ServingRun};
use psim_models::serving::{Metric, ServiceLevel, Traffic};
use serde::Serialize;

/// Percentiles of a latency, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Percentiles {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th.
    pub p90: f64,
    /// 95th.
    pub p95: f64,
    /// 99th.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Percentiles {
    /// Of values in milliseconds; sorts them.
    pub fn of(values: &mut [f64]) -> Self {
        values.sort_by(f64::total_cmp);
        // A sum of nothing is minus zero.
        let mean = (values.iter().sum::<f64>() + 0.0) / values.len().max(1) as f64;
        Self {
            mean,
            p50: at(values, 50.0),
            p90: at(values, 90.0),
            p95: at(values, 95.0),
            p99: at(values, 99.0),
            max: values.last().copied().unwrap_or(0.0),
        }
    }

    /// Of picoseconds in a histogram.
    pub fn of_histogram(histogram: &Histogram) -> Self {
        let at = |percent: f64| histogram.percentile(percent).unwrap_or(0.0) * 1e-9;
        Self {
            mean: histogram.mean() * 1e-9,
            p50: at(50.0),
            p90: at(90.0),
            p95: at(95.0),
            p99: at(99.0),
            max: at(100.0),
        }
    }
}

/// A request with these latencies, in milliseconds, keeps every limit.
pub(super) fn keeps(level: &ServiceLevel, ttft: f64, tpot: f64, e2e: f64) -> bool {
    level.promises.iter().all(|p| match p.metric {
        Metric::Ttft => ttft <= p.limit_ms,
        Metric::Tpot | Metric::Itl => tpot <= p.limit_ms,
        Metric::E2e => e2e <= p.limit_ms,
    })
}

/// Percentile of sorted values, by linear interpolation between order statistics.
pub fn at(sorted: &[f64], percent: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let position = (percent / 100.0).clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    below + (above - below) * position.fract()
}

/// One promise and what was reached.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Kept {
    /// Index of the tenant whose requests are meant.
    pub tenant: u16,
    /// Which latency.
    pub metric: Metric,
    /// Percentile.
    pub percentile: f64,
    /// Limit, milliseconds.
    pub limit_ms: f64,
    /// Reached at that percentile, milliseconds.
    pub reached_ms: f64,
    /// The promise holds.
    pub kept: bool,
}

/// Rates of an open loop over the second half of the time in which requests came. The beginning, in which engines fill,
/// and the tail after the last request, in which they empty, are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flowing {
    /// Length of that half, seconds.
    pub seconds: f64,
    /// Seconds from the last request to the last token.
    pub tail_s: f64,
    /// Requests answered a second.
    pub requests_per_s: f64,
    /// Generated tokens a second; those of an answer come evenly between its first and its last.
    pub output_tokens_per_s: f64,
}

impl Flowing {
    /// Of a run of `traffic`.
    fn of(run: &ServingRun, traffic: &Traffic) -> Option<Self> {
        let (first, last) = (traffic.requests.first()?.arrival.0, traffic.requests.last()?.arrival.0);
        if traffic.clients.is_some() || last <= first {
            return None;
        }
        let from = first + (last - first) / 2;
        let (mut answered, mut tokens) = (0u64, 0.0);
        for (o, r) in run.outcomes.iter().zip(&traffic.requests).filter(|(o, _)| !o.refused) {
            let inside = |at: u64| at > from && at <= last;
            answered += u64::from(inside(o.finish.0));
            tokens += f64::from(u8::from(inside(o.first_token.0)));
            if o.finish.0 > o.first_token.0 {
                let (begin, end) = (o.first_token.0.max(from), o.finish.0.min(last));
                let share = end.saturating_sub(begin) as f64 / (o.finish.0 - o.first_token.0) as f64;
                tokens += share * f64::from(r.output.saturating_sub(1));
            }
        }
        let seconds = (last - from) as f64 * 1e-12;
        Some(Self {
            seconds,
            tail_s: run.end.0.saturating_sub(last) as f64 * 1e-12,
            requests_per_s: answered as f64 / seconds,
            output_tokens_per_s: tokens / seconds,
        })
    }
}

/// Figures of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServingReport {
    /// Requests answered.
    pub requests: u64,
    /// Requests refused because they can never fit the cache.
    pub refused: u64,
    /// Seconds from the first request to the last token.
    pub seconds: f64,
    /// Requests answered a second, from the first request to the last token, as benchmarks count.
    pub requests_per_s: f64,
    /// The same without the beginning and the tail; `None` for a closed loop.
    pub flowing: Option<Flowing>,
    /// Prompt tokens a second.
    pub input_tokens_per_s: f64,
    /// Generated tokens a second.
    pub output_tokens_per_s: f64,
    /// Time to first token.
    pub ttft_ms: Percentiles,
    /// Time per output token after the first, per request.
    pub tpot_ms: Percentiles,
    /// Gap between two tokens.
    pub itl_ms: Percentiles,
    /// Whole answer.
    pub e2e_ms: Percentiles,
    /// Promises, all tenants.
    pub promises: Vec<Kept>,
    /// Requests a second that keep every limit of their tenant.
    pub goodput: f64,
    /// Share of the requests that keep every limit.
    pub good_share: f64,
    /// Requests come faster than they are answered: latencies grow with the length of the run and mean nothing.
    pub saturated: bool,
    /// Requests came for hardly longer than an answer takes and few had left by the end: engines were still filling, and
    /// nothing tells whether they would keep up.
    pub too_short: bool,
    /// Mean requests in the system.
    pub mean_in_system: f64,
    /// Highest share of the cache in use.
    pub peak_cache: f64,
    /// Sequences thrown out of the cache.
    pub preemptions: u64,
    /// Share of the prompt tokens found in the cache.
    pub cache_hits: f64,
    /// Engine steps.
    pub steps: u64,
}

impl ServingReport {
    /// Figures of a run of `traffic` with the service level of each tenant.
    pub fn new(run: &ServingRun, traffic: &Traffic, levels: &[ServiceLevel]) -> Self {
        let ms = 1e-9;
        let n = run.outcomes.len();
        let (mut ttft, mut tpot, mut e2e) =
            (Vec::with_capacity(n), Vec::with_capacity(n), Vec::with_capacity(n));
        // One tenant's latencies are everybody's; several are kept apart, for each has promises of its own.
        let mut tenants: Vec<[Vec<f64>; 3]> =
            if levels.len() > 1 { vec![Default::default(); levels.len()] } else { Vec::new() };
        let mut good = 0u64;
        let (mut refused, mut preemptions) = (0u64, 0u64);
        let (mut inputs, mut outputs) = (0u64, 0u64);
        for (o, r) in run.outcomes.iter().zip(&traffic.requests) {
            if o.refused {
                refused += 1;
                continue;
            }
            preemptions += u64::from(o.preemptions);
            inputs += u64::from(r.input);
            outputs += u64::from(r.output);
            let first = (o.first_token - o.sent).0 as f64 * ms;
            let whole = (o.finish - o.sent).0 as f64 * ms;
            ttft.push(first);
            e2e.push(whole);
            let tenant = tenants.get_mut(usize::from(r.tenant));
            let per = if r.output > 1 {
                let per = (o.finish - o.first_token).0 as f64 * ms / f64::from(r.output - 1);
                tpot.push(per);
                per
            } else {
                0.0
            };
            if let Some(own) = tenant {
                own[0].push(first);
                own[2].push(whole);
                if r.output > 1 {
                    own[1].push(per);
                }
            }
            let level = levels.get(usize::from(r.tenant));
            good += u64::from(level.is_none_or(|l| keeps(l, first, per, whole)));
        }
        let flowing = Flowing::of(run, traffic);
        let mean = |values: &[f64]| 1e-3 * values.iter().sum::<f64>() / values.len().max(1) as f64;
        let (waited, answer) = (mean(&ttft), mean(&e2e));
        let (saturated, too_short) = match growth(run, traffic, &ttft) {
            Growth::None => (false, false),
            Growth::Waits => (true, false),
            // Where answers take longer than three quarters of the time in which requests came, as many stay in a system
            // that keeps up; but there they do not wait for their first token.
            Growth::Stays => {
                let long = flowing.is_none_or(|f| 2.0 * f.seconds < answer * 4.0 / 3.0);
                let short = long && waited < 0.25 * answer;
                (!short, short)
            }
        };
        let answered = (n as u64) - refused;
        let seconds = ((run.end - run.start).0 as f64 * 1e-12).max(1e-12);
        let itl = |p: f64| run.gaps.percentile(p).unwrap_or(0.0) * ms;
        let itl_ms = Percentiles::of_histogram(&run.gaps);
        let (ttft_ms, tpot_ms, e2e_ms) =
            (Percentiles::of(&mut ttft), Percentiles::of(&mut tpot), Percentiles::of(&mut e2e));
        for values in tenants.iter_mut().flatten() {
            values.sort_by(f64::total_cmp);
        }
        let promises = levels
            .iter()
            .enumerate()
            .flat_map(|(i, l)| l.promises.iter().map(move |p| (i, p)))
            .map(|(i, p)| {
                let own = tenants.get(i);
                let reached_ms = match p.metric {
                    Metric::Ttft => at(own.map_or(&ttft, |o| &o[0]), p.percentile),
                    Metric::Tpot => at(own.map_or(&tpot, |o| &o[1]), p.percentile),
                    // Gaps are counted for all tenants together.
                    Metric::Itl => itl(p.percentile),
                    Metric::E2e => at(own.map_or(&e2e, |o| &o[2]), p.percentile),
                };
                Kept {
                    tenant: i as u16,
                    metric: p.metric,
                    percentile: p.percentile,
                    limit_ms: p.limit_ms,
                    reached_ms,
                    kept: reached_ms <= p.limit_ms && !saturated && !too_short,
                }
            })
            .collect();
        let prompt_tokens = (run.computed_prompt_tokens + run.cached_prompt_tokens).max(1) as f64;
        Self {
            requests: answered,
            refused,
            seconds,
            requests_per_s: answered as f64 / seconds,
            flowing,
            input_tokens_per_s: inputs as f64 / seconds,
            output_tokens_per_s: outputs as f64 / seconds,
            ttft_ms,
            tpot_ms,
            itl_ms,
            e2e_ms,
            promises,
            goodput: good as f64 / seconds,
            good_share: good as f64 / answered.max(1) as f64,
            saturated,
            too_short,
            mean_in_system: run.request_seconds / seconds,
            peak_cache: run.peak_cache,
            preemptions,
            cache_hits: run.cached_prompt_tokens as f64 / prompt_tokens,
            steps: run.steps,
        }
    }
}

impl ServingReport {
    /// Every request is answered within every promise, and the run was long enough to tell.
    pub fn keeps_up(&self) -> bool {
        !self.saturated && !self.too_short && self.refused == 0 && self.promises.iter().all(|p| p.kept)
    }
}

/// How the requests in a system grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    None,
    /// They wait longer and longer.
    Waits,
    /// More and more of them stay.
    Stays,
}

/// Fewer requests than these tell nothing, and fewer than those little.
const FEWEST: usize = 8;
const FEW: usize = 40;

/// An open loop is saturated when its queue grows: requests of the last quarter wait three times as long as those of
/// the second, and longer than a second beyond them; or a fifth of all requests is still there when the last arrives,
/// and it is two thirds more than half-way: twice as many where nothing leaves. Long answers alone keep many in the system,
/// and make steps slower until as many leave as come.
fn growth(run: &ServingRun, traffic: &Traffic, ttft: &[f64]) -> Growth {
    let span = match (traffic.requests.first(), traffic.requests.last()) {
        (Some(first), Some(last)) => last.arrival.0 - first.arrival.0,
        _ => 0,
    };
    if traffic.clients.is_some() || span == 0 || ttft.len() < FEWEST {
        return Growth::None;
    }
    let n = ttft.len();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    if n < FEW {
        // Parts of few requests differ by chance: they also take half as long again as they came.
        let last = traffic.requests.last().map_or(0, |r| r.arrival.0);
        let (early, late) = (mean(&ttft[..n / 4]), mean(&ttft[3 * n / 4..]));
        let waits = run.end.0.saturating_sub(last) > span / 2 && late > 2.0 * early && late > early + 1000.0;
        return if waits { Growth::Waits } else { Growth::None };
    }
    let (early, late) = (mean(&ttft[n / 4..n / 2]), mean(&ttft[3 * n / 4..]));
    if late > 3.0 * early && late > early + 1000.0 {
        return Growth::Waits;
    }
    let stays = f64::from(run.backlog) > 0.2 * n as f64 + 64.0 && more_than_half_way(run);
    if stays { Growth::Stays } else { Growth::None }
}

/// When the last request comes, two thirds more are in the system than half-way.
fn more_than_half_way(run: &ServingRun) -> bool {
    let sent = run.outcomes.iter().map(|o| o.sent.0);
    let (Some(first), Some(last)) = (sent.clone().min(), sent.max()) else { return false };
    let middle = first + (last - first) / 2;
    let there = run.outcomes.iter().filter(|o| o.sent.0 <= middle && o.finish.0 > middle).count();
    f64::from(run.backlog) > 5.0 / 3.0 * there as f64
}
