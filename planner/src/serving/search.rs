//! The highest rate of every layout.
//!
//! Layouts inside one scale-up domain are all simulated. Those over several domains are tried smallest first, and only
//! where their closed-form bound beats the best rate per accelerator of the layouts that fit into them a whole number of
//! times: as many of those fill the same accelerators and carry more, at any size of the cluster.

use super::bounds::{decode_rate, prefill_rate};
use super::candidates::{candidates, describe, spans_domains};
use super::energy::{Energy, joules};
use super::replica::{Replica, Trial};
use super::trial;
use super::{ServingPlan, ServingPlanError, ServingPlanReport, ServingRequest, mark_pareto};
use crate::parallel::map_long;
use psim_cost_models::serving::{EngineProfile, StepCost};
use psim_models::serving::{Arrival, Deployment};
use psim_sim::serving::Rules;

/// Smallest token budget that is tried, tokens a step.
const LEAST_BUDGET: u32 = 512;

/// Token budgets to try: the engine's own and shorter ones, where its prompts are cut.
fn budgets(engine: &EngineProfile) -> impl Iterator<Item = u32> {
    let own = engine.token_budget;
    let cut = Rules::of(engine.policy).chunked;
    let shorter = [own / 4, own / 16].into_iter().filter(move |b| cut && *b >= LEAST_BUDGET);
    std::iter::once(own).chain(shorter)
}

/// The highest rate over token budgets, if it reaches `floor`: long chunks of prompts finish prompts soon and hold up
/// those who are being answered.
fn best_budget(request: &ServingRequest<'_>, cost: &StepCost, floor: f64) -> Option<(f64, Trial, u32)> {
    let mut best: Option<(f64, Trial, u32)> = None;
    for budget in budgets(request.engine) {
        let engine = EngineProfile { token_budget: budget, ..request.engine.clone() };
        let with = ServingRequest { engine: &engine, ..*request };
        let replica = Replica { request: &with, cost, speculation: None };
        let least = best.as_ref().map_or(floor, |b| b.0.max(floor));
        let found = if least > 0.0 {
            // A budget that breaks at the best rate so far cannot beat it; one that does not goes on from there.
            let Some(found) = replica.kept(least) else { continue };
            Some(trial::climb(|rate| replica.kept(rate), (least, found), 1.1 * least, 1.3))
        } else {
            replica.highest_rate()
        };
        match found {
            Some((rate, trial)) if best.as_ref().is_none_or(|b| rate > b.0) => {
                best = Some((rate, trial, budget));
            }
            None if best.is_none() => return None,
            _ => {}
        }
    }
    best
}

/// Requests a second that one replica carries at most.
fn bound(request: &ServingRequest<'_>, cost: &StepCost) -> f64 {
    let decode = decode_rate(cost, request.engine, request.workload);
    // Prompts that are found cached are not computed.
    let branches = |a: &Arrival| matches!(a, Arrival::Trace(rows) if !rows.prefixes.is_empty());
    if request
        .workload
        .tenants
        .iter()
        .any(|t| t.prefix.is_some() || t.sessions.is_some() || branches(&t.arrival))
    {
        return decode;
    }
    let (input, _) = request.workload.mean_lengths();
    decode.min(prefill_rate(cost, request.engine, input))
}

/// What became of a layout.
enum Tried {
    /// The highest rate with its trial and token budget; every kernel law was measured here.
    Found(Box<(f64, Trial, u32)>, bool),
    /// No better than smaller layouts.
    Pruned,
    /// It does not run, with the reason.
    Rejected(String),
}

/// A layout on the nodes of a group of the cluster.
type Placed = (usize, Deployment);

/// Prices the steps of a layout on the nodes of a group, or says why it does not run.
type Price<'a> = dyn Fn(usize, &Deployment) -> Result<StepCost, String> + Sync + 'a;

/// The step costs of the built-in kernel tables under the engine.
fn tabled(request: &ServingRequest<'_>, group: usize, candidate: &Deployment) -> Result<StepCost, String> {
    let node = request.node(group);
    StepCost::new(request.model, candidate, request.cluster, node, request.engine, request.library)
        .map_err(|error| error.to_string())
}

fn try_layout(
    request: &ServingRequest<'_>,
    (group, candidate): &Placed,
    price: &Price<'_>,
    floor: f64,
) -> Tried {
    match price(*group, candidate) {
        Err(reason) => Tried::Rejected(reason),
        Ok(cost) if floor > 0.0 && bound(request, &cost) <= floor => Tried::Pruned,
        Ok(cost) => match best_budget(request, &cost, floor) {
            Some(best) => Tried::Found(Box::new(best), cost.own_laws()),
            None if floor > 0.0 => Tried::Pruned,
            None => Tried::Rejected("the workload cannot be simulated on it".to_owned()),
        },
    }
}

/// The best rate per accelerator of layouts of the same group that fit into `size` accelerators a whole number of times.
fn floor(tried: &[(Placed, Tried)], group: usize, size: u32) -> f64 {
    let rates = tried.iter().filter_map(|((g, d), t)| match t {
        Tried::Found(best, _) if *g == group => {
            let each = d.accelerators_per_replica();
            size.is_multiple_of(each).then(|| best.0 / f64::from(each))
        }
        _ => None,
    });
    rates.fold(0.0, f64::max) * f64::from(size)
}

/// Tries every layout; those over several domains by size, with a floor from smaller ones where `prune`.
fn try_all(request: &ServingRequest<'_>, price: &Price<'_>, prune: bool) -> Vec<(Placed, Tried)> {
    let (mut inside, mut across): (Vec<Placed>, Vec<Placed>) = (Vec::new(), Vec::new());
    // Replicas lie on nodes of one kind; a mixed cluster has a list for each.
    for (group, nodes) in request.cluster.groups.iter().enumerate() {
        let domain = nodes.node.scale_up.domain.max(1);
        for layout in candidates(request, nodes.count * nodes.node.accelerators, domain) {
            let list = if spans_domains(&layout, domain) { &mut across } else { &mut inside };
            list.push((group, layout));
        }
    }
    // Layouts do not depend on one another; the order of the list is kept whatever the threads.
    let results = map_long(&inside, |placed| try_layout(request, placed, price, 0.0));
    let mut tried: Vec<(Placed, Tried)> = inside.into_iter().zip(results).collect();
    let size = |(_, d): &Placed| d.accelerators_per_replica();
    across.sort_by_key(size);
    for alike in across.chunk_by(|a, b| size(a) == size(b)) {
        let results = map_long(alike, |placed| {
            let least = if prune { floor(&tried, placed.0, size(placed)) } else { 0.0 };
            try_layout(request, placed, price, least)
        });
        tried.extend(alike.iter().copied().zip(results));
    }
    tried
}

/// Every layout at the highest rate that keeps the service level, best total rate first.
///
/// # Errors
/// A closed loop; no layout that runs.
pub fn plan_serving(request: &ServingRequest<'_>) -> Result<ServingPlanReport, ServingPlanError> {
    search(request, &|group, candidate| tabled(request, group, candidate), true)
}

/// As [`plan_serving`] for an engine whose steps somebody else prices, such as one that runs on this machine: `price`
/// gets a layout of one replica and returns its step costs, or why the engine does not run it.
///
/// # Errors
/// As [`plan_serving`].
pub fn plan_serving_priced(
    request: &ServingRequest<'_>,
    price: &(dyn Fn(&Deployment) -> Result<StepCost, String> + Sync),
) -> Result<ServingPlanReport, ServingPlanError> {
    search(request, &|_, candidate| price(candidate), true)
}

fn search(
    request: &ServingRequest<'_>,
    price: &Price<'_>,
    prune: bool,
) -> Result<ServingPlanReport, ServingPlanError> {
    if request.workload.tenants.iter().any(|t| matches!(t.arrival, Arrival::ClosedLoop { .. })) {
        return Err(ServingPlanError::ClosedLoop);
    }
    let (_, output) = request.workload.mean_lengths();
    let mut plans = Vec::new();
    let mut rejected = Vec::new();
    let mut pruned = 0;
    let tried = try_all(request, price, prune);
    let searched = tried.len();
    for ((group, candidate), outcome) in tried {
        let nodes = &request.cluster.groups[group];
        let node = &nodes.node;
        let accelerators = nodes.count * node.accelerators;
        let ((rate, trial, token_budget), measured) = match outcome {
            Tried::Found(best, measured) => (*best, measured),
            Tried::Pruned => {
                pruned += 1;
                continue;
            }
            Tried::Rejected(why) => {
                let on = if request.cluster.is_mixed() {
                    format!(" on {}", node.accelerator.name)
                } else {
                    String::new()
                };
                rejected.push((format!("{}{on}", describe(&candidate)), why));
                continue;
            }
        };
        let spent = joules(request.model, request.cluster, node, &candidate, &trial.activity);
        let report = trial.report;
        let price = node.price_per_gpu_hour;
        let each = candidate.accelerators_per_replica();
        let deployment = Deployment { replicas: (accelerators / each).max(1), ..candidate };
        let per_accelerator = rate / f64::from(each);
        let tokens = per_accelerator * output;
        plans.push(ServingPlan {
            deployment,
            group,
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
    Ok(ServingPlanReport { plans, rejected, searched, pruned })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::fixture::{Asked, fixed};
    use crate::serving::size::size;
    use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};

    #[test]
    fn more_accelerators_never_carry_less_and_capacity_agrees() {
        let mut last = 0.0;
        for gpus in [8, 16] {
            let asked = Asked::new("llama3-8b", gpus, fixed(120, 1000, 100));
            let asked = asked.promising("ttft<1000ms@p90,tpot<40ms@p90");
            let request = asked.request();
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
        let asked = Asked::new("llama3-8b", 8, fixed(60, 1000, 100)).promising("tpot<0.001ms");
        assert!(size(&asked.request(), 1.0, 0.5).is_err());
    }

    /// A small model with experts on nodes of two accelerators, so that several domains are soon reached.
    fn small(gpus: u32, prune: bool, output: u64) -> ServingPlanReport {
        let options = HomogeneousOptions { gpus_per_node: Some(2), ..HomogeneousOptions::default() };
        let asked = Asked::new("mixtral-8x7b", gpus, fixed(80, 200, output))
            .on(homogeneous("H200-SXM-141GB", gpus, &options).unwrap())
            .promising("ttft<2000ms@p90,tpot<60ms@p90");
        let request = asked.request();
        search(&request, &|group, candidate| tabled(&request, group, candidate), prune).unwrap()
    }

    #[test]
    fn the_pruned_search_over_nodes_finds_what_the_full_one_finds() {
        for output in [20, 120] {
            let (pruned, full) = (small(8, true, output), small(8, false, output));
            assert_eq!((pruned.searched, full.pruned), (full.searched, 0));
            assert!(full.plans.iter().any(|p| p.deployment.attention_dp * p.deployment.tp > 2));
            let (a, b) = (&pruned.plans[0], &full.plans[0]);
            assert!((a.rate / b.rate - 1.0).abs() < 0.021, "{} {}", a.rate, b.rate);
        }
    }

    #[test]
    fn more_nodes_never_carry_less() {
        let mut last = 0.0;
        for gpus in [2, 4, 6, 8] {
            let rate = small(gpus, true, 60).plans[0].rate;
            assert!(rate >= last && rate > 0.0, "{gpus}: {rate} {last}");
            last = rate;
        }
    }
}
