//! What engines do between steps: waits, looks at the queue, the front end, the pace of answers.

use super::*;
use psim_cost_models::serving::EngineParameters;

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
