//! The rows that are furthest off, with what most likely explains each.

use super::super::accuracy::{Class, FAMILIES, class};
use super::super::map::map;
use crate::validate::row::Row;
use crate::validate::score::RowResult;
use std::fmt::Write;

/// Rows of the list.
const ROWS: usize = 20;

/// The list as Markdown: the worst entry of each of the worst rows of one pool without speculation.
pub(super) fn table(rows: &[Row], results: &[RowResult]) -> String {
    let mut found: Vec<(f64, &Row, &RowResult, &'static str, f64, f64)> = Vec::new();
    for (row, result) in rows.iter().zip(results) {
        if result.weak || result.doubtful || class(row) != Class::Aggregated {
            continue;
        }
        let worst = FAMILIES
            .iter()
            .filter_map(|(_, metrics)| {
                let e = result.entries.iter().find(|e| metrics.contains(&e.metric))?;
                let [predicted, ..] = e.predicted?;
                let far = (predicted / e.measured).ln().abs();
                far.is_finite().then_some((far, row, result, e.metric, e.measured, predicted))
            })
            .max_by(|a, b| a.0.total_cmp(&b.0));
        found.extend(worst);
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.id.cmp(&b.1.id)));
    let mut out = String::from(
        "| row | engine profile | accelerator | metric | measured | predicted | most likely cause |\n|---|---|---|---|---|---|---|\n",
    );
    for (_, row, result, metric, measured, predicted) in found.into_iter().take(ROWS) {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {metric} | {measured:.3e} | {predicted:.3e} | {} |",
            row.id,
            result.stack,
            row.hardware.gpu,
            cause(row, result, metric, predicted / measured)
        );
    }
    out
}

/// By what the row says about itself; the first that applies.
fn cause(row: &Row, result: &RowResult, metric: &str, ratio: f64) -> &'static str {
    if result.fits == Some(false) {
        return "predicted not to fit its memory; times as if it did";
    }
    let Ok(mapped) = map(row) else { return "not traced" };
    let d = mapped.deployment;
    let pipeline = d.pp > 1;
    if mapped.engine.name.starts_with("llama.cpp") {
        return if metric == "input_tokens_per_s" {
            "batches of a prompt over split layers: unfused attention and copies between cards"
        } else {
            "weight-only kernels of this part: no measured table"
        };
    }
    if pipeline {
        return "pipeline stages: imbalance and bubbles of prompts";
    }
    if d.attention_dp > 1 {
        return "scheduling of attention copies: prompts held back to balance ranks";
    }
    if !mapped.engine.on(&row.hardware.gpu).1 && !mapped.engine.accelerator.is_empty() {
        return "the engine has no numbers of its own on this accelerator";
    }
    if metric == "ttft_ms" {
        return if ratio < 1.0 {
            "cold start (compilation, graph capture) inside a mean, or a client that starts in a burst"
        } else {
            "clients not in step at the start, or prompts found in a cache"
        };
    }
    if !metric.ends_with("_ms") && ratio > 1.0 {
        return "a limit on running sequences or requests that is not stated";
    }
    "not traced"
}
