use crate::serving::tests::{bf16, check_laws, cost, engine, single, workload};
use crate::serving::{
    AdapterMode, AdapterOptions, CoServing, FleetOptions, ServingInput, ServingRun, SwapOptions, simulate,
};
use psim_cost_models::serving::{EngineProfile, Lane, Policy, PromptChunk, StepCost};
use psim_hardware::{Bytes, BytesPerSec, Seconds, Time};
use psim_models::serving::{Arrival, Lengths, Request, SharedPrefixes, Traffic};

const GPU: &str = "H100-SXM-80GB";

fn priced(policy: Policy) -> (EngineProfile, StepCost) {
    let engine = engine(policy);
    let cost = cost("llama3-8b", GPU, bf16(1), &engine);
    (engine, cost)
}

/// A cache of so many tokens.
fn tight(policy: Policy, tokens: f64) -> (EngineProfile, StepCost) {
    let (mut engine, wide) = priced(policy);
    let spare = wide.cache_bytes() - tokens * wide.shape().kv_bytes_per_token;
    engine.reserve_gib += spare / 1024f64.powi(3);
    let cost = cost("llama3-8b", GPU, bf16(1), &engine);
    (engine, cost)
}

fn with(cost: &StepCost, engine: &EngineProfile, traffic: &Traffic, options: FleetOptions) -> ServingRun {
    let run = simulate(&ServingInput { cost, engine, traffic, replicas: 1, options }).unwrap();
    check_laws(&run, traffic);
    run
}

/// Requests (arrival in milliseconds, prompt, answer).
fn requests(rows: &[(u64, u32, u32)]) -> Traffic {
    let one = |&(ms, input, output): &(u64, u32, u32)| Request {
        arrival: Time(ms * 1_000_000_000),
        input,
        output,
        ..Request::default()
    };
    Traffic { requests: rows.iter().map(one).collect(), clients: None, prefixes: SharedPrefixes::default() }
}

fn burst(n: u32, input: u64, output: u64) -> Traffic {
    workload(Arrival::Burst, n, Lengths::Fixed(input), Lengths::Fixed(output))
}

#[test]
fn static_batches_wait_for_their_longest_answer_and_orca_does_not() {
    let traffic = requests(&[(0, 100, 10), (0, 100, 200), (0, 100, 10)]);
    for (policy, waits) in [(Policy::Static, true), (Policy::Orca, false)] {
        let (mut engine, cost) = priced(policy);
        engine.max_sequences = 2;
        let run = single(&cost, &engine, &traffic);
        assert!(run.outcomes[2].first_token > run.outcomes[0].finish);
        assert_eq!(run.outcomes[2].first_token > run.outcomes[1].finish, waits, "{policy:?}");
    }
}

#[test]
fn a_long_prompt_stalls_decoding_unless_it_is_cut() {
    let traffic = requests(&[(0, 100, 400), (500, 8000, 4)]);
    let stall = |policy, budget| {
        let (mut engine, cost) = priced(policy);
        engine.token_budget = budget;
        let run = single(&cost, &engine, &traffic);
        (run.gaps.percentile(100.0).unwrap() * 1e-12, cost)
    };
    let (whole, cost) = stall(Policy::PrefillPriority, 8192);
    let chunk = |tokens, before| {
        let chunks = [PromptChunk { tokens, before }];
        cost.seconds(&[Lane { chunks: &chunks, ..Lane::default() }])
    };
    // The stall is the prompt's step and the decoding step behind it.
    assert!(whole > chunk(8000, 0) && whole < chunk(8000, 0) + 0.02, "{whole}");
    let (cut, _) = stall(Policy::ChunkedPrefill, 512);
    // The last piece sees the longest prompt; one sequence decodes beside it.
    assert!(cut < 1.1 * chunk(512, 7500) && cut > 0.9 * chunk(511, 0), "{cut}");
}

#[test]
fn split_fuse_fills_every_step() {
    let (mut engine, cost) = priced(Policy::SplitFuse);
    engine.token_budget = 512;
    // ceil(2600 / 512) = 6 steps for the prompt, then 9 more tokens.
    assert_eq!(single(&cost, &engine, &burst(1, 2600, 10)).steps, 6 + 9);
    // Four prompts of 128 fill one step.
    assert_eq!(single(&cost, &engine, &burst(4, 128, 10)).steps, 1 + 9);
}

#[test]
fn radix_reuses_a_prefix_in_whole_blocks() {
    let (engine, cost) = priced(Policy::Radix);
    let mut traffic = requests(&[(0, 1000, 5), (900, 1000, 5)]);
    for r in &mut traffic.requests {
        (r.prefix, r.prefix_group) = (700, 1);
    }
    let run = single(&cost, &engine, &traffic);
    assert_eq!(run.cached_prompt_tokens, u64::from(700 / engine.block_tokens * engine.block_tokens));
    assert!(run.outcomes[1].first_token - run.outcomes[1].sent < run.outcomes[0].first_token);
}

#[test]
fn in_flight_never_evicts_what_vllm_does() {
    let traffic = burst(12, 500, 600);
    for (policy, evicts) in [(Policy::PrefillPriority, true), (Policy::InflightNoEvict, false)] {
        let (engine, cost) = tight(policy, 7000.0);
        let run = with(&cost, &engine, &traffic, FleetOptions::default());
        assert_eq!(run.outcomes.iter().any(|o| o.preemptions > 0), evicts, "{policy:?}");
    }
}

#[test]
fn flover_fuses_requests_after_their_own_prompt() {
    let traffic = burst(3, 8, 5);
    let steps = |policy| {
        let (engine, cost) = priced(policy);
        single(&cost, &engine, &traffic).steps
    };
    // Three prompts alone, then four tokens together; vLLM computes the prompts in one step.
    assert_eq!((steps(Policy::Flover), steps(Policy::PrefillPriority)), (3 + 4, 1 + 4));
}

#[test]
fn fair_switching_serves_who_came_late_and_cheap_copies_pay() {
    // Two answers that do not fit together.
    let traffic = requests(&[(0, 500, 1500), (10, 500, 1500)]);
    let first_come = {
        let (engine, cost) = tight(Policy::InflightNoEvict, 2600.0);
        with(&cost, &engine, &traffic, FleetOptions::default())
    };
    assert!(first_come.outcomes[1].first_token > first_come.outcomes[0].finish);
    let (engine, cost) = tight(Policy::FastSwitch, 2600.0);
    let fair = |swap| {
        with(&cost, &engine, &traffic, FleetOptions { swap, priority_steps: 50, ..FleetOptions::default() })
    };
    let plain = fair(SwapOptions::default());
    assert!(plain.outcomes[1].first_token < plain.outcomes[0].finish);
    assert!(plain.extra.moved_bytes > 0);
    // A copy per block and layer costs host time; groups of twenty save nearly all of it, reuse saves bytes.
    let groups = fair(SwapOptions { group_blocks: 20, ..SwapOptions::default() });
    let fast = fair(SwapOptions::fast_switch());
    assert!(groups.busy < plain.busy && fast.busy <= groups.busy, "{} {}", groups.busy, fast.busy);
    assert!(fast.extra.moved_bytes < plain.extra.moved_bytes);
}

#[test]
fn adapters_share_a_batch_in_s_lora_and_queue_without() {
    let (engine, cost) = priced(Policy::SLora);
    let mut traffic = burst(8, 100, 100);
    for (i, r) in traffic.requests.iter_mut().enumerate() {
        r.adapter = i as u32 % 4 + 1;
    }
    let options = |mode| AdapterOptions {
        mode,
        bytes: Bytes(20 << 20),
        link: BytesPerSec(25e9),
        read: BytesPerSec(2e12),
        launches: Seconds(0.0),
    };
    let run = |mode| {
        with(
            &cost,
            &engine,
            &traffic,
            FleetOptions { adapters: Some(options(mode)), ..FleetOptions::default() },
        )
    };
    let (base, unified, single) = (
        with(&cost, &engine, &traffic, FleetOptions::default()),
        run(AdapterMode::Unified),
        run(AdapterMode::OneAtATime),
    );
    // Every step reads four adapters: 4 * 21 MB / 2 TB/s = 42 us.
    let extra = (unified.busy - base.busy) / 100.0;
    assert!(extra > 30e-6 && extra < 150e-6, "{extra}");
    // One adapter at a time: four batches of two.
    let ratio = single.busy / unified.busy;
    assert!((3.0..4.5).contains(&ratio), "{ratio}");
    assert_eq!(unified.extra.moved_bytes, 4 * (20 << 20));
}

#[test]
fn adapters_and_cache_share_one_pool() {
    let (engine, cost) = tight(Policy::SLora, 3000.0);
    let mut traffic = burst(40, 200, 50);
    for (i, r) in traffic.requests.iter_mut().enumerate() {
        r.adapter = i as u32 + 1;
    }
    // Room for a few adapters beside the cache: others are dropped and fetched.
    let bytes = Bytes((400.0 * cost.shape().kv_bytes_per_token) as u64);
    let adapters = Some(AdapterOptions {
        mode: AdapterMode::Unified,
        bytes,
        link: BytesPerSec(25e9),
        read: BytesPerSec(2e12),
        launches: Seconds(1e-4),
    });
    let run = with(&cost, &engine, &traffic, FleetOptions { adapters, ..FleetOptions::default() });
    assert!(run.extra.moved_bytes >= 40 * bytes.0);
    assert!(run.peak_cache > 0.7);
}

#[test]
fn co_serving_keeps_the_promised_step_and_tunes_in_what_is_left() {
    let (engine, cost) = priced(Policy::FlexLlm);
    let traffic = workload(
        Arrival::Poisson { rate: 5.0 },
        200,
        Lengths::Uniform([50, 300]),
        Lengths::Uniform([20, 100]),
    );
    let limit = 0.04;
    let co_serving = Some(CoServing { step: Seconds(limit), most_tokens: 4096 });
    let tuned = with(&cost, &engine, &traffic, FleetOptions { co_serving, ..FleetOptions::default() });
    assert!(tuned.gaps.percentile(99.0).unwrap() * 1e-12 <= limit * 1.01);
    let alone = with(&cost, &engine, &traffic, FleetOptions::default());
    assert_eq!(alone.extra.tuned_tokens, 0.0);
    // Tuning alone: a step of the promised length over and over, two passes per token.
    let mut most = 0;
    while {
        let chunks = [PromptChunk { tokens: most + 1, before: 0 }];
        cost.seconds(&[Lane { chunks: &chunks, ..Lane::default() }]) <= limit && most < 4096
    } {
        most += 1;
    }
    let seconds = (tuned.end - tuned.start).0 as f64 * 1e-12;
    let peak = f64::from(most) / limit / 2.0 * seconds;
    let share = tuned.extra.tuned_tokens / peak;
    assert!((0.6..1.02).contains(&share), "{share}");
}

#[test]
fn nothing_is_tuned_before_the_first_request() {
    let (engine, cost) = priced(Policy::FlexLlm);
    let co_serving = Some(CoServing { step: Seconds(0.05), most_tokens: 4096 });
    let tuned = |ms| {
        let options = FleetOptions { co_serving, ..FleetOptions::default() };
        with(&cost, &engine, &requests(&[(ms, 100, 20)]), options).extra.tuned_tokens
    };
    let (early, late) = (tuned(0), tuned(20_000));
    assert!(early > 0.0 && (early / late - 1.0).abs() < 1e-9, "{early} {late}");
}
