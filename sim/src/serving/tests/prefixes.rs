//! What is found in a cache: shared prefixes, conversations, tiers below the device, blocks of traces.

use super::*;

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
