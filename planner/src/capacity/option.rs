//! One way to do the job: days, price, energy and what failures take.

use super::CapacityRequest;
use super::failures::{CHECKPOINT_BYTES_PER_PARAMETER, FailureModel, MTBF_PER_GPU_HOURS, RESTART_SECONDS};
use crate::result::{Assumption, CapacityOption, FailureHeadroom, RankedPlan};
use psim_hardware::Cluster;

/// Hours until a failed node is back in service.
const REPAIR_HOURS: f64 = 24.0;
/// The spares are enough at this share of all times.
const SPARE_CONFIDENCE: f64 = 0.99;

/// Builds the option of a plan on a cluster. Of one that exists, with so many nodes, no more can be rented: where too few
/// are left beside those of the plan, training also waits for repairs.
pub(super) fn build(
    request: &CapacityRequest<'_>,
    cluster: &Cluster,
    best: RankedPlan,
    tokens: f64,
    exists: Option<u32>,
) -> CapacityOption {
    let accelerators = best.plan.world();
    let per_node = cluster.first_node().accelerators.max(1);
    let failures = FailureModel::of(cluster);
    let bytes = FailureModel::checkpoint_bytes(request.model.parameters().total);
    let goodput = failures.goodput(accelerators, bytes);
    let per_step = f64::from(best.plan.global_batch) * request.workload.seq_len as f64;
    let ideal_days = tokens / per_step * best.step_time_s.value / 86_400.0;
    let nodes = accelerators.div_ceil(per_node);
    let in_repair = f64::from(nodes * per_node) * REPAIR_HOURS / failures.mtbf_per_gpu_hours;
    // A single node is rented again when it fails; larger jobs keep spares ready.
    let wanted = if nodes > 1 || exists.is_some() { spares(in_repair) } else { 0 };
    let there = exists.map_or(wanted, |all| all.saturating_sub(nodes));
    let spare_nodes = wanted.min(there);
    let up = if spare_nodes < wanted { at_most(spare_nodes, in_repair) } else { 1.0 };
    let useful_share = goodput.useful_share * up;
    let days = ideal_days / useful_share;
    let rented = (nodes + spare_nodes) * per_node;
    let price = cluster.price_per_hour() / f64::from(cluster.accelerators().max(1));
    let cost_usd = f64::from(rented) * price * days * 24.0;
    let mut misses = Vec::new();
    if let Some(limit) = request.deadline_days.filter(|limit| days > *limit) {
        misses.push(format!("{days:.1} days, {limit:.1} allowed"));
    }
    if let Some(limit) = request.budget_usd.filter(|limit| cost_usd > *limit) {
        misses.push(format!("{:.2} M$, {:.2} M$ allowed", cost_usd / 1e6, limit / 1e6));
    }
    CapacityOption {
        cluster: cluster.name.clone(),
        accelerator: cluster.first_node().accelerator.name.clone(),
        accelerators,
        rented,
        days,
        cost_usd,
        // Work lost to failures is done, and paid for in energy, twice.
        energy_mwh: best.energy_j_per_token * tokens / goodput.useful_share / 3.6e9,
        price_per_gpu_hour: price,
        meets: misses.is_empty(),
        misses,
        deadline_margin: request.deadline_days.map(|limit| 1.0 - days / limit),
        budget_margin: request.budget_usd.map(|limit| 1.0 - cost_usd / limit),
        failures: FailureHeadroom {
            mtbf_per_gpu_hours: failures.mtbf_per_gpu_hours,
            failures: days * 86_400.0 / goodput.mtbf,
            checkpoint_write_s: goodput.write,
            checkpoint_interval_s: goodput.interval,
            restart_s: failures.restart,
            goodput: useful_share,
            spare_nodes,
        },
        plan: best,
    }
}

/// Spares that cover the nodes in repair at [`SPARE_CONFIDENCE`] of all times, for a mean of `mean` in repair (Poisson).
fn spares(mean: f64) -> u32 {
    // Far out the normal approximation is exact enough and does not underflow.
    if mean > 500.0 {
        return (mean + 2.326 * mean.sqrt()).ceil() as u32;
    }
    let mut term = (-mean).exp();
    let mut sum = term;
    let mut n = 0;
    while sum < SPARE_CONFIDENCE && n < 10_000 {
        n += 1;
        term *= mean / f64::from(n);
        sum += term;
    }
    n
}

/// Share of the time in which at most `spares` nodes are in repair, for a mean of `mean` (Poisson).
fn at_most(spares: u32, mean: f64) -> f64 {
    let mut term = (-mean).exp();
    let mut sum = term;
    for n in 1..=spares {
        term *= mean / f64::from(n);
        sum += term;
    }
    sum.clamp(f64::MIN_POSITIVE, 1.0)
}

/// What every capacity answer assumes.
pub(super) fn assumptions() -> impl Iterator<Item = Assumption> {
    let assumed = |name: &str, value: String, why: &str| Assumption {
        name: name.to_owned(),
        value,
        why: why.to_owned(),
    };
    [
        assumed(
            "time between failures",
            format!("{MTBF_PER_GPU_HOURS:.0} hours per accelerator"),
            "Llama 3 (2024), section 3.3.4: 419 interruptions in 54 days on 16,384 H100",
        ),
        assumed(
            "restart after a failure",
            format!("{RESTART_SECONDS:.0} s"),
            "MegaScale (2024): back at work within 15 minutes",
        ),
        assumed(
            "checkpoint",
            format!("{CHECKPOINT_BYTES_PER_PARAMETER:.0} bytes per parameter, at Daly's interval"),
            "bf16 weights, fp32 master copy and moments; written to the cluster's storage while training waits",
        ),
        assumed(
            "repair",
            format!("{REPAIR_HOURS:.0} hours per failed node, spares enough {:.0} % of the time", 100.0 * SPARE_CONFIDENCE),
            "planning value without a published source",
        ),
        assumed("prices", "list prices of the catalogue".to_owned(), "set price_per_gpu_hour in a cluster file"),
    ]
    .into_iter()
}

#[cfg(test)]
mod tests {
    use super::{at_most, spares};

    #[test]
    fn spares_follow_the_poisson_distribution() {
        assert_eq!(spares(0.0), 0);
        // P(X ≤ 0) = e^-0.001 > 0.99.
        assert_eq!(spares(0.001), 0);
        // Mean 1: P(X ≤ 3) = 0.981, P(X ≤ 4) = 0.996.
        assert_eq!(spares(1.0), 4);
        // The normal tail at 99 % lies 2.326 deviations out.
        assert!((spares(400.0) as i64 - 447).abs() <= 2);
        assert!((spares(501.0) as i64 - 554).abs() <= 2);
        // Without spares all must be up: e^-0.5; with one, 1.5 times that.
        assert!((at_most(0, 0.5) - 0.6065).abs() < 1e-4 && (at_most(1, 0.5) - 0.9098).abs() < 1e-4);
    }
}
