//! Enumerates layouts and finds the highest rate of each.

use super::{ServingCapacity, ServingPlan, ServingPlanError, ServingPlanReport, ServingRequest};
use crate::parallel::map_long;
use psim_cost_models::serving::{EngineProfile, StepCost};
use psim_models::serving::{Arrival, Deployment, ServiceLevel, Traffic};
use psim_sim::serving::{FleetOptions, Rules, ServingInput, ServingReport, simulate};

/// Layouts to try on `accelerators` in domains of `domain`.
pub(super) fn candidates(request: &ServingRequest<'_>, accelerators: u32, domain: u32) -> Vec<Deployment> {
    let mut out = Vec::new();
    let moe = request.model.is_moe();
    let powers = |most: u32| (0..).map(|i| 1u32 << i).take_while(move |p| *p <= most);
    for tp in powers(domain.min(accelerators).max(1)) {
        for pp in [1u32, 2, 4] {
            for attention_dp in powers(if moe { (domain / tp).max(1) } else { 1 }) {
                let ranks = tp * attention_dp;
                if ranks * pp > accelerators || (pp > 1 && attention_dp > 1) {
                    continue;
                }
                let mut spread: Vec<u32> = if moe { vec![1, ranks] } else { vec![1] };
                spread.dedup();
                for ep in spread {
                    let quantization = request.quantization;
                    out.push(Deployment { replicas: 1, tp, pp, attention_dp, ep, quantization });
                }
            }
        }
    }
    out
}

pub(super) fn describe(d: &Deployment) -> String {
    format!("tp {} pp {} attention dp {} ep {}", d.tp, d.pp, d.attention_dp, d.ep)
}

/// Serves the workload at `rate` on one replica.
fn at_rate(request: &ServingRequest<'_>, cost: &StepCost, rate: f64) -> Option<ServingReport> {
    let mut workload = request.workload.at_rate(rate);
    let share = request.requests.max(40) / workload.tenants.len().max(1) as u32;
    for tenant in &mut workload.tenants {
        tenant.requests = Some(tenant.requests.unwrap_or(share).min(share.max(20)));
        tenant.duration_s = None;
    }
    let traffic = Traffic::generate(&workload, request.seed);
    let options = FleetOptions::default();
    let input = ServingInput { cost, engine: request.engine, traffic: &traffic, replicas: 1, options };
    let run = simulate(&input).ok()?;
    let levels: Vec<ServiceLevel> = workload.tenants.iter().map(|t| t.slo.clone()).collect();
    Some(ServingReport::new(&run, &traffic, &levels))
}

fn keeps(report: &ServingReport) -> bool {
    !report.saturated && report.refused == 0 && report.promises.iter().all(|p| p.kept)
}

/// Highest rate of one replica that keeps every promise, to 2 per cent, with its simulation.
fn highest_rate(request: &ServingRequest<'_>, cost: &StepCost) -> Option<(f64, ServingReport)> {
    let (input, output) = request.workload.mean_lengths();
    // No replica answers faster than its roofline: flops of a request over the peak of its accelerators.
    let mut low = 1e-3;
    let mut best = at_rate(request, cost, low)?;
    if !keeps(&best) {
        return Some((0.0, best));
    }
    let scale = 1.0 / (best.e2e_ms.mean * 1e-3).max(1e-6);
    let mut rate = (0.5 * scale).max(low * 2.0);
    let mut high = None;
    for _ in 0..24 {
        match at_rate(request, cost, rate).filter(keeps) {
            Some(report) => {
                (low, best) = (rate, report);
                rate *= 2.0;
            }
            None => {
                high = Some(rate);
                break;
            }
        }
    }
    let mut high = high.unwrap_or(rate);
    while high / low > 1.02 {
        let middle = (low * high).sqrt();
        match at_rate(request, cost, middle).filter(keeps) {
            Some(report) => (low, best) = (middle, report),
            None => high = middle,
        }
    }
    debug_assert!(input + output > 0.0);
    Some((low, best))
}

/// Smallest token budget that is tried, tokens a step.
const LEAST_BUDGET: u32 = 512;

/// The highest rate over token budgets: long chunks of prompts finish prompts soon and hold up those who are being
/// answered. Engines whose prompts are not cut have one budget.
fn best_budget(request: &ServingRequest<'_>, cost: &StepCost) -> Option<(f64, ServingReport, u32)> {
    let own = request.engine.token_budget;
    let (rate, report) = highest_rate(request, cost)?;
    let mut best = (rate, report, own);
    if !Rules::of(request.engine.policy).chunked {
        return Some(best);
    }
    for budget in [own / 4, own / 16].into_iter().filter(|b| *b >= LEAST_BUDGET) {
        let engine = EngineProfile { token_budget: budget, ..request.engine.clone() };
        let narrower = ServingRequest { engine: &engine, ..*request };
        // A budget that breaks at the best rate so far cannot beat it.
        if best.0 > 0.0 && !at_rate(&narrower, cost, best.0).is_some_and(|r| keeps(&r)) {
            continue;
        }
        match highest_rate(&narrower, cost) {
            Some((rate, report)) if rate > best.0 => best = (rate, report, budget),
            _ => {}
        }
    }
    Some(best)
}

/// Every layout at the highest rate that keeps the service level, best total rate first.
///
/// # Errors
/// A closed loop; no layout that runs.
pub fn plan_serving(request: &ServingRequest<'_>) -> Result<ServingPlanReport, ServingPlanError> {
    if request.workload.tenants.iter().any(|t| matches!(t.arrival, Arrival::ClosedLoop { .. })) {
        return Err(ServingPlanError::ClosedLoop);
    }
    let node = request.cluster.first_node();
    let accelerators = request.cluster.accelerators();
    let price = node.price_per_gpu_hour;
    let (_, output) = request.workload.mean_lengths();
    let mut plans = Vec::new();
    let mut rejected = Vec::new();
    let list = candidates(request, accelerators, node.scale_up.domain.max(1));
    // Layouts do not depend on one another; the order of the list is kept whatever the threads.
    let found = map_long(&list, |candidate| {
        let cost =
            StepCost::new(request.model, candidate, request.cluster, node, request.engine, request.library)
                .map_err(|error| error.to_string())?;
        Ok((best_budget(request, &cost), cost.own_laws()))
    });
    for (candidate, outcome) in list.iter().zip(found) {
        let (best, measured) = match outcome {
            Ok((Some(best), measured)) => (best, measured),
            Ok((None, _)) => continue,
            Err(why) => {
                let why: String = why;
                rejected.push((describe(candidate), why));
                continue;
            }
        };
        let (rate, report, token_budget) = best;
        let each = candidate.accelerators_per_replica();
        let deployment = Deployment { replicas: (accelerators / each).max(1), ..*candidate };
        let per_accelerator = rate / f64::from(each);
        let tokens = per_accelerator * output;
        plans.push(ServingPlan {
            deployment,
            token_budget,
            accelerators: deployment.accelerators(),
            rate_per_replica: rate,
            rate: rate * f64::from(deployment.replicas),
            rate_per_accelerator: per_accelerator,
            tokens_per_s_per_accelerator: tokens,
            tokens_per_s_per_user: 1e3 / report.tpot_ms.p50.max(1e-6),
            usd_per_million_tokens: if tokens > 0.0 { price / 3600.0 / tokens * 1e6 } else { f64::INFINITY },
            pareto: false,
            report,
            measured,
        });
    }
    if plans.is_empty() {
        let reasons = rejected.iter().take(3).map(|(layout, why)| format!("{layout}: {why}")).collect();
        return Err(ServingPlanError::Infeasible {
            model: request.model.name.clone(),
            accelerator: node.accelerator.name.clone(),
            reasons,
        });
    }
    mark_pareto(&mut plans);
    plans.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.accelerators.cmp(&b.accelerators)));
    Ok(ServingPlanReport { plans, rejected, searched: list.len() })
}

fn mark_pareto(plans: &mut [ServingPlan]) {
    let points: Vec<(f64, f64)> =
        plans.iter().map(|p| (p.tokens_per_s_per_accelerator, p.tokens_per_s_per_user)).collect();
    for (plan, (x, y)) in plans.iter_mut().zip(&points) {
        let beaten = points.iter().any(|(a, b)| a >= x && b >= y && (a > x || b > y));
        plan.pareto = plan.rate_per_replica > 0.0 && !beaten;
    }
}

/// The cheapest way to carry `rate` requests a second within the service level, with `spare_replicas` for failures.
///
/// # Errors
/// As [`plan_serving`]; a rate that is not above zero; no layout that keeps the service level at any rate.
pub fn capacity(
    request: &ServingRequest<'_>,
    rate: f64,
    spare_replicas: u32,
) -> Result<ServingCapacity, ServingPlanError> {
    if !(rate.is_finite() && rate > 0.0) {
        return Err(ServingPlanError::Rate(rate));
    }
    let found = plan_serving(request)?;
    let node = request.cluster.first_node();
    let sized = found.plans.into_iter().filter(|p| p.rate_per_replica > 0.0).map(|mut p| {
        let each = p.deployment.accelerators_per_replica();
        p.deployment.replicas = ((rate / p.rate_per_replica).ceil().max(1.0) as u32).min(u32::MAX / 1024);
        p.accelerators = p.deployment.accelerators();
        p.rate = p.rate_per_replica * f64::from(p.deployment.replicas);
        (p.accelerators + spare_replicas * each, p)
    });
    let best = sized.min_by(|a, b| a.0.cmp(&b.0).then(b.1.rate.total_cmp(&a.1.rate)));
    let Some((accelerators, plan)) = best else {
        return Err(ServingPlanError::Infeasible {
            model: request.model.name.clone(),
            accelerator: node.accelerator.name.clone(),
            reasons: vec!["no layout keeps the service level at any rate".to_owned()],
        });
    };
    Ok(ServingCapacity {
        cluster: request.cluster.name.clone(),
        accelerator: node.accelerator.name.clone(),
        spare_replicas,
        accelerators,
        usd_per_hour: f64::from(accelerators) * node.price_per_gpu_hour,
        plan,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_cost_models::ProfileLibrary;
    use psim_cost_models::serving::engine::find;
    use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
    use psim_models::presets;
    use psim_models::serving::{NumberFormat, Quantization, ServingWorkload};

    #[test]
    fn more_accelerators_never_carry_less_and_capacity_agrees() {
        let model = presets::find("llama3-8b").unwrap();
        let library = ProfileLibrary::built_in();
        let mut workload = ServingWorkload::fixed("w", Arrival::Poisson { rate: 1.0 }, 120, 1000, 100);
        workload.tenants[0].slo = ServiceLevel::parse("ttft<1000ms@p90,tpot<40ms@p90").unwrap();
        let mut last = 0.0;
        for gpus in [8, 16] {
            let cluster = homogeneous("H100-SXM-80GB", gpus, &HomogeneousOptions::default()).unwrap();
            let request = ServingRequest {
                model: &model,
                cluster: &cluster,
                engine: find("vllm-v1").unwrap(),
                workload: &workload,
                quantization: Quantization::uniform(NumberFormat::Bf16),
                library: &library,
                requests: 120,
                seed: 1,
            };
            let report = plan_serving(&request).unwrap();
            let best = &report.plans[0];
            assert!(best.rate >= last && best.rate > 0.0, "{} {last}", best.rate);
            assert!(report.plans.iter().any(|p| p.pareto));
            last = best.rate;
            let sized = capacity(&request, 0.9 * best.rate, 1).unwrap();
            assert!(sized.plan.rate >= 0.9 * best.rate);
            assert!(sized.plan.accelerators <= gpus);
            assert!(capacity(&request, -1.0, 0).is_err());
        }
        // A promise that no hardware keeps.
        workload.tenants[0].slo = ServiceLevel::parse("tpot<0.001ms").unwrap();
        let cluster = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default()).unwrap();
        let request = ServingRequest {
            model: &model,
            cluster: &cluster,
            engine: find("vllm-v1").unwrap(),
            workload: &workload,
            quantization: Quantization::uniform(NumberFormat::Bf16),
            library: &library,
            requests: 60,
            seed: 1,
        };
        assert!(capacity(&request, 1.0, 0).is_err());
    }
}
