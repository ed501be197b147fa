//! One deployment under the workload's own traffic: what a person is shown of it.

use super::ServingRequest;
use psim_cost_models::serving::{StepCost, StepCostError};
use psim_models::serving::{Deployment, ServiceLevel, Traffic};
use psim_sim::serving::{
    FleetOptions, Sample, ServingError, ServingInput, ServingReport, ServingRun, simulate,
};

/// Why a deployment cannot be simulated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DetailError {
    /// It cannot be priced.
    #[error(transparent)]
    Cost(#[from] StepCostError),
    /// It cannot be run.
    #[error(transparent)]
    Run(#[from] ServingError),
}

/// A simulated deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct ServingDetail {
    /// Layout.
    pub deployment: Deployment,
    /// Figures of all replicas together.
    pub report: ServingReport,
    /// Requests and answers.
    pub traffic: Traffic,
    /// Outcome of every request, histogram of gaps, timeline.
    pub run: ServingRun,
    /// Bytes for the cache on one accelerator.
    pub cache_bytes: f64,
    /// Tokens of the cache of one replica, all its copies of the attention together.
    pub cache_tokens: f64,
    /// Every kernel law was measured on this accelerator.
    pub measured: bool,
}

impl ServingDetail {
    /// Timeline points.
    pub fn samples(&self) -> &[Sample] {
        &self.run.samples
    }
}

/// Serves the workload as it is on a deployment.
///
/// # Errors
/// A deployment that does not fit the model or the memory; traffic without requests.
pub fn detail(
    request: &ServingRequest<'_>,
    deployment: &Deployment,
    options: FleetOptions,
) -> Result<ServingDetail, DetailError> {
    let node = request.cluster.first_node();
    let cost =
        StepCost::new(request.model, deployment, request.cluster, node, request.engine, request.library)?;
    let traffic = Traffic::generate(request.workload, request.seed);
    let input = ServingInput {
        cost: &cost,
        engine: request.engine,
        traffic: &traffic,
        replicas: deployment.replicas,
        options,
    };
    let run = simulate(&input)?;
    let levels: Vec<ServiceLevel> = request.workload.tenants.iter().map(|t| t.slo.clone()).collect();
    let report = ServingReport::new(&run, &traffic, &levels);
    // Bytes of a long sequence over its length: windows and states make short ones dearer.
    const LONG: u64 = 4096;
    let per_token = cost.shape().sequence_bytes(LONG) / LONG as f64;
    let copies = f64::from(deployment.attention_dp);
    Ok(ServingDetail {
        deployment: *deployment,
        report,
        run,
        cache_bytes: cost.cache_bytes(),
        cache_tokens: if per_token > 0.0 { cost.cache_bytes() / per_token * copies } else { f64::INFINITY },
        measured: cost.own_laws(),
        traffic,
    })
}
