//! `[prefill]` and `[decode]` as pools on the job's cluster.

use crate::failure::Failure;
use crate::serving::ServingJob;
use crate::serving::deployment::file::PoolFile;
use crate::serving::deployment::pools::group;
use crate::serving::deployment::{Deployed, weight_format};
use crate::serving::formats::as_published;
use psim_models::serving::{Deployment, Quantization};
use psim_planner::serving::{PoolLayout, Split};
use psim_sim::serving::{Placement, TransferMode};

/// The split of the file on the job's cluster; `None` where it has no pools.
pub(super) fn split(deployed: &Deployed, job: &ServingJob) -> Result<Option<Split>, Failure> {
    let file = &deployed.file;
    let (Some(prefill), Some(decode)) = (&file.prefill, &file.decode) else { return Ok(None) };
    let placement = match &file.placement {
        Some(name) => {
            Placement::parse(name).map_err(|m| deployed.at("placement", m, "leave it out for paired"))?
        }
        None => Placement::default(),
    };
    let transfer = match &file.transfer {
        Some(name) => TransferMode::parse(name)
            .map_err(|m| deployed.at("transfer", m, "leave it out for layer-wise"))?,
        None => TransferMode::default(),
    };
    let split = Split {
        prefill: pool(deployed, job, "prefill", prefill)?,
        decode: pool(deployed, job, "decode", decode)?,
        placement,
        transfer,
    };
    for (index, group) in job.cluster.groups.iter().enumerate() {
        let on = |p: &PoolLayout| if p.group == index { u64::from(p.accelerators()) } else { 0 };
        let (need, have) = (on(&split.prefill) + on(&split.decode), group.count * group.node.accelerators);
        if need > u64::from(have) {
            let name = if on(&split.prefill) >= on(&split.decode) { "prefill" } else { "decode" };
            return Err(deployed.inside(
                name,
                "replicas",
                format!(
                    "the pools need {need} accelerators of {}, {} has {have}",
                    group.node.accelerator.name, job.cluster.name
                ),
                "fewer replicas or ranks, or a larger cluster",
            ));
        }
    }
    Ok(Some(split))
}

fn pool(deployed: &Deployed, job: &ServingJob, name: &str, file: &PoolFile) -> Result<PoolLayout, Failure> {
    let group = match &file.accelerator {
        None => 0,
        Some(wanted) => group(deployed, &job.cluster, Some(name), wanted)?,
    };
    let quantization = match &file.weights {
        None => job.quantization,
        Some(format) => {
            let kv = deployed.quantization.kv;
            let format = weight_format(format, deployed.place(), Some(name), "weights")?;
            as_published(&job.model, Quantization { kv, ..Quantization::uniform(format) })
        }
    };
    Ok(PoolLayout {
        deployment: Deployment {
            replicas: file.replicas,
            tp: file.tp,
            pp: file.pp,
            attention_dp: file.attention_dp,
            ep: file.ep,
            quantization,
        },
        context_parallel: file.cp,
        group,
        token_budget: file.token_budget,
        max_sequences: file.max_sequences,
    })
}
