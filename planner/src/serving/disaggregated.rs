//! Which split into prefill and decode instances carries the most requests within the service level.
//!
//! A *unit* is a few prefill and decode instances that serve together, every ratio in lowest terms; a cluster holds as
//! many units as fit. What a unit carries does not depend on the cluster's size, so more accelerators never carry less.
//! Units are simulated best bound first, and the search ends when no bound beats the best simulated rate: the result is
//! the best of all units, not a guess among some.

#[cfg(test)]
mod tests;
mod trials;
mod units;

use super::bounds::{decode_rate, prefill_rate};
use super::candidates::{candidates, describe};
use super::{PoolLayout, ServingPlanError, ServingRequest, Split};
use crate::parallel::map_long;
use psim_cost_models::serving::StepCost;
use psim_models::serving::{Arrival, Deployment, Metric};
use psim_sim::serving::{Placement, Rules, ServingError, ServingReport, TransferMode};
use serde::Serialize;
pub(super) use trials::UnitTrial;
use trials::highest_rate;
pub(super) use units::Side;
use units::{Unit, placed, units};

/// Units simulated side by side; fixed, so that the result does not depend on threads.
const SIDE_BY_SIDE: usize = 4;

/// A split at the highest rate that keeps the service level.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DisaggregatedPlan {
    /// Layout of a prefill instance; `replicas` of them in all.
    pub prefill: Deployment,
    /// Layout of a decode instance; `replicas` of them in all.
    pub decode: Deployment,
    /// Group of the cluster's nodes on which prefill instances lie, from 0.
    pub prefill_group: usize,
    /// The same of decode instances.
    pub decode_group: usize,
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
    /// US dollars an hour for the accelerators in use.
    pub usd_per_hour: f64,
    /// US dollars for a million generated tokens.
    pub usd_per_million_tokens: f64,
    /// Joules for a generated token at that rate, hosts and facility included.
    pub joule_per_token: f64,
    /// No plan, split or not, has both more tokens per accelerator and more per user ([`mark_pareto`]).
    ///
    /// [`mark_pareto`]: super::mark_pareto
    pub pareto: bool,
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

impl DisaggregatedPlan {
    /// As a layout that can be simulated under any traffic.
    pub fn split(&self) -> Split {
        Split {
            prefill: PoolLayout { group: self.prefill_group, ..self.prefill.into() },
            decode: PoolLayout { group: self.decode_group, ..self.decode.into() },
            placement: self.placement,
            transfer: self.transfer,
        }
    }

    /// Units that carry `rate` requests a second; `None` where a unit carries nothing.
    pub fn units_for(&self, rate: f64) -> Option<u32> {
        (self.rate_per_unit > 0.0 && rate.is_finite() && rate > 0.0)
            .then(|| (rate / self.rate_per_unit).ceil().clamp(1.0, f64::from(u32::MAX >> 12)) as u32)
    }
}

/// Every split into prefill and decode instances, the best rate first.
///
/// # Errors
/// A closed loop; static batches; no split that runs and keeps the service level.
pub fn plan_disaggregated(request: &ServingRequest<'_>) -> Result<DisaggregatedReport, ServingPlanError> {
    if request.workload.tenants.iter().any(|t| matches!(t.arrival, Arrival::ClosedLoop { .. })) {
        return Err(ServingPlanError::ClosedLoop);
    }
    if Rules::of(request.engine.policy).whole_batches {
        return Err(ServingError::WholeBatches.into());
    }
    let (input, output) = request.workload.mean_lengths();
    let mut layouts: Vec<(usize, Deployment)> = Vec::new();
    for (group, nodes) in request.cluster.groups.iter().enumerate() {
        let domain = nodes.node.scale_up.domain.max(1);
        let list = candidates(request, nodes.count * nodes.node.accelerators, domain);
        layouts.extend(list.into_iter().filter(|d| d.pp <= 2).map(|d| (group, d)));
    }
    let priced = map_long(&layouts, |(group, layout)| {
        let node = request.node(*group);
        StepCost::new(request.model, layout, request.cluster, node, request.engine, request.library)
    });
    let (mut sides, mut rejected) = (Vec::new(), Vec::new());
    let alone = request.workload.tenants.iter().filter_map(|t| t.slo.limit_ms(Metric::Ttft)).reduce(f64::max);
    for ((group, layout), cost) in layouts.iter().zip(priced) {
        match cost {
            Ok(cost) => {
                let prefill = prefill_rate(&cost, request.engine, input);
                let decode = decode_rate(&cost, request.engine, request.workload);
                sides.push(Side { deployment: *layout, group: *group, cost, prefill, decode });
            }
            Err(error) => rejected.push((describe(layout), error.to_string())),
        }
    }
    let all = units(request, &sides);
    let mut plans: Vec<DisaggregatedPlan> = Vec::new();
    let (mut best, mut simulated, mut index) = (0.0f64, 0, 0);
    while index < all.len() && all[index].total() > best {
        let batch: Vec<Unit> =
            all[index..].iter().take(SIDE_BY_SIDE).take_while(|u| u.total() > best).copied().collect();
        index += batch.len();
        let batch: Vec<Unit> = batch.iter().filter_map(|unit| placed(request, &sides, unit)).collect();
        simulated += batch.len();
        let found =
            map_long(&batch, |unit| highest_rate(request, &sides, unit, best / f64::from(unit.units)));
        for (unit, found) in batch.iter().zip(found) {
            let Some((rate, trial)) = found else { continue };
            let total = rate * f64::from(unit.units);
            if total > best {
                best = total;
            }
            let (p, d) = (&sides[unit.p], &sides[unit.d]);
            let per_accelerator = rate / f64::from(unit.size);
            let tokens = per_accelerator * output;
            let price = |side: &Side, instances: u32| {
                let size = f64::from(instances * side.deployment.accelerators_per_replica());
                size * request.node(side.group).price_per_gpu_hour
            };
            let usd_per_hour = f64::from(unit.units) * (price(p, unit.prefills) + price(d, unit.decodes));
            let joule_per_token = UnitTrial::of(request, &sides, unit).joule_per_token(&trial);
            let (report, transfer_ms) = (trial.report, trial.transfer_ms);
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
                usd_per_million_tokens: usd_per_hour / 3600.0 / (total * output).max(1e-12) * 1e6,
                usd_per_hour,
                prefill_group: p.group,
                decode_group: d.group,
                joule_per_token,
                pareto: false,
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
            accelerator: request.cluster.first_node().accelerator.name.clone(),
            reasons,
        });
    }
    plans.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.accelerators.cmp(&b.accelerators)));
    Ok(DisaggregatedReport { plans, rejected, searched: all.len(), simulated })
}
