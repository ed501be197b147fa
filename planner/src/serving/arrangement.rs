//! What shares an accelerator or evens out its experts: nano-batches, partitions of the multiprocessors, redundant
//! copies of experts.

use psim_cost_models::serving::{EngineProfile, NanoPlan};
use psim_models::Model;
use psim_models::serving::{Deployment, lower};
use psim_sim::serving::Partition;
use psim_sim::serving::balance::ExpertLoads;
use serde::Serialize;

/// How kernels of a replica share an accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Arrangement {
    /// One kernel after another.
    #[default]
    InTurn,
    /// Two halves of every batch, one half's products beside the other's caches and links (NanoFlow, OSDI 2025).
    NanoBatches,
    /// Prompts and answers at the same time, each on a share of the multiprocessors (semi-PD, arXiv 2504.19867).
    Partitioned(Partition),
}

impl Arrangement {
    /// Name and key of it in a deployment file.
    pub fn key(&self) -> &'static str {
        match self {
            Self::InTurn => "engine",
            Self::NanoBatches => "overlap",
            Self::Partitioned(_) => "sm_partition",
        }
    }
}

/// What came of an arrangement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ArrangementFigures {
    /// How steps were cut.
    NanoBatches(NanoPlan),
    /// Share of the multiprocessors that prompts had.
    Partition {
        /// Mean over the run and the replicas.
        mean: f64,
        /// Smallest.
        least: f64,
        /// Largest.
        most: f64,
        /// How often the border moved.
        moves: usize,
    },
}

/// Copies of hot experts beyond one of each, spread so that no rank is much busier than the others (DeepSeek's EPLB).
///
/// The step waits for the busiest rank. How often experts are chosen follows Zipf's law of exponent `skew`; the busiest
/// over the mean rank with these copies takes the place of the engine's own `expert_imbalance`, and the copies take their
/// memory from the cache. That a step reads the weights of more experts is left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RedundantExperts {
    /// Copies in all.
    pub copies: u32,
    /// Exponent of Zipf's law: 0 is even.
    pub skew: f64,
}

impl RedundantExperts {
    /// Seed of which expert is chosen how often: on which rank the hot ones begin matters little with copies.
    const SEED: u64 = 1;

    /// Why a deployment has no use for them, if so.
    pub fn fault(&self, model: &Model, deployment: &Deployment) -> Option<String> {
        let Some(moe) = model.moe() else {
            return Some(format!("{} has no experts", model.name));
        };
        if deployment.ep < 2 {
            return Some("redundant experts need experts spread over ranks (ep above 1)".to_owned());
        }
        let most = moe.experts * u64::from(deployment.ep);
        (u64::from(self.copies) > most).then(|| {
            format!(
                "{} copies are more than all {} experts on all {} ranks",
                self.copies, moe.experts, deployment.ep
            )
        })
    }

    /// Busiest over mean rank of experts.
    pub fn imbalance(&self, model: &Model, deployment: &Deployment) -> f64 {
        let experts = model.moe().map_or(1, |m| m.experts) as usize;
        let loads = ExpertLoads::zipf(experts, self.skew, Self::SEED);
        loads.balanced(deployment.ep.max(1) as usize, self.copies as usize)
    }

    /// Gibibytes of copies on the fullest rank.
    pub fn gib(&self, model: &Model, deployment: &Deployment) -> f64 {
        let slots = f64::from(self.copies.div_ceil(deployment.ep.max(1)));
        let Ok(shape) = lower(model, deployment) else { return 0.0 };
        let bytes = shape.experts.iter().map(|e| {
            let one = (e.matrices * e.hidden * e.inner) as f64 * e.format.weight_bits() / 8.0;
            one * e.layers * slots
        });
        bytes.sum::<f64>() / 1024f64.powi(3)
    }

    /// The engine with these copies on an accelerator.
    pub fn on(
        &self,
        engine: &EngineProfile,
        accelerator: &str,
        model: &Model,
        deployment: &Deployment,
    ) -> EngineProfile {
        let mut parameters = engine.on(accelerator).0;
        parameters.expert_imbalance = self.imbalance(model, deployment);
        EngineProfile {
            parameters,
            accelerator: Vec::new(),
            reserve_gib: engine.reserve_gib + self.gib(model, deployment),
            ..engine.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_cost_models::serving::engine::find;
    use psim_models::presets;
    use psim_models::serving::{NumberFormat, Quantization};

    #[test]
    fn copies_cost_memory_and_even_the_load() {
        let model = presets::find("deepseek-v3").unwrap();
        let q = Quantization::uniform(NumberFormat::Fp8);
        let d = Deployment { attention_dp: 32, ep: 32, ..Deployment::tensor_parallel(1, q) };
        let with = |copies| RedundantExperts { copies, skew: 0.6 };
        // One more expert a rank: 58 layers of three matrices of 7,168 x 2,048 bytes.
        let by_hand = 58.0 * 3.0 * 7168.0 * 2048.0 / 1024f64.powi(3);
        assert!((with(32).gib(&model, &d) / by_hand - 1.0).abs() < 1e-9, "{}", with(32).gib(&model, &d));
        assert_eq!(with(0).gib(&model, &d), 0.0);
        assert!(with(32).imbalance(&model, &d) < with(0).imbalance(&model, &d));
        let engine = find("sglang").unwrap();
        let changed = with(32).on(engine, "H100-SXM-80GB", &model, &d);
        assert!(changed.reserve_gib > engine.reserve_gib + 2.3);
        assert_eq!(changed.on("H100-SXM-80GB").0.expert_imbalance, with(32).imbalance(&model, &d));
        assert!(with(32).fault(&model, &d).is_none());
        assert!(with(32).fault(&model, &Deployment { ep: 1, ..d }).is_some());
        assert!(with(32).fault(&presets::find("llama3-70b").unwrap(), &d).is_some());
        assert!(with(9000).fault(&model, &d).is_some());
    }
}
