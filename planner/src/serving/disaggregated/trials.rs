//! Trials of a unit: its simulation at a rate, and the highest rate that keeps every promise.

use super::units::{Side, Unit};
use crate::serving::energy::{Activity, Energy, joules};
use crate::serving::{ServingRequest, trial};
use psim_models::serving::{ServiceLevel, Traffic};
use psim_sim::serving::{
    DisaggregatedInput, Placement, Pool, ServingReport, TransferMode, simulate_disaggregated,
};

/// Most requests of one simulation.
const MOST_REQUESTS: u32 = 4000;
/// Fewest requests of a coarse trial.
const LEAST_COARSE: u32 = 150;

/// A trial of one unit.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    pub(super) report: ServingReport,
    pub(super) transfer_ms: f64,
    prefill_busy: f64,
    decode_busy: f64,
    prompt_tokens: f64,
    generated: f64,
}

/// Requests of a trial of a unit.
fn requests(request: &ServingRequest<'_>, unit: &Unit) -> u32 {
    (request.requests.max(40) * (unit.prefills + unit.decodes)).div_ceil(2).min(MOST_REQUESTS)
}

/// Serves the workload at `rate` on one unit: again with more requests than `requests` where those do not break a promise
/// but are over before the instances have filled.
fn at_rate(
    request: &ServingRequest<'_>,
    sides: &[Side],
    unit: &Unit,
    rate: f64,
    requests: u32,
) -> Option<Trial> {
    let short = with_requests(request, sides, unit, rate, requests)?;
    match trial::lasting(rate, requests, &short.report) {
        Some(more) => with_requests(request, sides, unit, rate, more),
        None => Some(short),
    }
}

/// Serves the workload at `rate` on one unit, with about so many requests.
fn with_requests(
    request: &ServingRequest<'_>,
    sides: &[Side],
    unit: &Unit,
    rate: f64,
    requests: u32,
) -> Option<Trial> {
    let workload = trial::at_rate(request.workload, rate, requests);
    let traffic = Traffic::generate(&workload, request.seed);
    let pool = |side: usize, instances| Pool {
        cost: &sides[side].cost,
        engine: request.engine,
        instances,
        context_parallel: 1,
        group: sides[side].group,
    };
    let input = DisaggregatedInput {
        prefill: pool(unit.p, unit.prefills),
        decode: pool(unit.d, unit.decodes),
        cluster: request.cluster,
        placement: Placement::Paired,
        transfer: TransferMode::LayerWise,
        traffic: &traffic,
        coalesce: true,
    };
    let run = simulate_disaggregated(&input).ok()?;
    let levels: Vec<ServiceLevel> = workload.tenants.iter().map(|t| t.slo.clone()).collect();
    let report = ServingReport::new(&run.run, &traffic, &levels);
    let moved = run.transfer_seconds.len().max(1) as f64;
    Some(Trial {
        report,
        transfer_ms: 1e3 * run.transfer_seconds.iter().sum::<f64>() / moved,
        prefill_busy: run.prefill_busy,
        decode_busy: run.decode_busy,
        prompt_tokens: run.run.computed_prompt_tokens as f64,
        generated: run.run.generated_tokens as f64,
    })
}

fn keeps(found: &Trial) -> bool {
    found.report.keeps_up()
}

/// A promise is broken by so far that a longer run cannot mend it.
fn hopeless(found: &Trial) -> bool {
    found.report.refused > 0 || found.report.promises.iter().any(|p| p.reached_ms > 1.3 * p.limit_ms)
}

/// Joules for a generated token of one unit in a trial.
pub(super) fn joule_per_token(
    request: &ServingRequest<'_>,
    sides: &[Side],
    unit: &Unit,
    trial: &Trial,
) -> f64 {
    let of = |side: usize, instances: u32, busy: f64, prompt_tokens: f64| {
        let instance_seconds = trial.report.seconds * f64::from(instances);
        let activity = Activity { instance_seconds, busy, prompt_tokens };
        let side = &sides[side];
        joules(request.model, request.cluster, request.node(side.group), &side.deployment, &activity)
    };
    let spent = of(unit.p, unit.prefills, trial.prefill_busy, trial.prompt_tokens)
        + of(unit.d, unit.decodes, trial.decode_busy, 0.0);
    Energy::of(spent, trial.report.seconds, trial.generated).joule_per_token
}

/// Highest rate of a unit, to 2 per cent, if it reaches `floor`.
pub(super) fn highest_rate(
    request: &ServingRequest<'_>,
    sides: &[Side],
    unit: &Unit,
    floor: f64,
) -> Option<(f64, Trial)> {
    let all = requests(request, unit);
    let start = floor.max(1e-3 * unit.bound);
    // The beginning of a run, from empty queues, is its best part: what breaks there by far breaks in the end.
    if all >= 4 * LEAST_COARSE && hopeless(&with_requests(request, sides, unit, start, all / 4)?) {
        return None;
    }
    let mut best = at_rate(request, sides, unit, start, all).filter(keeps)?;
    let (mut low, mut high) = (start, unit.bound);
    while high / low > 1.02 {
        let middle = (low * high).sqrt();
        match at_rate(request, sides, unit, middle, all).filter(keeps) {
            Some(trial) => (low, best) = (middle, trial),
            None => high = middle,
        }
    }
    Some((low, best))
}
