use super::*;
use crate::serving::ServingReport;
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::engine::find;
use psim_cost_models::serving::{KINDS, Lane, Policy, PromptChunk};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::{
    Arrival, Deployment, Lengths, NumberFormat, Quantization, ServiceLevel, ServingWorkload,
};

fn cluster() -> Cluster {
    homogeneous("H100-SXM-80GB", 16, &HomogeneousOptions::default()).unwrap()
}

fn engine() -> EngineProfile {
    EngineProfile { policy: Policy::ChunkedPrefill, ..find("vllm-v1").unwrap().clone() }
}

fn cost(tp: u32, pp: u32, engine: &EngineProfile) -> StepCost {
    let q = Quantization::uniform(NumberFormat::Bf16);
    let d = Deployment { pp, ..Deployment::tensor_parallel(tp, q) };
    let cluster = cluster();
    let model = presets::find("llama3-8b").unwrap();
    StepCost::new(&model, &d, &cluster, cluster.first_node(), engine, &ProfileLibrary::built_in()).unwrap()
}

fn traffic(arrival: Arrival, n: u32, input: Lengths, output: Lengths) -> Traffic {
    let mut w = ServingWorkload::fixed("w", arrival, n, 1, 1);
    (w.tenants[0].input, w.tenants[0].output) = (input, output);
    Traffic::generate(&w, 5)
}

fn input<'a>(
    (p, np): (&'a StepCost, u32),
    (d, nd): (&'a StepCost, u32),
    engine: &'a EngineProfile,
    cluster: &'a Cluster,
    traffic: &'a Traffic,
) -> DisaggregatedInput<'a> {
    DisaggregatedInput {
        prefill: Pool { cost: p, engine, instances: np, context_parallel: 1, group: 0 },
        decode: Pool { cost: d, engine, instances: nd, context_parallel: 1, group: 0 },
        cluster,
        placement: Placement::Paired,
        transfer: TransferMode::AfterPrompt,
        traffic,
        coalesce: true,
    }
}

fn laws(out: &DisaggregatedRun, traffic: &Traffic) {
    let (mut tokens, mut prompts, mut sojourn) = (0, 0, 0.0);
    for (o, r) in out.run.outcomes.iter().zip(&traffic.requests) {
        assert!(o.finish.0 > 0 && o.sent <= o.first_token && o.first_token <= o.finish, "{o:?}");
        sojourn += (o.finish - o.sent).0 as f64 * 1e-12;
        if !o.refused {
            tokens += u64::from(r.output);
            prompts += u64::from(r.input);
        }
    }
    assert_eq!(out.run.generated_tokens, tokens);
    assert_eq!(out.run.computed_prompt_tokens, prompts);
    assert!((out.run.request_seconds / sojourn - 1.0).abs() < 1e-9, "Little");
    assert!(out.run.peak_cache <= 1.0 && out.prefill_peak <= 1.0);
    assert_eq!((out.run.extra.unfinished, out.run.extra.leaked_bytes), (0, 0));
}

#[test]
fn one_request_is_prompt_then_wire_then_steps() {
    let (engine, cluster) = (engine(), cluster());
    let (p, d) = (cost(2, 1, &engine), cost(1, 1, &engine));
    let t = traffic(Arrival::Burst, 1, Lengths::Fixed(1000), Lengths::Fixed(11));
    let out = simulate_disaggregated(&input((&p, 1), (&d, 1), &engine, &cluster, &t)).unwrap();
    let prompt = p.seconds(&[Lane { chunks: &[PromptChunk { tokens: 1000, before: 0 }], ..Lane::default() }]);
    let prompt = prompt + p.parameters().ttft_ms * 1e-3;
    let o = out.run.outcomes[0];
    assert!((o.first_token.0 as f64 * 1e-12 - prompt).abs() < 1e-9);
    // 32 layers, 8 key/value heads of 128, 2 bytes: 131,072 bytes a token over the links of one receiving rank.
    let rate = cluster.first_node().scale_up.bandwidth.0;
    let wire = 131_072.0 * 1000.0 / rate + cluster.first_node().scale_up.latency.0 + 20e-6;
    assert!((out.transfer_seconds[0] - wire).abs() < 1e-9, "{} {wire}", out.transfer_seconds[0]);
    assert!((out.bytes - 131_072_000.0).abs() < 1.0);
    let steps: f64 = (0..10).map(|i| d.decode_run(1).seconds(&context(1001 + i))).sum();
    let whole = prompt + wire + steps;
    assert!((o.finish.0 as f64 * 1e-12 - whole).abs() < 1e-9, "{} {whole}", o.finish.0 as f64 * 1e-12);
    laws(&out, &t);
}

fn context(tokens: u64) -> [u64; KINDS] {
    let mut c = [0; KINDS];
    c[0] = tokens;
    c
}

#[test]
fn layers_on_the_wire_hide_behind_the_prompt() {
    let (engine, cluster) = (engine(), cluster());
    let (p, d) = (cost(1, 1, &engine), cost(1, 1, &engine));
    let t = traffic(Arrival::Burst, 1, Lengths::Fixed(4000), Lengths::Fixed(5));
    let base =
        DisaggregatedInput { placement: Placement::Apart, ..input((&p, 8), (&d, 1), &engine, &cluster, &t) };
    let pulled = simulate_disaggregated(&base).unwrap();
    let layered = DisaggregatedInput { transfer: TransferMode::LayerWise, ..base };
    let layered = simulate_disaggregated(&layered).unwrap();
    // The prompt takes far longer than the wire, so that only the last of 32 layers is seen.
    let expected = pulled.transfer_seconds[0] / 32.0;
    assert!((layered.transfer_seconds[0] / expected - 1.0).abs() < 1e-6, "{:?}", layered.transfer_seconds);
}

#[test]
fn tokens_are_conserved_under_load_and_pressure() {
    let mut tight = engine();
    let cluster = cluster();
    let wide = cost(1, 1, &tight);
    // 1.5 GiB of cache: 12,288 tokens of Llama-3-8B.
    tight.reserve_gib += wide.cache_bytes() / 1024f64.powi(3) - 1.5;
    for (engine, pressed) in [(engine(), false), (tight, true)] {
        let (p, d) = (cost(1, 1, &engine), cost(1, 1, &engine));
        let (lengths, answers) = (Lengths::Uniform([50, 3000]), Lengths::Uniform([1, 400]));
        let t = traffic(Arrival::Poisson { rate: 30.0 }, 200, lengths, answers);
        for transfer in [TransferMode::AfterPrompt, TransferMode::LayerWise] {
            let base = input((&p, 2), (&d, 1), &engine, &cluster, &t);
            let out = simulate_disaggregated(&DisaggregatedInput { transfer, ..base }).unwrap();
            laws(&out, &t);
            assert_eq!(out.held_back > 0, pressed, "{transfer:?} {}", out.held_back);
            assert_eq!(out, simulate_disaggregated(&DisaggregatedInput { transfer, ..base }).unwrap());
            let slow = DisaggregatedInput { transfer, coalesce: false, ..base };
            assert_eq!(out, simulate_disaggregated(&slow).unwrap(), "coalesced and step by step");
        }
        let clients = Traffic { clients: Some(20), ..t };
        laws(
            &simulate_disaggregated(&input((&p, 2), (&d, 1), &engine, &cluster, &clients)).unwrap(),
            &clients,
        );
    }
}

#[test]
fn a_full_decode_pool_stops_prompts() {
    let mut engine = engine();
    let cluster = cluster();
    let wide = cost(1, 1, &engine);
    engine.reserve_gib += wide.cache_bytes() / 1024f64.powi(3) - 1.0;
    let (p, d) = (cost(1, 1, &engine), cost(1, 1, &engine));
    let t = traffic(Arrival::Burst, 40, Lengths::Fixed(1500), Lengths::Fixed(1000));
    let out = simulate_disaggregated(&input((&p, 1), (&d, 1), &engine, &cluster, &t)).unwrap();
    laws(&out, &t);
    // 8,192 tokens of cache: three answers of 2,500 tokens at a time on the decode side, five prompts on the other.
    let first = |k: usize| out.run.outcomes[k].first_token;
    let prompt = first(4).0 - first(3).0;
    assert!(first(39).0 > 20 * 40 * prompt, "prompts wait for decode memory");
    assert!(out.prefill_peak > 0.7);
}

#[test]
fn pipelines_and_context_parallel_prompts() {
    let (engine, cluster) = (engine(), cluster());
    let d = cost(1, 1, &engine);
    let t = traffic(Arrival::Burst, 40, Lengths::Fixed(2000), Lengths::Fixed(2));
    let last = |p: &StepCost, cp: u32| {
        let mut i = input((p, 1), (&d, 1), &engine, &cluster, &t);
        i.prefill.context_parallel = cp;
        let out = simulate_disaggregated(&i).unwrap();
        laws(&out, &t);
        out.run.outcomes.iter().map(|o| o.first_token.0).max().unwrap() as f64
    };
    let one = last(&cost(1, 1, &engine), 1);
    let staged = last(&cost(1, 4, &engine), 1);
    // Four stages carry four batches at once; filling and draining cost three quarters of a batch.
    assert!(staged < 0.45 * one && staged > 0.2 * one, "{staged} {one}");
    let ring = last(&cost(1, 1, &engine), 4);
    assert!(ring < 0.6 * one && ring > 0.25 * one, "{ring} {one}");
}

#[test]
fn splitting_removes_the_stalls_of_prefill_priority() {
    // Whole prompts that interrupt decoding stretch the gaps between tokens; a decode pool never stops.
    let engine = EngineProfile { policy: Policy::PrefillPriority, ..engine() };
    let cluster = cluster();
    let (p, d) = (cost(1, 1, &engine), cost(1, 1, &engine));
    let t = traffic(Arrival::Poisson { rate: 8.0 }, 300, Lengths::Fixed(3000), Lengths::Fixed(150));
    let split = simulate_disaggregated(&input((&p, 1), (&d, 1), &engine, &cluster, &t)).unwrap();
    let together = super::super::simulate(&super::super::ServingInput {
        cost: &d,
        engine: &engine,
        traffic: &t,
        replicas: 2,
        options: super::super::FleetOptions::default(),
    })
    .unwrap();
    let level = [ServiceLevel::default()];
    let (split, together) =
        (ServingReport::new(&split.run, &t, &level), ServingReport::new(&together, &t, &level));
    assert!(split.itl_ms.p99 < 0.5 * together.itl_ms.p99, "{} {}", split.itl_ms.p99, together.itl_ms.p99);
}

#[test]
fn attention_copies_take_transferred_caches_in_all_lanes() {
    let (engine, cluster) = (engine(), cluster());
    let q = Quantization::uniform(NumberFormat::Bf16);
    let copies = Deployment { attention_dp: 4, ep: 4, ..Deployment::tensor_parallel(1, q) };
    let model = presets::find("qwen3-30b-a3b").unwrap();
    let library = ProfileLibrary::built_in();
    let price = |d| StepCost::new(&model, d, &cluster, cluster.first_node(), &engine, &library).unwrap();
    let (p, d) = (price(&Deployment::tensor_parallel(4, q)), price(&copies));
    let (lengths, answers) = (Lengths::Uniform([50, 3000]), Lengths::Uniform([1, 400]));
    let t = traffic(Arrival::Poisson { rate: 30.0 }, 200, lengths, answers);
    let base =
        DisaggregatedInput { placement: Placement::Apart, ..input((&p, 2), (&d, 1), &engine, &cluster, &t) };
    let out = simulate_disaggregated(&base).unwrap();
    laws(&out, &t);
    assert_eq!(out, simulate_disaggregated(&DisaggregatedInput { coalesce: false, ..base }).unwrap());
}

#[test]
fn conversations_go_through_both_pools() {
    let (engine, cluster) = (engine(), cluster());
    let (p, d) = (cost(1, 1, &engine), cost(1, 1, &engine));
    let mut w = ServingWorkload::fixed("w", Arrival::Poisson { rate: 4.0 }, 120, 200, 60);
    w.tenants[0].sessions = Some(psim_models::serving::workload::Sessions {
        turns: Lengths::Fixed(4),
        think_s: 2.0,
        max_tokens: None,
    });
    let t = Traffic::generate(&w, 3);
    assert!(t.requests.iter().any(|r| r.turn > 0));
    let out = simulate_disaggregated(&input((&p, 1), (&d, 1), &engine, &cluster, &t)).unwrap();
    laws(&out, &t);
    for (pair, o) in t.requests.windows(2).zip(out.run.outcomes.windows(2)) {
        if pair[1].turn > 0 {
            assert_eq!(o[1].sent, o[0].finish + pair[1].think);
        }
    }
}

#[test]
fn prompts_on_one_kind_of_accelerator_and_answers_on_another() {
    let engine = engine();
    let options = HomogeneousOptions::default();
    let mut cluster = homogeneous("H100-SXM-80GB", 8, &options).unwrap();
    cluster.groups.extend(homogeneous("A100-SXM-80GB", 8, &options).unwrap().groups);
    let q = Quantization::uniform(NumberFormat::Bf16);
    let model = presets::find("llama3-8b").unwrap();
    let library = ProfileLibrary::built_in();
    let price = |group: usize| {
        let node = &cluster.groups[group].node;
        StepCost::new(&model, &Deployment::tensor_parallel(1, q), &cluster, node, &engine, &library).unwrap()
    };
    let prices = [price(0), price(1)];
    let t = traffic(Arrival::Poisson { rate: 5.0 }, 200, Lengths::Fixed(2000), Lengths::Fixed(100));
    let run = |prefill: usize, decode: usize| {
        let pool = |group: usize| Pool {
            cost: &prices[group],
            engine: &engine,
            instances: 1,
            context_parallel: 1,
            group,
        };
        let base = input((&prices[0], 1), (&prices[0], 1), &engine, &cluster, &t);
        let out = simulate_disaggregated(&DisaggregatedInput {
            prefill: pool(prefill),
            decode: pool(decode),
            ..base
        })
        .unwrap();
        laws(&out, &t);
        ServingReport::new(&out.run, &t, &[])
    };
    let (mixed, other) = (run(0, 1), run(1, 0));
    // Prompts follow arithmetic, answers the memory's rate: 990 against 312 TFLOP/s, 3.35 against 2.04 TB/s.
    assert!(other.ttft_ms.p50 > 1.5 * mixed.ttft_ms.p50, "{:?} {:?}", mixed.ttft_ms, other.ttft_ms);
    assert!(mixed.tpot_ms.p50 > 1.2 * other.tpot_ms.p50, "{:?} {:?}", mixed.tpot_ms, other.tpot_ms);
    let mut wrong = input((&prices[0], 1), (&prices[0], 1), &engine, &cluster, &t);
    wrong.decode.group = 2;
    assert!(matches!(simulate_disaggregated(&wrong), Err(DisaggregatedError::Group { asked: 2, known: 2 })));
}

#[test]
fn wrong_questions_are_refused() {
    let (engine, cluster) = (engine(), cluster());
    let d = cost(1, 1, &engine);
    let t = traffic(Arrival::Burst, 3, Lengths::Fixed(10), Lengths::Fixed(2));
    let ok = input((&d, 1), (&d, 1), &engine, &cluster, &t);
    assert!(simulate_disaggregated(&ok).is_ok());
    let mut bad = ok;
    bad.decode.instances = 0;
    assert!(simulate_disaggregated(&bad).is_err());
    bad.decode.instances = 16;
    assert!(matches!(simulate_disaggregated(&bad), Err(DisaggregatedError::Cluster(16))));
    assert!(TransferMode::parse("shared-storage").unwrap_err().contains("not built"));
    assert!(Placement::parse("anywhere").is_err());
}

#[test]
fn static_batches_are_not_parted() {
    // They were run as if an answer could join and leave at every step: 180 times what the engine itself carries.
    let cluster = cluster();
    let engine = EngineProfile { policy: Policy::Static, ..engine() };
    let (p, d) = (cost(1, 1, &engine), cost(1, 1, &engine));
    let t = traffic(Arrival::Burst, 4, Lengths::Fixed(100), Lengths::Fixed(4));
    let refused = simulate_disaggregated(&input((&p, 1), (&d, 1), &engine, &cluster, &t)).unwrap_err();
    assert!(refused.to_string().contains("static batches"), "{refused}");
}

#[test]
fn conversations_in_a_small_decode_pool_are_all_answered() {
    // A decode instance once kept what conversations had said, which nobody could use, until it had no room for others.
    use psim_models::serving::workload::Sessions;
    let (mut engine, cluster) = (engine(), cluster());
    let wide = cost(1, 1, &engine);
    engine.reserve_gib += wide.cache_bytes() / 1024f64.powi(3) - 1.5;
    let (p, d) = (cost(2, 1, &engine), cost(1, 1, &engine));
    let mut w = ServingWorkload::fixed("w", Arrival::Poisson { rate: 15.0 }, 60, 1, 1);
    (w.tenants[0].input, w.tenants[0].output) = (Lengths::Uniform([20, 1500]), Lengths::Uniform([1, 150]));
    w.tenants[0].sessions =
        Some(Sessions { turns: Lengths::Uniform([1, 4]), think_s: 1.0, max_tokens: None });
    let t = Traffic::generate(&w, 0);
    let out = simulate_disaggregated(&input((&p, 2), (&d, 2), &engine, &cluster, &t)).unwrap();
    laws(&out, &t);
}
