//! Laws of runs that speculate, whatever the engine, the pages, the pools and the conversations.

use super::*;
use crate::serving::{
    AdapterMode, AdapterOptions, CacheTier, DisaggregatedInput, Placement, Pool, Preemption, Router,
    TransferMode, simulate_disaggregated, simulate_disaggregated_with,
};
use proptest::prelude::*;
use psim_hardware::{Bytes, BytesPerSec, Cluster, Seconds};
use psim_models::serving::workload::Sessions;

fn cluster() -> Cluster {
    homogeneous("H100-SXM-80GB", 16, &HomogeneousOptions::default()).unwrap()
}

fn check(run: &ServingRun, traffic: &Traffic) {
    let (mut sojourn, mut generated) = (0.0, 0);
    for (o, r) in run.outcomes.iter().zip(&traffic.requests) {
        assert!(o.finish.0 > 0 && o.sent <= o.first_token && o.first_token <= o.finish, "{o:?}");
        sojourn += (o.finish - o.sent).0 as f64 * 1e-12;
        generated += if o.refused { 0 } else { u64::from(r.output) };
    }
    assert_eq!(run.generated_tokens, generated, "tokens are conserved");
    assert!((run.request_seconds / sojourn - 1.0).abs() < 1e-9, "Little: {} {sojourn}", run.request_seconds);
    assert_eq!((run.extra.unfinished, run.extra.leaked_bytes), (0, 0));
    assert!(run.peak_cache <= 1.0);
    assert!(run.extra.round_tokens >= run.extra.rounds);
}

const POLICIES: [Policy; 8] = [
    Policy::Static,
    Policy::Orca,
    Policy::PrefillPriority,
    Policy::ChunkedPrefill,
    Policy::Radix,
    Policy::InflightNoEvict,
    Policy::FastSwitch,
    Policy::SLora,
];

fn price(model: &str, d: Deployment, engine: &EngineProfile) -> StepCost {
    let (model, cluster) = (presets::find(model).unwrap(), cluster());
    StepCost::new(&model, &d, &cluster, cluster.first_node(), engine, &ProfileLibrary::built_in()).unwrap()
}

fn bf16(tp: u32) -> Deployment {
    Deployment::tensor_parallel(tp, Quantization::uniform(NumberFormat::Bf16))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Every engine, with little memory, with and without conversations, swapping or not: nothing is lost.
    #[test]
    fn laws_hold_for_every_engine(
        policy in 0usize..POLICIES.len(),
        drafts in 1u32..9,
        rate in 0.0f64..1.0,
        gib in 1.0f64..40.0,
        talks in any::<bool>(),
        windows in any::<bool>(),
        swap in any::<bool>(),
        seed in 0u64..50,
    ) {
        let mut engine = EngineProfile { policy: POLICIES[policy], ..find("vllm-v1").unwrap().clone() };
        let name = if windows { "gpt-oss-20b" } else { "llama3-8b" };
        let wide = price(name, bf16(1), &engine);
        engine.reserve_gib += (wide.cache_bytes() / 1024f64.powi(3) - gib).max(0.0);
        let target = price(name, bf16(1), &engine);
        let draft = price("llama3.2-1b", bf16(1), &engine);
        let mut w = ServingWorkload::fixed("w", Arrival::Poisson { rate: 15.0 }, 60, 1, 1);
        w.tenants[0].input = Lengths::Uniform([20, 1500]);
        w.tenants[0].output = Lengths::Uniform([1, 150]);
        if talks {
            w.tenants[0].sessions =
                Some(Sessions { turns: Lengths::Uniform([1, 4]), think_s: 1.0, max_tokens: None });
        }
        let traffic = Traffic::generate(&w, seed);
        let drafter = match drafts % 4 {
            0 => Drafter::Heads { tokens: drafts, layers: 1 },
            1 => Drafter::Model { cost: &draft, tokens: drafts, exchange: 0.0 },
            2 => Drafter::Copy { tokens: drafts },
            _ => Drafter::Parallel { cost: &draft, tokens: drafts },
        };
        let speculating = Speculating::new(&target, drafter, Acceptance::Rate(rate), seed);
        let preemption =
            if swap { Preemption::Swap(BytesPerSec(25e9)) } else { Preemption::Recompute };
        let options = FleetOptions { router: Router::LeastLoad, preemption, ..FleetOptions::default() };
        let input = ServingInput { cost: &target, engine: &engine, traffic: &traffic, replicas: 2, options };
        let beside = Beside { speculation: Some(&speculating), ..Beside::default() };
        let run = simulate_with(&input, beside).unwrap();
        check(&run, &traffic);
        prop_assert_eq!(&run, &simulate_with(&input, beside).unwrap());
    }

    /// Pools: prompts with a draft model on one side, rounds on the other.
    #[test]
    fn laws_hold_for_pools(
        drafts in 1u32..6,
        rate in 0.0f64..1.0,
        gib in 1.5f64..30.0,
        talks in any::<bool>(),
        layered in any::<bool>(),
        seed in 0u64..50,
    ) {
        let mut engine = EngineProfile { policy: Policy::ChunkedPrefill, ..find("vllm-v1").unwrap().clone() };
        let wide = price("llama3-8b", bf16(1), &engine);
        engine.reserve_gib += (wide.cache_bytes() / 1024f64.powi(3) - gib - 3.0).max(0.0);
        let (p, d) = (price("llama3-8b", bf16(2), &engine), price("llama3-8b", bf16(1), &engine));
        let (pd, dd) = (price("llama3.2-1b", bf16(2), &engine), price("llama3.2-1b", bf16(1), &engine));
        let mut w = ServingWorkload::fixed("w", Arrival::Poisson { rate: 15.0 }, 60, 1, 1);
        w.tenants[0].input = Lengths::Uniform([20, 1500]);
        w.tenants[0].output = Lengths::Uniform([1, 150]);
        if talks {
            w.tenants[0].sessions =
                Some(Sessions { turns: Lengths::Uniform([1, 4]), think_s: 1.0, max_tokens: None });
        }
        let traffic = Traffic::generate(&w, seed);
        let pair = if drafts % 2 == 0 {
            let model = |cost| Drafter::Model { cost, tokens: drafts, exchange: 0.0 };
            (model(&pd), model(&dd))
        } else {
            let heads = Drafter::Heads { tokens: drafts, layers: 1 };
            (heads.clone(), heads)
        };
        let speculating = Speculating::new(&d, pair.1, Acceptance::Rate(rate), seed);
        let cluster = cluster();
        let input = DisaggregatedInput {
            prefill: Pool { cost: &p, engine: &engine, instances: 2, context_parallel: 1, group: 0 },
            decode: Pool { cost: &d, engine: &engine, instances: 2, context_parallel: 1, group: 0 },
            cluster: &cluster,
            placement: Placement::Paired,
            transfer: if layered { TransferMode::LayerWise } else { TransferMode::AfterPrompt },
            traffic: &traffic,
            coalesce: true,
        };
        let beside =
            Beside { speculation: Some(&speculating), prompts: Some(&pair.0), ..Beside::default() };
        let found = simulate_disaggregated_with(&input, beside).unwrap();
        check(&found.run, &traffic);
        prop_assert!(found.prefill_peak <= 1.0);
        let prompts: u64 = traffic.requests.iter().zip(&found.run.outcomes)
            .filter(|(_, o)| !o.refused).map(|(r, _)| u64::from(r.input)).sum();
        prop_assert_eq!(found.run.computed_prompt_tokens, prompts);
        // Keys and values of drafts cross the wire too.
        let plain = simulate_disaggregated(&input).unwrap();
        let refused = found.run.outcomes.iter().filter(|o| o.refused).count();
        if refused == 0 && plain.bytes > 0.0 {
            prop_assert!(found.bytes > plain.bytes);
        }
    }
}

#[test]
fn drafts_that_are_right_speed_up_pools_conversations_and_copies_of_the_attention() {
    let engine = find("vllm-v1").unwrap();
    let target = price("llama3-70b", bf16(8), engine);
    let cluster = cluster();
    let mut w = ServingWorkload::fixed("w", Arrival::Poisson { rate: 1.0 }, 60, 400, 120);
    let single = Traffic::generate(&w, 1);
    w.tenants[0].sessions = Some(Sessions { turns: Lengths::Fixed(3), think_s: 2.0, max_tokens: None });
    let talks = Traffic::generate(&w, 1);
    let heads = Drafter::Heads { tokens: 1, layers: 1 };
    let speculating = Speculating::new(&target, heads.clone(), Acceptance::Rate(1.0), 1);
    let right = Beside { speculation: Some(&speculating), prompts: Some(&heads), ..Beside::default() };
    let answer = |run: &ServingRun| -> f64 {
        run.outcomes.iter().map(|o| (o.finish.0 - o.first_token.0) as f64).sum()
    };
    let radix = EngineProfile { policy: Policy::Radix, ..engine.clone() };
    for traffic in [&single, &talks] {
        let options = FleetOptions::default();
        let input = ServingInput { cost: &target, engine: &radix, traffic, replicas: 1, options };
        let (slow, fast) = (crate::serving::simulate(&input).unwrap(), simulate_with(&input, right).unwrap());
        assert!((0.5..0.65).contains(&(answer(&fast) / answer(&slow))));
        check(&fast, traffic);
        // What was said before is found in the cache, drafts or not.
        assert_eq!(fast.cached_prompt_tokens > 0, traffic.requests.iter().any(|r| r.turn > 0));
        let pool = |instances| Pool { cost: &target, engine, instances, context_parallel: 1, group: 0 };
        let input = DisaggregatedInput {
            prefill: pool(1),
            decode: pool(1),
            cluster: &cluster,
            placement: Placement::Apart,
            transfer: TransferMode::LayerWise,
            traffic,
            coalesce: true,
        };
        let slow = simulate_disaggregated(&input).unwrap().run;
        let fast = simulate_disaggregated_with(&input, right).unwrap().run;
        assert!((0.5..0.65).contains(&(answer(&fast) / answer(&slow))));
    }
    // Two copies of the attention side by side.
    let q = Quantization::uniform(NumberFormat::Bf16);
    let copies = Deployment { attention_dp: 2, ep: 2, ..Deployment::tensor_parallel(1, q) };
    let copied = price("qwen3-30b-a3b", copies, engine);
    let speculating = Speculating::new(&copied, heads, Acceptance::Rate(1.0), 1);
    let beside = Beside { speculation: Some(&speculating), ..Beside::default() };
    let input = ServingInput {
        cost: &copied,
        engine,
        traffic: &single,
        replicas: 1,
        options: FleetOptions::default(),
    };
    let (slow, fast) = (crate::serving::simulate(&input).unwrap(), simulate_with(&input, beside).unwrap());
    let gain = answer(&fast) / answer(&slow);
    assert!((0.5..0.9).contains(&gain), "{gain}");
    check(&fast, &single);
}

#[test]
fn steps_with_prompts_go_on_from_rounds_without() {
    // A step that verifies is priced in two ways: alone in one lane, and beside prompts or in several lanes.
    for (model, tp) in [("llama3-70b", 8), ("llama3-8b", 1), ("qwen3-30b-a3b", 1)] {
        let target = cost(model, "H100-SXM-80GB", tp);
        for (sequences, drafts) in [(1, 1), (8, 3), (64, 3), (128, 7)] {
            let context = target.reads(sequences, 1000);
            let lane = Lane { decoding: sequences, context, chunks: &[] };
            let (alone, beside) =
                (target.verify(sequences, drafts + 1, &context), target.verifying(drafts).seconds(&[lane]));
            println!("{model} {sequences} {drafts}: {:.3}", beside / alone);
            assert!((0.9..1.1).contains(&(beside / alone)), "{model} {sequences} {drafts}: {alone} {beside}");
        }
    }
}

#[test]
fn routers_tiers_and_adapters_go_with_speculation() {
    let engine = EngineProfile { policy: Policy::Radix, ..find("vllm-v1").unwrap().clone() };
    let target = price("llama3-8b", bf16(1), &engine);
    let mut w = ServingWorkload::fixed("w", Arrival::Poisson { rate: 6.0 }, 120, 500, 60);
    w.tenants[0].sessions = Some(Sessions { turns: Lengths::Fixed(3), think_s: 2.0, max_tokens: None });
    let traffic = Traffic::generate(&w, 1);
    let drafter = Drafter::Copy { tokens: 3 };
    let speculating = Speculating::new(&target, drafter, Acceptance::Rate(0.6), 1);
    let tier = CacheTier { capacity: Bytes(64 << 30), rate: BytesPerSec(25e9) };
    let adapters = AdapterOptions {
        mode: AdapterMode::Unified,
        bytes: Bytes(100 << 20),
        link: BytesPerSec(25e9),
        read: BytesPerSec(2e12),
        launches: Seconds(1e-4),
    };
    for router in [Router::RoundRobin, Router::LeastLoad, Router::PrefixAware] {
        let options = FleetOptions {
            router,
            tiers: [Some(tier), None],
            adapters: Some(adapters),
            ..FleetOptions::default()
        };
        let input = ServingInput { cost: &target, engine: &engine, traffic: &traffic, replicas: 3, options };
        let beside = Beside { speculation: Some(&speculating), ..Beside::default() };
        check(&simulate_with(&input, beside).unwrap(), &traffic);
    }
}
