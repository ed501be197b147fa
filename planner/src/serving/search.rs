//! Enumerates layouts and finds the highest rate of each.

use super::bounds::{decode_rate, prefill_rate};
use super::energy::{Activity, Energy, joules};
use super::trial;
use super::{ServingPlan, ServingPlanError, ServingPlanReport, ServingRequest, mark_pareto};
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

/// A trial of one replica.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    pub(super) report: ServingReport,
    pub(super) activity: Activity,
    pub(super) generated: f64,
}

/// Serves the workload at `rate` on one replica.
fn at_rate(request: &ServingRequest<'_>, cost: &StepCost, rate: f64) -> Option<Trial> {
    let workload = trial::at_rate(request.workload, rate, request.requests);
    let traffic = Traffic::generate(&workload, request.seed);
    let options = FleetOptions::default();
    let input = ServingInput { cost, engine: request.engine, traffic: &traffic, replicas: 1, options };
    let run = simulate(&input).ok()?;
    let levels: Vec<ServiceLevel> = workload.tenants.iter().map(|t| t.slo.clone()).collect();
    let report = ServingReport::new(&run, &traffic, &levels);
    let activity = Activity {
        instance_seconds: report.seconds,
        busy: run.busy,
        prompt_tokens: run.computed_prompt_tokens as f64,
    };
    Some(Trial { report, activity, generated: run.generated_tokens as f64 })
}

fn keeps(trial: &Trial) -> bool {
    let report = &trial.report;
    !report.saturated && report.refused == 0 && report.promises.iter().all(|p| p.kept)
}

/// Highest rate of one replica that keeps every promise, to 2 per cent, with its simulation; 0 where even a trickle
/// breaks one.
fn highest_rate(request: &ServingRequest<'_>, cost: &StepCost) -> Option<(f64, Trial)> {
    // A trickle: one request at a time.
    const TRICKLE: f64 = 1e-3;
    // Half of what full steps carry is a good beginning; prefixes that are found cached may carry more.
    let (input, _) = request.workload.mean_lengths();
    let full =
        prefill_rate(cost, request.engine, input).min(decode_rate(cost, request.engine, request.workload));
    let mut rate = if full.is_finite() && full > 4.0 * TRICKLE { 0.5 * full } else { 1.0 };
    let mut high = None;
    let mut alone = None;
    let low = loop {
        let trial = at_rate(request, cost, rate)?;
        if keeps(&trial) {
            break (rate, trial);
        }
        high = Some(rate);
        if alone.is_none() {
            let trial = at_rate(request, cost, TRICKLE)?;
            if !keeps(&trial) {
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
        Some(high) => Some(between(request, cost, low, high)),
        None => Some(climb(request, cost, low, 1.4 * rate, 1.4)),
    }
}

/// From a rate that keeps every promise to the highest one, to 2 per cent: by `factor` from `rate`, then by halving.
fn climb(
    request: &ServingRequest<'_>,
    cost: &StepCost,
    (mut low, mut best): (f64, Trial),
    mut rate: f64,
    factor: f64,
) -> (f64, Trial) {
    for _ in 0..40 {
        match at_rate(request, cost, rate).filter(keeps) {
            Some(trial) => {
                (low, best) = (rate, trial);
                rate *= factor;
            }
            None => break,
        }
    }
    between(request, cost, (low, best), rate)
}

/// The highest rate that keeps every promise between one that does and one that does not, to 2 per cent.
fn between(
    request: &ServingRequest<'_>,
    cost: &StepCost,
    (mut low, mut best): (f64, Trial),
    mut high: f64,
) -> (f64, Trial) {
    while high / low > 1.02 {
        let middle = (low * high).sqrt();
        match at_rate(request, cost, middle).filter(keeps) {
            Some(trial) => (low, best) = (middle, trial),
            None => high = middle,
        }
    }
    (low, best)
}

/// Smallest token budget that is tried, tokens a step.
const LEAST_BUDGET: u32 = 512;

/// The highest rate over token budgets: long chunks of prompts finish prompts soon and hold up those who are being
/// answered. Engines whose prompts are not cut have one budget.
fn best_budget(request: &ServingRequest<'_>, cost: &StepCost) -> Option<(f64, Trial, u32)> {
    let own = request.engine.token_budget;
    let (rate, trial) = highest_rate(request, cost)?;
    let mut best = (rate, trial, own);
    if !Rules::of(request.engine.policy).chunked {
        return Some(best);
    }
    for budget in [own / 4, own / 16].into_iter().filter(|b| *b >= LEAST_BUDGET) {
        let engine = EngineProfile { token_budget: budget, ..request.engine.clone() };
        let narrower = ServingRequest { engine: &engine, ..*request };
        let found = if best.0 > 0.0 {
            // A budget that breaks at the best rate so far cannot beat it; one that does not goes on from there.
            let Some(trial) = at_rate(&narrower, cost, best.0).filter(keeps) else { continue };
            Some(climb(&narrower, cost, (best.0, trial), 1.1 * best.0, 1.3))
        } else {
            highest_rate(&narrower, cost)
        };
        match found {
            Some((rate, trial)) if rate > best.0 => best = (rate, trial, budget),
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
    let (_, output) = request.workload.mean_lengths();
    let mut plans = Vec::new();
    let mut rejected = Vec::new();
    let mut list = Vec::new();
    // Replicas lie on nodes of one kind; a mixed cluster has a list for each.
    for (group, nodes) in request.cluster.groups.iter().enumerate() {
        let domain = nodes.node.scale_up.domain.max(1);
        let layouts = candidates(request, nodes.count * nodes.node.accelerators, domain);
        list.extend(layouts.into_iter().map(|layout| (group, layout)));
    }
    // Layouts do not depend on one another; the order of the list is kept whatever the threads.
    let found = map_long(&list, |(group, candidate)| {
        let node = request.node(*group);
        let cost =
            StepCost::new(request.model, candidate, request.cluster, node, request.engine, request.library)
                .map_err(|error| error.to_string())?;
        Ok((best_budget(request, &cost), cost.own_laws()))
    });
    for ((group, candidate), outcome) in list.iter().zip(found) {
        let nodes = &request.cluster.groups[*group];
        let node = &nodes.node;
        let accelerators = nodes.count * node.accelerators;
        let (best, measured) = match outcome {
            Ok((Some(best), measured)) => (best, measured),
            Ok((None, _)) => continue,
            Err(why) => {
                let why: String = why;
                let on = if request.cluster.is_mixed() {
                    format!(" on {}", node.accelerator.name)
                } else {
                    String::new()
                };
                rejected.push((format!("{}{on}", describe(candidate)), why));
                continue;
            }
        };
        let (rate, trial, token_budget) = best;
        let spent = joules(request.model, request.cluster, node, candidate, &trial.activity);
        let report = trial.report;
        let price = node.price_per_gpu_hour;
        let each = candidate.accelerators_per_replica();
        let deployment = Deployment { replicas: (accelerators / each).max(1), ..*candidate };
        let per_accelerator = rate / f64::from(each);
        let tokens = per_accelerator * output;
        plans.push(ServingPlan {
            deployment,
            group: *group,
            accelerator: node.accelerator.name.clone(),
            price_per_gpu_hour: price,
            token_budget,
            accelerators: deployment.accelerators(),
            rate_per_replica: rate,
            rate: rate * f64::from(deployment.replicas),
            rate_per_accelerator: per_accelerator,
            tokens_per_s_per_accelerator: tokens,
            tokens_per_s_per_user: 1e3 / report.tpot_ms.p50.max(1e-6),
            usd_per_million_tokens: if tokens > 0.0 { price / 3600.0 / tokens * 1e6 } else { f64::INFINITY },
            joule_per_token: Energy::of(spent, report.seconds, trial.generated).joule_per_token,
            pareto: false,
            report,
            measured,
        });
    }
    if plans.is_empty() {
        // The list goes from small to large: the last are the nearest to fit.
        let reasons = rejected.iter().rev().take(3).map(|(layout, why)| format!("{layout}: {why}")).collect();
        return Err(ServingPlanError::Infeasible {
            model: request.model.name.clone(),
            accelerator: request.cluster.first_node().accelerator.name.clone(),
            reasons,
        });
    }
    mark_pareto(&mut plans, &mut []);
    plans.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.accelerators.cmp(&b.accelerators)));
    Ok(ServingPlanReport { plans, rejected, searched: list.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::size::size;
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
            let sized = size(&request, 0.9 * best.rate, 0.5).unwrap();
            assert!(sized.rate_per_unit * f64::from(sized.needed.replicas) >= 0.9 * best.rate);
            assert!(sized.other.is_none_or(|o| o.usd_per_hour >= sized.usd_per_hour));
            assert!(sized.accelerators <= gpus);
            assert!(size(&request, -1.0, 0.5).is_err());
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
        assert!(size(&request, 1.0, 0.5).is_err());
    }
}
