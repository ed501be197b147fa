//! Capacity planning: which accelerators, how many, for how long, at what price.
//!
//! For every type of accelerator the best plan is found at growing sizes; its days follow from the token budget and the
//! useful share of the time under failures ([`failures`]). A size that is no faster than a smaller one is left out, so
//! that more accelerators never look worse: whoever has them may use fewer.

pub mod failures;
mod offers;
mod option;

pub use offers::{Offer, default_offers};

use crate::plan::plan;
use crate::progress::Progress;
use crate::request::{PlanError, PlanRequest};
use crate::result::{Assumption, CapacityOption, CapacityReport, Objective, PlanReport, SCHEMA};
use psim_cost_models::ProfileLibrary;
use psim_hardware::Cluster;
use psim_hardware::profile::StackProfile;
use psim_models::plan::Precision;
use psim_models::{Model, TrainingWorkload};
use std::collections::BTreeMap;

/// A capacity question.
#[derive(Debug, Clone)]
pub struct CapacityRequest<'a> {
    /// What is trained.
    pub model: &'a Model,
    /// Sequence length, global batch, tokens (required here).
    pub workload: &'a TrainingWorkload,
    /// Smallest and largest global batch, sequences; `None`: the workload's. Large clusters need large batches: a fixed
    /// one leaves them few micro-batches per pipeline.
    pub global_batch: Option<(u32, u32)>,
    /// Software stack.
    pub stack: &'a StackProfile,
    /// Measured profiles.
    pub library: &'a ProfileLibrary,
    /// Arithmetic formats to try (those that a part lacks are left out there).
    pub precision: Vec<Precision>,
    /// Must be done within this many days.
    pub deadline_days: Option<f64>,
    /// Must not cost more than this many US dollars.
    pub budget_usd: Option<f64>,
    /// What may be rented.
    pub offers: Vec<Offer>,
    /// Most accelerators of one type.
    pub most_accelerators: u32,
    /// Defaults that the caller took, for the report.
    pub assumptions: Vec<Assumption>,
}

/// Answers a capacity question.
///
/// # Errors
/// [`PlanError::Question`] for malformed questions, [`PlanError::Cancelled`].
pub fn capacity(request: &CapacityRequest<'_>, progress: &dyn Progress) -> Result<CapacityReport, PlanError> {
    let tokens = check(request)?;
    let mut options = Vec::new();
    let mut rejected = Vec::new();
    let total = request.offers.len() as u64;
    for (done, offer) in request.offers.iter().enumerate() {
        progress.report("capacity", done as u64, total);
        match one_offer(request, offer, tokens, progress)? {
            Ok(found) => options.extend(found),
            Err(reason) => rejected.push((offer.name().to_owned(), reason)),
        }
    }
    // Those that meet the limits first; under a deadline the cheap ones, else the fast ones. Then the nearest misses.
    let by_price = request.deadline_days.is_some() || request.budget_usd.is_none();
    let order = |o: &CapacityOption| match (o.meets, by_price) {
        (true, true) => o.cost_usd,
        (true, false) => o.days,
        (false, _) => excess(request, o),
    };
    options.sort_by(|a, b| {
        b.meets
            .cmp(&a.meets)
            .then(order(a).total_cmp(&order(b)))
            .then_with(|| a.accelerator.cmp(&b.accelerator))
    });
    let recommended = options.first().and_then(|o| o.meets.then_some(0));
    Ok(CapacityReport {
        schema: SCHEMA,
        model: request.model.name.clone(),
        tokens,
        deadline_days: request.deadline_days,
        budget_usd: request.budget_usd,
        options,
        recommended,
        rejected,
        assumptions: request.assumptions.iter().cloned().chain(option::assumptions()).collect(),
    })
}

/// By which factor an option exceeds the limit that it misses most.
fn excess(request: &CapacityRequest<'_>, option: &CapacityOption) -> f64 {
    let late = request.deadline_days.map_or(0.0, |limit| option.days / limit);
    let dear = request.budget_usd.map_or(0.0, |limit| option.cost_usd / limit);
    late.max(dear)
}

fn check(request: &CapacityRequest<'_>) -> Result<f64, PlanError> {
    let wrong = |what: String, hint: &str| PlanError::Question { what, hint: hint.to_owned() };
    let positive = |value: Option<f64>| value.is_none_or(|v| v.is_finite() && v > 0.0);
    if !positive(request.deadline_days) || !positive(request.budget_usd) {
        return Err(wrong(
            "deadline and budget must be positive numbers".to_owned(),
            "use --by 30d or --budget 5M$",
        ));
    }
    if request.offers.is_empty() || request.most_accelerators == 0 {
        return Err(wrong(
            "nothing to rent: no accelerator types given".to_owned(),
            "name at least one type",
        ));
    }
    match request.workload.tokens {
        Some(tokens) if tokens.is_finite() && tokens > 0.0 => Ok(tokens),
        _ => Err(wrong("the number of training tokens is missing".to_owned(), "use --tokens 15T")),
    }
}

/// The best plan on a cluster.
fn best_plan(
    request: &CapacityRequest<'_>,
    cluster: &Cluster,
    progress: &dyn Progress,
) -> Result<PlanReport, PlanError> {
    let mut question =
        PlanRequest::new(request.model, cluster, request.workload, request.stack, request.library);
    question.objective = Objective::Time;
    question.top = 1;
    question.pareto = false;
    question.advice = false;
    question.global_batch = request.global_batch;
    question.precision.clone_from(&request.precision);
    plan(&question, progress)
}

/// Options of one offer, or why it has none.
fn one_offer(
    request: &CapacityRequest<'_>,
    offer: &Offer,
    tokens: f64,
    progress: &dyn Progress,
) -> Result<Result<Vec<CapacityOption>, String>, PlanError> {
    let mut by_count: BTreeMap<u32, CapacityOption> = BTreeMap::new();
    let mut reason = format!("no size up to {} accelerators could be built", request.most_accelerators);
    let mut visit = |count: u32, by_count: &mut BTreeMap<u32, CapacityOption>| -> Result<(), PlanError> {
        let cluster = match offer.cluster(count) {
            Ok(cluster) => cluster,
            Err(cause) => {
                reason = cause;
                return Ok(());
            }
        };
        let report = best_plan(request, &cluster, progress)?;
        match report.plans.into_iter().next() {
            Some(best) => {
                by_count
                    .insert(count, option::build(request, &cluster, best, tokens, offer.nodes_that_exist()));
            }
            None => {
                let main = report.constraints.first();
                reason = main.map_or_else(
                    || "no plan is legal".to_owned(),
                    |k| format!("{}: {}", k.constraint, k.example),
                );
            }
        }
        Ok(())
    };
    for count in offer.counts(request.most_accelerators) {
        visit(count, &mut by_count)?;
    }
    for count in between(request, offer, &by_count) {
        visit(count, &mut by_count)?;
    }
    if by_count.is_empty() {
        return Ok(Err(reason));
    }
    let mut fastest = f64::INFINITY;
    let faster = by_count.into_values().filter(|option| {
        let better = option.days < fastest;
        fastest = fastest.min(option.days);
        better
    });
    Ok(Ok(faster.collect()))
}

/// Sizes between the doublings where a limit starts or stops being met.
fn between(
    request: &CapacityRequest<'_>,
    offer: &Offer,
    by_count: &BTreeMap<u32, CapacityOption>,
) -> Vec<u32> {
    let counts: Vec<u32> = by_count.keys().copied().collect();
    let limits: [fn(&CapacityRequest<'_>, &CapacityOption) -> bool; 2] = [
        |r, o| r.deadline_days.is_none_or(|d| o.days <= d),
        |r, o| r.budget_usd.is_none_or(|b| o.cost_usd <= b),
    ];
    let mut out = Vec::new();
    for pair in counts.windows(2) {
        let (low, high) = (&by_count[&pair[0]], &by_count[&pair[1]]);
        if limits.iter().any(|meets| meets(request, low) != meets(request, high)) {
            out.extend(offer.counts_between(pair[0], pair[1]));
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}
