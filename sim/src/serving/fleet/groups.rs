//! Replicas of several kinds behind one router: other accelerators, other layouts, other engines.

use super::{ServingError, serve};
use crate::serving::ServingRun;
use crate::serving::options::FleetOptions;
use crate::serving::sink::Outcomes;
use psim_cost_models::serving::{EngineProfile, KINDS, Lane, PromptChunk, StepCost};
use psim_models::serving::Traffic;

/// Replicas of one kind.
#[derive(Debug, Clone, Copy)]
pub struct ReplicaGroup<'a> {
    /// Prices of steps.
    pub cost: &'a StepCost,
    /// Policy and limits.
    pub engine: &'a EngineProfile,
    /// Replicas.
    pub replicas: u32,
    /// Speed in any unit that all groups share: routers give a replica requests in proportion to it.
    pub weight: f64,
}

impl<'a> ReplicaGroup<'a> {
    /// Replicas weighed by how fast they answer requests of `input` and `output` tokens at a batch of 32.
    pub fn weighed(
        cost: &'a StepCost,
        engine: &'a EngineProfile,
        replicas: u32,
        (input, output): (u32, u32),
    ) -> Self {
        let batch = 32u32;
        let chunk = [PromptChunk { tokens: input.max(1), before: 0 }];
        let prompt = cost.seconds(&[Lane { chunks: &chunk, ..Lane::default() }]);
        let mut context = [0; KINDS];
        for (slot, most) in context.iter_mut().zip(cost.reads_at_most()) {
            let mean = u64::from(input) + u64::from(output) / 2;
            *slot = u64::from(batch) * most.map_or(mean, |w| mean.min(w));
        }
        let step = cost.decode_run(batch).seconds(&context);
        let seconds = prompt + f64::from(output) * step / f64::from(batch);
        Self { cost, engine, replicas, weight: 1.0 / seconds.max(1e-9) }
    }

    /// Load per unit of speed, in integers.
    pub(super) fn slowness(&self) -> u64 {
        ((1e6 / self.weight.max(1e-9)).round() as u64).max(1)
    }

    /// What a replica gains per request, in thousandths.
    pub(super) fn share(&self) -> i64 {
        ((1e3 * self.weight).round() as i64).max(1)
    }
}

/// Everything that a run on several kinds of replicas needs.
#[derive(Debug, Clone, Copy)]
pub struct MixedInput<'a> {
    /// Replicas, kind by kind; outcomes number them in this order.
    pub groups: &'a [ReplicaGroup<'a>],
    /// Requests.
    pub traffic: &'a Traffic,
    /// Options.
    pub options: FleetOptions,
}

/// Serves the traffic on replicas of several kinds. A request goes only to replicas whose cache can hold it.
///
/// # Errors
/// No requests, no replicas, no clients.
pub fn simulate_mixed(input: &MixedInput<'_>) -> Result<ServingRun, ServingError> {
    let requests = &input.traffic.requests;
    if requests.len() >= u32::MAX as usize {
        return Err(ServingError::TooMany(requests.len()));
    }
    let mut outcomes = Outcomes::of(requests.len());
    let mut source = requests.iter().copied();
    let mut run = serve(
        input.groups,
        (input.traffic.clients, Some(&input.traffic.prefixes)),
        (input.options, None, None),
        &mut source,
        &mut outcomes,
    )?;
    run.outcomes = outcomes.0;
    Ok(run)
}
