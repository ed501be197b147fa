use super::*;
use proptest::prelude::*;
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::engine::find;
use psim_cost_models::serving::{
    EngineParameters, EngineProfile, KINDS, Lane, Policy, PromptChunk, StepCost,
};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::{
    Arrival, Deployment, Lengths, NumberFormat, Quantization, ServiceLevel, ServingWorkload, Traffic,
};

const POLICIES: [Policy; 11] = [
    Policy::Static,
    Policy::Orca,
    Policy::PrefillPriority,
    Policy::ChunkedPrefill,
    Policy::SplitFuse,
    Policy::Radix,
    Policy::InflightNoEvict,
    Policy::Flover,
    Policy::FastSwitch,
    Policy::SLora,
    Policy::FlexLlm,
];

pub(super) fn cost(model: &str, gpu: &str, d: Deployment, engine: &EngineProfile) -> StepCost {
    let cluster = homogeneous(gpu, 8, &HomogeneousOptions::default()).unwrap();
    let model = presets::find(model).unwrap();
    StepCost::new(&model, &d, &cluster, cluster.first_node(), engine, &ProfileLibrary::built_in()).unwrap()
}

pub(super) fn bf16(tp: u32) -> Deployment {
    Deployment::tensor_parallel(tp, Quantization::uniform(NumberFormat::Bf16))
}

pub(super) fn engine(policy: Policy) -> EngineProfile {
    EngineProfile { policy, lookahead: false, ..find("vllm-v1").unwrap().clone() }
}

pub(super) fn workload(arrival: Arrival, requests: u32, input: Lengths, output: Lengths) -> Traffic {
    let mut w = ServingWorkload::fixed("w", arrival, requests, 1, 1);
    w.tenants[0].input = input;
    w.tenants[0].output = output;
    Traffic::generate(&w, 11)
}

pub(super) fn serve(
    cost: &StepCost,
    engine: &EngineProfile,
    traffic: &Traffic,
    options: FleetOptions,
) -> ServingRun {
    simulate(&ServingInput { cost, engine, traffic, replicas: 2, options }).unwrap()
}

pub(super) fn single(cost: &StepCost, engine: &EngineProfile, traffic: &Traffic) -> ServingRun {
    simulate(&ServingInput { cost, engine, traffic, replicas: 1, options: FleetOptions::default() }).unwrap()
}

pub(super) fn check_laws(run: &ServingRun, traffic: &Traffic) {
    let mut sojourn = 0.0;
    let mut generated = 0;
    for (o, r) in run.outcomes.iter().zip(&traffic.requests) {
        if !o.refused {
            assert!(
                o.sent <= o.admitted && o.admitted <= o.first_token && o.first_token <= o.finish,
                "{o:?}"
            );
            assert!(o.finish.0 > 0);
            generated += u64::from(r.output);
        }
        sojourn += (o.finish - o.sent).0 as f64 * 1e-12;
    }
    assert_eq!(run.generated_tokens, generated);
    assert!(run.peak_cache <= 1.0);
    assert_eq!((run.extra.unfinished, run.extra.leaked_bytes), (0, 0));
    // Little: the time integral of the number in the system is the sum of the times in it.
    assert!((run.request_seconds / sojourn - 1.0).abs() < 1e-9, "{} {sojourn}", run.request_seconds);
    let preempted = run.outcomes.iter().any(|o| o.preemptions > 0);
    let prompts: u64 = run
        .outcomes
        .iter()
        .zip(&traffic.requests)
        .filter(|(o, _)| !o.refused)
        .map(|(_, r)| u64::from(r.input))
        .sum();
    let computed = run.computed_prompt_tokens + run.cached_prompt_tokens;
    assert!(if preempted { computed >= prompts } else { computed == prompts }, "{computed} {prompts}");
}

#[test]
fn coalesced_and_step_by_step_runs_are_the_same() {
    let step_by_step = FleetOptions { coalesce: false, ..FleetOptions::default() };
    for (model, d) in [
        ("llama3-8b", bf16(1)),
        ("gpt-oss-20b", bf16(1)),
        ("llama3-8b", Deployment { pp: 2, ..bf16(1) }),
        ("qwen3-30b-a3b", Deployment { attention_dp: 4, ep: 4, ..bf16(1) }),
    ] {
        for policy in POLICIES {
            let mut engine = engine(policy);
            let base = cost(model, "H100-SXM-80GB", d, &engine);
            // A tight cache forces evictions and preemptions.
            let gib = 1024f64.powi(3);
            let spare = base.cache_bytes() / gib - 1.2 * f64::from(d.lanes());
            engine.reserve_gib += spare.max(0.0);
            let cost = cost(model, "H100-SXM-80GB", d, &engine);
            let traffic = workload(
                Arrival::Poisson { rate: 30.0 },
                150,
                Lengths::Uniform([20, 900]),
                Lengths::Uniform([1, 300]),
            );
            let a = serve(&cost, &engine, &traffic, FleetOptions::default());
            let b = serve(&cost, &engine, &traffic, step_by_step);
            assert_eq!(a.outcomes, b.outcomes, "{model} {policy:?}");
            assert_eq!((a.steps, a.generated_tokens, &a.gaps), (b.steps, b.generated_tokens, &b.gaps));
            check_laws(&a, &traffic);
        }
    }
}

#[test]
fn preemption_happens_and_is_survived() {
    let mut engine = engine(Policy::PrefillPriority);
    let wide = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    engine.reserve_gib += wide.cache_bytes() / 1024f64.powi(3) - 0.6;
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let traffic = workload(Arrival::Burst, 60, Lengths::Fixed(200), Lengths::Fixed(800));
    let run = serve(&cost, &engine, &traffic, FleetOptions::default());
    assert!(run.outcomes.iter().any(|o| o.preemptions > 0));
    check_laws(&run, &traffic);
    let whole = EngineProfile { policy: Policy::InflightNoEvict, ..engine };
    let run = serve(&cost, &whole, &traffic, FleetOptions::default());
    assert!(run.outcomes.iter().all(|o| o.preemptions == 0));
    let long = workload(Arrival::Burst, 3, Lengths::Fixed(100_000), Lengths::Fixed(8));
    assert!(serve(&cost, &whole, &long, FleetOptions::default()).outcomes.iter().all(|o| o.refused));
}

#[test]
fn md1_queue() {
    // One request at a time with a constant service time: mean wait is rho·S / (2 (1 − rho)).
    let engine = EngineProfile { policy: Policy::Static, max_sequences: 1, ..engine(Policy::Static) };
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let delay = cost.parameters().ttft_ms * 1e-3;
    let one = workload(Arrival::Burst, 1, Lengths::Fixed(500), Lengths::Fixed(20));
    let alone = single(&cost, &engine, &one);
    let service = (alone.end - alone.start).0 as f64 * 1e-12 - delay;
    for rho in [0.3, 0.6, 0.8] {
        let n = 60_000;
        let traffic =
            workload(Arrival::Poisson { rate: rho / service }, n, Lengths::Fixed(500), Lengths::Fixed(20));
        let run = single(&cost, &engine, &traffic);
        let waits: Vec<f64> =
            run.outcomes.iter().map(|o| (o.finish - o.sent).0 as f64 * 1e-12 - service - delay).collect();
        // Batch means give the confidence interval of a correlated series.
        let batches: Vec<f64> =
            waits.chunks(n as usize / 30).map(|c| c.iter().sum::<f64>() / c.len() as f64).collect();
        let mean = batches.iter().sum::<f64>() / batches.len() as f64;
        let variance = batches.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / (batches.len() - 1) as f64;
        let half = 2.045 * (variance / batches.len() as f64).sqrt();
        let theory = rho * service / (2.0 * (1.0 - rho));
        assert!((mean - theory).abs() <= half, "rho {rho}: {mean} +- {half} against {theory}");
    }
}

#[test]
fn closed_loop() {
    // With C clients and room for all, throughput = C / (time of one answer).
    let engine = engine(Policy::ChunkedPrefill);
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let traffic = workload(
        Arrival::ClosedLoop { concurrency: 16 },
        1600,
        Lengths::Fixed(200),
        Lengths::Uniform([50, 150]),
    );
    let run = single(&cost, &engine, &traffic);
    check_laws(&run, &traffic);
    let report = ServingReport::new(&run, &traffic, &[ServiceLevel::default()]);
    let law = 16.0 / (report.e2e_ms.mean * 1e-3);
    assert!((report.requests_per_s / law - 1.0).abs() < 0.02, "{} {law}", report.requests_per_s);
    assert!(!report.saturated);
}

#[test]
fn closed_loop_of_one_server() {
    // C clients at a server that takes one request at a time: it never idles, so the mean time in the system is C times
    // the mean service, whatever the distribution (Little's law on the whole loop).
    let engine = EngineProfile { max_sequences: 1, ..engine(Policy::Static) };
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let (n, clients) = (6000, 4);
    let arrival = Arrival::ClosedLoop { concurrency: clients };
    let traffic = workload(arrival, n, Lengths::Fixed(300), Lengths::Geometric(30.0));
    let run = single(&cost, &engine, &traffic);
    check_laws(&run, &traffic);
    // Service times by requests that meet nobody.
    let alone = |output: u32| {
        let chunk = [PromptChunk { tokens: 300, before: 0 }];
        let mut seconds = cost.seconds(&[Lane { chunks: &chunk, ..Lane::default() }]);
        for step in 1..output {
            let context = [301 + u64::from(step) - 1, 0, 0, 0];
            seconds += cost.seconds(&[Lane { decoding: 1, context, ..Lane::default() }]);
        }
        seconds
    };
    let longest = traffic.requests.iter().map(|r| r.output).max().unwrap();
    let table: Vec<f64> = (0..=longest).map(|o| alone(o.max(1))).collect();
    let service = traffic.requests.iter().map(|r| table[r.output as usize]).sum::<f64>()
        / traffic.requests.len() as f64;
    let delay = cost.parameters().ttft_ms * 1e-3;
    // The constant delay of a request hides behind the three others.
    let times: Vec<f64> =
        run.outcomes[clients as usize..].iter().map(|o| (o.finish - o.sent).0 as f64 * 1e-12).collect();
    let batches: Vec<f64> =
        times.chunks(times.len() / 30 + 1).map(|c| c.iter().sum::<f64>() / c.len() as f64).collect();
    let mean = batches.iter().sum::<f64>() / batches.len() as f64;
    let variance = batches.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / (batches.len() - 1) as f64;
    let half = 2.045 * (variance / batches.len() as f64).sqrt();
    let theory = f64::from(clients) * service;
    assert!(delay < 2.0 * service);
    assert!((mean - theory).abs() <= half, "{mean} +- {half} against {theory}");
}

#[test]
fn saturation_is_flagged() {
    let engine = engine(Policy::ChunkedPrefill);
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let report = |rate| {
        let traffic = workload(Arrival::Poisson { rate }, 2000, Lengths::Fixed(1000), Lengths::Fixed(100));
        let run = single(&cost, &engine, &traffic);
        ServingReport::new(&run, &traffic, &[])
    };
    assert!(!report(2.0).saturated);
    assert!(report(400.0).saturated);
    // Long answers keep a third of all requests in the system, no more at the end than half-way: that is no queue. A run
    // that ends before the first answers cannot tell, and is not trusted.
    let long = |requests| {
        let traffic =
            workload(Arrival::Constant { rate: 14.0 }, requests, Lengths::Fixed(100), Lengths::Fixed(1000));
        let run = single(&cost, &engine, &traffic);
        (f64::from(run.backlog) / f64::from(requests), ServingReport::new(&run, &traffic, &[]))
    };
    let (share, report) = long(480);
    assert!(share > 0.2 + 64.0 / 480.0 && share < 0.6 && report.keeps_up(), "{share}");
    // With the tail, fewer are answered a second than come; in the second half as many as come, to the edges.
    assert!(report.requests_per_s < 12.0, "{}", report.requests_per_s);
    let (_, report) = long(2000);
    let flowing = report.flowing.unwrap();
    assert!((flowing.requests_per_s / 14.0 - 1.0).abs() < 0.15, "{flowing:?}");
    assert!((flowing.output_tokens_per_s / 14_000.0 - 1.0).abs() < 0.15, "{flowing:?}");
    assert!((flowing.seconds + flowing.tail_s) * 1.001 < report.seconds, "{flowing:?}");
    let (share, report) = long(160);
    assert!(share > 0.8 && report.too_short && !report.saturated && !report.keeps_up(), "{share}");
}

#[test]
fn shared_prefixes_are_computed_once() {
    let engine = engine(Policy::Radix);
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let mut w = ServingWorkload::fixed("w", Arrival::Poisson { rate: 5.0 }, 200, 100, 50);
    w.tenants[0].prefix = Some(psim_models::serving::workload::SharedPrefix { tokens: 2000, groups: 1 });
    let traffic = Traffic::generate(&w, 1);
    for router in [Router::RoundRobin, Router::LeastLoad, Router::PrefixAware] {
        let run = serve(&cost, &engine, &traffic, FleetOptions { router, ..FleetOptions::default() });
        check_laws(&run, &traffic);
        let hits = run.cached_prompt_tokens as f64 / traffic.input_tokens() as f64;
        assert!(hits > 0.85, "{router:?}: {hits}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_step_beats_the_roofline(
        decoding in 0u32..600,
        mean in 1u64..20_000,
        prompt in 0u32..9000,
        before in 0u32..20_000,
        which in 0usize..5,
    ) {
        let fp8 = Quantization::uniform(NumberFormat::Fp8Block);
        let (model, gpu, d) = [
            ("llama3-70b", "H100-SXM-80GB", bf16(4)),
            ("deepseek-v3", "H200-SXM-141GB", Deployment { ep: 8, ..Deployment::tensor_parallel(8, fp8) }),
            ("gpt-oss-120b", "B200-SXM", Deployment::tensor_parallel(2, Quantization { dense: NumberFormat::Bf16, attention: NumberFormat::Bf16, experts: NumberFormat::Mxfp4, kv: psim_hardware::DType::Fp8 })),
            ("llama3-8b", "A100-SXM-80GB", Deployment::tensor_parallel(1, Quantization::uniform(NumberFormat::W4a16))),
            ("mixtral-8x7b", "MI300X", bf16(1)),
        ][which];
        let engine = engine(Policy::ChunkedPrefill);
        let cost = cost(model, gpu, d, &engine);
        let chunks = [PromptChunk { tokens: prompt.max(1), before }];
        let mut context = [0; KINDS];
        for (slot, limit) in context.iter_mut().zip(cost.reads_at_most()) {
            *slot = u64::from(decoding) * limit.map_or(mean, |w| mean.min(w));
        }
        let lane = Lane { decoding, context, chunks: if prompt > 0 { &chunks } else { &[] } };
        let seconds = cost.seconds(&[lane]);
        prop_assert!(seconds >= cost.roofline(&[lane]) * (1.0 - 1e-12));
        // An independent bound: active weights once at memory speed where anything runs, useful flops at peak.
        let shape = cost.shape();
        let tokens = f64::from(decoding + prompt);
        let node = homogeneous(gpu, 8, &HomogeneousOptions::default()).unwrap();
        let peak = node.first_node().accelerator.peak.values().map(|f| f.0).fold(0.0, f64::max);
        let head = 2.0 * shape.hidden as f64 * 300_000.0;
        let flops = (2.0 * shape.active_parameters - head) * tokens / f64::from(d.tp);
        prop_assert!(seconds >= flops / peak, "{seconds} {}", flops / peak);
    }

    #[test]
    fn laws_hold_on_any_traffic(
        seed in 0u64..1000,
        rate in 1.0f64..200.0,
        input in 1u64..3000,
        output in 1u64..400,
        policy in 0usize..11,
        router in 0usize..3,
    ) {
        let engine = engine(POLICIES[policy]);
        let cost = cost("llama3-8b", "A100-SXM-80GB", bf16(1), &engine);
        let mut w = ServingWorkload::fixed("w", Arrival::Gamma { rate, cv: 2.0 }, 120, 1, 1);
        w.tenants[0].input = Lengths::Uniform([1, input]);
        w.tenants[0].output = Lengths::Geometric(output as f64);
        let traffic = Traffic::generate(&w, seed);
        let router = [Router::RoundRobin, Router::LeastLoad, Router::PrefixAware][router];
        let options = FleetOptions { router, ..FleetOptions::default() };
        let run = serve(&cost, &engine, &traffic, options);
        check_laws(&run, &traffic);
        prop_assert_eq!(&run, &serve(&cost, &engine, &traffic, options));
    }
}

#[test]
fn a_streamed_run_is_the_held_run_in_less_memory() {
    let engine = engine(Policy::ChunkedPrefill);
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let mut w = ServingWorkload::fixed("w", Arrival::Poisson { rate: 4.0 }, 3000, 300, 60);
    w.tenants[0].slo = ServiceLevel::parse("ttft<100ms@p90,tpot<20ms@p90").unwrap();
    let held = Traffic::generate(&w, 5);
    let options = FleetOptions::default();
    let kept = serve(&cost, &engine, &held, options);
    let report = ServingReport::new(&kept, &held, &[w.tenants[0].slo.clone()]);
    let input =
        StreamInput { cost: &cost, engine: &engine, clients: None, prefixes: None, replicas: 2, options };
    let mut sums = Summary::new(vec![w.tenants[0].slo.clone()]);
    let run = simulate_stream(&input, &mut Traffic::stream(&w, 5), &mut sums).unwrap();
    let figures = sums.figures(&run);
    assert_eq!((run.steps, run.generated_tokens, &run.gaps), (kept.steps, kept.generated_tokens, &kept.gaps));
    assert_eq!((figures.requests, sums.good), (3000, (report.good_share * 3000.0).round() as u64));
    assert!((sums.sojourn_s / run.request_seconds - 1.0).abs() < 1e-9);
    for (a, b) in [(figures.ttft_ms, report.ttft_ms), (figures.e2e_ms, report.e2e_ms)] {
        assert!((a.p50 / b.p50 - 1.0).abs() < 0.01 && (a.p99 / b.p99 - 1.0).abs() < 0.02, "{a:?} {b:?}");
    }
    assert!(run.extra.most_alive < 60, "{}", run.extra.most_alive);
}

fn conversations(rate: f64, requests: u32, turns: u64) -> Traffic {
    let mut w = ServingWorkload::fixed("w", Arrival::Poisson { rate }, requests, 150, 40);
    w.tenants[0].sessions = Some(psim_models::serving::workload::Sessions {
        turns: Lengths::Fixed(turns),
        think_s: 3.0,
        max_tokens: None,
    });
    Traffic::generate(&w, 4)
}

#[test]
fn conversations_find_all_that_was_said() {
    let engine = engine(Policy::ChunkedPrefill);
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let traffic = conversations(1.0, 400, 5);
    let run = single(&cost, &engine, &traffic);
    check_laws(&run, &traffic);
    // A turn finds the whole blocks of the one before it: its prompt and all of its answer but the last token.
    let expected: u64 = traffic
        .requests
        .windows(2)
        .filter(|p| p[1].turn > 0)
        .map(|p| u64::from((p[0].input + p[0].output - 1) / 16 * 16))
        .sum();
    assert_eq!(run.cached_prompt_tokens, expected);
    for (pair, o) in traffic.requests.windows(2).zip(run.outcomes.windows(2)) {
        if pair[1].turn > 0 {
            assert_eq!(o[1].sent, o[0].finish + pair[1].think);
        }
    }
    // Orca keeps nothing.
    let orca = EngineProfile { policy: Policy::Orca, ..engine };
    assert_eq!(single(&cost, &orca, &traffic).cached_prompt_tokens, 0);
}

#[test]
fn host_memory_and_disk_keep_what_the_device_cannot() {
    let mut engine = engine(Policy::ChunkedPrefill);
    let wide = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    engine.reserve_gib += wide.cache_bytes() / 1024f64.powi(3) - 1.0;
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let traffic = conversations(4.0, 1500, 8);
    let tier = |gib: u64| {
        Some(CacheTier { capacity: psim_hardware::Bytes(gib << 30), rate: psim_hardware::BytesPerSec(25e9) })
    };
    let hits = |tiers| {
        let options = FleetOptions { tiers, ..FleetOptions::default() };
        let run = serve(&cost, &engine, &traffic, options);
        check_laws(&run, &traffic);
        let slow = serve(&cost, &engine, &traffic, FleetOptions { coalesce: false, ..options });
        assert!(run.outcomes == slow.outcomes && run.gaps == slow.gaps);
        assert_eq!(
            (run.steps, run.extra, run.cached_prompt_tokens),
            (slow.steps, slow.extra, slow.cached_prompt_tokens)
        );
        (run.cached_prompt_tokens, run.extra.moved_bytes)
    };
    let options = FleetOptions { router: Router::PrefixAware, ..FleetOptions::default() };
    check_laws(&serve(&cost, &engine, &traffic, options), &traffic);
    let (none, host, both) = (hits([None; 2]), hits([tier(1), None]), hits([tier(1), tier(64)]));
    assert_eq!(none.1, 0);
    assert!(none.0 < host.0 && host.0 < both.0, "{none:?} {host:?} {both:?}");
    assert!(host.1 > 0);
}

#[test]
fn copies_that_wait_for_each_other_trade_first_tokens_for_steps() {
    let quantization = Quantization::uniform(NumberFormat::Fp8);
    let copies = Deployment { attention_dp: 4, ep: 4, ..Deployment::tensor_parallel(1, quantization) };
    let eager = EngineProfile { prompt_wait_steps: None, ..find("trtllm-1.0").unwrap().clone() };
    let patient = EngineProfile { prompt_wait_steps: Some(60), ..eager.clone() };
    let cost = cost("qwen3-30b-a3b", "H100-SXM-80GB", copies, &eager);
    let lengths = Lengths::Uniform([400, 800]);
    let traffic = workload(Arrival::ClosedLoop { concurrency: 32 }, 320, Lengths::Fixed(8192), lengths);
    let report = |engine: &EngineProfile| {
        let run = single(&cost, engine, &traffic);
        check_laws(&run, &traffic);
        ServingReport::new(&run, &traffic, &[])
    };
    let (eager, patient) = (report(&eager), report(&patient));
    assert!(patient.tpot_ms.mean < 0.95 * eager.tpot_ms.mean, "{:?} {:?}", patient.tpot_ms, eager.tpot_ms);
    assert!(patient.ttft_ms.p50 > eager.ttft_ms.p50, "{:?} {:?}", patient.ttft_ms, eager.ttft_ms);
}

#[test]
fn replicas_of_two_kinds_share_by_speed_and_keep_the_laws() {
    let engine = engine(Policy::ChunkedPrefill);
    let fast = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let slow = cost("llama3-8b", "A100-SXM-80GB", bf16(1), &engine);
    let lengths = (800, 100);
    let groups = [
        ReplicaGroup::weighed(&fast, &engine, 1, lengths),
        ReplicaGroup::weighed(&slow, &engine, 2, lengths),
    ];
    let speed = groups[0].weight / groups[1].weight;
    assert!(speed > 1.4 && speed < 3.5, "{speed}");
    let traffic = workload(Arrival::Poisson { rate: 20.0 }, 1500, Lengths::Fixed(800), Lengths::Fixed(100));
    for router in [Router::RoundRobin, Router::LeastLoad, Router::PrefixAware] {
        let options = FleetOptions { router, ..FleetOptions::default() };
        let run = simulate_mixed(&MixedInput { groups: &groups, traffic: &traffic, options }).unwrap();
        check_laws(&run, &traffic);
        let step = FleetOptions { coalesce: false, ..options };
        let slow_run =
            simulate_mixed(&MixedInput { groups: &groups, traffic: &traffic, options: step }).unwrap();
        assert!(run.outcomes == slow_run.outcomes && run.gaps == slow_run.gaps, "{router:?}");
        let of = |r| run.outcomes.iter().filter(|o| o.replica == r).count() as f64;
        assert!(of(0) > 1.2 * of(1) && of(0) < 4.0 * of(1), "{router:?} {} {} {}", of(0), of(1), of(2));
        assert!((of(1) / of(2) - 1.0).abs() < 0.2, "{router:?} {} {}", of(1), of(2));
    }
    // By weight in turn the shares are the weights to within one request.
    let options = FleetOptions::default();
    let run = simulate_mixed(&MixedInput { groups: &groups, traffic: &traffic, options }).unwrap();
    let first = run.outcomes.iter().filter(|o| o.replica == 0).count() as f64;
    let share = groups[0].weight / (groups[0].weight + 2.0 * groups[1].weight);
    assert!((first / 1500.0 / share - 1.0).abs() < 0.01, "{first} {share}");
    // One kind is the fleet as it was.
    let one = [ReplicaGroup { cost: &fast, engine: &engine, replicas: 2, weight: 1.0 }];
    for router in [Router::RoundRobin, Router::LeastLoad] {
        let options = FleetOptions { router, ..FleetOptions::default() };
        let alone = simulate_mixed(&MixedInput { groups: &one, traffic: &traffic, options }).unwrap();
        assert_eq!(alone, serve(&fast, &engine, &traffic, options));
    }
    // What only the larger memory can hold goes there; what none can hold is refused.
    let mut cut = engine.clone();
    cut.reserve_gib += slow.cache_bytes() / 1024f64.powi(3) - 0.5;
    let small = cost("llama3-8b", "A100-SXM-80GB", bf16(1), &cut);
    let groups = [
        ReplicaGroup { cost: &small, engine: &cut, replicas: 3, weight: 1.0 },
        ReplicaGroup { cost: &fast, engine: &engine, replicas: 1, weight: 1.0 },
    ];
    let long = workload(Arrival::Burst, 20, Lengths::Fixed(6000), Lengths::Fixed(10));
    for router in [Router::RoundRobin, Router::LeastLoad, Router::PrefixAware] {
        let options = FleetOptions { router, ..FleetOptions::default() };
        let run = simulate_mixed(&MixedInput { groups: &groups, traffic: &long, options }).unwrap();
        assert!(run.outcomes.iter().all(|o| o.replica == 3 && !o.refused), "{router:?}");
    }
    let endless = workload(Arrival::Burst, 3, Lengths::Fixed(900_000), Lengths::Fixed(10));
    let run = simulate_mixed(&MixedInput { groups: &groups, traffic: &endless, options }).unwrap();
    assert!(run.outcomes.iter().all(|o| o.refused));
}

#[test]
fn the_pace_of_answers_is_the_same_coalesced_and_between_mean_and_longest_gap() {
    let engine = engine(Policy::PrefillPriority);
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let traffic =
        workload(Arrival::Poisson { rate: 12.0 }, 200, Lengths::Fixed(2000), Lengths::Uniform([2, 200]));
    let options = FleetOptions { pace: Some(16), ..FleetOptions::default() };
    let run = serve(&cost, &engine, &traffic, options);
    let slow = serve(&cost, &engine, &traffic, FleetOptions { coalesce: false, ..options });
    assert_eq!(run.outcomes, slow.outcomes);
    let longest = run.gaps.percentile(100.0).unwrap();
    for (o, r) in run.outcomes.iter().zip(&traffic.requests) {
        let mean = (o.finish - o.first_token).0 as f64 / f64::from(r.output.max(2) - 1);
        assert!(o.slowest.0 as f64 >= 0.99 * mean && o.slowest.0 as f64 <= 1.01 * longest, "{o:?} {mean}");
    }
    let plain = serve(&cost, &engine, &traffic, FleetOptions::default());
    assert!(plain.outcomes.iter().all(|o| o.slowest.0 == 0) && plain.gaps == run.gaps);
}

/// A run step by step and coalesced, which agree; the report of the latter.
fn alike(cost: &StepCost, engine: &EngineProfile, traffic: &Traffic) -> ServingReport {
    let options = FleetOptions::default();
    let run = serve(cost, engine, traffic, options);
    let slow = serve(cost, engine, traffic, FleetOptions { coalesce: false, ..options });
    assert!(run.outcomes == slow.outcomes && run.gaps == slow.gaps, "{}", engine.name);
    check_laws(&run, traffic);
    ServingReport::new(&run, traffic, &[])
}

#[test]
fn overlap_scheduling_takes_a_request_into_the_step_after_the_next() {
    let plain = EngineProfile { lookahead: false, ..engine(Policy::ChunkedPrefill) };
    let ahead = EngineProfile { lookahead: true, ..plain.clone() };
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &plain);
    let lengths = Lengths::Uniform([300, 500]);
    let traffic = workload(Arrival::ClosedLoop { concurrency: 16 }, 320, Lengths::Fixed(64), lengths);
    let (plain, ahead) = (alike(&cost, &plain, &traffic), alike(&cost, &ahead, &traffic));
    let later = (ahead.ttft_ms.mean - plain.ttft_ms.mean) / plain.itl_ms.p50;
    // One step more, except for those that find the engine idle at the start.
    assert!((0.8..1.3).contains(&later), "{later} steps: {:?} {:?}", plain.ttft_ms, ahead.ttft_ms);
}

#[test]
fn an_engine_that_looks_at_its_queue_every_thirty_steps_answers_fifteen_later() {
    let often = EngineProfile { receive_steps: None, lookahead: false, ..engine(Policy::Radix) };
    let seldom = EngineProfile { receive_steps: Some(30), ..often.clone() };
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &often);
    let lengths = Lengths::Uniform([400, 900]);
    let traffic = workload(Arrival::ClosedLoop { concurrency: 4 }, 200, Lengths::Fixed(64), lengths);
    let (often, seldom) = (alike(&cost, &often, &traffic), alike(&cost, &seldom, &traffic));
    let later = (seldom.ttft_ms.mean - often.ttft_ms.mean) / often.itl_ms.p50;
    assert!((12.0..18.0).contains(&later), "{later} steps");
}

#[test]
fn a_front_end_serves_prompts_one_after_another() {
    let engine = engine(Policy::ChunkedPrefill);
    let busy = EngineProfile {
        parameters: EngineParameters { front_us: 2000.0, ..engine.parameters },
        accelerator: Vec::new(),
        ..engine.clone()
    };
    let quick = EngineProfile { accelerator: Vec::new(), ..engine };
    let traffic = workload(Arrival::ClosedLoop { concurrency: 64 }, 64, Lengths::Fixed(8), Lengths::Fixed(2));
    let report = |engine: &EngineProfile| {
        let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), engine);
        alike(&cost, engine, &traffic).ttft_ms
    };
    let (quick, busy) = (report(&quick), report(&busy));
    // Two front ends: the last of 64 prompts leaves one after 64 ms. Steps begin with the first after 2 ms, so that part of
    // the wait lies behind them.
    let last = busy.max - quick.max;
    assert!((10.0..67.0).contains(&last), "{last} ms: {quick:?} {busy:?}");
}

#[test]
fn requests_of_a_trace_share_their_leading_blocks() {
    use psim_models::serving::trace::parse_trace;
    use psim_models::serving::{Replay, ServingWorkload};
    // Eight seconds apart, then four at once; what each finds is added up by hand.
    let rows: [(u32, u32, &str); 7] = [
        (0, 1600, "0-3"),
        // Three whole blocks of the first one: 1,536.
        (8, 2100, "0-4"),
        // The first block: 512.
        (16, 700, "0 9"),
        // Four whole blocks of the second one, and one token at least is computed: 2,032 of 2,048.
        (24, 2048, "0-3"),
        // A branch of its own behind two blocks of which 512 end a place: 512; then two that come with it find the same.
        (32, 5000, "0 20-28"),
        (40, 5000, "0 20-28"),
        (48, 900, "50-51"),
    ];
    let lines: Vec<String> =
        rows.iter().map(|(at, input, blocks)| format!("{at},{input},4,{blocks}")).collect();
    let text = format!("arrival_s,input_tokens,output_tokens,prefix_blocks_512\n{}\n", lines.join("\n"));
    let trace = parse_trace("t", &text).unwrap();
    let engine = engine(Policy::ChunkedPrefill);
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let mut w = ServingWorkload::fixed("w", Arrival::Burst, 7, 1, 1);
    w.tenants[0].arrival = Arrival::Trace(Replay { requests: trace.requests, prefixes: trace.prefixes });
    let traffic = Traffic::generate(&w, 1);
    let run = serve(&cost, &engine, &traffic, FleetOptions::default());
    let input = ServingInput {
        cost: &cost,
        engine: &engine,
        traffic: &traffic,
        replicas: 1,
        options: FleetOptions::default(),
    };
    let one = simulate(&input).unwrap();
    // Nine whole blocks of 5,000 tokens: 4,608.
    assert_eq!(one.cached_prompt_tokens, 1536 + 512 + 2032 + 512 + 4608);
    let all: u64 = rows.iter().map(|r| u64::from(r.1)).sum();
    assert_eq!(one.cached_prompt_tokens + one.computed_prompt_tokens, all);
    assert_eq!((one.extra.leaked_bytes, run.extra.leaked_bytes), (0, 0));
    // All at once: whoever computes a block that another one has put there meanwhile gives its copy back.
    let crowd = Traffic {
        requests: traffic
            .requests
            .iter()
            .map(|r| psim_models::serving::Request { arrival: Time(0), ..*r })
            .collect(),
        ..traffic.clone()
    };
    for coalesce in [true, false] {
        let options = FleetOptions { coalesce, ..FleetOptions::default() };
        let run = simulate(&ServingInput { traffic: &crowd, options, ..input }).unwrap();
        assert_eq!((run.extra.leaked_bytes, run.extra.unfinished, run.generated_tokens), (0, 0, 28));
        assert_eq!(run.cached_prompt_tokens + run.computed_prompt_tokens, all);
    }
    // A router that looks at prefixes sends a branch to where its trunk is.
    let options = FleetOptions { router: Router::PrefixAware, ..FleetOptions::default() };
    let two = simulate(&ServingInput { replicas: 2, options, ..input }).unwrap();
    assert!(two.cached_prompt_tokens >= one.cached_prompt_tokens, "{}", two.cached_prompt_tokens);
}
