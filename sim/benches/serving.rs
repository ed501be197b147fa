//! How fast serving runs are simulated: the two cases that other simulators publish times for, and a slice of a day of
//! ten million requests. The whole day is `cargo run --release -p psim-sim --example serving_day`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::{EngineProfile, StepCost, engine};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::trace::parse_trace;
use psim_models::serving::{
    Arrival, Deployment, Lengths, NumberFormat, Quantization, ServiceLevel, ServingWorkload, Traffic,
};
use psim_sim::serving::speculation::{Acceptance, Drafter, Speculating};
use psim_sim::serving::{
    Beside, FleetOptions, ServingInput, StopWhenLost, StreamInput, Summary, simulate, simulate_stream,
    simulate_with,
};
use std::hint::black_box;

fn deployed(model: &str, tp: u32) -> (EngineProfile, StepCost) {
    let engine = engine::find("vllm-v1").expect("built in").clone();
    let cluster = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default()).expect("built in");
    let model = presets::find(model).expect("built in");
    let deployment = Deployment::tensor_parallel(tp, Quantization::uniform(NumberFormat::Bf16));
    let library = ProfileLibrary::built_in();
    let cost = StepCost::new(&model, &deployment, &cluster, cluster.first_node(), &engine, &library);
    (engine, cost.expect("fits"))
}

/// Lengths of the Splitwise conversation trace where it lies beside the checkout, else a distribution like it.
fn conversation(requests: u32) -> (ServingWorkload, &'static str) {
    let mut w = ServingWorkload::fixed("conversation", Arrival::Poisson { rate: 20.0 }, requests, 1, 1);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/traces/azure2023/conv.csv");
    let trace = std::fs::read_to_string(path).ok().and_then(|text| parse_trace(path, &text).ok());
    if let Some(trace) = trace {
        w.tenants[0].pairs = Some(trace.requests.iter().map(|r| (r.input, r.output)).collect());
        return (w, "trace lengths");
    }
    w.tenants[0].input = Lengths::Lognormal { mean: 1155.0, cv: 1.0 };
    w.tenants[0].output = Lengths::Lognormal { mean: 211.0, cv: 0.8 };
    (w, "lengths like the trace's")
}

fn held(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("serving");
    group.sample_size(10);
    let (engine, cost) = deployed("llama3-70b", 4);
    let fixed = ServingWorkload::fixed("fixed", Arrival::Poisson { rate: 10.0 }, 1024, 2048, 128);
    let (conversation, what) = conversation(4096);
    let (small_engine, small) = deployed("llama3-8b", 1);
    let cases = [
        ("1,024 of 2,048 + 128, 2 replicas of 70B/TP4".to_owned(), fixed, 2, &engine, &cost),
        (
            format!("4,096 conversations at 20/s, 16 replicas of 8B, {what}"),
            conversation.clone(),
            16,
            &small_engine,
            &small,
        ),
        (
            format!("4,096 conversations at 20/s, 16 replicas of 70B/TP4, {what}"),
            conversation,
            16,
            &engine,
            &cost,
        ),
    ];
    for (name, workload, replicas, engine, cost) in &cases {
        let traffic = Traffic::generate(workload, 1);
        group.throughput(Throughput::Elements(traffic.requests.len() as u64));
        for coalesce in [true, false] {
            let options = FleetOptions { coalesce, ..FleetOptions::default() };
            let input = ServingInput { cost, engine, traffic: &traffic, replicas: *replicas, options };
            let how = if coalesce { "" } else { ", step by step" };
            group.bench_function(format!("{name}{how}"), |b| {
                b.iter(|| simulate(black_box(&input)).expect("requests and replicas"));
            });
        }
    }
    group.finish();
}

/// A trial of a search at a rate that breaks its promises: to the end, and until they are lost; and rounds of drafts.
fn trials(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a trial of 400 conversations on 70B/TP4");
    let (engine, cost) = deployed("llama3-70b", 4);
    let levels = [ServiceLevel::parse("ttft<2000ms@p95,tpot<50ms@p95").expect("it reads")];
    for rate in [2.0, 6.0, 24.0] {
        let mut w = ServingWorkload::fixed("w", Arrival::Poisson { rate }, 400, 1, 1);
        w.tenants[0].input = Lengths::Lognormal { mean: 1155.0, cv: 1.0 };
        w.tenants[0].output = Lengths::Lognormal { mean: 211.0, cv: 0.8 };
        let traffic = Traffic::generate(&w, 1);
        let options = FleetOptions::default();
        let input = ServingInput { cost: &cost, engine: &engine, traffic: &traffic, replicas: 1, options };
        let lost = Beside { stop: Some(StopWhenLost { levels: &levels, slack: 1.0 }), ..Beside::default() };
        let heads = Drafter::Heads { tokens: 1, layers: 1 };
        let heads = Speculating::new(&cost, heads, Acceptance::Rate(0.8), 1);
        let drafts = Beside { speculation: Some(&heads), ..Beside::default() };
        let cases = [("to the end", Beside::default()), ("until lost", lost), ("with one head", drafts)];
        for (how, beside) in cases {
            group.bench_function(format!("{rate} a second, {how}"), |b| {
                b.iter(|| black_box(simulate_with(black_box(&input), beside)));
            });
        }
    }
    group.finish();
}

/// One replica in a hundred of a day of ten million requests, for a hundredth of the day.
fn slice_of_a_day(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("serving");
    group.sample_size(10);
    let (engine, cost) = deployed("llama3-8b", 1);
    let rate = 1e7 / 86_400.0;
    let mut w = ServingWorkload::fixed("day", Arrival::Poisson { rate }, 100_000, 1, 1);
    w.tenants[0].input = Lengths::Lognormal { mean: 1000.0, cv: 1.0 };
    w.tenants[0].output = Lengths::Geometric(200.0);
    let input = StreamInput {
        cost: &cost,
        engine: &engine,
        clients: None,
        prefixes: None,
        replicas: 1000,
        options: FleetOptions::default(),
    };
    group.throughput(Throughput::Elements(100_000));
    group.bench_function("100,000 requests of a day of 10 million, 1,000 replicas, streamed", |b| {
        b.iter(|| {
            let mut sums = Summary::new(Vec::new());
            simulate_stream(&input, &mut Traffic::stream(&w, 1), &mut sums).expect("requests and replicas")
        });
    });
    group.finish();
}

criterion_group!(benches, held, trials, slice_of_a_day);
criterion_main!(benches);
