//! Serving for real beside the serving simulator: the same requests, time to first token and time per token of each.
//!
//! Both must answer every request in full. Times are printed, not asserted: the simulator's laws are those of GPU
//! kernels, and a shared machine adds its own noise.

#[path = "../../executor/tests/numerics/models.rs"]
#[expect(dead_code, reason = "the numerics suite uses the rest")]
mod models;

use psim_calibration::measure::{cpu_accelerator, threads_cluster};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::engine::find;
use psim_cost_models::serving::{EngineParameters, EngineProfile, StepCost};
use psim_executor::serving::{ServeRequest, ServeRun, ServeSettings, serve};
use psim_hardware::{DType, FlopPerSec, Seconds, Time};
use psim_kernels::cpu::CpuDevice;
use psim_kernels::{Device, Gemm, Strided};
use psim_models::Model;
use psim_models::serving::{Deployment, NumberFormat, Quantization, Request, Traffic};
use psim_sim::serving::{FleetOptions, Outcome, ServingInput, simulate};
use std::time::Instant;

/// Wide enough that a step takes milliseconds.
fn model() -> Model {
    models::widened(models::llama(4), 256, 1024, 64, 768)
}

/// Best seconds of some repeats.
fn best(mut work: impl FnMut()) -> f64 {
    (0..7)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// Flop/s of a product and bytes/s of a copy on one core.
fn rates() -> (f64, f64) {
    let device = CpuDevice::new();
    let n = 512;
    let a = device.upload(&vec![0.5; n * n]).unwrap();
    let mut c = device.upload(&vec![0.0; n * n]).unwrap();
    let gemm = best(|| device.gemm(&Gemm::new(n, n, n), &a, &a, &mut c).unwrap());
    let len = 4 << 20;
    let source = device.upload(&vec![1.0; len]).unwrap();
    let mut target = device.upload(&vec![0.0; len]).unwrap();
    let whole = Strided::new(0, len);
    let copy = best(|| device.copy(1, len, &source, whole, &mut target, whole).unwrap());
    (2.0 * (n * n * n) as f64 / gemm, 8.0 * len as f64 / copy)
}

fn requests(vocab: u32) -> Vec<ServeRequest> {
    (0..12)
        .map(|i| ServeRequest {
            arrival: 0.01 * f64::from(i),
            prompt: (0..16 + 9 * (i % 5)).map(|t| (31 * t + 17 * i) % vocab).collect(),
            output: 8 + 5 * (i as usize % 4),
        })
        .collect()
}

fn simulated(model: &Model, requests: &[ServeRequest], settings: &ServeSettings) -> Vec<Outcome> {
    let (peak, bandwidth) = rates();
    // The serving laws know no fp32: half the bandwidth takes two bytes to the time of four.
    let mut accelerator = cpu_accelerator("host", peak, 0.5 * bandwidth);
    accelerator.peak.insert(DType::Bf16, FlopPerSec(peak));
    let cluster = threads_cluster(&accelerator, settings.tp as u32);
    // The loop of this executor: no graphs, no network in front, next to no time between steps.
    let parameters = EngineParameters {
        step_us: 50.0,
        sequence_us: 1.0,
        prompt_us: 1.0,
        layer_us: 5.0,
        eager_layer_us: 10.0,
        graph_tokens: 0,
        ttft_ms: 0.0,
        ..EngineParameters::default()
    };
    let engine = EngineProfile {
        name: "psim-executor".to_owned(),
        max_sequences: settings.sequences as u32,
        token_budget: settings.tokens as u32,
        block_tokens: settings.page as u32,
        reserve_gib: 0.0,
        parameters,
        accelerator: Vec::new(),
        ..find("vllm-v1").unwrap().clone()
    };
    let deployment =
        Deployment::tensor_parallel(settings.tp as u32, Quantization::uniform(NumberFormat::Bf16));
    let library = ProfileLibrary::built_in();
    let cost = StepCost::new(model, &deployment, &cluster, cluster.first_node(), &engine, &library).unwrap();
    let traffic = Traffic {
        requests: requests
            .iter()
            .map(|r| Request {
                arrival: Time::from(Seconds(r.arrival)),
                input: r.prompt.len() as u32,
                output: r.output as u32,
                ..Request::default()
            })
            .collect(),
        clients: None,
    };
    let options = FleetOptions::default();
    simulate(&ServingInput { cost: &cost, engine: &engine, traffic: &traffic, replicas: 1, options })
        .unwrap()
        .outcomes
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn serve_for_real_and_in_simulation() {
    let model = model();
    let requests = requests(model.vocab as u32);
    for tp in [1, 2] {
        let settings =
            ServeSettings { tp, page: 16, pages: 128, tokens: 64, sequences: 8, seed: 3, scores: false };
        let run: ServeRun = serve(&model, &requests, &settings, |_| Ok(CpuDevice::new())).unwrap();
        let outcomes = simulated(&model, &requests, &settings);
        println!("tp {tp}: {} steps", run.steps.len());
        let mut errors = [Vec::new(), Vec::new()];
        for (i, (served, outcome)) in run.requests.iter().zip(&outcomes).enumerate() {
            let request = &requests[i];
            assert_eq!(served.tokens.len(), request.output);
            assert!(!outcome.refused && outcome.finish >= outcome.first_token);
            let first = (outcome.first_token - outcome.sent).seconds().0;
            let rest = (outcome.finish - outcome.first_token).seconds().0 / (request.output - 1) as f64;
            println!(
                "    request {i:>2} ({:>2} + {:>2} tokens): TTFT {:6.2} ms, simulated {:6.2} ms; TPOT {:5.2} ms, simulated {:5.2} ms",
                request.prompt.len(),
                request.output,
                served.ttft() * 1e3,
                first * 1e3,
                served.tpot() * 1e3,
                rest * 1e3
            );
            errors[0].push((first / served.ttft() - 1.0).abs());
            errors[1].push((rest / served.tpot() - 1.0).abs());
        }
        let [ttft, tpot] = errors.map(median);
        println!("    median error: TTFT {:.0} %, TPOT {:.0} %", ttft * 1e2, tpot * 1e2);
        assert!(ttft.is_finite() && tpot.is_finite());
    }
}
