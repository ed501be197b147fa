//! Replicas of two kinds, and runs whose requests are not kept.

use super::*;

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
