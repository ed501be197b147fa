//! When nothing fits: which constraint killed how much, and the nearest change that helps.

use crate::evaluator::Evaluator;
use crate::objective::Scorer;
use crate::plan::Question;
use crate::progress::{Progress, Silent};
use crate::request::PlanRequest;
use crate::result::{Infeasible, NearestChange};
use crate::rules::Facts;
use crate::search::{Stream, prepare};
use crate::space::{Kills, SearchSpace, enumerate};
use crate::step_evaluator::StepEvaluator;
use psim_hardware::{Bytes, Cluster};
use psim_models::{Plan, TrainingWorkload};

/// Cluster growth tried, in steps of two.
const MOST_DOUBLINGS: u32 = 8;
/// Smaller sizes of the cluster tried.
const FEWER_TRIES: usize = 6;

/// Collects reasons and advice.
pub(crate) fn explain(
    request: &PlanRequest<'_>,
    question: &Question<'_>,
    kills: &Kills,
    nearest_memory: Option<&(Bytes, Plan)>,
    progress: &dyn Progress,
) -> Infeasible {
    if !request.advice {
        return Infeasible { constraints: kills.ranked(), nearest: Vec::new() };
    }
    progress.report("looking for the nearest feasible change", 0, 4);
    let mut nearest: Vec<NearestChange> = fewer_accelerators(request, question, progress)
        .into_iter()
        .chain(other_batch(request, question, progress))
        .chain(free_space(request, question, progress))
        .collect();
    if nearest.is_empty() && nearest_memory.is_some() {
        nearest.extend(more_nodes(request, progress));
        nearest.extend(shorter_sequences(request, progress));
    }
    Infeasible { constraints: kills.ranked(), nearest }
}

/// The best plan of a changed question, at L1, if it has any.
fn best(
    request: &PlanRequest<'_>,
    cluster: &Cluster,
    workload: &TrainingWorkload,
    space: Option<&SearchSpace>,
    accelerators: u32,
    global_batch: u32,
    progress: &dyn Progress,
) -> Option<Plan> {
    if progress.cancelled() {
        return None;
    }
    let mut facts = Facts::new(request.model, cluster, workload.seq_len);
    facts.accelerators = accelerators;
    let domain = cluster.slowest_node().scale_up.domain;
    let default;
    let space = match space {
        Some(space) => space,
        None => {
            default = SearchSpace::default_for(&facts, domain, &request.precision)
                .offered_by(&request.stack.supports)
                .on_all_accelerators();
            &default
        }
    };
    let evaluator = StepEvaluator::new(request.model, workload, cluster, request.stack, request.library);
    let parameters = request.model.parameters().total;
    let scorer = Scorer::new(request.objective, cluster, workload.seq_len, parameters);
    let enumeration = enumerate(space, &facts, global_batch);
    let prepared = prepare(&evaluator, &scorer, enumeration, false, &Silent).ok()?;
    let mut stream = Stream::new(&evaluator, &scorer, &prepared);
    // The closed form may admit a plan that the simulated schedule does not: a few are tried.
    let found = stream.by_ref().take(8).map(|s| prepared.candidates[s.candidate].plan.clone());
    found.into_iter().find(|plan| evaluator.l2(plan).is_ok_and(|p| p.fits))
}

fn fewer_accelerators(
    request: &PlanRequest<'_>,
    question: &Question<'_>,
    progress: &dyn Progress,
) -> Option<NearestChange> {
    let all = request.cluster.accelerators();
    let node = request.cluster.first_node().accelerators.max(1);
    let power = |n: u32| if n == 0 { 0 } else { 1 << (31 - n.leading_zeros()) };
    let mut sizes: Vec<u32> =
        (1..node.min(all)).map(|k| all - k).filter(|n| *n > 0 && all <= 4 * node).collect();
    sizes.extend([(all - 1) / node * node, power(all - 1), power(all - 1) / 2]);
    sizes.retain(|&n| n > 0 && n < all);
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.dedup();
    sizes.truncate(FEWER_TRIES.max(node as usize));
    sizes.into_iter().find_map(|n| {
        let batch = question.batches[0];
        let plan =
            best(request, request.cluster, request.workload, request.space.as_ref(), n, batch, progress)?;
        Some(NearestChange { change: format!("use {n} of the {all} accelerators"), plan: Some(plan) })
    })
}

fn other_batch(
    request: &PlanRequest<'_>,
    question: &Question<'_>,
    progress: &dyn Progress,
) -> Option<NearestChange> {
    let (all, batch) = (request.cluster.accelerators(), question.batches[0]);
    let rounded = [batch.next_multiple_of(all.max(1)), batch.checked_next_power_of_two().unwrap_or(batch)];
    let mut tries: Vec<u32> = rounded.into_iter().filter(|&b| b != batch && b / 8 <= batch).collect();
    tries.sort_unstable();
    tries.into_iter().find_map(|b| {
        let plan =
            best(request, request.cluster, request.workload, request.space.as_ref(), all, b, progress)?;
        let change = format!("a global batch of {b} sequences instead of {batch}");
        Some(NearestChange { change, plan: Some(plan) })
    })
}

fn free_space(
    request: &PlanRequest<'_>,
    question: &Question<'_>,
    progress: &dyn Progress,
) -> Option<NearestChange> {
    request.space.as_ref()?;
    let all = request.cluster.accelerators();
    let plan = best(request, request.cluster, request.workload, None, all, question.batches[0], progress)?;
    let change =
        format!("leave the layout free: tp {} pp {} dp {} cp {} fits", plan.tp, plan.pp, plan.dp, plan.cp);
    Some(NearestChange { change, plan: Some(plan) })
}

fn more_nodes(request: &PlanRequest<'_>, progress: &dyn Progress) -> Option<NearestChange> {
    let mut cluster = request.cluster.clone();
    for _ in 0..MOST_DOUBLINGS {
        for group in &mut cluster.groups {
            group.count = group.count.checked_mul(2)?;
        }
        let all = cluster.accelerators();
        // Every replica gets at least one sequence.
        let batch =
            request.workload.global_batch.next_multiple_of(all.min(request.workload.global_batch).max(1));
        if let Some(plan) = best(request, &cluster, request.workload, None, all, batch, progress) {
            let change = format!(
                "{} nodes ({all} accelerators) instead of {} ({})",
                cluster.nodes(),
                request.cluster.nodes(),
                request.cluster.accelerators()
            );
            return Some(NearestChange { change, plan: Some(plan) });
        }
    }
    None
}

fn shorter_sequences(request: &PlanRequest<'_>, progress: &dyn Progress) -> Option<NearestChange> {
    let all = request.cluster.accelerators();
    let mut workload = request.workload.clone();
    while workload.seq_len >= 2048 {
        workload.seq_len /= 2;
        let batch = workload.global_batch;
        if let Some(plan) = best(request, request.cluster, &workload, None, all, batch, progress) {
            let change =
                format!("sequences of {} tokens instead of {}", workload.seq_len, request.workload.seq_len);
            return Some(NearestChange { change, plan: Some(plan) });
        }
    }
    None
}
