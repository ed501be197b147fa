//! Energy of a step.

use super::Pass;
use psim_cost_models::{Bound, CostModel};
use psim_hardware::Cluster;

/// Joules of `world` accelerators and their hosts for one step, facility overhead (PUE) included: busy time by what
/// limits the operator, idle power for the rest.
pub(super) fn step_energy(cluster: &Cluster, cost: &CostModel, busy: &Pass, step: f64, world: u32) -> f64 {
    let [compute, memory, network] = busy.busy;
    let known = compute + memory + network;
    // Overlapped communication may push the sum above the step; shares keep the total at the step time.
    let scale = if known > step && known > 0.0 { step / known } else { 1.0 };
    let idle = (step - known * scale).max(0.0);
    let accelerator = scale
        * (compute * cost.power(Bound::Compute).0
            + memory * cost.power(Bound::Memory).0
            + network * cost.power(Bound::Network).0)
        + idle * cost.idle_power().0;
    let node = cluster.first_node();
    let host = node.host_power.0 / f64::from(node.accelerators.max(1)) * step;
    f64::from(world) * (accelerator + host) * cluster.pue
}
