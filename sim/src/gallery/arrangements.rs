//! Scenarios of what runs beside what on one accelerator, and of devices that share one model: partitions of the
//! multiprocessors, speculation across devices, experts over many nodes.

use super::deployments::Keys;
use crate::serving::balance::ExpertLoads;
use crate::serving::dovetail::Dovetail;
use crate::serving::expert_parallel::{AllToAll, LargeExpertParallel};
use crate::serving::partition::Controller;
use crate::serving::published::{in_16_bits, price};
use crate::serving::speculation::Acceptance;
use crate::serving::{
    FleetOptions, Partition, PartitionInput, ServingInput, ServingReport, simulate, simulate_partitioned,
};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::{EngineProfile, Policy, StepCost, engine};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_hardware::{BytesPerSec, DType, Seconds, device};
use psim_models::presets;
use psim_models::serving::workload::parse_workload;
use psim_models::serving::{Deployment, NumberFormat, Quantization, Traffic, lower};

fn profile(keys: &Keys<'_>) -> Result<EngineProfile, String> {
    let name = keys.text("engine")?;
    let mut profile = engine::find(name).ok_or_else(|| format!("no engine `{name}`"))?.clone();
    if let Ok(policy) = keys.text("policy") {
        profile.policy = Policy::parse(policy)?;
    }
    Ok(profile)
}

/// A figure of an engine together over that of the same engine cut in two (semi-PD).
pub(super) fn partition(keys: &Keys<'_>) -> Result<f64, String> {
    let engine = profile(keys)?;
    let quantization = Quantization::uniform(format(keys)?);
    let deployment = Deployment::tensor_parallel(keys.count("tp")?, quantization);
    let model = presets::find(keys.text("model")?).map_err(|e| e.to_string())?;
    let cluster = homogeneous(keys.text("accelerator")?, 8, &HomogeneousOptions::default())
        .map_err(|e| e.to_string())?;
    let library = ProfileLibrary::built_in();
    let cost = StepCost::new(&model, &deployment, &cluster, cluster.first_node(), &engine, &library)
        .map_err(|e| e.to_string())?;
    let workload =
        parse_workload("workload", keys.text("workload")?, &mut |_| Err("no files here".to_owned()))
            .map_err(|e| e.to_string())?;
    let traffic = Traffic::generate(&workload, 7);
    let controller = Controller {
        ttft: Seconds(keys.number("ttft_s")?),
        tpot: Seconds(keys.number("tpot_s")?),
        ..Controller::default()
    };
    let cut = simulate_partitioned(&PartitionInput {
        cost: &cost,
        engine: &engine,
        traffic: &traffic,
        partition: Partition { controller: Some(controller), ..Partition::default() },
        coalesce: true,
    })
    .map_err(|e| e.to_string())?;
    let options = FleetOptions::default();
    let input = ServingInput { cost: &cost, engine: &engine, traffic: &traffic, replicas: 1, options };
    let together = simulate(&input).map_err(|e| e.to_string())?;
    let figure = |run| {
        let report = ServingReport::new(run, &traffic, &[]);
        super::serving::figure(keys.text("metric")?, run, &report, &traffic)
    };
    Ok(figure(&together)? / figure(&cut.run)?)
}

fn format(keys: &Keys<'_>) -> Result<NumberFormat, String> {
    match keys.text("format") {
        Ok(name) => NumberFormat::parse(name).ok_or_else(|| format!("`{name}` is not a number format")),
        Err(_) => Ok(NumberFormat::Bf16),
    }
}

/// Speculation across a processor and an accelerator over the processor alone.
pub(super) fn dovetail(keys: &Keys<'_>) -> Result<f64, String> {
    let device = device::find(keys.text("device")?)?;
    let model = presets::find(keys.text("target")?).map_err(|e| e.to_string())?;
    let target = lower(&model, &in_16_bits(1)).map_err(|e| e.to_string())?;
    let draft = price(keys.text("draft")?, keys.text("accelerator")?, in_16_bits(1), keys.text("engine")?)?;
    let pair = Dovetail {
        device: &device,
        target: &target,
        dtype: DType::Fp32,
        reached: keys.number("reached")?,
        draft: &draft,
        link: (keys.number("link_us")? * 1e-6, keys.number("link_gb_s")? * 1e9),
    };
    let acceptance = Acceptance::Rate(keys.number("acceptance")?);
    let (drafts, context) = (keys.count("drafts")?, keys.number("context")?);
    Ok(pair.rate(&acceptance, 1, drafts, context).map_err(|e| e.to_string())?.1)
}

/// Tokens a second and accelerator of a decode deployment with experts over many ranks.
pub(super) fn large_expert_parallel(keys: &Keys<'_>) -> Result<f64, String> {
    let model = presets::find(keys.text("model")?).map_err(|e| e.to_string())?;
    let mut cluster = homogeneous(
        keys.text("accelerator")?,
        keys.count("priced_ranks")?.max(8),
        &HomogeneousOptions::default(),
    )
    .map_err(|e| e.to_string())?;
    let dies = keys.number("dies")?;
    for group in &mut cluster.groups {
        let a = &mut group.node.accelerator;
        // A rank may be one die of a package.
        a.memory_bandwidth = BytesPerSec(a.memory_bandwidth.0 / dies);
        a.memory.0 = (a.memory.0 as f64 / dies) as u64;
        for rate in a.peak.values_mut() {
            rate.0 /= dies;
        }
        if let Ok(eight) = keys.number("eight_bit_tops") {
            for dtype in [DType::Fp8, DType::Int8] {
                a.peak.insert(dtype, psim_hardware::FlopPerSec(eight * 1e12));
            }
        }
    }
    let mut engine = profile(keys)?;
    let (mut parameters, _) = engine.on(&cluster.first_node().accelerator.name);
    parameters.expert_imbalance = 1.0;
    engine.memory_share = 0.95;
    let quantization = Quantization { kv: DType::Bf16, ..Quantization::uniform(format(keys)?) };
    let ranks = keys.count("priced_ranks")?;
    let d = Deployment { attention_dp: ranks, ep: ranks, ..Deployment::tensor_parallel(1, quantization) };
    let library = ProfileLibrary::built_in();
    let node = cluster.first_node();
    let cost = StepCost::with_parameters(&model, &d, &cluster, node, &engine, parameters, &library)
        .map_err(|e| e.to_string())?;
    let loads = ExpertLoads::zipf(keys.count("experts")? as usize, keys.number("zipf")?, 1);
    let link = |latency: &str, element: &str| -> Result<AllToAll, String> {
        Ok(AllToAll {
            latency: keys.number(latency)? * 1e-6,
            rate: keys.number("wire_gb_s")? * 1e9,
            element: keys.number(element)?,
        })
    };
    let step = LargeExpertParallel {
        cost: &cost,
        ranks: keys.count("ranks")?,
        redundant: keys.count("redundant")?,
        loads: &loads,
        dispatch: link("dispatch_us", "dispatch_bytes")?,
        combine: link("combine_us", "combine_bytes")?,
        overlap: true,
        drafts: (keys.count("drafts")?, keys.number("acceptance")?),
    }
    .step(keys.count("sequences")?, keys.count("context")?.into());
    Ok(step.rate * dies)
}
