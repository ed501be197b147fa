//! Prices of presets for the set-ups of published experiments.

use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::StepCost;
use psim_cost_models::serving::engine::find;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::{Deployment, NumberFormat, Quantization};

/// Prices a preset in 16 bits on one node of an accelerator.
///
/// # Errors
/// A sentence: unknown names, or a deployment that does not fit.
pub fn price(model: &str, gpu: &str, deployment: Deployment, engine: &str) -> Result<StepCost, String> {
    let model = presets::find(model).map_err(|e| e.to_string())?;
    let ranks = deployment.accelerators_per_replica().max(8);
    let cluster = homogeneous(gpu, ranks, &HomogeneousOptions::default()).map_err(|e| e.to_string())?;
    let engine = find(engine).ok_or_else(|| format!("no engine `{engine}`"))?;
    let library = ProfileLibrary::built_in();
    StepCost::new(&model, &deployment, &cluster, cluster.first_node(), engine, &library)
        .map_err(|e| e.to_string())
}

/// 16-bit weights and cache, split over `tp` ranks.
pub fn in_16_bits(tp: u32) -> Deployment {
    Deployment::tensor_parallel(tp, Quantization::uniform(NumberFormat::Bf16))
}
