//! Replicas that are runs of their own: requests go to them in turn, and the fleet is their sum.

use crate::serving::ServingRequest;
use psim_models::serving::Traffic;
use psim_sim::serving::{FleetOptions, Router, ServingRun};

/// What runs of their own cannot do together.
pub(super) fn undealt(request: &ServingRequest<'_>, options: &FleetOptions) -> Option<&'static str> {
    if request.workload.tenants.iter().any(|t| t.adapters.is_some()) {
        Some("adapters")
    } else if options.router != Router::RoundRobin {
        Some("a router other than round-robin")
    } else if options.autoscale.is_some() {
        Some("autoscaling")
    } else if options.tiers.iter().any(Option::is_some) {
        Some("caches kept in host memory")
    } else {
        None
    }
}

/// The traffic of each replica, requests dealt in turn; replicas that get none are left out.
pub(super) fn shared(traffic: &Traffic, replicas: u32) -> Vec<Traffic> {
    let n = replicas.min(traffic.clients.unwrap_or(u32::MAX)).max(1);
    let n = (n as usize).min(traffic.requests.len());
    (0..n)
        .map(|i| Traffic {
            prefixes: traffic.prefixes.clone(),
            requests: traffic.requests.iter().skip(i).step_by(n).copied().collect(),
            clients: traffic.clients.map(|c| (c / n as u32) + u32::from((i as u32) < c % n as u32)),
        })
        .collect()
}

/// The sum of the replicas' runs, outcomes in the order of the whole traffic.
pub(super) fn together(runs: &[&ServingRun], requests: usize, replicas: u32) -> Option<ServingRun> {
    let mut sum = (*runs.first()?).clone();
    sum.outcomes.clear();
    for i in 0..requests {
        let replica = i % runs.len();
        let mut outcome = *runs[replica].outcomes.get(i / runs.len())?;
        outcome.replica = replica as u32;
        sum.outcomes.push(outcome);
    }
    for run in &runs[1..] {
        sum.gaps.merge(&run.gaps);
        sum.steps += run.steps;
        sum.busy += run.busy;
        sum.request_seconds += run.request_seconds;
        sum.computed_prompt_tokens += run.computed_prompt_tokens;
        sum.generated_tokens += run.generated_tokens;
        sum.backlog += run.backlog;
        sum.peak_cache = sum.peak_cache.max(run.peak_cache);
        sum.start = sum.start.min(run.start);
        sum.end = sum.end.max(run.end);
    }
    sum.most_replicas = replicas;
    sum.replica_seconds = f64::from(replicas) * sum.end.seconds().0;
    Some(sum)
}
