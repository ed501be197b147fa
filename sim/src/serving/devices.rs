//! A decoding step of a model on a device of several engines (NPU with PIM, processor with logic in its memory, a wafer,
//! a dataflow part, a CPU).
//!
//! Every operator runs on the engine that its roofline favours. Where engines overlap, two halves of the batch alternate
//! (NeuPIMs, Heo et al. 2024): while one half's products hold one engine the other half's attention holds the other, so
//! that a step takes as long as its busiest engine, and reads every weight twice.

use psim_hardware::DType;
use psim_hardware::device::{Device, OperatorClass};
use psim_models::serving::ServingShape;
use serde::Serialize;

/// A step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceStep {
    /// Seconds.
    pub seconds: f64,
    /// Seconds that each engine works, in the order of the device.
    pub engines: Vec<f64>,
    /// Two halves of the batch alternate.
    pub interleaved: bool,
}

/// An operator that no engine of the device runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no engine of `{device}` runs {operator} in {dtype}")]
pub struct NoEngine {
    /// Device.
    pub device: String,
    /// Operator.
    pub operator: &'static str,
    /// Format.
    pub dtype: DType,
}

/// Work of a half or whole batch per engine.
fn work(
    device: &Device,
    shape: &ServingShape,
    dtype: DType,
    (sequences, queries): (f64, f64),
    context: f64,
) -> Result<Vec<f64>, NoEngine> {
    let rows = sequences * queries;
    let mut engines = vec![0.0; device.engine.len()];
    let mut run = |operator: &'static str,
                   class,
                   times: f64,
                   flops: f64,
                   bytes: f64,
                   sums: f64|
     -> Result<(), NoEngine> {
        let (engine, seconds) = device.fastest(class, dtype, flops, bytes).ok_or_else(|| NoEngine {
            device: device.name.clone(),
            operator,
            dtype,
        })?;
        engines[engine] += times * (seconds + sums);
        Ok(())
    };
    let element = dtype.size();
    // On a mesh of cores every product sums its partial results along the rows of cores.
    let summed = |outputs: u64| {
        device.mesh.as_ref().map_or(0.0, |mesh| {
            let bytes = element * rows * outputs as f64 / f64::from(mesh.columns.max(1));
            mesh.row_reduce(mesh.columns, bytes).0
        })
    };
    for l in &shape.linears {
        let weights = (l.n * l.k) as f64;
        let class = if rows > 1.0 { OperatorClass::MatrixProduct } else { OperatorClass::VectorProduct };
        // A fused layer keeps what flows between its operators on the chip.
        let between = if device.fuses { 0.0 } else { element * rows * (l.n + l.k) as f64 };
        run(l.name, class, l.layers, 2.0 * rows * weights, element * weights + between, summed(l.n))?;
    }
    for a in &shape.attention {
        let reads = a.reads_at_most.map_or(context, |w| context.min(w as f64));
        let tokens = sequences * reads;
        // A cache is read once for all candidates of its sequence.
        let flops = 2.0 * queries * tokens * (a.q_heads * (a.head_dim + a.head_dim_v)) as f64;
        let bytes = tokens * a.cache_elements as f64 * element;
        // Scores, and the values that they weigh.
        let sums = summed(a.q_heads * reads as u64) + summed(a.q_heads * a.head_dim_v);
        run("attention", OperatorClass::VectorProduct, a.layers, flops, bytes, sums)?;
    }
    for e in &shape.experts {
        let draws = rows * e.top_k as f64;
        let touched = e.local as f64 * (1.0 - (1.0 - 1.0 / e.experts.max(1) as f64).powf(draws));
        let parameters = (e.matrices * e.hidden * e.inner) as f64;
        let rows = draws * e.local as f64 / e.experts.max(1) as f64;
        let class = if rows > touched { OperatorClass::MatrixProduct } else { OperatorClass::VectorProduct };
        let sums = summed(2 * e.inner) + summed(e.hidden);
        run("experts", class, e.layers, 2.0 * rows * parameters, element * touched * parameters, sums)?;
    }
    Ok(engines)
}

/// A decoding step of `sequences` sequences with a mean of `context` cached tokens.
///
/// # Errors
/// An operator that no engine runs.
pub fn decode_step(
    device: &Device,
    shape: &ServingShape,
    dtype: DType,
    sequences: u32,
    context: f64,
) -> Result<DeviceStep, NoEngine> {
    verify_step(device, shape, dtype, (sequences, 1), context)
}

/// A step in which each of `sequences` runs `queries` new tokens against its cache (verification of drafts).
///
/// # Errors
/// An operator that no engine runs.
pub fn verify_step(
    device: &Device,
    shape: &ServingShape,
    dtype: DType,
    (sequences, queries): (u32, u32),
    context: f64,
) -> Result<DeviceStep, NoEngine> {
    let queries = f64::from(queries.max(1));
    let whole = work(device, shape, dtype, (f64::from(sequences), queries), context)?;
    let sequential: f64 = whole.iter().sum();
    if device.engines_overlap && sequences >= 2 {
        let half = work(device, shape, dtype, (f64::from(sequences) / 2.0, queries), context)?;
        let engines: Vec<f64> = half.iter().map(|s| 2.0 * s).collect();
        // The first operator of a half has nothing beside it: one layer's work of the idle engine.
        let fill = half.iter().copied().fold(f64::INFINITY, f64::min) / f64::from(shape.layers.max(1));
        let seconds = engines.iter().copied().fold(0.0, f64::max) + fill;
        if seconds < sequential {
            return Ok(DeviceStep { seconds, engines, interleaved: true });
        }
    }
    Ok(DeviceStep { seconds: sequential, engines: whole, interleaved: false })
}

/// Seconds of changing the model that an accelerator holds: its weights over the link between two memories.
pub fn switch_seconds(device: &Device, from: &str, to: &str, weight_bytes: f64) -> Option<f64> {
    device.move_seconds(from, to, weight_bytes)
}

/// Seconds of a vector times a matrix of `n` by `k` on a mesh: the cores read their share, then sum along rows.
pub fn mesh_vector_product(device: &Device, dtype: DType, n: f64, k: f64, side: u32) -> Option<f64> {
    let mesh = device.mesh.as_ref()?;
    let cores = f64::from(mesh.columns) * f64::from(mesh.rows);
    let share = f64::from(side) * f64::from(side) / cores;
    let (_, all) = device.fastest(OperatorClass::VectorProduct, dtype, 2.0 * n * k, dtype.size() * n * k)?;
    let bytes = dtype.size() * n / f64::from(side);
    Some(all / share + mesh.row_reduce(side, bytes).0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_hardware::device::find;
    use psim_models::presets;
    use psim_models::serving::{Deployment, NumberFormat, Quantization, lower};

    fn shape(model: &str, tp: u32) -> ServingShape {
        let q = Quantization::uniform(NumberFormat::Bf16);
        lower(&presets::find(model).unwrap(), &Deployment::tensor_parallel(tp, q)).unwrap()
    }

    #[test]
    fn halves_that_alternate_beat_one_after_another_at_large_batch() {
        let pim = find("neupims").unwrap();
        let mut alone = pim.clone();
        alone.engines_overlap = false;
        let mut npu = alone.clone();
        npu.engine.truncate(1);
        let shape = shape("llama2-7b", 1);
        let time = |d: &Device, b| decode_step(d, &shape, DType::Fp16, b, 376.0).unwrap();
        // NeuPIMs, abstract: 1.6 times NPU with PIM one after another and 2.4 times the NPU alone, up to batch 512.
        let (both, turn, only) = (time(&pim, 512), time(&alone, 512), time(&npu, 512));
        assert!(both.interleaved && both.seconds <= turn.seconds && turn.seconds <= only.seconds);
        println!(
            "NeuPIMs {:.2} over NPU+PIM, {:.2} over NPU",
            turn.seconds / both.seconds,
            only.seconds / both.seconds
        );
        assert!(only.seconds / both.seconds > 1.3);
        // A small batch would read the weights twice for little.
        assert!(!time(&pim, 4).interleaved);
        // Never faster than the busiest engine.
        assert!(both.seconds >= both.engines.iter().copied().fold(0.0, f64::max));
    }

    #[test]
    fn switching_models_by_hand() {
        // SN40L: 15 to 31 times faster switches than DGX H100 and A100 with 64 and 32 GB/s to the host.
        let bytes = 13.5e9;
        let sn40l = switch_seconds(&find("sn40l").unwrap(), "ddr", "hbm", bytes).unwrap();
        let h100 = switch_seconds(&find("h100-host").unwrap(), "host", "hbm", bytes).unwrap();
        assert!((h100 / sn40l / 15.6 - 1.0).abs() < 0.01, "{}", h100 / sn40l);
    }

    #[test]
    fn a_wafer_is_bound_by_its_hops() {
        // WaferLLM, table 6: 16,384 squared takes 1.2 us; local memories alone would take 0.03 us.
        let wafer = find("wse-2").unwrap();
        let seconds = mesh_vector_product(&wafer, DType::Fp16, 16_384.0, 16_384.0, 660).unwrap();
        println!("WaferLLM {:.2} us", 1e6 * seconds);
        assert!((seconds / 1.2e-6 - 1.0).abs() < 0.25, "{seconds}");
    }

    #[test]
    fn logic_in_memory_takes_the_reads() {
        let duplex = find("duplex").unwrap();
        let mut gpu = duplex.clone();
        gpu.engine.truncate(1);
        let shape = shape("llama2-70b", 4);
        let time = |d: &Device| decode_step(d, &shape, DType::Fp16, 64, 2000.0).unwrap().seconds;
        // Duplex, up to 2.67 times the processor alone.
        let gain = time(&gpu) / time(&duplex);
        println!("Duplex {gain:.2}");
        assert!((1.0..4.0).contains(&gain), "{gain}");
    }

    #[test]
    fn formats_that_nothing_runs_are_refused() {
        let cpu = find("xeon-5220r").unwrap();
        assert!(decode_step(&cpu, &shape("llama2-7b", 8), DType::Fp8, 1, 10.0).is_err());
        let step = decode_step(&cpu, &shape("llama2-7b", 8), DType::Fp32, 1, 100.0).unwrap();
        // Weights of 26.4 GB over 8 devices from memory of 128 GB/s.
        assert!((step.seconds / (3.3e9 / 128e9) - 1.0).abs() < 0.1, "{}", step.seconds);
    }
}
