//! Orders serving plans by what is wanted, and sizes them for a rate.

use super::{DisaggregatedPlan, ServingPlan, ServingPlanReport};
use crate::Objective;
use serde::Serialize;

/// What a plan needs to carry a rate within the service level.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Needed {
    /// Replicas.
    pub replicas: u32,
    /// Accelerators.
    pub accelerators: u32,
    /// US dollars an hour.
    pub usd_per_hour: f64,
}

impl ServingPlan {
    /// Replicas that carry `rate` requests a second; `None` where the plan keeps its promises at no rate.
    pub fn needed(&self, rate: f64) -> Option<Needed> {
        if self.rate_per_replica <= 0.0 || !rate.is_finite() || rate < 0.0 {
            return None;
        }
        let replicas = (rate / self.rate_per_replica).ceil().clamp(1.0, f64::from(u32::MAX >> 12)) as u32;
        let accelerators = replicas.saturating_mul(self.deployment.accelerators_per_replica());
        Some(Needed {
            replicas,
            accelerators,
            usd_per_hour: f64::from(accelerators) * self.price_per_gpu_hour,
        })
    }
}

impl ServingPlanReport {
    /// Sorts the plans: by goodput of the whole cluster, by energy for a token, or by the price of carrying `rate` (of an
    /// answer at the highest rate where none is given). Plans that keep the promises at no rate come last.
    pub fn rank(&mut self, objective: Objective, rate: Option<f64>) {
        let cost = |p: &ServingPlan| match rate.and_then(|r| p.needed(r)) {
            Some(needed) => needed.usd_per_hour,
            None => p.usd_per_million_tokens,
        };
        match objective {
            Objective::Cost => self.plans.sort_by(|a, b| {
                let none = (a.rate_per_replica <= 0.0).cmp(&(b.rate_per_replica <= 0.0));
                none.then(cost(a).total_cmp(&cost(b)))
                    .then(b.rate_per_accelerator.total_cmp(&a.rate_per_accelerator))
            }),
            Objective::Energy => self.plans.sort_by(|a, b| {
                let none = (a.rate_per_replica <= 0.0).cmp(&(b.rate_per_replica <= 0.0));
                none.then(a.joule_per_token.total_cmp(&b.joule_per_token))
                    .then(b.rate_per_accelerator.total_cmp(&a.rate_per_accelerator))
            }),
            _ => {
                self.plans
                    .sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.accelerators.cmp(&b.accelerators)));
            }
        }
    }
}

/// Marks the plans that no other, split or not, beats in both tokens per accelerator and tokens per user.
pub fn mark_pareto(plans: &mut [ServingPlan], splits: &mut [DisaggregatedPlan]) {
    let mut points: Vec<(f64, f64)> = plans
        .iter()
        .filter(|p| p.rate_per_replica > 0.0)
        .map(|p| (p.tokens_per_s_per_accelerator, p.tokens_per_s_per_user))
        .collect();
    points.extend(splits.iter().map(|p| (p.tokens_per_s_per_accelerator, p.tokens_per_s_per_user)));
    let stands = |x: f64, y: f64| !points.iter().any(|(a, b)| *a >= x && *b >= y && (*a > x || *b > y));
    for p in plans {
        p.pareto =
            p.rate_per_replica > 0.0 && stands(p.tokens_per_s_per_accelerator, p.tokens_per_s_per_user);
    }
    for p in splits {
        p.pareto = stands(p.tokens_per_s_per_accelerator, p.tokens_per_s_per_user);
    }
}
