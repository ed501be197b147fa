//! Which split into prefill and decode instances carries the most requests within the service level.
//!
//! A *unit* is a few prefill and decode instances that serve together, every ratio in lowest terms; a cluster holds as
//! many units as fit. What a unit carries does not depend on the cluster's size, so more accelerators never carry less.
//! Units are simulated best bound first, and the search ends when no bound beats the best simulated rate: the result is
//! the best of all units, not a guess among some.

use super::bounds::{decode_rate, prefill_rate};
use super::search::{candidates, describe};
use super::{ServingPlanError, ServingRequest};
use crate::parallel::map_long;
use psim_cost_models::serving::StepCost;
use psim_models::serving::{Arrival, Deployment, Metric, ServiceLevel, Traffic};
use psim_sim::serving::{
    DisaggregatedInput, Placement, Pool, ServingReport, TransferMode, simulate_disaggregated,
};
use serde::Serialize;

/// Most instances of a unit.
const MOST_INSTANCES: u32 = 16;
/// Most requests of one simulation.
const MOST_REQUESTS: u32 = 4000;
/// Units simulated side by side; fixed, so that the result does not depend on threads.
const SIDE_BY_SIDE: usize = 4;

/// A split at the highest rate that keeps the service level.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DisaggregatedPlan {
    /// Layout of a prefill instance; `replicas` of them in all.
    pub prefill: Deployment,
    /// Layout of a decode instance; `replicas` of them in all.
    pub decode: Deployment,
    /// Prefill instances that serve together with...
    pub unit_prefill: u32,
    /// ...so many decode instances.
    pub unit_decode: u32,
    /// Such units in the cluster.
    pub units: u32,
    /// Where the roles lie.
    pub placement: Placement,
    /// When caches start to move.
    pub transfer: TransferMode,
    /// Accelerators in use.
    pub accelerators: u32,
    /// Requests a second of all units.
    pub rate: f64,
    /// The same of one unit.
    pub rate_per_unit: f64,
    /// The same per accelerator.
    pub rate_per_accelerator: f64,
    /// Generated tokens a second per accelerator.
    pub tokens_per_s_per_accelerator: f64,
    /// Generated tokens a second that one user sees.
    pub tokens_per_s_per_user: f64,
    /// US dollars for a million generated tokens.
    pub usd_per_million_tokens: f64,
    /// Mean milliseconds that a first token waits for its cache to arrive.
    pub transfer_ms: f64,
    /// The simulation of one unit at that rate.
    pub report: ServingReport,
    /// Every kernel law was measured on this accelerator.
    pub measured: bool,
}

/// Splits, best rate first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DisaggregatedReport {
    /// The best, and those it beat on the way.
    pub plans: Vec<DisaggregatedPlan>,
    /// Layouts that do not run, with the reason.
    pub rejected: Vec<(String, String)>,
    /// Splits considered.
    pub searched: usize,
    /// Splits simulated; the others cannot beat the best by their bounds.
    pub simulated: usize,
}

struct Side {
    deployment: Deployment,
    cost: StepCost,
    prefill: f64,
    decode: f64,
}

#[derive(Debug, Clone, Copy)]
struct Unit {
    p: usize,
    d: usize,
    prefills: u32,
    decodes: u32,
    size: u32,
    units: u32,
    /// Requests a second of one unit at most.
    bound: f64,
}

fn coprime(mut a: u32, mut b: u32) -> bool {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

fn units(sides: &[Side], accelerators: u32) -> Vec<Unit> {
    let mut out = Vec::new();
    for (p, from) in sides.iter().enumerate() {
        for (d, to) in sides.iter().enumerate() {
            let (a, b) =
                (from.deployment.accelerators_per_replica(), to.deployment.accelerators_per_replica());
            if from.prefill <= 0.0 || to.decode <= 0.0 {
                continue;
            }
            for prefills in 1..MOST_INSTANCES {
                for decodes in 1..=MOST_INSTANCES - prefills {
                    let size = prefills * a + decodes * b;
                    if size > accelerators || !coprime(prefills, decodes) {
                        continue;
                    }
                    let bound = (f64::from(prefills) * from.prefill).min(f64::from(decodes) * to.decode);
                    out.push(Unit { p, d, prefills, decodes, size, units: accelerators / size, bound });
                }
            }
        }
    }
    let total = |u: &Unit| f64::from(u.units) * u.bound;
    out.sort_by(|x, y| {
        let key = |u: &Unit| (u.size, u.p, u.d, u.prefills);
        total(y).total_cmp(&total(x)).then(key(x).cmp(&key(y)))
    });
    out
}

fn at_rate(
    request: &ServingRequest<'_>,
    sides: &[Side],
    unit: &Unit,
    rate: f64,
) -> Option<(ServingReport, f64)> {
    let mut workload = request.workload.at_rate(rate);
    let wanted = (request.requests.max(40) * (unit.prefills + unit.decodes)).div_ceil(2).min(MOST_REQUESTS);
    let share = (wanted / workload.tenants.len().max(1) as u32).max(20);
    for tenant in &mut workload.tenants {
        tenant.requests = Some(share);
        tenant.duration_s = None;
    }
    let traffic = Traffic::generate(&workload, request.seed);
    let pool = |side: usize, instances| Pool {
        cost: &sides[side].cost,
        engine: request.engine,
        instances,
        context_parallel: 1,
        group: 0,
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
    Some((report, 1e3 * run.transfer_seconds.iter().sum::<f64>() / moved))
}

fn keeps(found: &(ServingReport, f64)) -> bool {
    let report = &found.0;
    !report.saturated && report.refused == 0 && report.promises.iter().all(|p| p.kept)
}

/// Highest rate of a unit, to 2 per cent, if it reaches `floor`.
fn highest_rate(
    request: &ServingRequest<'_>,
    sides: &[Side],
    unit: &Unit,
    floor: f64,
) -> Option<(f64, ServingReport, f64)> {
    let start = floor.max(1e-3 * unit.bound);
    let mut best = at_rate(request, sides, unit, start).filter(keeps)?;
    let (mut low, mut high) = (start, unit.bound);
    while high / low > 1.02 {
        let middle = (low * high).sqrt();
        match at_rate(request, sides, unit, middle).filter(keeps) {
            Some(report) => (low, best) = (middle, report),
            None => high = middle,
        }
    }
    Some((low, best.0, best.1))
}

/// Every split into prefill and decode instances, the best rate first.
///
/// # Errors
/// A closed loop; no split that runs and keeps the service level.
pub fn plan_disaggregated(request: &ServingRequest<'_>) -> Result<DisaggregatedReport, ServingPlanError> {
    if request.workload.tenants.iter().any(|t| matches!(t.arrival, Arrival::ClosedLoop { .. })) {
        return Err(ServingPlanError::ClosedLoop);
    }
    let node = request.cluster.first_node();
    let accelerators = request.cluster.accelerators();
    let (input, output) = request.workload.mean_lengths();
    let layouts = candidates(request, accelerators, node.scale_up.domain.max(1));
    let layouts: Vec<Deployment> = layouts.into_iter().filter(|d| d.pp <= 2).collect();
    let priced = map_long(&layouts, |layout| {
        StepCost::new(request.model, layout, request.cluster, node, request.engine, request.library)
    });
    let (mut sides, mut rejected) = (Vec::new(), Vec::new());
    let alone = request.workload.tenants.iter().filter_map(|t| t.slo.limit_ms(Metric::Ttft)).reduce(f64::max);
    for (layout, cost) in layouts.iter().zip(priced) {
        match cost {
            Ok(cost) => {
                let prefill = prefill_rate(&cost, request.engine, input);
                let decode = decode_rate(&cost, request.engine, request.workload);
                sides.push(Side { deployment: *layout, cost, prefill, decode });
            }
            Err(error) => rejected.push((describe(layout), error.to_string())),
        }
    }
    let all = units(&sides, accelerators);
    let mut plans: Vec<DisaggregatedPlan> = Vec::new();
    let (mut best, mut simulated, mut index) = (0.0f64, 0, 0);
    while index < all.len() && f64::from(all[index].units) * all[index].bound > best {
        let batch: Vec<Unit> = all[index..]
            .iter()
            .take(SIDE_BY_SIDE)
            .take_while(|u| f64::from(u.units) * u.bound > best)
            .copied()
            .collect();
        index += batch.len();
        simulated += batch.len();
        let found =
            map_long(&batch, |unit| highest_rate(request, &sides, unit, best / f64::from(unit.units)));
        for (unit, found) in batch.iter().zip(found) {
            let Some((rate, report, transfer_ms)) = found else { continue };
            let total = rate * f64::from(unit.units);
            if total > best {
                best = total;
            }
            let (p, d) = (&sides[unit.p], &sides[unit.d]);
            let per_accelerator = rate / f64::from(unit.size);
            let tokens = per_accelerator * output;
            let price = node.price_per_gpu_hour;
            plans.push(DisaggregatedPlan {
                prefill: Deployment { replicas: unit.units * unit.prefills, ..p.deployment },
                decode: Deployment { replicas: unit.units * unit.decodes, ..d.deployment },
                unit_prefill: unit.prefills,
                unit_decode: unit.decodes,
                units: unit.units,
                placement: Placement::Paired,
                transfer: TransferMode::LayerWise,
                accelerators: unit.units * unit.size,
                rate: total,
                rate_per_unit: rate,
                rate_per_accelerator: per_accelerator,
                tokens_per_s_per_accelerator: tokens,
                tokens_per_s_per_user: 1e3 / report.tpot_ms.p50.max(1e-6),
                usd_per_million_tokens: price / 3600.0 / tokens.max(1e-12) * 1e6,
                transfer_ms,
                report,
                measured: p.cost.own_laws() && d.cost.own_laws(),
            });
        }
    }
    if plans.is_empty() {
        let mut reasons: Vec<String> =
            rejected.iter().take(3).map(|(layout, why)| format!("{layout}: {why}")).collect();
        if reasons.is_empty() {
            let limit = alone.map_or_else(String::new, |ms| format!(" (time to first token {ms} ms)"));
            reasons.push(format!("no split into prefill and decode keeps the service level{limit}"));
        }
        return Err(ServingPlanError::Infeasible {
            model: request.model.name.clone(),
            accelerator: node.accelerator.name.clone(),
            reasons,
        });
    }
    plans.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.accelerators.cmp(&b.accelerators)));
    Ok(DisaggregatedReport { plans, rejected, searched: all.len(), simulated })
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_cost_models::ProfileLibrary;
    use psim_cost_models::serving::engine::find;
    use psim_hardware::Cluster;
    use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
    use psim_models::presets;
    use psim_models::serving::{Lengths, NumberFormat, Quantization, ServingWorkload};

    fn chat(slo: &str) -> ServingWorkload {
        let mut w = ServingWorkload::fixed("chat", Arrival::Poisson { rate: 1.0 }, 100, 1, 1);
        w.tenants[0].input = Lengths::Lognormal { mean: 1500.0, cv: 0.8 };
        w.tenants[0].output = Lengths::Lognormal { mean: 200.0, cv: 0.8 };
        w.tenants[0].slo = ServiceLevel::parse(slo).unwrap();
        w
    }

    fn plan(
        model: &str,
        cluster: &Cluster,
        workload: &ServingWorkload,
    ) -> Result<DisaggregatedReport, ServingPlanError> {
        let request = ServingRequest {
            model: &presets::find(model).unwrap(),
            cluster,
            engine: find("vllm-v1").unwrap(),
            workload,
            quantization: Quantization::uniform(NumberFormat::Bf16),
            library: &ProfileLibrary::built_in(),
            requests: 200,
            seed: 1,
        };
        plan_disaggregated(&request)
    }

    #[test]
    fn sixty_four_accelerators_in_three_seconds() {
        let cluster = homogeneous("H100-SXM-80GB", 64, &HomogeneousOptions::default()).unwrap();
        let workload = chat("ttft<2000ms@p90,tpot<40ms@p90");
        let clock = std::time::Instant::now();
        let report = plan("llama3-70b", &cluster, &workload).unwrap();
        let seconds = clock.elapsed().as_secs_f64();
        let best = &report.plans[0];
        println!(
            "{seconds:.2} s, {} of {} splits: {}x prefill tp {} pp {} + {}x decode tp {} pp {}: {:.1} rps",
            report.simulated,
            report.searched,
            best.prefill.replicas,
            best.prefill.tp,
            best.prefill.pp,
            best.decode.replicas,
            best.decode.tp,
            best.decode.pp,
            best.rate
        );
        assert!(best.rate > 0.0 && best.accelerators <= 64);
        // Three seconds alone; others may share the machine.
        assert!(seconds < 9.0, "{seconds}");
    }

    #[test]
    fn the_pruned_search_finds_what_the_full_one_finds_and_more_never_carries_less() {
        let workload = chat("ttft<1500ms@p90,tpot<30ms@p90");
        let mut last = 0.0;
        for gpus in [2, 4, 6, 8, 16] {
            let options =
                HomogeneousOptions { gpus_per_node: Some(gpus.min(8)), ..HomogeneousOptions::default() };
            let cluster = homogeneous("H100-SXM-80GB", gpus, &options).unwrap();
            let report = plan("llama3-8b", &cluster, &workload).unwrap();
            assert!(report.plans[0].rate >= last, "{gpus}: {} {last}", report.plans[0].rate);
            last = report.plans[0].rate;
            if gpus != 4 {
                continue;
            }
            // The oracle simulates every unit.
            let model = presets::find("llama3-8b").unwrap();
            let request = ServingRequest {
                model: &model,
                cluster: &cluster,
                engine: find("vllm-v1").unwrap(),
                workload: &workload,
                quantization: Quantization::uniform(NumberFormat::Bf16),
                library: &ProfileLibrary::built_in(),
                requests: 200,
                seed: 1,
            };
            let sides: Vec<Side> = candidates(&request, 4, 4)
                .into_iter()
                .filter(|d| d.pp <= 2)
                .filter_map(|deployment| {
                    let node = cluster.first_node();
                    let cost =
                        StepCost::new(&model, &deployment, &cluster, node, request.engine, request.library)
                            .ok()?;
                    let prefill = prefill_rate(&cost, request.engine, 1500.0);
                    let decode = decode_rate(&cost, request.engine, &workload);
                    Some(Side { deployment, cost, prefill, decode })
                })
                .collect();
            let oracle = units(&sides, 4)
                .iter()
                .filter_map(|u| Some(highest_rate(&request, &sides, u, 0.0)?.0 * f64::from(u.units)))
                .fold(0.0, f64::max);
            assert!((last / oracle - 1.0).abs() < 0.021, "{last} {oracle}");
        }
    }

    #[test]
    fn a_promise_nothing_keeps_is_an_answer() {
        let cluster = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default()).unwrap();
        assert!(matches!(
            plan("llama3-8b", &cluster, &chat("tpot<0.01ms")),
            Err(ServingPlanError::Infeasible { .. })
        ));
    }
}
