//! Lines about what shares an accelerator and about copies of experts.

use crate::number::{counted, three};
use psim_planner::serving::{ApartFigures, ArrangementFigures, Layout, Served, ServingDetail};

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
    if let (Some(apart), Some(figures)) = (served.apart, detail.apart) {
        lines.push(format!(
            "feed-forward layers apart: {} of {} behind each replica, {} micro-batches to and fro; {}",
            counted(apart.instances.into(), "instance", "instances"),
            counted(apart.tp.into(), "GPU", "GPUs"),
            apart.micro_batches,
            to_and_fro(&figures),
        ));
    }
    lines
}

/// How the two sides of a step meet.
pub(super) fn to_and_fro(f: &ApartFigures) -> String {
    format!(
        "at {} sequences a copy a micro-batch's layer takes {} us of attention, {} us to cross and {} us of feed-forward: \
         attention works {:.0} % and feed-forward {:.0} % of {} ms ({} micro-batches would hide the rest); {} GiB of \
         weights on a feed-forward GPU",
        f.batch,
        three(f.attention_us),
        three(f.crossing_us),
        three(f.feed_forward_us),
        f.attention_busy * 100.0,
        f.feed_forward_busy * 100.0,
        three(f.layers_ms),
        f.enough,
        three(f.weights_gib),
    )
}
