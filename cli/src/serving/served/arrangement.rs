//! `overlap`, `[sm_partition]`, `[redundant_experts]`, `[expert_offload]` and `[attention_ffn]`: what shares an accelerator,
//! copies of hot experts, experts outside, and feed-forward layers on accelerators of their own.

use crate::failure::Failure;
use crate::serving::ServingJob;
use crate::serving::deployment::{Deployed, MOST, pools};
use psim_hardware::{BytesPerSec, Seconds};
use psim_planner::serving::{Arrangement, ExpertsOutside, FeedForwardApart, RedundantExperts};
use psim_sim::serving::Partition;
use psim_sim::serving::offload::OffloadPolicy;
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

/// Experts outside the accelerators.
pub(super) fn outside(deployed: &Deployed, job: &ServingJob) -> Result<Option<ExpertsOutside>, Failure> {
    let Some(file) = &deployed.file.expert_offload else { return Ok(None) };
    let wrong = |key: &str, message: String, hint: &str| {
        Err(deployed.inside("expert_offload", key, format!("[expert_offload]: {message}"), hint))
    };
    let policy = match OffloadPolicy::parse(&file.policy) {
        Ok(OffloadPolicy::Resident) => {
            let message = "`resident` leaves every expert on the accelerators".to_owned();
            return wrong("policy", message, "leave the table out");
        }
        Ok(policy) => policy,
        Err(message) => {
            return wrong("policy", message, "on-demand, prefetch-all, pre-gated, predicted:0.9 or ring:4");
        }
    };
    let node = job.node();
    let each = f64::from(node.accelerators.max(1));
    let own = match file.tier.as_str() {
        "host" => Some(node.host_link.0),
        "disk" | "ssd" => node.nvme.as_ref().map(|s| (s.read.0 / each).min(node.host_link.0)),
        other => {
            return wrong("tier", format!("`{other}` is no place for experts"), "host or disk");
        }
    };
    let link = match (file.gb_per_s, own) {
        (Some(rate), _) if rate.is_finite() && rate > 0.0 => rate * 1e9,
        (Some(rate), _) => {
            return wrong("gb_per_s", format!("{rate} is not a number above zero"), "gigabytes a second");
        }
        (None, Some(own)) => own,
        (None, None) => {
            let message = format!("the nodes of {} have no rate for their disks", job.cluster.name);
            return wrong("tier", message, "add `gb_per_s`");
        }
    };
    Ok(Some(ExpertsOutside { policy, link: BytesPerSec(link), on_disk: file.tier != "host" }))
}

/// Most micro-batches in flight.
const MICRO_BATCHES: u32 = 64;

/// Feed-forward layers on accelerators of their own.
pub(super) fn apart(deployed: &Deployed, job: &ServingJob) -> Result<Option<FeedForwardApart>, Failure> {
    const TABLE: &str = "attention_ffn";
    let Some(file) = &deployed.file.attention_ffn else { return Ok(None) };
    let sizes = [
        ("instances", file.instances, MOST as u32),
        ("tp", file.tp, MOST as u32),
        ("micro_batches", file.micro_batches, MICRO_BATCHES),
    ];
    for (key, value, most) in sizes {
        if value == 0 || value > most {
            let message = format!("`{key}` of [{TABLE}] is {value}, must lie between 1 and {most}");
            let hint = "usual: an instance for every expert or two, and 3 micro-batches, 4 over slow links";
            return Err(deployed.inside(TABLE, key, message, hint));
        }
    }
    let group = match &file.accelerator {
        None => job.group,
        Some(wanted) => pools::group(deployed, &job.cluster, Some(TABLE), wanted)?,
    };
    let (instances, tp, micro_batches) = (file.instances, file.tp, file.micro_batches);
    let found = FeedForwardApart { instances, tp, micro_batches, group };
    let nodes = &job.cluster.groups[group];
    let have = u64::from(nodes.count * nodes.node.accelerators);
    let replicas = u64::from(deployed.replicas().replicas);
    let need = u64::from(instances) * u64::from(tp) * replicas;
    if need > have {
        let name = &nodes.node.accelerator.name;
        let message = format!(
            "the feed-forward instances need {need} accelerators of {name}, {} has {have}",
            job.cluster.name
        );
        return Err(deployed.inside(TABLE, "instances", message, "fewer instances, or a larger cluster"));
    }
    Ok(Some(found))
}
