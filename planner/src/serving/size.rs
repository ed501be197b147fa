//! How many accelerators of which kind carry a rate, with headroom for failures.

use super::{
    DisaggregatedPlan, Layout, Needed, PoolLayout, Served, ServingPlan, ServingPlanError, ServingRequest,
    Split, detail, plan_disaggregated, plan_serving, trial,
};
use crate::capacity::failures::MTBF_PER_GPU_HOURS;
use crate::parallel;
use psim_cost_models::serving::EngineProfile;
use psim_models::serving::Deployment;
use psim_sim::serving::report::Kept;
use psim_sim::serving::{FleetOptions, ServingReport};
use serde::Serialize;

mod apart;

pub use apart::PoolSizes;

/// Hours for which a failed accelerator's replica is away: until a node is drained, repaired or replaced. An
/// assumption: cloud providers promise replacement within a working day.
pub const REPAIR_HOURS: f64 = 24.0;

/// One kind of accelerator sized for a rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServingSize {
    /// Accelerator.
    pub accelerator: String,
    /// US dollars for an accelerator and hour.
    pub price_per_gpu_hour: f64,
    /// Layout, as many replicas (or instances of pools) as the rate needs, without spares.
    pub layout: Layout,
    /// Instances of pools that are sized apart, each with spares of its own; such pools are one unit without spare units.
    pub pools: Option<PoolSizes>,
    /// Most tokens of a step that carried the most requests; of pools the engine's own.
    pub token_budget: Option<u32>,
    /// Accelerators of a replica, or of a unit of pools that serve together.
    pub unit_accelerators: u32,
    /// Requests a second that one of them carries within the service level.
    pub rate_per_unit: f64,
    /// What the rate needs, without spares; `replicas` counts units where prompts and answers are apart.
    pub needed: Needed,
    /// Replicas beyond those, so that enough are up with the availability asked for.
    pub spare_replicas: u32,
    /// Accelerators to rent, spares included.
    pub accelerators: u32,
    /// US dollars an hour, spares included.
    pub usd_per_hour: f64,
    /// US dollars for a million generated tokens at the rate asked for, spares included.
    pub usd_per_million_tokens: f64,
    /// Kilowatts at the rate asked for, hosts and facility included.
    pub kilowatts: f64,
    /// Joules for a generated token.
    pub joule_per_token: f64,
    /// Rate asked for over what the rented replicas carry.
    pub load: f64,
    /// The simulation of one replica or unit at its highest rate.
    pub report: ServingReport,
    /// Every kernel law was measured on this accelerator.
    pub measured: bool,
    /// The same accelerator with pools in place of replicas, or the reverse: never cheaper.
    pub other: Option<Box<Self>>,
}

/// The least spares so that at least `needed` of `needed + spares` replicas are up with this probability, when each is
/// away for [`REPAIR_HOURS`] after a failure of any of its accelerators (binomial, replicas independent).
pub fn spare_replicas(needed: u32, accelerators_per_replica: u32, availability: f64) -> u32 {
    let away = REPAIR_HOURS * f64::from(accelerators_per_replica) / MTBF_PER_GPU_HOURS;
    let away = (away / (1.0 + away)).clamp(0.0, 0.999);
    for spare in 0..=needed.saturating_add(64) {
        let all = f64::from(needed.saturating_add(spare));
        // P(at most `spare` of `all` are away), by the ratio of neighbouring terms.
        let mut term = all * (1.0 - away).ln();
        let mut up = term.exp();
        for k in 1..=spare {
            let k = f64::from(k);
            term += ((all - k + 1.0) / k * away / (1.0 - away)).ln();
            up += term.exp();
        }
        if up >= availability {
            return spare;
        }
    }
    needed.saturating_add(64)
}

/// What one unit of a layout carries and costs.
struct Carried {
    unit: Layout,
    token_budget: Option<u32>,
    accelerators: u32,
    rate: f64,
    report: ServingReport,
    measured: bool,
}

/// A layout of one unit multiplied.
fn times(unit: &Layout, units: u32) -> Layout {
    let more = |d: &Deployment| Deployment { replicas: d.replicas.saturating_mul(units), ..*d };
    match unit {
        Layout::Replicas(d) => Layout::Replicas(more(d)),
        Layout::Pools(split) => {
            let pool = |p: &PoolLayout| PoolLayout { deployment: more(&p.deployment), ..*p };
            Layout::Pools(Split { prefill: pool(&split.prefill), decode: pool(&split.decode), ..*split })
        }
    }
}

fn of_replicas(plan: ServingPlan) -> Carried {
    Carried {
        unit: Layout::Replicas(Deployment { replicas: 1, ..plan.deployment }),
        token_budget: Some(plan.token_budget),
        accelerators: plan.deployment.accelerators_per_replica(),
        rate: plan.rate_per_replica,
        report: plan.report,
        measured: plan.measured,
    }
}

fn of_split(plan: DisaggregatedPlan) -> Carried {
    let mut split = plan.split();
    split.prefill.deployment.replicas = plan.unit_prefill;
    split.decode.deployment.replicas = plan.unit_decode;
    Carried {
        accelerators: split.accelerators(),
        unit: Layout::Pools(split),
        token_budget: None,
        rate: plan.rate_per_unit,
        report: plan.report,
        measured: plan.measured,
    }
}

/// A layout sized for a rate, power not yet known; `None` where it keeps its promises at no rate.
fn sized(
    request: &ServingRequest<'_>,
    carried: Carried,
    rate: f64,
    availability: f64,
) -> Option<ServingSize> {
    if carried.rate <= 0.0 {
        return None;
    }
    let node = request.cluster.first_node();
    let price = node.price_per_gpu_hour;
    let (_, output) = request.workload.mean_lengths();
    let each = carried.accelerators;
    let replicas = (rate / carried.rate).ceil().clamp(1.0, f64::from(u32::MAX >> 12)) as u32;
    let spare_replicas = spare_replicas(replicas, each, availability);
    let rented = replicas + spare_replicas;
    let accelerators = replicas.saturating_mul(each);
    let usd_per_hour = f64::from(rented.saturating_mul(each)) * price;
    Some(ServingSize {
        accelerator: node.accelerator.name.clone(),
        price_per_gpu_hour: price,
        layout: times(&carried.unit, replicas),
        pools: None,
        token_budget: carried.token_budget,
        unit_accelerators: each,
        rate_per_unit: carried.rate,
        needed: Needed { replicas, accelerators, usd_per_hour: f64::from(accelerators) * price },
        spare_replicas,
        accelerators: rented.saturating_mul(each),
        usd_per_hour,
        usd_per_million_tokens: usd_per_hour / 3600.0 / (rate * output).max(1e-12) * 1e6,
        kilowatts: 0.0,
        joule_per_token: 0.0,
        load: rate / (carried.rate * f64::from(rented)),
        report: carried.report,
        measured: carried.measured,
        other: None,
    })
}

/// The same pools sized apart, where that is cheaper.
fn apart(request: &ServingRequest<'_>, units: ServingSize, rate: f64, availability: f64) -> ServingSize {
    let Layout::Pools(split) = units.layout else { return units };
    let Some((pools, report)) = apart::apart(request, &split, rate, availability) else { return units };
    let (needed, rented) = pools.accelerators(&split);
    if rented >= units.accelerators {
        return units;
    }
    let price = units.price_per_gpu_hour;
    let (_, output) = request.workload.mean_lengths();
    let usd_per_hour = f64::from(rented) * price;
    ServingSize {
        layout: Layout::Pools(apart::with_instances(&split, pools.prefill, pools.decode)),
        pools: Some(pools),
        unit_accelerators: needed,
        rate_per_unit: rate,
        needed: Needed { replicas: 1, accelerators: needed, usd_per_hour: f64::from(needed) * price },
        spare_replicas: 0,
        accelerators: rented,
        usd_per_hour,
        usd_per_million_tokens: usd_per_hour / 3600.0 / (rate * output).max(1e-12) * 1e6,
        load: pools.load(),
        report,
        ..units
    }
}

/// Power at the rate asked for: one replica or unit with its share of it, spares working too.
fn with_power(request: &ServingRequest<'_>, mut size: ServingSize, rate: f64) -> ServingSize {
    let rented = size.needed.replicas + size.spare_replicas;
    let instances = size.pools.map_or(2, |p| p.prefill + p.decode).div_ceil(2);
    let requests = request.requests.saturating_mul(instances).min(4000);
    let workload = trial::at_rate(request.workload, rate / f64::from(rented), requests);
    let budget = size.token_budget.unwrap_or(request.engine.token_budget);
    let engine = EngineProfile { token_budget: budget, ..request.engine.clone() };
    let at_share = ServingRequest { workload: &workload, engine: &engine, ..*request };
    let mut one = Served::of(size.layout, FleetOptions::default());
    if let (Layout::Pools(split), Some(pools)) = (&mut one.layout, size.pools) {
        split.prefill.deployment.replicas += pools.prefill_spares;
        split.decode.deployment.replicas += pools.decode_spares;
    }
    let shrink = |d: &mut Deployment| d.replicas /= size.needed.replicas.max(1);
    match &mut one.layout {
        Layout::Replicas(d) => shrink(d),
        Layout::Pools(split) => {
            shrink(&mut split.prefill.deployment);
            shrink(&mut split.decode.deployment);
        }
    }
    if let Ok(run) = detail(&at_share, &one) {
        size.kilowatts = run.energy.kilowatts * f64::from(rented);
        size.joule_per_token = run.energy.joule_per_token;
    }
    size
}

/// Sizes one kind of accelerator: the layout with the lowest price for `rate`, spares included, among replicas and among
/// pools for prompts and for answers.
///
/// # Errors
/// As [`plan_serving`]; a rate that is not above zero; no layout that keeps the promises at any rate.
pub fn size(
    request: &ServingRequest<'_>,
    rate: f64,
    availability: f64,
) -> Result<ServingSize, ServingPlanError> {
    if !(rate.is_finite() && rate > 0.0) {
        return Err(ServingPlanError::Rate(rate));
    }
    let found = plan_serving(request)?;
    let nearest = found.plans.first().map(|p| p.report.promises.clone()).unwrap_or_default();
    let cheapest = |list: Vec<Carried>| {
        list.into_iter()
            .filter_map(|c| sized(request, c, rate, availability))
            .min_by(|a, b| a.usd_per_hour.total_cmp(&b.usd_per_hour).then(a.load.total_cmp(&b.load)))
            .map(|s| with_power(request, apart(request, s, rate, availability), rate))
    };
    let together = cheapest(found.plans.into_iter().map(of_replicas).collect());
    // What cannot be split is no fault of the answer.
    let apart = plan_disaggregated(request)
        .ok()
        .and_then(|found| cheapest(found.plans.into_iter().map(of_split).collect()));
    let best = match (together, apart) {
        (Some(a), Some(b)) if b.usd_per_hour < a.usd_per_hour => {
            ServingSize { other: Some(Box::new(a)), ..b }
        }
        (Some(a), b) => ServingSize { other: b.map(Box::new), ..a },
        (None, Some(b)) => b,
        (None, None) => return Err(nothing_keeps(request, &nearest)),
    };
    Ok(best)
}

/// Why no layout carries any rate: the promises that break even for a single request.
fn nothing_keeps(request: &ServingRequest<'_>, nearest: &[Kept]) -> ServingPlanError {
    let broken: Vec<String> = nearest
        .iter()
        .filter(|k| !k.kept)
        .map(|k| {
            format!("{} p{} is {:.3} ms of {:.3}", k.metric.name(), k.percentile, k.reached_ms, k.limit_ms)
        })
        .collect();
    ServingPlanError::Infeasible {
        model: request.model.name.clone(),
        accelerator: request.cluster.first_node().accelerator.name.clone(),
        reasons: vec![format!(
            "no layout keeps the promises even for a single request ({})",
            if broken.is_empty() { "the search found no rate".to_owned() } else { broken.join(", ") }
        )],
    }
}

/// Sizes several kinds of accelerators, in the order given.
pub fn size_all(
    requests: &[ServingRequest<'_>],
    rate: f64,
    availability: f64,
) -> Vec<Result<ServingSize, ServingPlanError>> {
    parallel::map_long(requests, |request| size(request, rate, availability))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spares_grow_with_size_and_promise() {
        assert_eq!(spare_replicas(1, 8, 0.5), 0);
        assert_eq!(spare_replicas(1, 8, 0.999), 1);
        let mut last = 0;
        for needed in [1, 4, 16, 64, 256, 1024] {
            let spare = spare_replicas(needed, 8, 0.999);
            assert!(spare >= last && spare <= needed.max(8), "{needed}: {spare}");
            assert!(spare_replicas(needed, 8, 0.99999) >= spare);
            assert!(spare_replicas(needed, 1, 0.999) <= spare);
            last = spare;
        }
        // By hand: two replicas of 8 accelerators, each away 0.3772 % of the time; both up 99.247 %.
        assert_eq!(spare_replicas(2, 8, 0.99), 0);
        assert_eq!(spare_replicas(2, 8, 0.995), 1);
    }
}
