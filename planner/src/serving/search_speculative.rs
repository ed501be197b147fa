//! The search with drafted tokens: every layout at the highest rate that keeps the service level, for every number of
//! tokens that a round may draft.

use super::detail::DetailError;
use super::detail::speculative::{Priced, conflict, conflict_of_pools, priced, refusal};
use super::disaggregated::{Side, UnitTrial};
use super::replica::Replica;
use super::{DisaggregatedPlan, Drafts, ServingPlan, ServingRequest, Speculation, trial};
use crate::parallel::map_long;
use psim_cost_models::serving::EngineProfile;
use psim_models::serving::Deployment;
use psim_sim::serving::{FleetOptions, ServingReport};
use serde::Serialize;

/// Drafted tokens of a round that are tried.
const TOKENS: [u32; 6] = [1, 2, 3, 4, 6, 8];
/// Candidates of a tree that are tried.
const CANDIDATES: [u32; 5] = [4, 8, 16, 32, 64];

/// A layout with the number of drafted tokens that carries the most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpeculativePlan {
    /// Layout of the target; `replicas` fill the cluster's nodes of their kind, drafts on accelerators of their own
    /// included.
    pub deployment: Deployment,
    /// Group of the cluster's nodes on which it lies, from 0.
    pub group: usize,
    /// Drafted tokens of a round; candidates of a tree.
    pub tokens: u32,
    /// Accelerators in use.
    pub accelerators: u32,
    /// Requests a second of one replica within the service level; 0 where even a trickle breaks it.
    pub rate_per_replica: f64,
    /// Requests a second of all replicas.
    pub rate: f64,
    /// The same without speculation, of the layout's own plan.
    pub rate_without: f64,
    /// Mean tokens of a round at that rate.
    pub tokens_per_round: f64,
    /// Generated tokens a second that one user sees at that rate.
    pub tokens_per_s_per_user: f64,
    /// The simulation of one replica at that rate.
    pub report: ServingReport,
}

/// A split into pools with the number of drafted tokens that carries the most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpeculativeSplit {
    /// Layout of a prefill instance; `replicas` of them in all.
    pub prefill: Deployment,
    /// Layout of a decode instance, which runs the rounds; `replicas` of them in all.
    pub decode: Deployment,
    /// Group of the cluster's nodes on which prefill instances lie, from 0.
    pub prefill_group: usize,
    /// The same of decode instances.
    pub decode_group: usize,
    /// Units of prefill and decode instances that serve together.
    pub units: u32,
    /// Drafted tokens of a round; candidates of a tree.
    pub tokens: u32,
    /// Accelerators in use.
    pub accelerators: u32,
    /// Requests a second of one unit within the service level.
    pub rate_per_unit: f64,
    /// Requests a second of all units.
    pub rate: f64,
    /// The same without speculation, of the split's own plan.
    pub rate_without: f64,
    /// Mean tokens of a round at that rate.
    pub tokens_per_round: f64,
    /// Generated tokens a second that one user sees at that rate.
    pub tokens_per_s_per_user: f64,
    /// The simulation of one unit at that rate.
    pub report: ServingReport,
}

/// Numbers of drafted tokens to try: the one that is given, or all.
fn numbers(speculation: &Speculation) -> Vec<u32> {
    match (speculation.tokens, &speculation.drafts) {
        (0, Drafts::Tree(_)) => CANDIDATES.to_vec(),
        (0, _) => TOKENS.to_vec(),
        (given, _) => vec![given],
    }
}

/// What can speculate, or why nothing can.
fn able<T>(found: Vec<Result<T, DetailError>>) -> Result<Vec<T>, DetailError> {
    let mut reason = None;
    let mut out = Vec::new();
    for one in found {
        match one {
            Ok(able) => out.push(able),
            Err(error) => {
                reason.get_or_insert(error);
            }
        }
    }
    match reason {
        Some(reason) if out.is_empty() => Err(reason),
        _ => Ok(out),
    }
}

/// Where the search of a rate begins.
#[derive(Debug, Clone, Copy)]
enum Start {
    /// At a guess.
    From(f64),
    /// Above what another number of drafts carries.
    Above(f64),
}

impl Start {
    fn highest<T>(self, kept: impl Fn(f64) -> Option<T>) -> Option<(f64, T)> {
        match self {
            Self::From(guess) => trial::highest_from(kept, guess),
            Self::Above(floor) => trial::highest_above(kept, floor),
        }
    }
}

/// The best of `highest` over the numbers of drafted tokens, for each of `layouts`, which carry `guess` without drafts.
fn best_numbers<L: Sync, T: Send>(
    layouts: &[L],
    speculation: &Speculation,
    guess: impl Fn(&L) -> f64 + Sync,
    highest: impl Fn(&L, &Speculation, Start) -> Option<(f64, T)> + Sync,
) -> Vec<Option<(u32, f64, T)>> {
    map_long(layouts, |layout| {
        let mut best: Option<(u32, f64, T)> = None;
        for tokens in numbers(speculation) {
            let start = best.as_ref().map_or(Start::From(guess(layout)), |(_, rate, _)| Start::Above(*rate));
            let with = Speculation { tokens, ..speculation.clone() };
            if let Some((rate, trial)) = highest(layout, &with, start) {
                best = Some((tokens, rate, trial));
            }
        }
        best
    })
}

/// The layouts of `plans` that can speculate, each with the number of drafted tokens that carries the most requests within
/// the service level, most requests first. `speculation.tokens` of 0 searches that number too.
///
/// # Errors
/// What is not simulated together with speculation in any layout; a draft model that cannot be priced in any of them.
pub fn plan_speculative(
    request: &ServingRequest<'_>,
    speculation: &Speculation,
    plans: &[ServingPlan],
) -> Result<Vec<SpeculativePlan>, DetailError> {
    let layouts = plans.iter().map(|plan| {
        let one = Deployment { replicas: 1, ..plan.deployment };
        if let Some(found) = conflict(&one, speculation, &FleetOptions::default()) {
            return Err(refusal(found));
        }
        let engine = EngineProfile { token_budget: plan.token_budget, ..request.engine.clone() };
        let with = ServingRequest { engine: &engine, ..*request };
        let prices = priced(&with, &one, plan.group, Some(&speculation.drafts))?;
        Ok((plan, one, prices, engine))
    });
    let layouts: Vec<(&ServingPlan, Deployment, Priced, EngineProfile)> = able(layouts.collect())?;
    let guess = |(plan, ..): &(&ServingPlan, Deployment, Priced, EngineProfile)| plan.rate_per_replica;
    let best = best_numbers(&layouts, speculation, guess, |(_, _, prices, engine), speculation, start| {
        let with = ServingRequest { engine, ..*request };
        let speculating = prices.speculating(speculation, request.seed);
        let replica = Replica { request: &with, cost: &prices.target, speculation: Some(&speculating) };
        start.highest(|rate| replica.kept(rate))
    });
    let found = layouts.iter().zip(best).filter_map(|((plan, one, ..), best)| {
        let (tokens, rate, trial) = best?;
        let nodes = &request.cluster.groups[plan.group];
        let each = one.accelerators_per_replica() + speculation.extra_accelerators();
        let replicas = nodes.count * nodes.node.accelerators / each.max(1);
        (replicas > 0).then(|| SpeculativePlan {
            deployment: Deployment { replicas, ..*one },
            group: plan.group,
            tokens,
            accelerators: replicas * each,
            rate_per_replica: rate,
            rate: rate * f64::from(replicas),
            rate_without: plan.rate,
            tokens_per_round: trial.tokens_per_round,
            tokens_per_s_per_user: 1e3 / trial.report.tpot_ms.p50.max(1e-6),
            report: trial.report,
        })
    });
    let mut out: Vec<SpeculativePlan> = found.collect();
    out.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.accelerators.cmp(&b.accelerators)));
    Ok(out)
}

/// The same of splits into pools for prompts and for answers: decode instances run the rounds; a draft model reads the
/// prompts on prefill instances, and its cache moves with the target's.
///
/// # Errors
/// As [`plan_speculative`].
pub fn plan_speculative_splits(
    request: &ServingRequest<'_>,
    speculation: &Speculation,
    plans: &[DisaggregatedPlan],
) -> Result<Vec<SpeculativeSplit>, DetailError> {
    let splits = plans.iter().map(|plan| {
        if let Some(found) = conflict_of_pools(&plan.split(), speculation) {
            return Err(refusal(found));
        }
        let price = |deployment: &Deployment, group| {
            let one = Deployment { replicas: 1, ..*deployment };
            priced(request, &one, group, Some(&speculation.drafts))
        };
        let (p, d) = (price(&plan.prefill, plan.prefill_group)?, price(&plan.decode, plan.decode_group)?);
        let side = |deployment: &Deployment, group, prices: &Priced| Side {
            deployment: Deployment { replicas: 1, ..*deployment },
            group,
            cost: prices.target.clone(),
            // A round gives more than a token: bounds of single tokens are none here.
            prefill: f64::INFINITY,
            decode: f64::INFINITY,
        };
        let sides = (side(&plan.prefill, plan.prefill_group, &p), side(&plan.decode, plan.decode_group, &d));
        Ok((plan, p, d, sides))
    });
    let splits: Vec<(&DisaggregatedPlan, Priced, Priced, (Side, Side))> = able(splits.collect())?;
    let guess = |(plan, ..): &(&DisaggregatedPlan, Priced, Priced, (Side, Side))| plan.rate_per_unit;
    let best = best_numbers(&splits, speculation, guess, |(plan, p, d, sides), speculation, start| {
        let (rounds, drafter) = (d.speculating(speculation, request.seed), p.drafter(speculation));
        let unit = UnitTrial {
            request,
            prefill: &sides.0,
            decode: &sides.1,
            instances: (plan.unit_prefill, plan.unit_decode),
            speculation: Some((&rounds, &drafter)),
        };
        start.highest(|rate| unit.kept(rate))
    });
    let found = splits.iter().zip(best).filter_map(|((plan, ..), best)| {
        let (tokens, rate, trial) = best?;
        Some(SpeculativeSplit {
            prefill: plan.prefill,
            decode: plan.decode,
            prefill_group: plan.prefill_group,
            decode_group: plan.decode_group,
            units: plan.units,
            tokens,
            accelerators: plan.accelerators,
            rate_per_unit: rate,
            rate: rate * f64::from(plan.units),
            rate_without: plan.rate,
            tokens_per_round: trial.tokens_per_round,
            tokens_per_s_per_user: 1e3 / trial.report.tpot_ms.p50.max(1e-6),
            report: trial.report,
        })
    });
    let mut out: Vec<SpeculativeSplit> = found.collect();
    out.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.accelerators.cmp(&b.accelerators)));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::fixture::{Asked, fixed};
    use crate::serving::{Layout, Served, detail, plan_disaggregated, plan_serving};
    use psim_models::presets;
    use psim_models::serving::Lengths;
    use psim_models::serving::workload::Sessions;
    use psim_sim::serving::speculation::Acceptance;

    fn heads(rate: f64, tokens: u32) -> Speculation {
        Speculation {
            name: "mtp".to_owned(),
            drafts: Drafts::Heads { layers: 1 },
            tokens,
            acceptance: Acceptance::Rate(rate),
        }
    }

    #[test]
    fn drafts_that_are_right_carry_more_and_the_number_of_them_is_searched() {
        // Tight enough that no ordinary batch keeps it, so that tokens must come several at a time.
        let asked =
            Asked::new("llama3-70b", 8, fixed(60, 300, 60)).promising("ttft<2000ms@p90,tpot<16ms@p90");
        let request = asked.request();
        let mut plain = plan_serving(&request).unwrap();
        plain.plans.retain(|p| p.deployment.pp == 1 && p.deployment.tp == 8);
        let found = |speculation: &Speculation| {
            plan_speculative(&request, speculation, &plain.plans).unwrap().into_iter().next()
        };
        let right = found(&heads(0.95, 0)).unwrap();
        assert!(right.rate > right.rate_without, "{} {}", right.rate, right.rate_without);
        assert!(
            right.tokens > 1 && right.tokens_per_round > 1.9,
            "{} {}",
            right.tokens,
            right.tokens_per_round
        );
        assert!(right.report.keeps_up());
        // The number that was found carries at least what any other one does, to the search's 2 per cent.
        for tokens in [1, 8] {
            let other = found(&heads(0.95, tokens)).map_or(0.0, |p| p.rate);
            assert!(1.02 * right.rate >= other, "{tokens}: {other} {}", right.rate);
        }
        // Drafts that are never right cost time only.
        let wrong = found(&heads(0.0, 0)).map_or(0.0, |p| p.rate);
        assert!(wrong <= 1.02 * right.rate_without, "{wrong} {}", right.rate_without);
        // Conversations speculate too: their later turns find what was said in the cache.
        let mut talks = asked.workload.clone();
        talks.tenants[0].sessions =
            Some(Sessions { turns: Lengths::Fixed(2), think_s: 1.0, max_tokens: None });
        let request = ServingRequest { workload: &talks, ..request };
        let found = plan_speculative(&request, &heads(0.95, 3), &plain.plans).unwrap();
        assert!(found[0].rate > 0.0 && found[0].report.cache_hits > 0.0);
        // Pipeline stages are refused with the reason, in every layout.
        let mut staged = plain.plans.clone();
        staged.iter_mut().for_each(|p| p.deployment.pp = 2);
        let error = plan_speculative(&request, &heads(0.9, 1), &staged).unwrap_err();
        assert!(error.to_string().contains("pipeline stages"), "{error}");
    }

    #[test]
    fn pools_speculate_and_what_cannot_is_refused() {
        let asked =
            Asked::new("llama3-70b", 16, fixed(60, 300, 60)).promising("ttft<2000ms@p90,tpot<16ms@p90");
        let request = asked.request();
        let mut plain = plan_disaggregated(&request).unwrap().plans;
        plain.retain(|p| p.prefill.pp == 1 && p.decode.pp == 1);
        plain.truncate(1);
        let found = |speculation: &Speculation| plan_speculative_splits(&request, speculation, &plain);
        let right = found(&heads(0.95, 0)).unwrap().remove(0);
        assert!(right.rate > right.rate_without, "{} {}", right.rate, right.rate_without);
        assert!(right.tokens_per_round > 1.9 && right.report.keeps_up());
        let model = presets::find("llama3.2-1b").unwrap();
        let draft = Speculation { drafts: Drafts::Model(Box::new(model.clone())), ..heads(0.95, 3) };
        let with = found(&draft).unwrap().remove(0);
        assert!(with.rate > 0.0 && with.tokens_per_round > 3.0);
        // The plan is what a simulation of the same split gives.
        let mut split = plain[0].split();
        split.prefill.deployment.replicas = plain[0].unit_prefill;
        split.decode.deployment.replicas = plain[0].unit_decode;
        let trial = trial::at_rate(&asked.workload, with.rate_per_unit, 60);
        let served =
            Served { speculation: Some(draft), ..Served::of(Layout::Pools(split), FleetOptions::default()) };
        let detailed = detail(&ServingRequest { workload: &trial, ..request }, &served).unwrap();
        assert!((detailed.speculation.unwrap().tokens_per_round / with.tokens_per_round - 1.0).abs() < 0.1);
        let beside =
            Speculation { drafts: Drafts::Parallel { model: Box::new(model), tp: 1 }, ..heads(0.9, 3) };
        let error = found(&beside).unwrap_err();
        assert!(error.to_string().contains("accelerators of their own"), "{error}");
    }
}
