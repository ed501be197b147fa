//! Decoding steps on a device of several engines (PIM, NPU with PIM, wafer, dataflow, processor) in place of an
//! accelerator of the catalogue. Prompts have no measured laws there, so that a run of requests is not simulated.

use psim_hardware::DType;
use psim_hardware::device::Device;
use psim_models::Model;
use psim_models::serving::deployment::DeploymentError;
use psim_models::serving::{Deployment, ServingWorkload, lower};
use psim_sim::serving::devices::{NoEngine, decode_step};
use serde::Serialize;

/// Why steps cannot be priced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceStepsError {
    /// The layout does not fit the model.
    #[error(transparent)]
    Deployment(#[from] DeploymentError),
    /// An operator that no engine runs.
    #[error(transparent)]
    Engine(#[from] NoEngine),
}

/// A step of decoding sequences of the workload's mean length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DevicePoint {
    /// Sequences.
    pub batch: u32,
    /// Milliseconds of the step.
    pub step_ms: f64,
    /// Tokens a second that one user sees.
    pub tokens_per_s_per_user: f64,
    /// Tokens a second per device.
    pub tokens_per_s_per_device: f64,
    /// Share of the step for which each engine works, in the order of the device.
    pub busy: Vec<f64>,
    /// Two halves of the batch alternate between the engines.
    pub interleaved: bool,
    /// GiB of weights and caches on a device.
    pub gib: f64,
}

/// Steps on a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceSteps {
    /// Device.
    pub device: String,
    /// Its engines.
    pub engines: Vec<String>,
    /// Format of weights, caches and arithmetic.
    pub dtype: DType,
    /// Mean tokens in the cache of a decoding sequence.
    pub context: f64,
    /// GiB of the largest memory that an engine reads.
    pub capacity_gib: f64,
    /// Decoding at growing batches, as far as that memory holds them: steps read at its rate.
    pub decode: Vec<DevicePoint>,
    /// Devices exchange partial sums in every layer, which is not in the steps.
    pub exchange_left_out: bool,
}

/// Prices decoding steps; arithmetic in the first of bf16, fp16 and fp32 that the device runs.
///
/// # Errors
/// A layout that does not fit the model; an operator that no engine runs in any of the formats.
pub fn device_steps(
    model: &Model,
    deployment: &Deployment,
    device: &Device,
    workload: &ServingWorkload,
) -> Result<DeviceSteps, DeviceStepsError> {
    let shape = lower(model, deployment)?;
    let (input, output) = workload.mean_lengths();
    let context = input + output / 2.0;
    let mut dtype = DType::Bf16;
    for format in [DType::Bf16, DType::Fp16, DType::Fp32] {
        dtype = format;
        if decode_step(device, &shape, format, 1, context).is_ok() {
            break;
        }
    }
    // The shape counts 16 bits.
    let element = dtype.size() / 2.0;
    let gib = 1024f64.powi(3);
    let read = device.engine.iter().filter_map(|e| device.tier(&e.memory));
    let capacity = read.map(|m| m.capacity.0 as f64).fold(0.0, f64::max);
    let held =
        |batch: u32| element * (shape.weight_bytes + f64::from(batch) * shape.sequence_bytes(context as u64));
    let devices = f64::from(deployment.accelerators_per_replica());
    let mut decode = Vec::new();
    for batch in std::iter::successors(Some(1u32), |b| b.checked_mul(4)).take(7) {
        if held(batch) > capacity && batch > 1 {
            break;
        }
        let step = decode_step(device, &shape, dtype, batch, context)?;
        decode.push(DevicePoint {
            batch,
            step_ms: step.seconds * 1e3,
            tokens_per_s_per_user: 1.0 / step.seconds,
            tokens_per_s_per_device: f64::from(batch) / step.seconds / devices,
            busy: step.engines.iter().map(|s| s / step.seconds).collect(),
            interleaved: step.interleaved,
            gib: held(batch) / gib,
        });
    }
    Ok(DeviceSteps {
        device: device.name.clone(),
        engines: device.engine.iter().map(|e| e.name.clone()).collect(),
        dtype,
        context,
        capacity_gib: capacity / gib,
        decode,
        exchange_left_out: deployment.accelerators_per_replica() > 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_hardware::device::find;
    use psim_models::presets;
    use psim_models::serving::{Arrival, NumberFormat, Quantization};

    #[test]
    fn steps_are_bound_by_memory_and_batches_by_capacity() {
        let model = presets::find("llama2-7b").unwrap();
        let d = Deployment::tensor_parallel(1, Quantization::uniform(NumberFormat::Bf16));
        let workload = ServingWorkload::fixed("w", Arrival::Burst, 1, 300, 200);
        let found = device_steps(&model, &d, &find("neupims").unwrap(), &workload).unwrap();
        assert!(found.decode.len() > 2 && !found.exchange_left_out);
        for pair in found.decode.windows(2) {
            assert!(pair[1].step_ms >= pair[0].step_ms && pair[1].gib <= found.capacity_gib);
        }
        // One sequence is vector products: the banks read all weights, 13.5 GB at 16 TB/s.
        let [alone, batch, more] = &found.decode[..3] else { panic!("{:?}", found.decode) };
        assert!((0.8..0.9).contains(&alone.step_ms), "{}", alone.step_ms);
        // From two sequences on the products are the arrays' work, which read them at 1 TB/s.
        assert!((12.0..16.0).contains(&batch.step_ms), "{}", batch.step_ms);
        assert!(more.tokens_per_s_per_device > 3.0 * batch.tokens_per_s_per_device);
        let cpu = device_steps(&model, &d, &find("xeon-5220r").unwrap(), &workload).unwrap();
        assert_eq!(cpu.dtype, DType::Fp32);
    }

    #[test]
    fn a_batch_that_only_the_host_holds_is_not_read_at_the_rate_of_the_device() {
        let model = presets::find("llama2-7b").unwrap();
        let d = Deployment::tensor_parallel(1, Quantization::uniform(NumberFormat::Bf16));
        let workload = ServingWorkload::fixed("w", Arrival::Burst, 1, 1000, 200);
        let found = device_steps(&model, &d, &find("h100-host").unwrap(), &workload).unwrap();
        // 80 GB of the accelerator, not the 2 TB behind its link: 64 sequences of 0.5 MiB a token fit, 256 do not.
        assert!((found.capacity_gib - 80e9 / 1024f64.powi(3)).abs() < 0.1, "{}", found.capacity_gib);
        assert_eq!(found.decode.last().map(|p| p.batch), Some(64));
    }

    #[test]
    fn a_wafer_waits_for_the_sums_over_its_mesh() {
        let model = presets::find("llama2-7b").unwrap();
        let d = Deployment::tensor_parallel(1, Quantization::uniform(NumberFormat::Bf16));
        let workload = ServingWorkload::fixed("w", Arrival::Burst, 1, 1000, 200);
        let found = device_steps(&model, &d, &find("wse-2").unwrap(), &workload).unwrap();
        // Four products and two of attention in 32 layers, and the output layer: 193 sums of 2 x 919 hops of 0.91 ns are
        // 0.32 ms; scores of 32 heads add their bytes on links of 4.4 GB/s (WaferLLM, table 4: 2,700 tokens/s with Llama-3 8B).
        let rate = found.decode[0].tokens_per_s_per_user;
        assert!((2000.0..3200.0).contains(&rate), "{rate}");
    }
}
