//! Where the outcomes of requests go: a list, or sums and histograms for runs of many millions.

use super::histogram::Histogram;
use super::report::{Percentiles, keeps};
use super::{Outcome, ServingRun};
use psim_models::serving::{Request, ServiceLevel};
use serde::Serialize;

/// Takes the outcome of every request, in the order in which they end.
pub trait Sink {
    /// `number` is the place of the request in the traffic.
    fn take(&mut self, number: u64, request: &Request, outcome: &Outcome);
}

/// All outcomes, in the order of the traffic.
pub(super) struct Outcomes(pub(super) Vec<Outcome>);

impl Outcomes {
    pub(super) fn of(requests: usize) -> Self {
        Self(Outcome::none(requests))
    }
}

impl Sink for Outcomes {
    fn take(&mut self, number: u64, _: &Request, outcome: &Outcome) {
        if let Some(slot) = self.0.get_mut(number as usize) {
            *slot = *outcome;
        }
    }
}

/// Sums and histograms of a run whose outcomes are not kept.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Service level of each tenant.
    pub levels: Vec<ServiceLevel>,
    /// Requests answered.
    pub requests: u64,
    /// Requests refused.
    pub refused: u64,
    /// Prompt tokens of answered requests.
    pub input_tokens: u64,
    /// Answer tokens of answered requests.
    pub output_tokens: u64,
    /// Requests that keep every limit of their tenant.
    pub good: u64,
    /// Times that sequences were thrown out.
    pub preemptions: u64,
    /// Sum of the times in the system, seconds.
    pub sojourn_s: f64,
    ttft: Histogram,
    tpot: Histogram,
    e2e: Histogram,
}

impl Summary {
    /// For tenants with these service levels.
    pub fn new(levels: Vec<ServiceLevel>) -> Self {
        Self { levels, ..Self::default() }
    }

    /// Figures of the run, to the width of the histograms' buckets (0.8 %).
    pub fn figures(&self, run: &ServingRun) -> SummaryFigures {
        let seconds = ((run.end.0.saturating_sub(run.start.0)) as f64 * 1e-12).max(1e-12);
        SummaryFigures {
            requests: self.requests,
            refused: self.refused,
            seconds,
            requests_per_s: self.requests as f64 / seconds,
            output_tokens_per_s: self.output_tokens as f64 / seconds,
            goodput: self.good as f64 / seconds,
            ttft_ms: Percentiles::of_histogram(&self.ttft),
            tpot_ms: Percentiles::of_histogram(&self.tpot),
            itl_ms: Percentiles::of_histogram(&run.gaps),
            e2e_ms: Percentiles::of_histogram(&self.e2e),
            preemptions: self.preemptions,
            steps: run.steps,
            most_alive: run.extra.most_alive,
        }
    }
}

impl Sink for Summary {
    fn take(&mut self, _: u64, request: &Request, o: &Outcome) {
        let whole = (o.finish - o.sent).0;
        self.sojourn_s += whole as f64 * 1e-12;
        if o.refused {
            self.refused += 1;
            return;
        }
        self.requests += 1;
        self.input_tokens += u64::from(request.input);
        self.output_tokens += u64::from(request.output);
        self.preemptions += u64::from(o.preemptions);
        let first = (o.first_token - o.sent).0;
        let after = (o.finish - o.first_token).0 / u64::from(request.output.max(2) - 1);
        self.ttft.add(Histogram::bucket(first), 1);
        self.e2e.add(Histogram::bucket(whole), 1);
        if request.output > 1 {
            self.tpot.add(Histogram::bucket(after), 1);
        }
        let ms = |picoseconds: u64| picoseconds as f64 * 1e-9;
        let level = self.levels.get(usize::from(request.tenant));
        self.good += u64::from(level.is_none_or(|l| keeps(l, ms(first), ms(after), ms(whole))));
    }
}

/// What [`Summary::figures`] gives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SummaryFigures {
    /// Requests answered.
    pub requests: u64,
    /// Requests refused.
    pub refused: u64,
    /// Seconds from the first request to the last token.
    pub seconds: f64,
    /// Requests answered a second.
    pub requests_per_s: f64,
    /// Generated tokens a second.
    pub output_tokens_per_s: f64,
    /// Requests a second that keep every limit of their tenant.
    pub goodput: f64,
    /// Time to first token.
    pub ttft_ms: Percentiles,
    /// Time per output token after the first.
    pub tpot_ms: Percentiles,
    /// Gap between two tokens.
    pub itl_ms: Percentiles,
    /// Whole answer.
    pub e2e_ms: Percentiles,
    /// Times that sequences were thrown out.
    pub preemptions: u64,
    /// Engine steps.
    pub steps: u64,
    /// Requests that were held at once, at most.
    pub most_alive: u64,
}
