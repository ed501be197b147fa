//! Experts in host memory or on disk, copied to the accelerators when a step needs them.

use psim_cost_models::serving::EngineProfile;
use psim_hardware::BytesPerSec;
use psim_models::Model;
use psim_models::serving::{Deployment, lower};
use psim_sim::serving::offload::{ExpertOffload, OffloadPolicy};
use serde::Serialize;

/// Where the experts of a deployment are and when they are copied (Pre-gated MoE, ISCA 2024; ExpertFlow, 2024; SE-MoE,
/// 2022).
///
/// A step is a pass over the layers with experts; copies run on a stream of their own over the link of each accelerator,
/// of the experts that the step's tokens choose, routed uniformly, or of whole layers. What the policy keeps at hand and
/// nothing else of the experts takes accelerator memory; the rest goes to the cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ExpertsOutside {
    /// When experts are copied.
    pub policy: OffloadPolicy,
    /// Rate of the link of one accelerator: to host memory or a disk.
    pub link: BytesPerSec,
}

impl ExpertsOutside {
    /// Why a deployment cannot have them, if so.
    pub fn fault(&self, model: &Model, deployment: &Deployment) -> Option<String> {
        if !model.is_moe() {
            return Some(format!("{} has no experts", model.name));
        }
        if deployment.lanes() > 1 || deployment.ep > 1 {
            let what = "experts outside the accelerators are built for replicas whose ranks share every expert (tp only)";
            return Some(what.to_owned());
        }
        let kinds = lower(model, deployment).map_or(0, |shape| shape.experts.len());
        (kinds != 1).then(|| format!("{} has {kinds} kinds of experts; one is built", model.name))
    }

    /// The copies of a step of this deployment; `None` where there are none.
    pub fn copies(&self, model: &Model, deployment: &Deployment) -> Option<ExpertOffload> {
        let shape = lower(model, deployment).ok()?;
        let [e] = shape.experts.as_slice() else { return None };
        let bytes = (e.matrices * e.hidden * e.inner) as f64 * e.format.weight_bits() / 8.0;
        Some(ExpertOffload {
            policy: self.policy,
            layers: e.layers.round() as u32,
            experts: e.experts as f64,
            top_k: e.top_k as f64,
            expert_bytes: bytes,
            link: self.link,
        })
    }

    /// The engine with the memory that the experts leave.
    pub fn on(&self, engine: &EngineProfile, copies: &ExpertOffload) -> EngineProfile {
        let (all, kept) = copies.bytes(engine.token_budget);
        EngineProfile { reserve_gib: engine.reserve_gib - (all - kept) / 1024f64.powi(3), ..engine.clone() }
    }
}
