//! Numbers and plans in words.

use crate::number::grouped;
use psim_models::Plan;
use psim_models::plan::{Recompute, Schedule, Sharding};
use psim_models::serving::Deployment;
use psim_planner::serving::{Layout, PoolLayout};

/// A plan on one line, sizes of 1 left out: `TP8 PP2 DP4 mbs 1`.
pub fn plan_label(plan: &Plan) -> String {
    let mut parts = Vec::new();
    for (name, size) in [
        ("TP", plan.tp),
        ("PP", plan.pp),
        ("DP", plan.dp),
        ("CP", plan.cp),
        ("EP", plan.ep),
        ("VPP", plan.vpp),
    ] {
        if size > 1 {
            parts.push(format!("{name}{size}"));
        }
    }
    if parts.is_empty() {
        parts.push("1 accelerator".to_owned());
    }
    parts.push(format!("mbs {}", plan.micro_batch));
    if plan.recompute != Recompute::None {
        parts.push(format!("recompute {}", recompute(plan.recompute)));
    }
    parts.join(" ")
}

/// A serving deployment on one line, sizes of 1 left out: `8 x TP8 bf16`.
pub fn serving_label(deployment: &Deployment) -> String {
    let d = deployment;
    let mut parts = vec![format!("{} x TP{}", grouped(u64::from(d.replicas)), d.tp)];
    for (name, size) in [("PP", d.pp), ("attention-DP", d.attention_dp), ("EP", d.ep)] {
        if size > 1 {
            parts.push(format!("{name}{size}"));
        }
    }
    parts.push(d.quantization.dense.name().to_owned());
    parts.join(" ")
}

/// Replicas or pools on one line.
pub fn layout_label(layout: &Layout) -> String {
    match layout {
        Layout::Replicas(deployment) => serving_label(deployment),
        Layout::Pools(split) => {
            let pool = |p: &PoolLayout| {
                let cp = p.context_parallel;
                let wide = if cp > 1 { format!(" CP{cp}") } else { String::new() };
                format!("{}{wide}", serving_label(&p.deployment))
            };
            format!("prompts on {}, answers on {}", pool(&split.prefill), pool(&split.decode))
        }
    }
}

/// As [`layout_label`], in a few words: `2 x TP2 + 3 x TP4 fp8`.
pub fn short_layout_label(layout: &Layout) -> String {
    match layout {
        Layout::Replicas(deployment) => serving_label(deployment),
        Layout::Pools(split) => {
            let prompts = serving_label(&split.prefill.deployment);
            let format = split.prefill.deployment.quantization.dense.name();
            let prompts = prompts.strip_suffix(format).unwrap_or(&prompts).trim_end();
            format!("{prompts} + {}", serving_label(&split.decode.deployment))
        }
    }
}

/// Recomputation in a word.
pub(crate) fn recompute(kind: Recompute) -> String {
    match kind {
        Recompute::None => "none".to_owned(),
        Recompute::Selective => "selective".to_owned(),
        Recompute::Full => "full".to_owned(),
        Recompute::Layers(n) => format!("{n} layers"),
    }
}

/// Sharding in a word.
pub(crate) fn sharding(kind: Sharding) -> &'static str {
    match kind {
        Sharding::None => "none",
        Sharding::Optimizer => "optimizer",
        Sharding::Gradients => "gradients",
        Sharding::Parameters => "parameters",
    }
}

/// Schedule in a word.
pub(crate) fn schedule(kind: Schedule) -> &'static str {
    match kind {
        Schedule::Gpipe => "gpipe",
        Schedule::OneFOneB => "1f1b",
        Schedule::Interleaved => "interleaved",
        Schedule::ZbH1 => "zb-h1",
        Schedule::ZbH2 => "zb-h2",
        Schedule::ZbV => "zb-v",
    }
}

/// A fraction as percent with one decimal.
pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}
