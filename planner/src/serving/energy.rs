//! Energy of a serving run.
//!
//! An engine draws power by what limits it: prompts are limited by arithmetic, decoding by memory (Patel et al.,
//! "Splitwise", 2024, section 3: prompts run near the thermal design power, decoding well below it). The share of
//! prompts in the busy time is their arithmetic at the datasheet rate, a lower bound of their time.

use psim_cost_models::{Bound, power};
use psim_hardware::{Cluster, DType};
use psim_models::Model;
use psim_models::serving::Deployment;

/// What an engine did, summed over the accelerators of its replicas or not: only ratios count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activity {
    /// Seconds of the run.
    pub seconds: f64,
    /// Seconds that engines worked, summed over replicas.
    pub busy: f64,
    /// Prompt tokens computed.
    pub prompt_tokens: f64,
}

/// Joules of all accelerators of a deployment and their hosts, facility overhead included.
pub fn energy(model: &Model, cluster: &Cluster, deployment: &Deployment, activity: &Activity) -> f64 {
    let node = cluster.first_node();
    let part = &node.accelerator;
    let each = f64::from(deployment.accelerators_per_replica());
    let peak = part.peak(DType::Bf16).or(part.peak(DType::Fp16)).map_or(1e14, |f| f.0);
    let flops = 2.0 * model.parameters().active as f64 * activity.prompt_tokens;
    let prompts = (flops / (peak * each)).min(activity.busy);
    let decoding = activity.busy - prompts;
    let idle = (activity.seconds * f64::from(deployment.replicas) - activity.busy).max(0.0);
    let model = power::PowerModel::new(part, None);
    let host = node.host_power.0 / f64::from(node.accelerators.max(1));
    let joules = prompts * model.busy(Bound::Compute).0
        + decoding * model.busy(Bound::Memory).0
        + idle * model.idle().0
        + (prompts + decoding + idle) * host;
    joules * each * cluster.pue
}
