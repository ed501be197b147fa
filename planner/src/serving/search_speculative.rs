//! The search with drafted tokens: every layout at the highest rate that keeps the service level, for every number of
//! tokens that a round may draft.

use super::detail::DetailError;
use super::detail::speculative::{Priced, conflicts, priced};
use super::{Drafts, ServingPlan, ServingRequest, Speculation, trial};
use crate::parallel::map_long;
use psim_models::serving::{Deployment, ServiceLevel, Traffic};
use psim_sim::serving::speculation::{SpeculativeInput, simulate_speculative};
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

/// A trial of one replica at a rate.
struct Trial {
    report: ServingReport,
    tokens_per_round: f64,
}

fn with_requests(
    request: &ServingRequest<'_>,
    (priced, speculation): (&Priced, &Speculation),
    rate: f64,
    requests: u32,
) -> Option<Trial> {
    let workload = trial::at_rate(request.workload, rate, requests);
    let traffic = Traffic::generate(&workload, request.seed);
    let found = simulate_speculative(&SpeculativeInput {
        target: &priced.target,
        engine: request.engine,
        drafter: priced.drafter(speculation),
        acceptance: speculation.acceptance.clone(),
        traffic: &traffic,
        seed: request.seed,
    });
    let found = found.ok()?;
    let levels: Vec<ServiceLevel> = workload.tenants.iter().map(|t| t.slo.clone()).collect();
    let report = ServingReport::new(&found.run, &traffic, &levels);
    Some(Trial { report, tokens_per_round: found.tokens_per_round() })
}

/// The trial at a rate, if it keeps every promise: again with more requests where the first are over too soon.
fn kept(request: &ServingRequest<'_>, with: (&Priced, &Speculation), rate: f64) -> Option<Trial> {
    let short = with_requests(request, with, rate, request.requests)?;
    let found = match trial::lasting(rate, request.requests, &short.report) {
        Some(more) => with_requests(request, with, rate, more)?,
        None => short,
    };
    found.report.keeps_up().then_some(found)
}

/// The highest rate of one replica, to 2 per cent, from a first guess; `None` where even a trickle breaks a promise.
fn highest(request: &ServingRequest<'_>, with: (&Priced, &Speculation), guess: f64) -> Option<(f64, Trial)> {
    const TRICKLE: f64 = 1e-3;
    const FACTOR: f64 = 1.4;
    let mut rate = guess.max(TRICKLE);
    let mut best = loop {
        match kept(request, with, rate) {
            Some(trial) => break (rate, trial),
            None if rate <= TRICKLE => return None,
            None => rate = (rate / FACTOR / FACTOR).max(TRICKLE),
        }
    };
    let mut high = best.0 * FACTOR;
    for _ in 0..40 {
        match kept(request, with, high) {
            Some(trial) => (best, high) = ((high, trial), high * FACTOR),
            None => break,
        }
    }
    while high / best.0 > 1.02 {
        let middle = (best.0 * high).sqrt();
        match kept(request, with, middle) {
            Some(trial) => best = (middle, trial),
            None => high = middle,
        }
    }
    Some(best)
}

/// Numbers of drafted tokens to try: the one that is given, or all.
fn numbers(speculation: &Speculation) -> Vec<u32> {
    match (speculation.tokens, &speculation.drafts) {
        (0, Drafts::Tree(_)) => CANDIDATES.to_vec(),
        (0, _) => TOKENS.to_vec(),
        (given, _) => vec![given],
    }
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
    let mut reason = None;
    let mut layouts = Vec::new();
    for plan in plans {
        let one = Deployment { replicas: 1, ..plan.deployment };
        if let Some(what) = conflicts(request, &one, &FleetOptions::default()) {
            let what = format!("speculation together with {what} is not built");
            reason.get_or_insert(DetailError::Together { key: "speculation", what });
            continue;
        }
        match priced(request, &one, plan.group, speculation) {
            Ok(prices) => layouts.push((plan, one, prices)),
            Err(error) => {
                reason.get_or_insert(error);
            }
        }
    }
    if let (true, Some(reason)) = (layouts.is_empty(), reason) {
        return Err(reason);
    }
    let trials: Vec<(usize, Speculation)> = (0..layouts.len())
        .flat_map(|i| numbers(speculation).into_iter().map(move |tokens| (i, tokens)))
        .map(|(i, tokens)| (i, Speculation { tokens, ..speculation.clone() }))
        .collect();
    let found = map_long(&trials, |(layout, speculation)| {
        let (plan, _, prices) = &layouts[*layout];
        highest(request, (prices, speculation), plan.rate_per_replica)
    });
    let mut best: Vec<Option<SpeculativePlan>> = vec![None; layouts.len()];
    for ((layout, speculation), found) in trials.iter().zip(found) {
        let (plan, one, _) = &layouts[*layout];
        let Some((rate, trial)) = found else { continue };
        if best[*layout].as_ref().is_some_and(|b| b.rate_per_replica >= rate) {
            continue;
        }
        let nodes = &request.cluster.groups[plan.group];
        let each = one.accelerators_per_replica() + speculation.extra_accelerators();
        let replicas = nodes.count * nodes.node.accelerators / each.max(1);
        best[*layout] = (replicas > 0).then(|| SpeculativePlan {
            deployment: Deployment { replicas, ..*one },
            group: plan.group,
            tokens: speculation.tokens,
            accelerators: replicas * each,
            rate_per_replica: rate,
            rate: rate * f64::from(replicas),
            rate_without: plan.rate,
            tokens_per_round: trial.tokens_per_round,
            tokens_per_s_per_user: 1e3 / trial.report.tpot_ms.p50.max(1e-6),
            report: trial.report,
        });
    }
    let mut out: Vec<SpeculativePlan> = best.into_iter().flatten().collect();
    out.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.accelerators.cmp(&b.accelerators)));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::plan_serving;
    use psim_cost_models::ProfileLibrary;
    use psim_cost_models::serving::engine::find;
    use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
    use psim_models::presets;
    use psim_models::serving::workload::Sessions;
    use psim_models::serving::{Arrival, Lengths, NumberFormat, Quantization, ServingWorkload};
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
        let model = presets::find("llama3-70b").unwrap();
        let cluster = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default()).unwrap();
        let library = ProfileLibrary::built_in();
        // Tight enough that no ordinary batch keeps it, so that tokens must come several at a time.
        let mut workload = ServingWorkload::fixed("w", Arrival::Poisson { rate: 1.0 }, 60, 300, 60);
        workload.tenants[0].slo = ServiceLevel::parse("ttft<2000ms@p90,tpot<16ms@p90").unwrap();
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
            assert!(right.rate >= other, "{tokens}: {other} {}", right.rate);
        }
        // Drafts that are never right cost time only.
        let wrong = found(&heads(0.0, 0)).map_or(0.0, |p| p.rate);
        assert!(wrong <= 1.02 * right.rate_without, "{wrong} {}", right.rate_without);
        // Conversations are refused with the reason, in every layout.
        let mut talks = workload.clone();
        talks.tenants[0].sessions =
            Some(Sessions { turns: Lengths::Fixed(2), think_s: 1.0, max_tokens: None });
        let request = ServingRequest { workload: &talks, ..request };
        let error = plan_speculative(&request, &heads(0.9, 1), &plain.plans).unwrap_err();
        assert!(error.to_string().contains("conversations"), "{error}");
    }
}
