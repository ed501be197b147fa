//! DeepSpeed-FastGen and vLLM of 2023 on A100, against DeepSpeed's blog (`blogs/deepspeed-fastgen`).
//!
//! Effective throughput (figure 4): Llama-2-70B on 4 A100-80GB, 512 requests of 2,600 tokens in and 60 out from 1 to 32
//! clients; a request counts if its prompt runs at 512 tokens a second and the exponential mean of the gaps of its answer
//! (span 16) never falls below 4 a second. Published are 1.42 requests a second, and 0.63 for vLLM, 28 % of whose requests
//! fail. The set-up is the gallery's, run from there.
//!
//! The host times of `vllm-2023` come from two other points (figure 2: 0.67 requests a second at 9 s, 1.2 at 14 s, which the
//! text gives without the panel). Clients are rate times latency, 6.0 and 16.8. Read as the panel of 2,600 + 60 tokens they
//! ask for decoding steps of 0.1 s with six sequences and with seventeen; those would leave 0.39 requests a second with
//! 23 % failing where 0.63 and 28 % are published. Read as the panel of 1,200 + 128 tokens, with prompts of 0.25 s:
//! 9 = 6.0 · 0.25 + 128 · 0.059 and 14 = 16.8 · 0.25 + 128 · 0.077, steps of 49 ms + 1.7 ms a sequence, and both numbers
//! of figure 4 follow. This reading is taken.

use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::StepCost;
use psim_cost_models::serving::engine::find;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::{
    Arrival, Deployment, Lengths, NumberFormat, Quantization, ServiceLevel, ServingWorkload, Tenant, Traffic,
};
use psim_sim::gallery;
use psim_sim::serving::{FleetOptions, ServingInput, simulate};

/// Clients, requests a second and mean latency in seconds of two runs of vLLM (figure 2 of the blog).
const POINTS: [(u32, f64, f64); 2] = [(6, 0.67, 9.0), (17, 1.2, 14.0)];

#[test]
fn engines_keep_the_level_at_the_published_rates() {
    let names = ["fastgen-effective-fastgen", "fastgen-effective-vllm"].map(str::to_owned);
    for result in gallery::results(&names).unwrap() {
        let published = result.scenario.published.unwrap();
        println!("{}: {:.2}, published {published}", result.scenario.name, result.simulated);
        assert!(
            (result.simulated / published - 1.0).abs() <= 0.2,
            "{}: {}",
            result.scenario.name,
            result.simulated
        );
    }
}

#[test]
fn vllm_of_2023_at_the_published_latencies() {
    let cluster = homogeneous("A100-SXM-80GB", 8, &HomogeneousOptions::default()).unwrap();
    let model = presets::find("llama2-70b").unwrap();
    let engine = find("vllm-2023").unwrap();
    let deployment = Deployment::tensor_parallel(4, Quantization::uniform(NumberFormat::Bf16));
    let library = ProfileLibrary::built_in();
    let cost = StepCost::new(&model, &deployment, &cluster, cluster.first_node(), engine, &library).unwrap();
    for (concurrency, rate, latency) in POINTS {
        let name = "fastgen".to_owned();
        let tenant = Tenant {
            name: name.clone(),
            arrival: Arrival::ClosedLoop { concurrency },
            requests: Some(512),
            duration_s: None,
            input: Lengths::Normal { mean: 1200.0, sd: 360.0 },
            output: Lengths::Normal { mean: 128.0, sd: 38.4 },
            pairs: None,
            prefix: None,
            sessions: None,
            adapters: None,
            slo: ServiceLevel::default(),
        };
        let traffic = Traffic::generate(&ServingWorkload { name, tenants: vec![tenant] }, 1);
        let options = FleetOptions::default();
        let run =
            simulate(&ServingInput { cost: &cost, engine, traffic: &traffic, replicas: 1, options }).unwrap();
        let second = |time: psim_hardware::Time| time.0 as f64 * 1e-12;
        let mean = run.outcomes.iter().map(|o| second(o.finish - o.sent)).sum::<f64>() / 512.0;
        // The benchmark states clients over mean latency as its rate.
        let got = f64::from(concurrency) / mean;
        println!(
            "{concurrency} clients: {got:.2} requests/s at {mean:.2} s, published {rate} at {latency} s"
        );
        assert!((got / rate - 1.0).abs() < 0.15 && (mean / latency - 1.0).abs() < 0.15);
    }
}
