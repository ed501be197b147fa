//! How long serving runs take to simulate: 1,024 requests on two replicas, 4,096 conversations on sixteen, and a day of ten million requests (1,000 + 200 tokens in the mean) on 1,000 replicas, streamed: shows that memory follows
//! the requests that are alive, and how long the day takes. `cargo run --release -p psim-sim --example serving_day [REQUESTS]`
#![expect(clippy::print_stdout, reason = "an example talks")]

use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::{StepCost, engine};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::trace::parse_trace;
use psim_models::serving::{
    Arrival, Deployment, Lengths, NumberFormat, Quantization, ServiceLevel, ServingWorkload, Traffic,
};
use psim_sim::serving::{
    FleetOptions, Router, ServingInput, StreamInput, Summary, simulate, simulate_stream,
};

fn held(
    name: &str,
    workload: &ServingWorkload,
    replicas: u32,
    tp: u32,
    model: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let start = std::time::Instant::now();
    let engine = engine::find("vllm-v1").ok_or("no engine")?;
    let cluster = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default())?;
    let deployment = Deployment::tensor_parallel(tp, Quantization::uniform(NumberFormat::Bf16));
    let library = ProfileLibrary::built_in();
    let model = presets::find(model)?;
    let cost = StepCost::new(&model, &deployment, &cluster, cluster.first_node(), engine, &library)?;
    let priced = start.elapsed();
    let traffic = Traffic::generate(workload, 1);
    let input =
        ServingInput { cost: &cost, engine, traffic: &traffic, replicas, options: FleetOptions::default() };
    let run = simulate(&input)?;
    println!(
        "{name}: prices {:.1} ms, run {:.1} ms, {} steps",
        priced.as_secs_f64() * 1e3,
        (start.elapsed() - priced).as_secs_f64() * 1e3,
        run.steps
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let requests: u32 = std::env::args().nth(1).map_or(Ok(10_000_000), |n| n.parse())?;
    let fixed = ServingWorkload::fixed("fixed", Arrival::Poisson { rate: 10.0 }, 1024, 2048, 128);
    held("1,024 of 2,048 + 128 on 2 replicas of 70B/TP4", &fixed, 2, 4, "llama3-70b")?;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/traces/azure2023/conv.csv");
    let mut chat = ServingWorkload::fixed("chat", Arrival::Poisson { rate: 20.0 }, 4096, 1, 1);
    match std::fs::read_to_string(path).map(|text| parse_trace(path, &text)) {
        Ok(Ok(trace)) => {
            chat.tenants[0].pairs = Some(trace.requests.iter().map(|r| (r.input, r.output)).collect());
            held("4,096 conversations at 20/s on 16 replicas of 70B/TP4", &chat, 16, 4, "llama3-70b")?;
        }
        _ => println!("SKIP 4,096 conversations: the trace is not beside the checkout"),
    }
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
        let input =
            StreamInput { cost: &cost, engine, clients: None, prefixes: None, replicas: 1000, options };
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
