//! Lines about what shares an accelerator and about copies of experts.

use crate::number::three;
use psim_planner::serving::{ArrangementFigures, Layout, Served, ServingDetail};

/// One line each for what there is.
pub(super) fn line(detail: &ServingDetail, served: &Served) -> Vec<String> {
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let mut lines = Vec::new();
    match detail.arrangement {
        Some(ArrangementFigures::NanoBatches(plan)) => lines.push(format!(
            "nano-batches: {} of the tokens in the first, {} of the multiprocessors for caches and {} for links beside a product",
            percent(plan.first),
            percent(plan.memory),
            percent(plan.network),
        )),
        Some(ArrangementFigures::Partition { mean, least, most, moves }) => lines.push(format!(
            "partition: prompts had {} of the multiprocessors on average ({} to {}, moved {moves} times); prompts run whole",
            percent(mean),
            percent(least),
            percent(most),
        )),
        None => {}
    }
    if let Some(r) = served.redundant {
        let at = match &detail.layout {
            Layout::Replicas(d) => *d,
            Layout::Pools(split) => split.decode.deployment,
        };
        lines.push(format!(
            "experts: {} redundant copies at a skew of {} over {} ranks, in place of the engine's own imbalance",
            r.copies,
            three(r.skew),
            at.ep,
        ));
    }
    if let Some(outside) = served.experts_outside {
        lines.push(format!(
            "experts: outside the accelerators, {} at {} GB/s each",
            outside.policy.name(),
            three(outside.link.0 * 1e-9),
        ));
    }
    lines
}
