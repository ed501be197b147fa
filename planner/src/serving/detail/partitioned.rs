//! Replicas whose multiprocessors are cut between prompts and answers (semi-PD).

use super::dealt::{shared, together, undealt};
use super::{DetailError, ServingDetail, finish};
use crate::parallel::map_long;
use crate::serving::{ArrangementFigures, Served, ServingRequest};
use psim_cost_models::serving::StepCost;
use psim_models::serving::{Deployment, Traffic};
use psim_sim::serving::{Partition, PartitionInput, PartitionRun, ServingError, simulate_partitioned};

/// What is not simulated together with a partition.
fn conflicts(request: &ServingRequest<'_>, served: &Served) -> Option<&'static str> {
    let tenants = &request.workload.tenants;
    let options = &served.options;
    if tenants.iter().any(|t| t.sessions.is_some()) {
        Some("conversations of several turns")
    } else if tenants.iter().any(|t| t.prefix.is_some()) {
        Some("shared prefixes, which it would compute each time,")
    } else if options.co_serving.is_some() {
        Some("fine-tuning beside it")
    } else {
        undealt(request, options)
    }
}

/// Serves the workload as it is.
pub(super) fn detail(
    request: &ServingRequest<'_>,
    deployment: &Deployment,
    partition: Partition,
    served: &Served,
) -> Result<ServingDetail, DetailError> {
    if let Some(what) = conflicts(request, served) {
        let what = format!("a partition of the multiprocessors together with {what} is not built");
        return Err(DetailError::Together { key: "sm_partition", what });
    }
    let node = request.node(served.group);
    let cost =
        StepCost::new(request.model, deployment, request.cluster, node, request.engine, request.library)?;
    let traffic = Traffic::generate(request.workload, request.seed);
    let shares = shared(&traffic, deployment.replicas);
    let runs = map_long(&shares, |share| {
        let input =
            PartitionInput { cost: &cost, engine: request.engine, traffic: share, partition, coalesce: true };
        simulate_partitioned(&input)
    });
    let runs: Vec<PartitionRun> = runs
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(|error| DetailError::Together { key: "sm_partition", what: error.to_string() })?;
    let border = borders(&runs);
    let each: Vec<_> = runs.iter().map(|r| &r.run).collect();
    let run = together(&each, traffic.requests.len(), deployment.replicas).ok_or(ServingError::NoRequests)?;
    let mut found = finish(request, (deployment, served.group), &cost, run, traffic);
    found.arrangement = Some(border);
    Ok(found)
}

/// Where the border lay.
fn borders(runs: &[PartitionRun]) -> ArrangementFigures {
    let (mut weighted, mut seconds, mut moves) = (0.0, 0.0, 0);
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for found in runs {
        moves += found.border.windows(2).filter(|w| w[0].1 != w[1].1).count();
        for (i, (at, share)) in found.border.iter().enumerate() {
            let until = found.border.get(i + 1).map_or(found.run.end, |(next, _)| *next);
            let span = until.seconds().0 - at.seconds().0;
            weighted += span * share;
            seconds += span;
            (least, most) = (least.min(*share), most.max(*share));
        }
    }
    ArrangementFigures::Partition { mean: weighted / seconds.max(f64::MIN_POSITIVE), least, most, moves }
}
