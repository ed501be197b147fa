//! Scenarios about deployments: splits into prefill and decode, speculation, offload, slow networks, other devices.
//!
//! A file names its `kind`; the keys of each are those that [`simulate`] reads.

use super::{arrangements, drafts, transfers};
use crate::serving::AttentionFfn;
use crate::serving::balance::ExpertLoads;
use crate::serving::devices::{decode_step, mesh_vector_product, switch_seconds};
use crate::serving::edge::EdgeReduce;
use crate::serving::offload::{OffloadBlock, OffloadPolicy};
use crate::serving::published::{self, in_16_bits};
use crate::serving::speculation::{Acceptance, Drafter, speed_up};
use psim_cost_models::serving::KINDS;
use psim_hardware::DType;
use psim_hardware::device;
use psim_models::presets;
use psim_models::serving::{Deployment, lower, rng::Rng};

/// Reads keys of a scenario.
pub(super) struct Keys<'a>(pub(super) &'a toml::Table);

impl Keys<'_> {
    pub(super) fn text(&self, key: &str) -> Result<&str, String> {
        self.0.get(key).and_then(toml::Value::as_str).ok_or_else(|| format!("`{key}` is not a text"))
    }

    pub(super) fn number(&self, key: &str) -> Result<f64, String> {
        let value = self.0.get(key).ok_or_else(|| format!("`{key}` is missing"))?;
        let integer = value.as_integer().map(|i| i as f64);
        value.as_float().or(integer).ok_or_else(|| format!("`{key}` is not a number"))
    }

    pub(super) fn count(&self, key: &str) -> Result<u32, String> {
        Ok(self.number(key)? as u32)
    }
}

/// Simulates a scenario by its `kind`.
///
/// # Errors
/// A sentence: an unknown kind, a missing key, a run that cannot be done.
pub(super) fn simulate(table: &toml::Table) -> Result<f64, String> {
    let keys = Keys(table);
    match keys.text("kind")? {
        "offload-ratio" => offload(&keys),
        "edge-crossings" => {
            let reduce = EdgeReduce::parse(keys.text("reduce")?)?;
            Ok(f64::from(reduce.crossings(keys.count("devices")?, keys.count("hops")?)))
        }
        "model-switch-ratio" => {
            let of = |key: &str, from: &str, to: &str| -> Result<f64, String> {
                let device = device::find(keys.text(key)?)?;
                let bytes = keys.number("weight_gb")? * 1e9;
                switch_seconds(&device, from, to, bytes).ok_or_else(|| "no link".to_owned())
            };
            Ok(of("baseline", "host", "hbm")? / of("device", "ddr", "hbm")?)
        }
        "mesh-vector-product" => {
            let device = device::find(keys.text("device")?)?;
            let size = keys.number("size")?;
            let seconds = mesh_vector_product(&device, DType::Fp16, size, size, keys.count("side")?);
            Ok(1e6 * seconds.ok_or("the device is no mesh")?)
        }
        "device-ratio" => device_ratio(&keys),
        "tokens-per-round" => {
            let (acceptance, drafts) = (Acceptance::Rate(keys.number("acceptance")?), keys.count("drafts")?);
            let (mut rng, rounds) = (Rng::new(1, 1), 100_000u32);
            let sum: u64 = (0..rounds).map(|_| u64::from(acceptance.draw(drafts, &mut rng)) + 1).sum();
            Ok(sum as f64 / f64::from(rounds))
        }
        "pearl-ratio" => pearl(&keys),
        "expert-imbalance" => {
            let experts = keys.count("experts")? as usize;
            let loads = ExpertLoads::hot(experts, keys.count("hot")? as usize, keys.number("share")?);
            let ranks = keys.count("ranks")? as usize;
            let tokens = keys.number("tokens")?;
            Ok(loads.contiguous(ranks) / loads.spilled(ranks, 1.0, tokens, keys.number("piece")?).0)
        }
        "attention-ffn" => {
            let of = |micro_batches: u32| -> Result<f64, String> {
                let step = AttentionFfn {
                    attention: keys.number("attention_us")?,
                    feed_forward: keys.number("feed_forward_us")?,
                    crossing: keys.number("crossing_us")?,
                    wire: 0.0,
                    layers: keys.count("layers")?,
                    micro_batches,
                };
                Ok(f64::from(micro_batches) / step.step_seconds())
            };
            Ok(of(keys.count("micro_batches")?)? / of(1)?)
        }
        "split-rate-ratio" => super::split::rate_ratio(table),
        "mixed-replicas" => super::split::mixed(table),
        "partition" => arrangements::partition(&keys),
        "speculation" => drafts::speculation(table),
        "context-parallel" => transfers::context_parallel(&keys),
        "layer-wise" => transfers::layer_wise(&keys),
        "dovetail" => arrangements::dovetail(&keys),
        "large-expert-parallel" => arrangements::large_expert_parallel(&keys),
        other => Err(format!("no scenario of kind `{other}`")),
    }
}

fn offload(keys: &Keys<'_>) -> Result<f64, String> {
    let block = OffloadBlock {
        execute: keys.number("execute_ms")? * 1e-3,
        experts: keys.number("experts")?,
        chosen: keys.number("chosen")?,
        expert_bytes: keys.number("expert_mb")? * 1e6,
        link: keys.number("link_gb_s")? * 1e9,
    };
    let steady = |key: &str| -> Result<f64, String> {
        let policy = OffloadPolicy::parse(keys.text(key)?)?;
        Ok(block.pass(policy, 400) - block.pass(policy, 200))
    };
    Ok(steady("slow")? / steady("fast")?)
}

/// A decoding step with some engines of a device over one with all.
fn device_ratio(keys: &Keys<'_>) -> Result<f64, String> {
    let whole = device::find(keys.text("device")?)?;
    let mut part = whole.clone();
    match keys.text("without")? {
        "overlap" => part.engines_overlap = false,
        engine => {
            part.engine.retain(|e| e.name != engine);
            part.engines_overlap = false;
        }
    }
    let model = presets::find(keys.text("model")?).map_err(|e| e.to_string())?;
    let shape = lower(&model, &in_16_bits(keys.count("tp")?)).map_err(|e| e.to_string())?;
    let (batch, context) = (keys.count("batch")?, keys.number("context")?);
    let step =
        |d| decode_step(d, &shape, DType::Fp16, batch, context).map(|s| s.seconds).map_err(|e| e.to_string());
    Ok(step(&part)? / step(&whole)?)
}

/// PEARL over ordinary speculation with as many drafts as fill one verification, layers of the target spread over four
/// accelerators.
fn pearl(keys: &Keys<'_>) -> Result<f64, String> {
    let gpu = keys.text("accelerator")?;
    let staged = Deployment { pp: keys.count("stages")?, ..in_16_bits(1) };
    let target = published::price(keys.text("target")?, gpu, staged, "vllm-v1")?;
    let draft = published::price(keys.text("draft")?, gpu, in_16_bits(1), "vllm-v1")?;
    let mut context = [0; KINDS];
    context[0] = u64::from(keys.count("context")?);
    let ratio = target.decode_run(1).seconds(&context) / draft.decode_run(1).seconds(&context);
    let tokens = (ratio.round() as u32).max(2);
    let acceptance = Acceptance::Rate(keys.number("acceptance")?);
    let parallel = Drafter::Parallel { cost: &draft, tokens };
    let serial = Drafter::Model { cost: &draft, tokens, exchange: 0.0 };
    let gain = |drafter| speed_up(&target, drafter, &acceptance, 1, &context);
    Ok(gain(&parallel) / gain(&serial))
}
