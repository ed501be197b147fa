//! How many accelerators of which kind carry a rate, with headroom for failures.

use super::energy::{Activity, energy};
use super::{Needed, ServingPlan, ServingPlanError, ServingRequest, detail, plan_serving};
use crate::capacity::failures::MTBF_PER_GPU_HOURS;
use crate::parallel;
use psim_cost_models::serving::EngineProfile;
use psim_models::serving::Deployment;
use psim_sim::serving::FleetOptions;
use serde::Serialize;

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
    /// The plan; its `replicas` are what the rate needs.
    pub plan: ServingPlan,
    /// What the rate needs, without spares.
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

/// Sizes one kind of accelerator: the layout with the lowest price for `rate`, spares included.
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
    let node = request.cluster.first_node();
    let price = node.price_per_gpu_hour;
    let found = plan_serving(request)?;
    let nearest = found.plans.first().map(|p| p.report.promises.clone()).unwrap_or_default();
    let (_, output) = request.workload.mean_lengths();
    let sized = found.plans.into_iter().filter_map(|mut plan| {
        let needed = plan.needed(rate, price)?;
        let each = plan.deployment.accelerators_per_replica();
        let spare_replicas = spare_replicas(needed.replicas, each, availability);
        let rented = needed.replicas + spare_replicas;
        plan.deployment.replicas = needed.replicas;
        plan.accelerators = needed.accelerators;
        plan.rate = plan.rate_per_replica * f64::from(needed.replicas);
        let usd_per_hour = f64::from(rented * each) * price;
        Some(ServingSize {
            accelerator: node.accelerator.name.clone(),
            price_per_gpu_hour: price,
            needed,
            spare_replicas,
            accelerators: rented * each,
            usd_per_hour,
            usd_per_million_tokens: usd_per_hour / 3600.0 / (rate * output) * 1e6,
            kilowatts: 0.0,
            joule_per_token: 0.0,
            load: rate / (plan.rate_per_replica * f64::from(rented)),
            plan,
        })
    });
    let best = sized.min_by(|a, b| a.usd_per_hour.total_cmp(&b.usd_per_hour).then(a.load.total_cmp(&b.load)));
    let mut best = best.ok_or_else(|| {
        let broken: Vec<String> = nearest
            .iter()
            .filter(|k| !k.kept)
            .map(|k| {
                format!(
                    "{} p{} is {:.3} ms of {:.3}",
                    k.metric.name(),
                    k.percentile,
                    k.reached_ms,
                    k.limit_ms
                )
            })
            .collect();
        ServingPlanError::Infeasible {
            model: request.model.name.clone(),
            accelerator: node.accelerator.name.clone(),
            reasons: vec![format!(
                "no layout keeps the promises even for a single request ({})",
                if broken.is_empty() { "the search found no rate".to_owned() } else { broken.join(", ") }
            )],
        }
    })?;
    // Power at the rate asked for: one replica with its share of it, spares working too.
    let rented = best.needed.replicas + best.spare_replicas;
    let mut workload = request.workload.at_rate(rate / f64::from(rented));
    let share = request.requests / workload.tenants.len().max(1) as u32;
    for tenant in &mut workload.tenants {
        tenant.requests = Some(tenant.requests.unwrap_or(share).min(share.max(20)));
        tenant.duration_s = None;
    }
    let one = Deployment { replicas: 1, ..best.plan.deployment };
    let engine = EngineProfile { token_budget: best.plan.token_budget, ..request.engine.clone() };
    let at_share = ServingRequest { workload: &workload, engine: &engine, ..*request };
    if let Ok(run) = detail(&at_share, &one, FleetOptions::default()) {
        let activity = Activity {
            seconds: run.report.seconds,
            busy: run.run.busy,
            prompt_tokens: run.run.computed_prompt_tokens as f64,
        };
        let joules = energy(request.model, request.cluster, &one, &activity);
        best.kilowatts = joules / run.report.seconds * f64::from(rented) * 1e-3;
        best.joule_per_token = joules / (run.run.generated_tokens.max(1)) as f64;
    }
    Ok(best)
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
