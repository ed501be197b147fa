//! The best of L1, simulated again at L2, until no other candidate can be among the best.

use super::{Cancelled, Stream};
use crate::evaluator::Evaluator;
use crate::objective::Scorer;
use crate::parallel;
use crate::progress::Progress;
use crate::result::Optimality;
use crate::space::Kills;
use psim_hardware::Time;
use psim_models::Plan;
use psim_sim::StepPrediction;

/// Largest share by which the L2 score of a plan was seen to fall below its L1 score, over the spaces of
/// `tests/evaluation.rs`, rounded up. Candidates whose L1 score is beyond the last place by more than this are excluded.
pub const L1_TO_L2_GAP: f64 = 0.03;

/// How much further than seen so far in a search the L2 score of another candidate may fall below its L1 score: a
/// judgement, not a bound.
const BEYOND_SEEN: f64 = 1.25;

/// Candidates simulated at L2 at most.
const MOST: usize = 192;

/// Plans ranked, however few are asked for: fewer would teach the gap too little, and the answer would depend on how
/// many plans are shown.
pub const LEAST_RANKED: usize = 10;

/// Candidates simulated at L2 between two looks at the gap.
const BATCH: usize = 4;

/// A candidate with its full prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Resimulated {
    /// The plan.
    pub plan: Plan,
    /// L1 step time.
    pub l1: Time,
    /// L2 prediction.
    pub prediction: StepPrediction,
    /// Score of the prediction.
    pub score: f64,
}

/// Outcome of the refinement.
#[derive(Debug, Clone, PartialEq)]
pub struct Refined {
    /// Best first.
    pub plans: Vec<Resimulated>,
    /// How sure the order is.
    pub optimality: Optimality,
    /// Candidates that fit in closed form, but not under the simulated schedule.
    pub kills: Kills,
}

/// Re-simulates the first candidates of `stream` until the gap excludes the others. The gap widens where a candidate
/// falls further below its L1 score: of one plan on 16,384 ranks L1 was 11 % too slow.
///
/// # Errors
/// [`Cancelled`].
pub fn refine<E: Evaluator>(
    stream: &mut Stream<'_, E>,
    evaluator: &E,
    scorer: &Scorer,
    top: usize,
    gap: f64,
    progress: &dyn Progress,
) -> Result<Refined, Cancelled> {
    let shown = top.max(1);
    let top = shown.max(LEAST_RANKED);
    let mut gap = evaluator.widest_gap(gap);
    let mut plans: Vec<Resimulated> = Vec::new();
    let mut kills = Kills::default();
    let mut resimulated = 0;
    let mut pending = Vec::new();
    // The first candidate beyond the gap: it comes in again if the gap widens.
    let mut beyond = None;
    let optimality = loop {
        let batch = if resimulated == 0 { top } else { BATCH };
        let last = (plans.len() >= top).then(|| plans[top - 1].score);
        while pending.len() < batch {
            let Some(simulated) = beyond.take().or_else(|| stream.next()) else { break };
            if last.is_some_and(|last| simulated.score * (1.0 - gap) > last) {
                // Everything after it has a higher L1 score still.
                beyond = Some(simulated);
                break;
            }
            pending.push(simulated);
        }
        if pending.is_empty() {
            break Optimality::Proven { resimulated, gap };
        }
        if resimulated >= MOST {
            let threshold = last.unwrap_or(f64::INFINITY);
            let remaining = pending.len() + stream.take_while(|s| s.score * (1.0 - gap) <= threshold).count();
            let reason =
                format!("{MOST} candidates were simulated in depth; {remaining} more lie within the gap");
            break Optimality::Heuristic { resimulated, remaining, reason };
        }
        progress.report("L2 simulation", resimulated as u64, (resimulated + pending.len()) as u64);
        let candidates = &stream.prepared().candidates;
        let outcomes =
            parallel::map_long(&pending, |s| (s.l1, evaluator.finalist(&candidates[s.candidate].plan)));
        if progress.cancelled() {
            return Err(Cancelled);
        }
        for (simulated, (l1, outcome)) in pending.drain(..).zip(outcomes) {
            let plan = &candidates[simulated.candidate].plan;
            resimulated += 1;
            match outcome {
                Ok((plan, prediction)) if prediction.fits => {
                    let step = Time::from(psim_hardware::Seconds(prediction.step_time.value));
                    let score = scorer.score(&plan, step, prediction.energy_joule);
                    gap = gap.max(BEYOND_SEEN * (1.0 - score / simulated.score)).min(0.5);
                    plans.push(Resimulated { plan, l1, prediction, score });
                }
                Ok((_, prediction)) => kills.add("memory under the simulated schedule", 1, || {
                    super::too_large(prediction.peak_memory(), prediction.memory_capacity, plan)
                }),
                Err(cause) => kills.add("cannot be simulated", 1, || cause),
            }
        }
        // A stable sort keeps the L1 order among equals.
        plans.sort_by(|a, b| a.score.total_cmp(&b.score));
    };
    plans.truncate(shown);
    Ok(Refined { plans, optimality, kills })
}
