//! Against queueing theory, and when a queue is said to grow.

use super::*;
use psim_cost_models::serving::{Lane, PromptChunk};

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
