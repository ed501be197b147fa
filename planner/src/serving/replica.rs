//! One replica under trial: its simulation at a rate, and the highest rate that keeps every promise.

use super::ServingRequest;
use super::bounds::{decode_rate, prefill_rate};
use super::energy::Activity;
use super::trial::{self, TRICKLE};
use psim_cost_models::serving::StepCost;
use psim_models::serving::{ServiceLevel, Traffic};
use psim_sim::serving::speculation::Speculating;
use psim_sim::serving::{
    Beside, FleetOptions, ServingInput, ServingReport, ServingRun, StopWhenLost, simulate_with,
};

/// A replica that is tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replica<'a> {
    pub(super) request: &'a ServingRequest<'a>,
    pub(super) cost: &'a StepCost,
    pub(super) speculation: Option<&'a Speculating<'a>>,
}

/// A trial of one replica.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    pub(super) report: ServingReport,
    pub(super) activity: Activity,
    pub(super) generated: f64,
    /// Mean tokens of a round of speculation.
    pub(super) tokens_per_round: f64,
}

impl Trial {
    fn of(run: &ServingRun, traffic: &Traffic, levels: &[ServiceLevel]) -> Self {
        let report = ServingReport::new(run, traffic, levels);
        let activity = Activity {
            instance_seconds: report.seconds,
            busy: run.busy,
            prompt_tokens: run.computed_prompt_tokens as f64,
        };
        let tokens_per_round = run.extra.round_tokens as f64 / run.extra.rounds.max(1) as f64;
        Self { report, activity, generated: run.generated_tokens as f64, tokens_per_round }
    }
}

impl Replica<'_> {
    /// Serves about so many requests at `rate`; `None` where it cannot be simulated, or where a promise is lost and the run
    /// may stop at that.
    fn with_requests(&self, rate: f64, requests: u32, to_the_end: bool) -> Option<Trial> {
        let workload = trial::at_rate(self.request.workload, rate, requests);
        let traffic = Traffic::generate(&workload, self.request.seed);
        let options = FleetOptions::default();
        let levels: Vec<ServiceLevel> = workload.tenants.iter().map(|t| t.slo.clone()).collect();
        let engine = self.request.engine;
        let input = ServingInput { cost: self.cost, engine, traffic: &traffic, replicas: 1, options };
        let stop = (!to_the_end).then_some(StopWhenLost { levels: &levels, slack: 1.0 });
        let beside = Beside { speculation: self.speculation, stop, ..Beside::default() };
        let run = simulate_with(&input, beside).ok()?;
        Some(Trial::of(&run, &traffic, &levels))
    }

    /// The trial at `rate`, if it keeps every promise: again with more requests where the first are over before the replica
    /// has filled.
    pub(super) fn kept(&self, rate: f64) -> Option<Trial> {
        self.kept_or_full(rate, false)
    }

    /// The same, without giving up where a promise is lost if `to_the_end`: the oracle of that.
    fn kept_or_full(&self, rate: f64, to_the_end: bool) -> Option<Trial> {
        let requests = self.request.requests;
        let short = self.with_requests(rate, requests, to_the_end)?;
        let found = match trial::lasting(rate, requests, &short.report) {
            Some(more) => self.with_requests(rate, more, to_the_end)?,
            None => short,
        };
        found.report.keeps_up().then_some(found)
    }

    /// Highest rate that keeps every promise, to 2 per cent, with its simulation; 0 where even a trickle breaks one, `None`
    /// where the workload cannot be simulated.
    pub(super) fn highest_rate(&self) -> Option<(f64, Trial)> {
        // Requests that never meet need not be many.
        const ALONE: u32 = 100;
        // Half of what full steps carry is a good beginning; prefixes that are found cached may carry more.
        let request = self.request;
        let (input, _) = request.workload.mean_lengths();
        let full = prefill_rate(self.cost, request.engine, input).min(decode_rate(
            self.cost,
            request.engine,
            request.workload,
        ));
        let mut rate = if full.is_finite() && full > 4.0 * TRICKLE { 0.5 * full } else { 1.0 };
        let mut high = None;
        let mut alone = None;
        let low = loop {
            if let Some(trial) = self.kept(rate) {
                break (rate, trial);
            }
            high = Some(rate);
            if alone.is_none() {
                let trial = self.with_requests(TRICKLE, request.requests.min(ALONE), true)?;
                if !trial.report.keeps_up() {
                    return Some((0.0, trial));
                }
                alone = Some(trial);
            }
            rate *= 0.5;
            if rate <= TRICKLE {
                break (TRICKLE, alone?);
            }
        };
        match high {
            Some(high) => Some(trial::between(|rate| self.kept(rate), low, high)),
            None => Some(trial::climb(|rate| self.kept(rate), low, 1.4 * rate, 1.4)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::bounds;
    use crate::serving::fixture::{Asked, fixed};
    use psim_models::serving::workload::Sessions;
    use psim_models::serving::{Deployment, Lengths, ServingWorkload};
    use psim_sim::serving::speculation::{Acceptance, Drafter};

    fn workloads() -> Vec<ServingWorkload> {
        let promised = |mut w: ServingWorkload, level: &str| {
            w.tenants[0].slo = ServiceLevel::parse(level).unwrap();
            w
        };
        let mut mixed = fixed(200, 1, 1);
        mixed.tenants[0].input = Lengths::Lognormal { mean: 900.0, cv: 1.0 };
        mixed.tenants[0].output = Lengths::Lognormal { mean: 150.0, cv: 1.0 };
        let mut talks = mixed.clone();
        talks.tenants[0].sessions =
            Some(Sessions { turns: Lengths::Fixed(3), think_s: 3.0, max_tokens: None });
        let mut two = promised(mixed.clone(), "ttft<800ms@p95");
        two.tenants.push(promised(fixed(200, 2000, 50), "tpot<25ms@p50,e2e<4000ms@p90").tenants.remove(0));
        vec![
            promised(mixed.clone(), "ttft<1000ms@p90,tpot<30ms@p90"),
            promised(mixed.clone(), "ttft<300ms@p99"),
            promised(mixed.clone(), "tpot<15ms@p50"),
            promised(mixed.clone(), "itl<40ms@p99"),
            promised(mixed, "e2e<6000ms@p90"),
            promised(talks, "ttft<700ms@p95,tpot<25ms@p90"),
            two,
        ]
    }

    #[test]
    fn trials_that_stop_early_answer_as_full_ones() {
        let (mut broken, mut given_up) = (0, 0);
        for workload in workloads() {
            let mut asked = Asked::new("llama3-8b", 8, workload);
            asked.requests = 200;
            let request = asked.request();
            let d = Deployment::tensor_parallel(1, asked.quantization);
            let node = request.node(0);
            let cost =
                StepCost::new(request.model, &d, request.cluster, node, request.engine, request.library);
            let cost = cost.unwrap();
            let copies = Speculating::new(&cost, Drafter::Copy { tokens: 3 }, Acceptance::Rate(0.5), 1);
            let bound = bounds::decode_rate(&cost, request.engine, request.workload);
            for speculation in [None, Some(&copies)] {
                let replica = Replica { request: &request, cost: &cost, speculation };
                for share in [0.02, 0.2, 0.5, 0.7, 0.8, 0.9, 1.0, 1.5, 4.0] {
                    let rate = share * bound;
                    let (early, full) = (replica.kept(rate), replica.kept_or_full(rate, true));
                    assert_eq!(early.as_ref().map(|t| &t.report), full.as_ref().map(|t| &t.report), "{rate}");
                    broken += u32::from(full.is_none());
                    given_up += u32::from(replica.with_requests(rate, 200, false).is_none());
                }
            }
        }
        println!("{given_up} of {broken} broken trials were given up");
        assert!(given_up > broken / 2, "{given_up} {broken}");
    }
}
