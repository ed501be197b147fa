//! Experts in host memory or on disk, copied to the accelerators when a step needs them.

use psim_cost_models::serving::EngineProfile;
use psim_hardware::{BytesPerSec, Node};
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
    /// They are on the nodes' disks, else in their memory.
    pub on_disk: bool,
}

impl ExpertsOutside {
    /// Why a deployment cannot have them, if so.
    pub fn fault(&self, model: &Model, deployment: &Deployment) -> Option<String> {
        if !model.is_moe() {
            return Some(format!("{} has no experts", model.name));
        }
        if deployment.pp > 1 {
            let what = "experts outside the accelerators are built for replicas without pipeline stages (pp)";
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
            local: e.local as f64,
            top_k: e.top_k as f64,
            expert_bytes: bytes,
            link: self.link,
        })
    }

    /// Why the nodes cannot hold them, if so: every accelerator in use has its own experts there, each replica a copy of
    /// its own, and `beside` more bytes for each accelerator. The fullest node counts; its whole memory is taken to be
    /// free. A disk without a size is not checked.
    pub fn crowded(
        &self,
        deployment: &Deployment,
        node: &Node,
        copies: &ExpertOffload,
        beside: f64,
    ) -> Option<String> {
        let (all, _) = copies.bytes(1);
        let used = f64::from(deployment.accelerators().min(node.accelerators));
        let (have, place, beside) = if self.on_disk {
            (node.nvme.as_ref()?.capacity?.as_f64(), "disk", 0.0)
        } else {
            (node.host_memory.as_f64(), "host memory", beside)
        };
        let need = used * (all + beside);
        let caches =
            if beside > 0.0 { format!(" and {:.1} GB of caches", beside * 1e-9) } else { String::new() };
        (need > have).then(|| {
            format!(
                "a node needs {:.0} GB of {place} ({:.1} GB of experts{caches} for each of {used} accelerators) and has \
                 {:.0} GB",
                need * 1e-9,
                all * 1e-9,
                have * 1e-9
            )
        })
    }

    /// The engine with the memory that the experts leave.
    pub fn on(
        &self,
        engine: &EngineProfile,
        deployment: &Deployment,
        copies: &ExpertOffload,
    ) -> EngineProfile {
        // Experts see the tokens of all copies of the attention.
        let (all, kept) = copies.bytes(engine.token_budget.saturating_mul(deployment.attention_dp));
        EngineProfile { reserve_gib: engine.reserve_gib - (all - kept) / 1024f64.powi(3), ..engine.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_hardware::Bytes;
    use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
    use psim_models::presets;
    use psim_models::serving::{NumberFormat, Quantization};

    #[test]
    fn nodes_must_hold_what_is_outside() {
        let model = presets::find("mixtral-8x7b").unwrap();
        let cluster = homogeneous("H100-SXM-80GB", 16, &HomogeneousOptions::default()).unwrap();
        let mut node = cluster.first_node().clone();
        let link = node.host_link;
        let outside = ExpertsOutside { policy: OffloadPolicy::PreGated, link, on_disk: false };
        let q = Quantization::uniform(NumberFormat::Bf16);
        // 32 layers of 8 experts of 3 · 4,096 · 14,336 numbers of two bytes: 90.2 GB for a replica.
        let experts = 32.0 * 8.0 * 3.0 * 4096.0 * 14336.0 * 2.0;
        let one = Deployment::tensor_parallel(1, q);
        for (deployment, per_node) in [
            (one, experts),
            (Deployment { replicas: 16, ..one }, 8.0 * experts),
            (Deployment { replicas: 3, tp: 4, ..one }, 2.0 * experts),
            // Experts spread over the ranks are there once.
            (Deployment { attention_dp: 8, ep: 8, ..one }, experts),
        ] {
            assert!(outside.fault(&model, &deployment).is_none());
            let copies = outside.copies(&model, &deployment).unwrap();
            let mut asked = |have: f64, beside: f64| {
                node.host_memory = Bytes(have as u64);
                outside.crowded(&deployment, &node, &copies, beside)
            };
            assert_eq!(asked(1.001 * per_node, 0.0), None, "{deployment:?}");
            let why = asked(0.999 * per_node, 0.0).unwrap();
            assert!(why.contains(&format!("needs {:.0} GB", per_node * 1e-9)), "{why}");
            assert!(asked(1.001 * per_node, 1e9).is_some(), "caches take their part");
            assert_eq!(
                ExpertsOutside { on_disk: true, ..outside }.crowded(&deployment, &node, &copies, 0.0),
                None
            );
        }
        assert!(outside.fault(&model, &Deployment { pp: 2, ..one }).is_some());
    }
}
