//! `overlap`, `[sm_partition]` and `[redundant_experts]`: what shares an accelerator, and copies of hot experts.

use super::Deployed;
use crate::failure::Failure;
use psim_hardware::Seconds;
use psim_planner::serving::{Arrangement, RedundantExperts};
use psim_sim::serving::Partition;
use psim_sim::serving::partition::Controller;

const TABLE: &str = "sm_partition";

/// How kernels share an accelerator.
pub(super) fn read(deployed: &Deployed) -> Result<Arrangement, Failure> {
    let file = &deployed.file;
    let overlap = match file.overlap.as_deref() {
        None | Some("none") => Arrangement::InTurn,
        Some("nanoflow" | "nano-batches") => Arrangement::NanoBatches,
        Some(other) => {
            let message = format!("`{other}` is no overlap of kernels that psim knows");
            return Err(deployed.at("overlap", message, "nanoflow, or leave it out"));
        }
    };
    let Some(cut) = &file.sm_partition else { return Ok(overlap) };
    if overlap != Arrangement::InTurn {
        let message = "`overlap` beside [sm_partition]: both cut the multiprocessors".to_owned();
        return Err(deployed.at("overlap", message, "leave one of the two out"));
    }
    let share = |key: &str, value: Option<f64>| match value.unwrap_or(0.5) {
        v if (0.05..=0.95).contains(&v) => Ok(v),
        v => {
            let message = format!("`{key}` of [{TABLE}] is {v}, must lie between 0.05 and 0.95");
            Err(deployed.inside(TABLE, key, message, "leave it out for one half"))
        }
    };
    let limit = |key: &str, ms: f64| {
        if ms.is_finite() && ms > 0.0 {
            return Ok(Seconds(ms * 1e-3));
        }
        let message = format!("`{key}` of [{TABLE}] is {ms}, must be a number above zero");
        Err(deployed.inside(TABLE, key, message, "milliseconds"))
    };
    let controller = match (cut.ttft_ms, cut.tpot_ms) {
        (None, None) => None,
        (Some(ttft), Some(tpot)) => Some(Controller {
            ttft: limit("ttft_ms", ttft)?,
            tpot: limit("tpot_ms", tpot)?,
            ..Controller::default()
        }),
        (ttft, _) => {
            let key = if ttft.is_some() { "ttft_ms" } else { "tpot_ms" };
            let message = format!("`{key}` of [{TABLE}] stands alone: the border moves between two promises");
            return Err(deployed.inside(TABLE, key, message, "give ttft_ms and tpot_ms, or neither"));
        }
    };
    Ok(Arrangement::Partitioned(Partition {
        prompts: share("prompts", cut.prompts)?,
        saturation: share("saturation", cut.saturation)?,
        controller,
    }))
}

/// Copies of hot experts.
pub(super) fn redundant(deployed: &Deployed) -> Result<Option<RedundantExperts>, Failure> {
    let Some(file) = &deployed.file.redundant_experts else { return Ok(None) };
    if !(file.skew.is_finite() && (0.0..=3.0).contains(&file.skew)) {
        let message = format!("`skew` of [redundant_experts] is {}, must lie between 0 and 3", file.skew);
        let hint = "the exponent of Zipf's law, measured on your requests: 0 is even, 0.6 about twice the mean on the busiest";
        return Err(deployed.inside("redundant_experts", "skew", message, hint));
    }
    Ok(Some(RedundantExperts { copies: file.copies, skew: file.skew }))
}
