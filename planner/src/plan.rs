//! The entry point of planning.

use crate::evaluator::Evaluator;
use crate::infeasible;
use crate::objective::Scorer;
use crate::parallel;
use crate::pareto;
use crate::progress::Progress;
use crate::ranked;
use crate::request::{PlanError, PlanRequest};
use crate::result::{
    Assumption, Objective, Optimality, ParetoPoint, PlanReport, Question as AskedQuestion, SCHEMA,
    ThroughputPoint,
};
use crate::rules::Facts;
use crate::search::refine::{L1_TO_L2_GAP, Refined, Resimulated, refine};
use crate::search::{PreparedFor, Stream, prepare};
use crate::space::{Kills, SearchSpace, enumerate};
use crate::step_evaluator::StepEvaluator;
use psim_hardware::Bytes;
use psim_models::Plan;

/// Largest sizes accepted; beyond them it is a typing error.
const MOST_SEQUENCES: u32 = 1 << 24;
const MOST_SEQ_LEN: u64 = 1 << 30;
/// Points of a throughput curve at most.
const CURVE_POINTS: usize = 16;
/// How much slower than the fastest a plan may be under [`Objective::Memory`].
const MEMORY_SLACK: f64 = 0.10;

/// A checked question with what follows from it.
pub(crate) struct Question<'a> {
    pub(crate) batches: Vec<u32>,
    pub(crate) facts: Facts,
    pub(crate) space: SearchSpace,
    pub(crate) scorer: Scorer,
    pub(crate) evaluator: StepEvaluator<'a>,
}

/// Finds the best plans.
///
/// A question that has no feasible plan is answered with [`PlanReport::infeasible`].
///
/// # Errors
/// [`PlanError::Question`] for malformed questions, [`PlanError::Cancelled`].
pub fn plan(request: &PlanRequest<'_>, progress: &dyn Progress) -> Result<PlanReport, PlanError> {
    let question = check(request)?;
    let mut state = State::default();
    for &batch in &question.batches {
        one_batch(request, &question, batch, &mut state, progress)?;
    }
    report(request, &question, state, progress)
}

/// What accumulates over the global batches.
#[derive(Default)]
struct State {
    found: Vec<Resimulated>,
    curve: Vec<ThroughputPoint>,
    front: Vec<(Plan, pareto::FrontPoint)>,
    considered: u64,
    simulated: u64,
    kills: Kills,
    nearest_memory: Option<(Bytes, Plan)>,
    optimality: Option<Optimality>,
}

fn check<'a>(request: &PlanRequest<'a>) -> Result<Question<'a>, PlanError> {
    let wrong = |what: String, hint: &str| PlanError::Question { what, hint: hint.to_owned() };
    let accelerators = request.cluster.accelerators();
    if request.cluster.groups.is_empty() || accelerators == 0 {
        return Err(wrong(
            format!("cluster `{}` has no accelerators", request.cluster.name),
            "give at least one node group",
        ));
    }
    let seq_len = request.workload.seq_len;
    if seq_len == 0 || seq_len > MOST_SEQ_LEN {
        return Err(wrong(
            format!("a sequence length of {seq_len} tokens is outside 1 to {MOST_SEQ_LEN}"),
            "use --seq-len",
        ));
    }
    let (low, high) =
        request.global_batch.unwrap_or((request.workload.global_batch, request.workload.global_batch));
    if low == 0 || high < low || high > MOST_SEQUENCES {
        return Err(wrong(
            format!(
                "a global batch of {low}..{high} sequences is not within 1 to {MOST_SEQUENCES}, smaller first"
            ),
            "use --global-batch N or --global-batch A..B with A ≤ B",
        ));
    }
    if let Some(tokens) = request.workload.tokens.filter(|t| !t.is_finite() || *t <= 0.0) {
        return Err(wrong(
            format!("a budget of {tokens} tokens is not a positive number"),
            "use --tokens 15T",
        ));
    }
    if request.precision.is_empty() || request.top == 0 {
        return Err(wrong(
            "nothing to search: no precision or no plan asked for".to_owned(),
            "use --precision bf16 and --top 1 or more",
        ));
    }
    let facts = Facts::new(request.model, request.cluster, seq_len);
    if facts.layers == 0 {
        return Err(wrong(
            format!("model `{}` has no layers", request.model.name),
            "check its configuration",
        ));
    }
    let node = request.cluster.slowest_node();
    let space = request.space.clone().unwrap_or_else(|| {
        let space = SearchSpace::default_for(&facts, node.scale_up.domain, &request.precision)
            .offered_by(&request.stack.supports);
        // What is cheapest or least hungry on part of a cluster is a question of its size, for [`crate::capacity`]. On a
        // mixed cluster it matters which nodes idle.
        let may_idle = matches!(request.objective, Objective::Time | Objective::Goodput);
        if may_idle && !request.cluster.is_mixed() { space } else { space.on_all_accelerators() }
    });
    let parameters = request.model.parameters().total;
    let scorer = Scorer::new(request.objective, request.cluster, seq_len, parameters);
    let evaluator =
        StepEvaluator::new(request.model, request.workload, request.cluster, request.stack, request.library);
    Ok(Question { batches: batches(low, high), facts, space, scorer, evaluator })
}

/// Global batches tried in a range: the ends and doublings between them.
fn batches(low: u32, high: u32) -> Vec<u32> {
    let mut list: Vec<u32> =
        std::iter::successors(Some(low), |b| b.checked_mul(2)).take_while(|b| *b < high).collect();
    list.push(high);
    while list.len() > CURVE_POINTS {
        // Every second point, ends kept.
        let last = list.len() - 1;
        list = list.iter().enumerate().filter(|(i, _)| i % 2 == 0 || *i == last).map(|(_, b)| *b).collect();
    }
    list
}

fn one_batch(
    request: &PlanRequest<'_>,
    question: &Question<'_>,
    batch: u32,
    state: &mut State,
    progress: &dyn Progress,
) -> Result<(), PlanError> {
    let (evaluator, scorer) = (&question.evaluator, &question.scorer);
    let enumeration = enumerate(&question.space, &question.facts, batch);
    let prepared = prepare(evaluator, scorer, enumeration, question.space.uneven, progress)?;
    let mut stream = Stream::new(evaluator, scorer, &prepared);
    let refined = if request.objective == Objective::Memory {
        roomiest(&mut stream, question, request.top, progress)?
    } else {
        refine(&mut stream, evaluator, scorer, request.top, L1_TO_L2_GAP, progress)?
    };
    if request.pareto && !refined.plans.is_empty() {
        progress.report("Pareto set", 0, 1);
        let front = pareto::front(scorer, &prepared, &stream, true);
        state.front.extend(front.into_iter().map(|f| (prepared.candidates[f.candidate].plan.clone(), f)));
    }
    let simulated = stream.simulated() as u64;
    finish_batch(question, batch, &prepared, refined, simulated, state);
    Ok(())
}

fn finish_batch(
    question: &Question<'_>,
    batch: u32,
    prepared: &PreparedFor<StepEvaluator<'_>>,
    refined: Refined,
    simulated: u64,
    state: &mut State,
) {
    state.considered += prepared.considered;
    state.simulated += simulated;
    state.kills.merge(&prepared.kills);
    state.kills.merge(&refined.kills);
    if state.nearest_memory.is_none() {
        state.nearest_memory.clone_from(&prepared.nearest_memory);
    }
    let best = refined.plans.first();
    let step = best.map(|b| b.prediction.step_time.value);
    let tokens = f64::from(batch) * question.scorer.seq_len as f64;
    let rate = step.map_or(0.0, |s| tokens / s);
    state.curve.push(ThroughputPoint {
        global_batch: batch,
        step_time_s: step,
        tokens_per_s: rate,
        tokens_per_s_per_gpu: rate / f64::from(question.facts.accelerators),
        plan: best.map(|b| b.plan.clone()),
    });
    state.found.extend(refined.plans);
    state.optimality = Some(match (state.optimality.take(), refined.optimality) {
        (None, own) => own,
        (Some(Optimality::Proven { resimulated: a, gap }), Optimality::Proven { resimulated: b, .. }) => {
            Optimality::Proven { resimulated: a + b, gap }
        }
        (Some(worst @ Optimality::Heuristic { .. }), _) | (Some(_), worst) => worst,
    });
}

/// The plans with the lowest peak memory among those at most [`MEMORY_SLACK`] slower than the fastest.
fn roomiest(
    stream: &mut Stream<'_, StepEvaluator<'_>>,
    question: &Question<'_>,
    top: usize,
    progress: &dyn Progress,
) -> Result<Refined, PlanError> {
    let mut close = Vec::new();
    let mut limit = f64::INFINITY;
    for simulated in stream.by_ref() {
        if simulated.score > limit {
            break;
        }
        limit = limit.min(simulated.score * (1.0 + MEMORY_SLACK));
        close.push(simulated);
    }
    let candidates = &stream.prepared().candidates;
    close.sort_by_key(|s| candidates[s.candidate].memory);
    let remaining = close.len().saturating_sub(top);
    close.truncate(top);
    let mut plans = Vec::new();
    let mut kills = Kills::default();
    for s in &close {
        if progress.cancelled() {
            return Err(PlanError::Cancelled);
        }
        let plan = candidates[s.candidate].plan.clone();
        match question.evaluator.finalist(&plan) {
            Ok((plan, prediction)) if prediction.fits => {
                let score = prediction.peak_memory().as_f64();
                plans.push(Resimulated { plan, l1: s.l1, prediction, score });
            }
            Ok(_) => {
                kills.add("memory under the simulated schedule", 1, || "exceeds the accelerator".to_owned());
            }
            Err(cause) => kills.add("cannot be simulated", 1, || cause),
        }
    }
    plans.sort_by(|a, b| a.score.total_cmp(&b.score));
    let reason = "memory is ranked in closed form among the plans within 10 % of the fastest".to_owned();
    let optimality = Optimality::Heuristic { resimulated: close.len(), remaining, reason };
    Ok(Refined { plans, optimality, kills })
}

fn report(
    request: &PlanRequest<'_>,
    question: &Question<'_>,
    mut state: State,
    progress: &dyn Progress,
) -> Result<PlanReport, PlanError> {
    // A stable sort: equal scores keep the smaller batch first.
    state.found.sort_by(|a, b| a.score.total_cmp(&b.score));
    state.found.truncate(request.top);
    let infeasible = state.found.is_empty().then(|| {
        infeasible::explain(request, question, &state.kills, state.nearest_memory.as_ref(), progress)
    });
    if progress.cancelled() {
        return Err(PlanError::Cancelled);
    }
    let tokens = request.workload.tokens;
    let plans = ranked::rows(state.found, &question.scorer, question.facts.accelerators, tokens);
    let pareto = pareto_points(question, &plans, pareto::join(state.front));
    let is_range = question.batches.len() > 1;
    let removed = state.considered.saturating_sub(state.simulated);
    Ok(PlanReport {
        schema: SCHEMA,
        question: asked(request, question),
        plans,
        pareto,
        searched: state.considered,
        pruned: removed,
        simulated: state.simulated,
        constraints: state.kills.ranked(),
        optimality: state.optimality.unwrap_or(Optimality::Proven { resimulated: 0, gap: L1_TO_L2_GAP }),
        throughput_curve: if is_range { state.curve } else { Vec::new() },
        infeasible,
    })
}

/// The front at L2; plans that fit in closed form but not under the simulated schedule are left out.
fn pareto_points(
    question: &Question<'_>,
    plans: &[crate::result::RankedPlan],
    front: Vec<(Plan, pareto::FrontPoint)>,
) -> Vec<ParetoPoint> {
    let scorer = &question.scorer;
    let simulated = parallel::map_long(&front, |(plan, _)| question.evaluator.finalist(plan));
    let mut points: Vec<ParetoPoint> = front
        .into_iter()
        .zip(simulated)
        .filter_map(|(_, outcome)| {
            let (plan, prediction) = outcome.ok().filter(|(_, p)| p.fits)?;
            let step = prediction.step_time.value;
            Some(ParetoPoint {
                step_time_s: step,
                time_per_token_s: step / scorer.tokens(&plan),
                peak_mem_gb: prediction.peak_memory().as_f64() / 1e9,
                cost_usd_per_btok: scorer.cost_per_btok(&plan, step),
                level: prediction.level,
                rank: plans.iter().position(|p| p.plan == plan),
                plan,
            })
        })
        .collect();
    // L2 may tell two neighbours apart differently than L1.
    points.sort_by(|a, b| a.time_per_token_s.total_cmp(&b.time_per_token_s));
    let mut kept: Vec<ParetoPoint> = Vec::new();
    for point in points {
        let covered = kept
            .iter()
            .any(|k| k.peak_mem_gb <= point.peak_mem_gb && k.cost_usd_per_btok <= point.cost_usd_per_btok);
        if !covered {
            kept.push(point);
        }
    }
    kept
}

fn asked(request: &PlanRequest<'_>, question: &Question<'_>) -> AskedQuestion {
    AskedQuestion {
        model: request.model.name.clone(),
        parameters: request.model.parameters().total,
        cluster: request.cluster.name.clone(),
        accelerators: question.facts.accelerators,
        accelerator: request.cluster.first_node().accelerator.name.clone(),
        seq_len: request.workload.seq_len,
        global_batch_min: question.batches.first().copied().unwrap_or(0),
        global_batch_max: question.batches.last().copied().unwrap_or(0),
        tokens: request.workload.tokens,
        precisions: question.space.precision.iter().map(|p| p.name()).collect(),
        stack: request.stack.name.clone(),
        objective: request.objective,
        top: request.top,
        assumptions: request.assumptions.iter().cloned().chain(mixed(request)).collect(),
    }
}

/// What is assumed of a cluster of several kinds of nodes.
fn mixed(request: &PlanRequest<'_>) -> Option<Assumption> {
    request.cluster.is_mixed().then(|| Assumption {
        name: "mixed cluster".to_owned(),
        value: "every stage and replica at the pace of its own parts (L3)".to_owned(),
        why: "ranks fill the nodes in the cluster's order, stages on faster parts may take more layers, replicas take equal \
              shares of the batch; candidates are first ordered at the slowest part's pace"
            .to_owned(),
    })
}
