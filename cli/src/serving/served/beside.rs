//! What runs beside the replicas: router, preemption, tiers of the cache, adapters, autoscaling, fine-tuning.

use crate::failure::Failure;
use crate::serving::ServingJob;
use crate::serving::deployment::Deployed;
use psim_hardware::{Bytes, BytesPerSec, Seconds};
use psim_planner::serving::Layout;
use psim_sim::serving::{
    AdapterMode, AdapterOptions, CacheTier, CoServing, FleetOptions, Preemption, Router, Rules, SwapOptions,
};

/// Launches of the gathered kernels of S-LoRA in one layer, microseconds; as in the gallery.
const ADAPTER_LAUNCH_US: f64 = 20.0;
/// Share of the device memory's rate at which gathered kernels read adapters; as in the gallery (1.2 of 2 TB/s).
const ADAPTER_READ: f64 = 0.6;

/// A number above zero, of a table.
fn above_zero(deployed: &Deployed, table: &str, key: &str, value: f64) -> Result<f64, Failure> {
    if value.is_finite() && value > 0.0 && value < 1e9 {
        return Ok(value);
    }
    let message = format!("`{key}` of [{table}] is {value}, must be a number above zero");
    Err(deployed.inside(table, key, message, "check the number"))
}

/// The options of the file for the job's engine, traffic and nodes.
pub(super) fn options(
    deployed: &Deployed,
    job: &ServingJob,
    layout: &Layout,
) -> Result<FleetOptions, Failure> {
    let file = &deployed.file;
    let mut options = FleetOptions::default();
    if let Some(name) = &file.router {
        options.router =
            Router::parse(name).map_err(|m| deployed.at("router", m, "leave it out for round-robin"))?;
    }
    let rules = Rules::of(job.engine.policy);
    (options.preemption, options.swap) = preemption(deployed, job)?;
    if let Some(steps) = file.priority_steps {
        if !rules.fair || steps == 0 {
            let message = format!("`priority_steps` means nothing to engine {}", job.engine.name);
            let hint =
                "only fair policies (engine \"fastswitch\") draw priorities, every so many steps from 1";
            return Err(deployed.at("priority_steps", message, hint));
        }
        options.priority_steps = steps;
    }
    if let Some(rule) = file.autoscale {
        let replicas = layout.deployment().replicas;
        if let Some(fault) = rule.fault(replicas) {
            let hint = "least from 1 to `replicas`, which are the most; requests_per_replica, start_up_s, cool_down_s";
            return Err(deployed.at("autoscale", format!("[autoscale]: {fault}"), hint));
        }
        options.autoscale = Some(rule);
    }
    options.tiers = tiers(deployed, job, rules)?;
    options.adapters = adapters(deployed, job, layout)?;
    if let Some(tuning) = file.co_serving {
        if !rules.co_serving {
            let message = format!("[co_serving] means nothing to engine {}", job.engine.name);
            return Err(deployed.at(
                "co_serving",
                message,
                "fine-tuning runs beside inference in engine \"flexllm\"",
            ));
        }
        let step = above_zero(deployed, "co_serving", "step_ms", tuning.step_ms)?;
        let most = above_zero(deployed, "co_serving", "most_tokens", f64::from(tuning.most_tokens))?;
        options.co_serving = Some(CoServing { step: Seconds(step * 1e-3), most_tokens: most as u32 });
    }
    Ok(options)
}

fn preemption(deployed: &Deployed, job: &ServingJob) -> Result<(Preemption, SwapOptions), Failure> {
    let file = &deployed.file;
    let swaps = match file.preemption.as_deref() {
        None | Some("recompute") => false,
        Some("swap") => true,
        Some(other) => {
            let message = format!("`{other}` is not a treatment of thrown-out sequences");
            return Err(deployed.at("preemption", message, "recompute or swap"));
        }
    };
    let given = [("swap_gb_per_s", file.swap_gb_per_s.is_some()), ("swap", file.swap.is_some())];
    if let Some((key, _)) = given.iter().find(|(_, given)| *given && !swaps) {
        let message = format!("`{key}` without swapping");
        return Err(deployed.at(key, message, "add `preemption = \"swap\"`"));
    }
    let mut how = SwapOptions::default();
    if let Some(swap) = &file.swap {
        if let Some(blocks) = swap.group_blocks {
            how.group_blocks = above_zero(deployed, "swap", "group_blocks", f64::from(blocks))? as u32;
        }
        if let Some(us) = swap.copy_us {
            how.copy = Seconds(above_zero(deployed, "swap", "copy_us", us)? * 1e-6);
        }
        (how.asynchronous, how.reuse) = (swap.asynchronous, swap.reuse);
    }
    if !swaps {
        return Ok((Preemption::Recompute, how));
    }
    let rate = match file.swap_gb_per_s {
        None => job.node().host_link,
        Some(rate) if rate.is_finite() && rate > 0.0 => BytesPerSec(rate * 1e9),
        Some(rate) => {
            let message = format!("`swap_gb_per_s` is {rate}, must be a number above zero");
            return Err(deployed.at("swap_gb_per_s", message, "leave it out for the node's host link"));
        }
    };
    Ok((Preemption::Swap(rate), how))
}

fn tiers(deployed: &Deployed, job: &ServingJob, rules: Rules) -> Result<[Option<CacheTier>; 2], Failure> {
    let Some(file) = deployed.file.kv_offload else { return Ok([None; 2]) };
    let refuse =
        |message: &str, hint: &str| Err(deployed.at("kv_offload", format!("[kv_offload]: {message}"), hint));
    if !rules.prefix_cache {
        return refuse(
            &format!("engine {} keeps no prefixes that could go to host memory or disk", job.engine.name),
            "an engine with a prefix cache (\"vllm-v1\", \"sglang\"), or `preemption = \"swap\"`",
        );
    }
    if file.host_gb.is_none() && file.disk_gb.is_none() {
        return refuse(
            "neither host_gb nor disk_gb is given",
            "add `host_gb = 100.0`, gigabytes an accelerator",
        );
    }
    let node = job.node();
    let each = f64::from(node.accelerators.max(1));
    let tier = |name: &str, gb: Option<f64>, rate: Option<f64>, own: Option<f64>| {
        let (size, speed) = (format!("{name}_gb"), format!("{name}_gb_per_s"));
        let Some(gb) = gb else {
            return match rate {
                Some(_) => Err(deployed.inside(
                    "kv_offload",
                    &speed,
                    format!("`{speed}` without `{size}`"),
                    "add the size, or leave the rate out",
                )),
                None => Ok(None),
            };
        };
        let gb = above_zero(deployed, "kv_offload", &size, gb)?;
        let rate = match (rate, own) {
            (Some(rate), _) => above_zero(deployed, "kv_offload", &speed, rate)? * 1e9,
            (None, Some(own)) => own,
            (None, None) => {
                return Err(deployed.inside(
                    "kv_offload",
                    &size,
                    format!("the nodes of {} have no rate for it", job.cluster.name),
                    &format!("add `{speed}`"),
                ));
            }
        };
        Ok(Some(CacheTier { capacity: Bytes((gb * 1e9) as u64), rate: BytesPerSec(rate) }))
    };
    let disk_rate = node.nvme.as_ref().map(|s| (s.read.0 / each).min(node.host_link.0));
    let host = tier("host", file.host_gb, file.host_gb_per_s, Some(node.host_link.0))?;
    let disk = tier("disk", file.disk_gb, file.disk_gb_per_s, disk_rate)?;
    let have = node.host_memory.0 as f64 / each;
    if let Some(host) = host.filter(|t| t.capacity.0 as f64 > have) {
        return Err(deployed.inside(
            "kv_offload",
            "host_gb",
            format!(
                "{:.0} GB an accelerator are asked for, a node of {} has {:.0}",
                host.capacity.0 as f64 * 1e-9,
                job.cluster.name,
                have * 1e-9
            ),
            "fewer gigabytes, or nodes with more memory",
        ));
    }
    Ok([host, disk])
}

fn adapters(
    deployed: &Deployed,
    job: &ServingJob,
    layout: &Layout,
) -> Result<Option<AdapterOptions>, Failure> {
    let asked = job.workload.tenants.iter().any(|t| t.adapters.is_some());
    let Some(file) = &deployed.file.adapters else {
        if asked {
            return Err(Failure::input_at(
                "the workload asks for adapters, and the deployment holds none",
                deployed.shown.clone(),
                "add an [adapters] table with `rank = 16`, or leave `adapters` out of the workload",
            ));
        }
        return Ok(None);
    };
    if !asked {
        let message = "[adapters]: no request of the workload asks for one".to_owned();
        return Err(deployed.at("adapters", message, "add `adapters = { count = 100 }` to a tenant"));
    }
    let mode = match file.mode.as_deref() {
        None | Some("unified") => AdapterMode::Unified,
        Some("one-at-a-time") => AdapterMode::OneAtATime,
        Some(other) => {
            let message = format!("`{other}` is not a way to hold adapters");
            return Err(deployed.inside("adapters", "mode", message, "unified or one-at-a-time"));
        }
    };
    let rank = above_zero(deployed, "adapters", "rank", f64::from(file.rank))?;
    let launch = match file.launch_us_per_layer {
        Some(us) => above_zero(deployed, "adapters", "launch_us_per_layer", us)?,
        None => ADAPTER_LAUNCH_US,
    };
    let node = job.node();
    let layers = f64::from(job.model.layers());
    // q, k, v and o, two matrices each, in 16 bits.
    let bytes = layers * 4.0 * 2.0 * rank * job.model.hidden as f64 * 2.0 / f64::from(layout.deployment().tp);
    Ok(Some(AdapterOptions {
        mode,
        bytes: Bytes(bytes as u64),
        link: node.host_link,
        read: BytesPerSec(ADAPTER_READ * node.accelerator.memory_bandwidth.0),
        launches: Seconds(layers * launch * 1e-6),
    }))
}
