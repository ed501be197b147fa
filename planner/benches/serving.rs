//! The speed of serving plans: Llama-3-70B on 64 H100 under the built-in chat workload, with and without pools for
//! prompts and for answers, and with drafted tokens; how many of three kinds of accelerators carry a rate. Runs on one
//! thread, so that wall-clock seconds are CPU-seconds.

use criterion::{Criterion, criterion_group, criterion_main};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::engine::find;
use psim_hardware::Cluster;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::serving::workload::parse_workload;
use psim_models::serving::{NumberFormat, Quantization, ServingWorkload, builtin};
use psim_models::{Model, presets};
use psim_planner::serving::{
    Drafts, ServingRequest, Speculation, plan_disaggregated, plan_serving, plan_speculative, size_all,
};
use psim_sim::serving::speculation::Acceptance;
use std::hint::black_box;

fn chat() -> ServingWorkload {
    let text = builtin::workload("chat").expect("built in");
    let mut load =
        |name: &str| builtin::data(name).map(str::to_owned).ok_or_else(|| "not built in".to_owned());
    parse_workload("chat", text, &mut load).expect("it reads")
}

fn asked<'a>(
    model: &'a Model,
    cluster: &'a Cluster,
    workload: &'a ServingWorkload,
    library: &'a ProfileLibrary,
) -> ServingRequest<'a> {
    ServingRequest {
        model,
        cluster,
        engine: find("vllm-v1").expect("built in"),
        workload,
        quantization: Quantization::uniform(NumberFormat::Bf16),
        library,
        requests: 400,
        seed: 0,
    }
}

fn plans(criterion: &mut Criterion) {
    let model = presets::find("llama3-70b").expect("built in");
    let cluster = homogeneous("H100-SXM-80GB", 64, &HomogeneousOptions::default()).expect("built in");
    let (workload, library) = (chat(), ProfileLibrary::built_in());
    let request = asked(&model, &cluster, &workload, &library);
    let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let mut group = criterion.benchmark_group("64 H100, chat");
    group.sample_size(10);
    group.bench_function("replicas", |b| {
        b.iter(|| threads.install(|| black_box(plan_serving(&request))));
    });
    group.bench_function("splits", |b| {
        b.iter(|| threads.install(|| black_box(plan_disaggregated(&request))));
    });
    let heads = Speculation {
        name: "mtp".to_owned(),
        drafts: Drafts::Heads { layers: 1 },
        tokens: 0,
        acceptance: Acceptance::Rate(0.8),
    };
    let plans = threads.install(|| plan_serving(&request)).expect("layouts run").plans;
    group.bench_function("prediction heads, six numbers of drafts a layout", |b| {
        b.iter(|| threads.install(|| black_box(plan_speculative(&request, &heads, &plans))));
    });
    group.finish();
}

/// How many of which accelerator carry 50 requests a second.
fn capacity(criterion: &mut Criterion) {
    let model = presets::find("llama3-70b").expect("built in");
    let (workload, library) = (chat(), ProfileLibrary::built_in());
    let kinds = ["H100-SXM-80GB", "H200-SXM-141GB", "B200-SXM"];
    let clusters = kinds.map(|kind| homogeneous(kind, 64, &HomogeneousOptions::default()).expect("built in"));
    let requests = [0, 1, 2].map(|i: usize| asked(&model, &clusters[i], &workload, &library));
    let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let mut group = criterion.benchmark_group("capacity, chat");
    group.sample_size(10);
    group.bench_function("70B at 50 requests a second on H100, H200 and B200", |b| {
        b.iter(|| threads.install(|| black_box(size_all(&requests, 50.0, 0.999))));
    });
    group.finish();
}

criterion_group!(benches, plans, capacity);
criterion_main!(benches);
