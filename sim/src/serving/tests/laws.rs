//! Laws of every run: coalesced as step by step, nothing lost, nothing faster than the roofline.

use super::*;
use proptest::prelude::*;
use psim_cost_models::serving::{KINDS, Lane, PromptChunk};

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
