//! `[prefill]` and `[decode]`: prompts and answers on instances of their own.

use super::{Deployed, HINT, MOST};
use crate::failure::Failure;
use psim_hardware::{Cluster, catalogue};

/// Checks the numbers of the pools, and that nothing stands beside them that they would not use.
pub(super) fn check(deployed: &Deployed) -> Result<(), Failure> {
    let file = &deployed.file;
    let (prefill, decode) = match (&file.prefill, &file.decode) {
        (Some(prefill), Some(decode)) => (prefill, decode),
        (None, None) => {
            for (key, given) in [("placement", &file.placement), ("transfer", &file.transfer)] {
                if given.is_some() {
                    let message = format!("`{key}` is of pools, and there are none");
                    return Err(deployed.at(key, message, "add [prefill] and [decode]"));
                }
            }
            return Ok(());
        }
        (one, _) => {
            let (has, lacks) = if one.is_some() { ("prefill", "decode") } else { ("decode", "prefill") };
            let message = format!("there is [{has}] and no [{lacks}]");
            return Err(deployed.at(has, message, "a split needs both pools"));
        }
    };
    if let Some((key, _)) = deployed.sizes().iter().find(|(_, v)| v.is_some()) {
        let message = format!("`{key}` stands beside pools that have sizes of their own");
        return Err(deployed.at(key, message, "put it into [prefill] or [decode]"));
    }
    let beside = [
        ("accelerator", file.accelerator.is_some(), "each pool names its own"),
        (
            "router",
            file.router.is_some(),
            "a prompt goes to the shortest queue and its answer to the least load",
        ),
        (
            "preemption",
            file.preemption.is_some(),
            "a full decode pool holds prompts back, nothing is thrown out",
        ),
        (
            "attention_ffn",
            file.attention_ffn.is_some(),
            "attention and feed-forward apart in pools of their own is not built",
        ),
        ("autoscale", file.autoscale.is_some(), "pools that come and go are not built"),
        (
            "kv_offload",
            file.kv_offload.is_some(),
            "prefill instances keep nothing, so there is nothing to offload",
        ),
        ("adapters", file.adapters.is_some(), "adapters in pools of their own are not built"),
        ("co_serving", file.co_serving.is_some(), "fine-tuning beside pools is not built"),
    ];
    if let Some((key, _, why)) = beside.iter().find(|(_, given, _)| *given) {
        return Err(deployed.at(key, format!("`{key}` beside pools: {why}"), "leave it out"));
    }
    for (name, pool) in [("prefill", prefill), ("decode", decode)] {
        let all = pool.sizes()[..5].iter().fold(1u64, |n, (_, v)| n.saturating_mul(u64::from(*v)));
        if let Some((key, _)) = pool.sizes().iter().find(|(_, v)| *v == 0) {
            let message = format!("`{key}` of [{name}] is 0, must be at least 1");
            return Err(deployed.inside(name, key, message, HINT));
        }
        if all > MOST {
            let message = format!("[{name}] needs {all} accelerators, at most {MOST} are supported");
            return Err(deployed.inside(name, "replicas", message, "check the numbers"));
        }
        for (key, value) in [("token_budget", pool.token_budget), ("max_sequences", pool.max_sequences)] {
            if value == Some(0) {
                let message = format!("`{key}` of [{name}] is 0, must be at least 1");
                return Err(deployed.inside(name, key, message, "leave it out for the engine's own"));
            }
        }
    }
    if decode.cp > 1 {
        let message = "context parallelism is for prompts only".to_owned();
        return Err(deployed.inside("decode", "cp", message, "leave it out of [decode]"));
    }
    Ok(())
}

/// The group of the cluster's nodes that have this accelerator, named in a table or at the top of the file.
pub(in crate::serving) fn group(
    deployed: &Deployed,
    cluster: &Cluster,
    table: Option<&str>,
    wanted: &str,
) -> Result<usize, Failure> {
    let refuse = |message: String, hint: &str| deployed.place().at(table, "accelerator", message, hint);
    let part = catalogue::accelerator(wanted).map_err(|e| refuse(e.to_string(), &e.hint()))?;
    let groups = &cluster.groups;
    groups.iter().position(|g| g.node.accelerator.name == part.name).ok_or_else(|| {
        let known: Vec<&str> = groups.iter().map(|g| g.node.accelerator.name.as_str()).collect();
        refuse(
            format!("{} has no nodes with {}; it has {}", cluster.name, part.name, known.join(", ")),
            "give a cluster file with a [[nodes]] table of them, or leave `accelerator` out",
        )
    })
}
