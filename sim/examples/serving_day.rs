//! A day of ten million requests (1,000 + 200 tokens in the mean) on 1,000 replicas, streamed: shows that memory follows
//! the requests that are alive, and how long the day takes. `cargo run --release -p psim-sim --example serving_day [REQUESTS]`
#![expect(clippy::print_stdout, reason = "an example talks")]

use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::{StepCost, engine};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::{
    Arrival, Deployment, Lengths, NumberFormat, Quantization, ServiceLevel, ServingWorkload, Traffic,
};
use psim_sim::serving::{FleetOptions, Router, StreamInput, Summary, simulate_stream};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let requests: u32 = std::env::args().nth(1).map_or(Ok(10_000_000), |n| n.parse())?;
    let engine = engine::find("vllm-v1").ok_or("no engine")?;
    let cluster = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default())?;
    let deployment = Deployment::tensor_parallel(1, Quantization::uniform(NumberFormat::Bf16));
    let model = presets::find("llama3-8b")?;
    let library = ProfileLibrary::built_in();
    let cost = StepCost::new(&model, &deployment, &cluster, cluster.first_node(), engine, &library)?;
    let mean = f64::from(requests) / 86_400.0;
    let arrival = Arrival::Diurnal { mean, peak_ratio: 1.8, period_s: 86_400.0 };
    let mut workload = ServingWorkload::fixed("day", arrival, requests, 1, 1);
    workload.tenants[0].input = Lengths::Lognormal { mean: 1000.0, cv: 1.0 };
    workload.tenants[0].output = Lengths::Geometric(200.0);
    workload.tenants[0].slo = ServiceLevel::parse("ttft<500ms@p90,tpot<20ms@p90")?;
    for router in [Router::RoundRobin, Router::LeastLoad] {
        let options = FleetOptions { router, ..FleetOptions::default() };
        let input = StreamInput { cost: &cost, engine, clients: None, replicas: 1000, options };
        let mut sums = Summary::new(vec![workload.tenants[0].slo.clone()]);
        let start = std::time::Instant::now();
        let run = simulate_stream(&input, &mut Traffic::stream(&workload, 1), &mut sums)?;
        let figures = sums.figures(&run);
        println!(
            "{router:?}: {} requests, {} steps in {:.1} s; at most {} alive; TTFT p50 {:.1} p99 {:.1} ms, TPOT p50 {:.2} ms",
            figures.requests,
            figures.steps,
            start.elapsed().as_secs_f64(),
            figures.most_alive,
            figures.ttft_ms.p50,
            figures.ttft_ms.p99,
            figures.tpot_ms.p50,
        );
    }
    Ok(())
}
