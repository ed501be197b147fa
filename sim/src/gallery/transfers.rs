//! Scenarios of one prompt in separate pools: context parallelism, and when its cache moves.

use super::deployments::Keys;
use crate::serving::published::in_16_bits;
use crate::serving::{
    DisaggregatedInput, DisaggregatedRun, Placement, Pool, TransferMode, simulate_disaggregated,
};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::{StepCost, engine};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::{Arrival, ServingWorkload, Traffic};

/// One request after another through a prefill instance of `ranks` accelerators and a decode instance of one.
fn run(keys: &Keys<'_>, ranks: u32, transfer: TransferMode) -> Result<DisaggregatedRun, String> {
    let cluster = homogeneous(keys.text("accelerator")?, 16, &HomogeneousOptions::default())
        .map_err(|e| e.to_string())?;
    let model = presets::find(keys.text("model")?).map_err(|e| e.to_string())?;
    let name = keys.text("engine")?;
    let engine = engine::find(name).ok_or_else(|| format!("no engine `{name}`"))?;
    let library = ProfileLibrary::built_in();
    let cost = StepCost::new(&model, &in_16_bits(1), &cluster, cluster.first_node(), engine, &library)
        .map_err(|e| e.to_string())?;
    let input = u64::from(keys.count("input")?);
    let workload = ServingWorkload::fixed("one", Arrival::ClosedLoop { concurrency: 1 }, 4, input, 5);
    let traffic = Traffic::generate(&workload, 1);
    let pool = |context_parallel| Pool { cost: &cost, engine, instances: 1, context_parallel, group: 0 };
    simulate_disaggregated(&DisaggregatedInput {
        prefill: pool(ranks),
        decode: pool(1),
        cluster: &cluster,
        placement: Placement::Apart,
        transfer,
        traffic: &traffic,
        coalesce: true,
    })
    .map_err(|e| e.to_string())
}

/// Time of the prompt on one accelerator over that on `ranks`.
pub(super) fn context_parallel(keys: &Keys<'_>) -> Result<f64, String> {
    let busy = |ranks| run(keys, ranks, TransferMode::AfterPrompt).map(|out| out.prefill_busy);
    Ok(busy(1)? / busy(keys.count("ranks")?)?)
}

/// Wait for the cache behind the prompt, pulled whole over layer by layer.
pub(super) fn layer_wise(keys: &Keys<'_>) -> Result<f64, String> {
    let ranks = keys.count("ranks")?;
    let wait = |mode| run(keys, ranks, mode).map(|out| out.transfer_seconds.iter().sum::<f64>());
    Ok(wait(TransferMode::AfterPrompt)? / wait(TransferMode::LayerWise)?)
}
