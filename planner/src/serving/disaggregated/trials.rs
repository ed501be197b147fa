//! Trials of a unit: its simulation at a rate, and the highest rate that keeps every promise.

use super::units::{Side, Unit};
use crate::serving::energy::{Activity, Energy, joules};
use crate::serving::{ServingRequest, trial};
use psim_models::serving::{ServiceLevel, Traffic};
use psim_sim::serving::speculation::{Drafter, Speculating};
use psim_sim::serving::{
    Beside, DisaggregatedInput, Placement, Pool, ServingReport, StopWhenLost, TransferMode,
    simulate_disaggregated_with,
};

/// Most requests of one simulation.
const MOST_REQUESTS: u32 = 4000;
/// Fewest requests of a coarse trial.
const LEAST_COARSE: u32 = 150;
/// A promise that is broken by so far is not mended by a longer run.
const FAR: f64 = 1.3;

/// A unit that is tried.
#[derive(Debug, Clone, Copy)]
pub(in crate::serving) struct UnitTrial<'a> {
    pub(in crate::serving) request: &'a ServingRequest<'a>,
    pub(in crate::serving) prefill: &'a Side,
    pub(in crate::serving) decode: &'a Side,
    /// Instances of both.
    pub(in crate::serving) instances: (u32, u32),
    /// Rounds of the decode instances, and the source of their drafts as prefill instances price it.
    pub(in crate::serving) speculation: Option<(&'a Speculating<'a>, &'a Drafter<'a>)>,
}

/// A trial of one unit.
#[derive(Debug, Clone)]
pub(in crate::serving) struct Trial {
    pub(in crate::serving) report: ServingReport,
    pub(in crate::serving) transfer_ms: f64,
    /// Mean tokens of a round of speculation.
    pub(in crate::serving) tokens_per_round: f64,
    prefill_busy: f64,
    decode_busy: f64,
    prompt_tokens: f64,
    generated: f64,
}

impl<'a> UnitTrial<'a> {
    pub(super) fn of(request: &'a ServingRequest<'a>, sides: &'a [Side], unit: &Unit) -> Self {
        Self {
            request,
            prefill: &sides[unit.p],
            decode: &sides[unit.d],
            instances: (unit.prefills, unit.decodes),
            speculation: None,
        }
    }

    /// Requests of a trial.
    fn requests(&self) -> u32 {
        let instances = self.instances.0 + self.instances.1;
        (self.request.requests.max(40) * instances).div_ceil(2).min(MOST_REQUESTS)
    }

    /// Serves the workload at `rate` with about so many requests; `None` where it cannot be simulated, or where a promise is
    /// lost, its limit taken `slack` times longer.
    fn with_requests(&self, rate: f64, requests: u32, slack: f64) -> Option<Trial> {
        let request = self.request;
        let workload = trial::at_rate(request.workload, rate, requests);
        let traffic = Traffic::generate(&workload, request.seed);
        let pool = |side: &'a Side, instances| Pool {
            cost: &side.cost,
            engine: request.engine,
            instances,
            context_parallel: 1,
            group: side.group,
        };
        let input = DisaggregatedInput {
            prefill: pool(self.prefill, self.instances.0),
            decode: pool(self.decode, self.instances.1),
            cluster: request.cluster,
            placement: Placement::Paired,
            transfer: TransferMode::LayerWise,
            traffic: &traffic,
            coalesce: true,
        };
        let levels: Vec<ServiceLevel> = workload.tenants.iter().map(|t| t.slo.clone()).collect();
        let beside = Beside {
            speculation: self.speculation.map(|(rounds, _)| rounds),
            prompts: self.speculation.map(|(_, drafter)| drafter),
            stop: Some(StopWhenLost { levels: &levels, slack }),
        };
        let run = simulate_disaggregated_with(&input, beside).ok()?;
        let report = ServingReport::new(&run.run, &traffic, &levels);
        let moved = run.transfer_seconds.len().max(1) as f64;
        let extra = &run.run.extra;
        Some(Trial {
            report,
            transfer_ms: 1e3 * (run.transfer_seconds.iter().sum::<f64>() + 0.0) / moved,
            tokens_per_round: extra.round_tokens as f64 / extra.rounds.max(1) as f64,
            prefill_busy: run.prefill_busy,
            decode_busy: run.decode_busy,
            prompt_tokens: run.run.computed_prompt_tokens as f64,
            generated: run.run.generated_tokens as f64,
        })
    }

    /// The trial at `rate`, if it keeps every promise: again with more requests where the first are over before the
    /// instances have filled.
    pub(in crate::serving) fn kept(&self, rate: f64) -> Option<Trial> {
        let requests = self.requests();
        let short = self.with_requests(rate, requests, 1.0)?;
        let found = match trial::lasting(rate, requests, &short.report) {
            Some(more) => self.with_requests(rate, more, 1.0)?,
            None => short,
        };
        found.report.keeps_up().then_some(found)
    }

    /// A short trial at `rate` breaks a promise by so far that a longer one cannot mend it: the beginning of a run, from
    /// empty queues, is its best part.
    fn hopeless(&self, rate: f64) -> bool {
        let requests = self.requests();
        requests >= 4 * LEAST_COARSE
            && self.with_requests(rate, requests / 4, FAR).is_none_or(|found| {
                let far = |p: &psim_sim::serving::report::Kept| p.reached_ms > FAR * p.limit_ms;
                found.report.refused > 0 || found.report.promises.iter().any(far)
            })
    }

    /// Joules for a generated token in a trial.
    pub(super) fn joule_per_token(&self, trial: &Trial) -> f64 {
        let of = |side: &Side, instances: u32, busy: f64, prompt_tokens: f64| {
            let instance_seconds = trial.report.seconds * f64::from(instances);
            let activity = Activity { instance_seconds, busy, prompt_tokens };
            let request = self.request;
            joules(request.model, request.cluster, request.node(side.group), &side.deployment, &activity)
        };
        let spent = of(self.prefill, self.instances.0, trial.prefill_busy, trial.prompt_tokens)
            + of(self.decode, self.instances.1, trial.decode_busy, 0.0);
        Energy::of(spent, trial.report.seconds, trial.generated).joule_per_token
    }
}

/// Highest rate of a unit, to 2 per cent, if it reaches `floor`.
pub(super) fn highest_rate(
    request: &ServingRequest<'_>,
    sides: &[Side],
    unit: &Unit,
    floor: f64,
) -> Option<(f64, Trial)> {
    let tried = UnitTrial::of(request, sides, unit);
    let start = floor.max(1e-3 * unit.bound);
    if tried.hopeless(start) {
        return None;
    }
    let low = (start, tried.kept(start)?);
    Some(trial::between(|rate| tried.kept(rate), low, unit.bound))
}
