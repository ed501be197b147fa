//! Published serving experiments as runs: the set-ups behind scenarios of the gallery.

use super::{
    DisaggregatedInput, FleetOptions, Placement, Pool, ServingInput, TransferMode, simulate,
    simulate_disaggregated,
};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::StepCost;
use psim_cost_models::serving::engine::find;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::{
    Arrival, Deployment, Lengths, NumberFormat, Quantization, ServingWorkload, Traffic,
};

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
pub fn half(tp: u32) -> Deployment {
    Deployment::tensor_parallel(tp, Quantization::uniform(NumberFormat::Bf16))
}

/// DistServe, table 2 and appendix B: OPT-66B on ShareGPT-like lengths (mean 755 and 200 tokens, log-normal), A100-80GB
/// nodes of 8 with 25 Gb/s between them; 2.5 s to the first token and 0.15 s a token for 90 % of the requests. The
/// highest rate of one prefill instance of tp 4 with one decode instance of tp 2 and pp 2, over that of two vLLM of 2023
/// of tp 4 each: the same 8 accelerators.
///
/// # Errors
/// A sentence.
pub fn split_rate_ratio() -> Result<f64, String> {
    let model = presets::find("opt-66b").map_err(|e| e.to_string())?;
    let options = HomogeneousOptions::default();
    let mut cluster = homogeneous("A100-SXM-80GB", 8, &options).map_err(|e| e.to_string())?;
    for group in &mut cluster.groups {
        group.node.nics.count = 1;
        group.node.nics.rate = psim_hardware::BytesPerSec(25e9 / 8.0);
    }
    let profile = find("vllm-2024").ok_or("no engine")?;
    let library = ProfileLibrary::built_in();
    let price = |d: &Deployment| {
        StepCost::new(&model, d, &cluster, cluster.first_node(), profile, &library).map_err(|e| e.to_string())
    };
    let (whole, decode) = (price(&half(4))?, price(&Deployment { pp: 2, ..half(2) })?);
    let at = |rate: f64| {
        let mut workload = ServingWorkload::fixed("sharegpt", Arrival::Poisson { rate }, 800, 1, 1);
        workload.tenants[0].input = Lengths::Lognormal { mean: 755.0, cv: 0.9 };
        workload.tenants[0].output = Lengths::Lognormal { mean: 200.0, cv: 0.9 };
        Traffic::generate(&workload, 3)
    };
    let attained = |run: &super::ServingRun, traffic: &Traffic| {
        let good = run.outcomes.iter().zip(&traffic.requests).filter(|(o, r)| {
            let first = (o.first_token - o.sent).0 as f64 * 1e-12;
            let answer = (o.finish - o.first_token).0 as f64 * 1e-12;
            first <= 2.5 && answer <= 0.15 * f64::from(r.output.max(2) - 1)
        });
        good.count() as f64 / traffic.requests.len() as f64
    };
    let pool = |cost, instances| Pool { cost, engine: profile, instances, context_parallel: 1, group: 0 };
    let split = |rate: f64| -> Result<f64, String> {
        let traffic = at(rate);
        let input = DisaggregatedInput {
            prefill: pool(&whole, 1),
            decode: pool(&decode, 1),
            cluster: &cluster,
            placement: Placement::Paired,
            transfer: TransferMode::AfterPrompt,
            traffic: &traffic,
            coalesce: true,
        };
        let out = simulate_disaggregated(&input).map_err(|e| e.to_string())?;
        Ok(attained(&out.run, &traffic))
    };
    let together = |rate: f64| -> Result<f64, String> {
        let traffic = at(rate);
        let options = FleetOptions::default();
        let input = ServingInput { cost: &whole, engine: profile, traffic: &traffic, replicas: 2, options };
        let run = simulate(&input).map_err(|e| e.to_string())?;
        Ok(attained(&run, &traffic))
    };
    Ok(highest(&split)? / highest(&together)?)
}

/// Highest rate at which nine in ten requests are served well, to 1 per cent.
fn highest(attained: &dyn Fn(f64) -> Result<f64, String>) -> Result<f64, String> {
    let (mut low, mut high) = (0.05, 100.0);
    while high / low > 1.01 {
        let middle = f64::sqrt(low * high);
        if attained(middle)? >= 0.9 { low = middle } else { high = middle }
    }
    Ok(low)
}
