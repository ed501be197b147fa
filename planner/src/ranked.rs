//! From a simulated candidate to the row that a person reads.

use crate::explain::difference;
use crate::objective::Scorer;
use crate::result::{BoundBy, RankedPlan, TermShare};
use crate::search::refine::Resimulated;
use psim_sim::StepPrediction;

/// Terms named when two plans are compared.
const COMPARED: usize = 3;

/// Builds the rows of a ranked list.
pub(crate) fn rows(
    found: Vec<Resimulated>,
    scorer: &Scorer,
    accelerators: u32,
    tokens: Option<f64>,
) -> Vec<RankedPlan> {
    let next: Vec<Option<StepPrediction>> =
        found.iter().skip(1).map(|r| Some(r.prediction.clone())).chain([None]).collect();
    found.into_iter().zip(next).map(|(r, next)| row(r, next.as_ref(), scorer, accelerators, tokens)).collect()
}

fn row(
    found: Resimulated,
    next: Option<&StepPrediction>,
    scorer: &Scorer,
    accelerators: u32,
    tokens: Option<f64>,
) -> RankedPlan {
    let Resimulated { plan, l1, prediction, .. } = found;
    let step = prediction.step_time.value;
    let per_step = scorer.tokens(&plan);
    RankedPlan {
        step_time_s: prediction.step_time,
        level: prediction.level,
        tokens_per_s_per_gpu: prediction.tokens_per_s_per_gpu,
        mfu: prediction.mfu,
        peak_mem_gb: prediction.peak_memory().as_f64() / 1e9,
        mem_capacity_gb: prediction.memory_capacity.as_f64() / 1e9,
        bubble: prediction.bubble,
        exposed_comm: prediction.exposed_comm,
        cost_usd_per_btok: scorer.cost_per_btok(&plan, step),
        energy_j_per_token: prediction.energy_joule / per_step,
        days: tokens.map(|t| t / per_step * step / 86_400.0),
        bound_by: bound_by(&prediction, next),
        provenance: prediction.provenance,
        breakdown: TermShare::list(&prediction.breakdown),
        idle_accelerators: accelerators.saturating_sub(plan.world()),
        ranked_by_s: l1.seconds().0,
        plan,
        prediction,
    }
}

/// The largest loss, and how this plan differs from the next.
fn bound_by(prediction: &StepPrediction, next: Option<&StepPrediction>) -> BoundBy {
    let terms = TermShare::list(&prediction.breakdown);
    let mut losses: Vec<&TermShare> = terms.iter().filter(|t| t.term != "ideal compute").collect();
    losses.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let ideal = terms.iter().find(|t| t.term == "ideal compute").map_or(0.0, |t| t.share);
    let (term, share) = losses.first().map_or(("ideal compute", ideal), |t| (t.term, t.share));
    let against_next: Vec<(&'static str, f64)> = next.map_or_else(Vec::new, |next| {
        let gap = difference(next, prediction);
        gap.largest().iter().take(COMPARED).map(|t| (t.term, t.picoseconds as f64 * 1e-12)).collect()
    });
    let mut sentence = format!("{:.0} % of the step is compute at peak; ", 100.0 * ideal);
    let named: Vec<String> =
        losses.iter().take(2).map(|t| format!("{} ({:.0} %)", t.term, 100.0 * t.share)).collect();
    sentence += &if named.is_empty() {
        "nothing else takes time".to_owned()
    } else {
        format!("most of the rest is {}", named.join(" and "))
    };
    if let (Some(next), Some((term, seconds))) = (next, against_next.first()) {
        let gap = next.step_time.value - prediction.step_time.value;
        let side = if *seconds < 0.0 { "less" } else { "more" };
        sentence += &format!(
            "; against the next plan ({gap:+.3} s) it spends {:.3} s {side} on {term}",
            seconds.abs()
        );
    }
    BoundBy { term, share, against_next, sentence }
}
