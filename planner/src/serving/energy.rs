//! Energy of a serving run.
//!
//! An engine draws power by what limits it: prompts are limited by arithmetic, decoding by memory (Patel et al.,
//! "Splitwise", 2024, section 3: prompts run near the thermal design power, decoding well below it). The share of
//! prompts in the busy time is their arithmetic at the datasheet rate, a lower bound of their time.

use psim_cost_models::{Bound, power};
use psim_hardware::{Cluster, DType, Node};
use psim_models::Model;
use psim_models::serving::Deployment;
use serde::Serialize;

/// What the instances of a layout did, summed over them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activity {
    /// Seconds for which instances were switched on, summed.
    pub instance_seconds: f64,
    /// Seconds that they worked, summed.
    pub busy: f64,
    /// Prompt tokens computed.
    pub prompt_tokens: f64,
}

/// Energy of a run.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Energy {
    /// Mean power in kilowatts, hosts and facility included.
    pub kilowatts: f64,
    /// Joules for a generated token.
    pub joule_per_token: f64,
}

impl Energy {
    /// Of joules spent in `seconds` for `tokens` generated tokens.
    pub fn of(joules: f64, seconds: f64, tokens: f64) -> Self {
        Self {
            kilowatts: joules / seconds.max(f64::MIN_POSITIVE) * 1e-3,
            joule_per_token: joules / tokens.max(1.0),
        }
    }
}

/// Joules of the accelerators of a layout on nodes of this kind and of their hosts, facility overhead included.
pub fn joules(
    model: &Model,
    cluster: &Cluster,
    node: &Node,
    deployment: &Deployment,
    activity: &Activity,
) -> f64 {
    let part = &node.accelerator;
    let each = f64::from(deployment.accelerators_per_replica());
    let peak = part.peak(DType::Bf16).or(part.peak(DType::Fp16)).map_or(1e14, |f| f.0);
    let flops = 2.0 * model.parameters().active as f64 * activity.prompt_tokens;
    let prompts = (flops / (peak * each)).min(activity.busy);
    let decoding = activity.busy - prompts;
    let idle = (activity.instance_seconds - activity.busy).max(0.0);
    let model = power::PowerModel::new(part, None);
    let host = node.host_power.0 / f64::from(node.accelerators.max(1));
    let joules = prompts * model.busy(Bound::Compute).0
        + decoding * model.busy(Bound::Memory).0
        + idle * model.idle().0
        + (prompts + decoding + idle) * host;
    joules * each * cluster.pue
}
