//! Prefill and decode on different instances: a prefill pool, a decode pool, and caches that move between them.
//!
//! A request goes to the prefill instance with the fewest prompt tokens. Its cache stays there until a decode instance
//! (the least loaded one) has memory for the whole sequence and has received it; a full decode pool therefore fills the
//! prefill memory, which stops prompts: back-pressure. Decode instances are replicas that are fed by transfers. The two
//! pools may lie on different kinds of accelerators ([`Pool::group`]). Sources: DistServe (Zhong et al., OSDI 2024),
//! Splitwise (Patel et al., ISCA 2024; its HHcap and HA designs mix accelerators).

mod context_parallel;
mod prefill;
#[cfg(test)]
mod tests;
mod world;

use super::beside::Beside;
use super::placement::{Placement, Role, place};
use super::rules::Rules;
use super::transfer::TransferMode;
use super::{ServingError, ServingRun};
use psim_cost_models::serving::{EngineProfile, StepCost};
use psim_hardware::Cluster;
use psim_models::serving::{KvTransfer, KvTransferError, Traffic};
use world::World;

/// Instances of one role.
#[derive(Debug, Clone, Copy)]
pub struct Pool<'a> {
    /// Prices of its steps.
    pub cost: &'a StepCost,
    /// Policy and limits.
    pub engine: &'a EngineProfile,
    /// Instances.
    pub instances: u32,
    /// Ranks that share each prompt's tokens (prefill only; 1 without context parallelism).
    pub context_parallel: u32,
    /// Group of the cluster's nodes that it lies on; its prices are those of that group's accelerators.
    pub group: usize,
}

impl Pool<'_> {
    /// Accelerators of one instance.
    pub fn size(&self) -> u32 {
        self.cost.shape().deployment.accelerators_per_replica() * self.context_parallel.max(1)
    }
}

/// Everything that a run needs.
#[derive(Debug, Clone, Copy)]
pub struct DisaggregatedInput<'a> {
    /// Prompts.
    pub prefill: Pool<'a>,
    /// Answers.
    pub decode: Pool<'a>,
    /// Machines, for the routes.
    pub cluster: &'a Cluster,
    /// Where the roles lie.
    pub placement: Placement,
    /// When caches start to move.
    pub transfer: TransferMode,
    /// Requests. Later turns of a conversation are sent when the answer before has come; their prompts are computed
    /// whole, because a prefill instance keeps nothing.
    pub traffic: &'a Traffic,
    /// Treat decoding steps between events as one event. The result is the same.
    pub coalesce: bool,
}

/// Why a run cannot be done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DisaggregatedError {
    /// As of any run.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The cache of one side is no use to the other.
    #[error(transparent)]
    Transfer(#[from] KvTransferError),
    /// More instances than accelerators.
    #[error("the pools need more than the {0} accelerators of the cluster")]
    Cluster(u32),
    /// A pool on nodes that the cluster does not have.
    #[error("a pool lies on node group {asked} of a cluster with {known}")]
    Group {
        /// Asked for, from 0.
        asked: usize,
        /// Groups of the cluster.
        known: usize,
    },
}

/// A finished run with what the transfers did.
#[derive(Debug, Clone, PartialEq)]
pub struct DisaggregatedRun {
    /// Outcomes and sums over both pools; `peak_cache` is the decode pool's.
    pub run: ServingRun,
    /// Seconds from the end of a prompt to its cache being there, per moved cache, in order of arrival there.
    pub transfer_seconds: Vec<f64>,
    /// Bytes sent, which are the bytes received.
    pub bytes: f64,
    /// Caches that found no decode memory when they were ready.
    pub held_back: u64,
    /// Highest share of the memory of a prefill instance in use.
    pub prefill_peak: f64,
    /// Seconds that prefill instances worked, summed.
    pub prefill_busy: f64,
    /// Seconds that decode instances worked, summed.
    pub decode_busy: f64,
}

/// Serves the traffic.
///
/// # Errors
/// No requests, instances or clients; static batches; caches that cannot move; a cluster that is too small.
pub fn simulate_disaggregated(
    input: &DisaggregatedInput<'_>,
) -> Result<DisaggregatedRun, DisaggregatedError> {
    simulate_disaggregated_with(input, Beside::default())
}

/// As [`simulate_disaggregated`], with speculation in the decode pool, or until the promises are lost. A draft model reads
/// the prompts in the prefill pool, and its cache moves with the target's.
///
/// # Errors
/// As [`simulate_disaggregated`]; [`ServingError::Lost`] where the run was given up.
pub fn simulate_disaggregated_with(
    input: &DisaggregatedInput<'_>,
    beside: Beside<'_>,
) -> Result<DisaggregatedRun, DisaggregatedError> {
    let requests = input.traffic.requests.len();
    if requests == 0 {
        return Err(ServingError::NoRequests.into());
    }
    if input.prefill.instances == 0 || input.decode.instances == 0 {
        return Err(ServingError::NoReplicas.into());
    }
    if requests >= u32::MAX as usize {
        return Err(ServingError::TooMany(requests).into());
    }
    if input.traffic.clients == Some(0) {
        return Err(ServingError::NoClients.into());
    }
    for pool in [&input.prefill, &input.decode] {
        if Rules::of(pool.engine.policy).whole_batches {
            return Err(ServingError::WholeBatches.into());
        }
        let known = input.cluster.groups.len();
        if pool.group >= known {
            return Err(DisaggregatedError::Group { asked: pool.group, known });
        }
    }
    let transfer = {
        let (from, to) = (input.prefill.cost.shape(), input.decode.cost);
        match beside.speculation {
            Some(speculation) => KvTransfer::between(from, &speculation.cached(to))?,
            None => KvTransfer::between(from, to.shape())?,
        }
    };
    let role = |pool: &Pool<'_>| Role { instances: pool.instances, size: pool.size(), group: pool.group };
    let sites = place(input.cluster, input.placement, role(&input.prefill), role(&input.decode))
        .ok_or(DisaggregatedError::Cluster(input.cluster.accelerators()))?;
    let mut requests = input.traffic.requests.iter().copied();
    let mut world = World::new((input, beside), &mut requests, transfer, sites);
    if world.run() { Ok(world.result()) } else { Err(ServingError::Lost.into()) }
}
