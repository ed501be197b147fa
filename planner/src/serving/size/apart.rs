//! Pools for prompts and for answers sized apart: as few instances of each as carry the rate together.
//!
//! A unit of pools is a ratio in lowest terms; whole units round both pools up together, and a spare unit stands by for
//! the failure of one instance. Apart, each pool rounds up by itself and has spares of its own. That fewer instances
//! carry the rate is simulated, all of them together, never assumed.

use super::spare_replicas;
use crate::serving::disaggregated::{Side, UnitTrial};
use crate::serving::{PoolLayout, ServingRequest, Split};
use psim_cost_models::serving::StepCost;
use psim_models::serving::Deployment;
use psim_sim::serving::ServingReport;
use serde::Serialize;

/// Instances that are still simulated together; larger deployments keep whole units.
const MOST_INSTANCES: u32 = 48;

/// Instances of both pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PoolSizes {
    /// Instances for prompts that the rate needs.
    pub prefill: u32,
    /// Instances for answers that the rate needs.
    pub decode: u32,
    /// Spare instances for prompts.
    pub prefill_spares: u32,
    /// Spare instances for answers.
    pub decode_spares: u32,
}

impl PoolSizes {
    /// With the least spares so that enough of both pools are up at once with this probability.
    fn with_spares(prefill: u32, decode: u32, split: &Split, availability: f64) -> Self {
        // Both must be up; the pools fail independently.
        let each = availability.sqrt();
        Self {
            prefill,
            decode,
            prefill_spares: spare_replicas(prefill, one(&split.prefill.deployment), each),
            decode_spares: spare_replicas(decode, one(&split.decode.deployment), each),
        }
    }

    /// Accelerators, without and with spares.
    pub(super) fn accelerators(&self, split: &Split) -> (u32, u32) {
        let (p, d) = (one(&split.prefill.deployment), one(&split.decode.deployment));
        let needed = self.prefill * p + self.decode * d;
        (needed, needed + self.prefill_spares * p + self.decode_spares * d)
    }

    /// Largest share of a pool that the rate needs.
    pub(super) fn load(&self) -> f64 {
        let share = |needed: u32, spare: u32| f64::from(needed) / f64::from((needed + spare).max(1));
        share(self.prefill, self.prefill_spares).max(share(self.decode, self.decode_spares))
    }
}

fn one(deployment: &Deployment) -> u32 {
    deployment.accelerators_per_replica()
}

/// A split with so many instances in its pools.
pub(super) fn with_instances(split: &Split, prefill: u32, decode: u32) -> Split {
    let mut out = *split;
    (out.prefill.deployment.replicas, out.decode.deployment.replicas) = (prefill, decode);
    out
}

/// An instance of a pool, priced.
fn side(request: &ServingRequest<'_>, pool: &PoolLayout) -> Option<Side> {
    let deployment = Deployment { replicas: 1, ..pool.deployment };
    let (node, library) = (request.node(pool.group), request.library);
    let cost =
        StepCost::new(request.model, &deployment, request.cluster, node, request.engine, library).ok()?;
    // Nothing is bounded here: everything is simulated.
    Some(Side { deployment, group: pool.group, cost, prefill: f64::INFINITY, decode: f64::INFINITY })
}

/// The fewest of `most` instances that carry the rate, where `most` do; fewer are tried by halving.
fn fewest(most: u32, mut carries: impl FnMut(u32) -> bool) -> u32 {
    let (mut breaks, mut keeps) = (0, most);
    while keeps - breaks > 1 {
        let middle = breaks + (keeps - breaks) / 2;
        if carries(middle) { keeps = middle } else { breaks = middle }
    }
    keeps
}

/// Pools of `split`, whose instances are those of whole units for `rate`, sized apart; `None` where there are too many to
/// simulate together, or where they do not keep the promises when they are.
pub(super) fn apart(
    request: &ServingRequest<'_>,
    split: &Split,
    rate: f64,
    availability: f64,
) -> Option<(PoolSizes, ServingReport)> {
    let (prefill, decode) = (split.prefill.deployment.replicas, split.decode.deployment.replicas);
    if prefill + decode > MOST_INSTANCES {
        return None;
    }
    let (prompts, answers) = (side(request, &split.prefill)?, side(request, &split.decode)?);
    // The figures of all instances at the rate, if they keep every promise.
    let carries = |p: u32, d: u32| {
        let (prefill, decode) = (&prompts, &answers);
        let all = UnitTrial { request, prefill, decode, instances: (p, d), speculation: None };
        all.kept(rate).map(|trial| trial.report)
    };
    let keeps = |p: u32, d: u32| carries(p, d).is_some();
    if !keeps(prefill, decode) {
        return None;
    }
    // Fewer of one pool leave less room in the other: both orders are tried.
    let p = fewest(prefill, |p| keeps(p, decode));
    let first = (p, fewest(decode, |d| keeps(p, d)));
    let d = fewest(decode, |d| keeps(prefill, d));
    let second = (fewest(prefill, |p| keeps(p, d)), d);
    let sized = |(p, d): (u32, u32)| PoolSizes::with_spares(p, d, split, availability);
    let best = [first, second].map(sized).into_iter().min_by_key(|s| s.accelerators(split).1)?;
    let report = carries(best.prefill, best.decode)?;
    Some((best, report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halving_finds_the_fewest() {
        for least in 1..=20 {
            let mut tried = 0;
            let found = fewest(20, |n| {
                tried += 1;
                n >= least
            });
            assert_eq!(found, least);
            assert!(tried <= 5);
        }
    }
}
