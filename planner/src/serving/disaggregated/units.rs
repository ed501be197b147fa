//! Units: a few prefill and decode instances that serve together, in lowest terms.

use crate::serving::ServingRequest;
use psim_cost_models::serving::StepCost;
use psim_models::serving::Deployment;
use psim_sim::serving::placement::{Placement, Role, place};

/// Most instances of a unit.
const MOST_INSTANCES: u32 = 16;

/// A layout on the nodes of a group, with what an instance of it carries at most in either role.
#[derive(Debug)]
pub(in crate::serving) struct Side {
    pub(in crate::serving) deployment: Deployment,
    /// Group of the cluster's nodes.
    pub(in crate::serving) group: usize,
    pub(in crate::serving) cost: StepCost,
    pub(in crate::serving) prefill: f64,
    pub(in crate::serving) decode: f64,
}

/// A ratio of instances of two sides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub(super) p: usize,
    pub(super) d: usize,
    pub(super) prefills: u32,
    pub(super) decodes: u32,
    /// Accelerators of one unit.
    pub(super) size: u32,
    /// Units that the cluster holds.
    pub(super) units: u32,
    /// Requests a second of one unit at most.
    pub(super) bound: f64,
}

impl Unit {
    /// Requests a second of all units at most.
    pub(super) fn total(&self) -> f64 {
        f64::from(self.units) * self.bound
    }
}

/// As many units as lie on the nodes together: instances that fill no whole nodes leave gaps.
pub(super) fn placed(request: &ServingRequest<'_>, sides: &[Side], unit: &Unit) -> Option<Unit> {
    let role = |side: usize, instances: u32| Role {
        instances,
        size: sides[side].deployment.accelerators_per_replica(),
        group: sides[side].group,
    };
    (1..=unit.units).rev().find_map(|units| {
        let (p, d) = (role(unit.p, units * unit.prefills), role(unit.d, units * unit.decodes));
        place(request.cluster, Placement::Paired, p, d).map(|_| Unit { units, ..*unit })
    })
}

fn coprime(mut a: u32, mut b: u32) -> bool {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// Every unit that the cluster holds, best bound first.
pub(super) fn units(request: &ServingRequest<'_>, sides: &[Side]) -> Vec<Unit> {
    let have: Vec<u32> = request.cluster.groups.iter().map(|g| g.count * g.node.accelerators).collect();
    let mut out = Vec::new();
    for (p, from) in sides.iter().enumerate() {
        for (d, to) in sides.iter().enumerate() {
            if from.prefill <= 0.0 || to.decode <= 0.0 {
                continue;
            }
            let (a, b) =
                (from.deployment.accelerators_per_replica(), to.deployment.accelerators_per_replica());
            for prefills in 1..MOST_INSTANCES {
                for decodes in 1..=MOST_INSTANCES - prefills {
                    if !coprime(prefills, decodes) {
                        continue;
                    }
                    let units = if from.group == to.group {
                        have[from.group] / (prefills * a + decodes * b)
                    } else {
                        (have[from.group] / (prefills * a)).min(have[to.group] / (decodes * b))
                    };
                    if units == 0 {
                        continue;
                    }
                    let size = prefills * a + decodes * b;
                    let bound = (f64::from(prefills) * from.prefill).min(f64::from(decodes) * to.decode);
                    out.push(Unit { p, d, prefills, decodes, size, units, bound });
                }
            }
        }
    }
    out.sort_by(|x, y| {
        let key = |u: &Unit| (u.size, u.p, u.d, u.prefills);
        y.total().total_cmp(&x.total()).then(key(x).cmp(&key(y)))
    });
    out
}
