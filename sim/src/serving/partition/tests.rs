use super::*;
use crate::serving::tests::{bf16, cost, engine, workload};
use crate::serving::{FleetOptions, ServingInput, ServingReport, simulate};
use psim_cost_models::serving::Policy;
use psim_hardware::Seconds;
use psim_models::serving::{Arrival, Deployment, Lengths, SharedPrefixes};

fn laws(out: &PartitionRun, traffic: &Traffic) {
    crate::serving::tests::check_laws(&out.run, traffic);
}

#[test]
fn one_request_is_prompt_on_its_share_then_steps_on_the_other() {
    let engine = engine(Policy::ChunkedPrefill);
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let traffic = workload(Arrival::Burst, 1, Lengths::Fixed(1000), Lengths::Fixed(11));
    let partition = Partition { prompts: 0.6, ..Partition::default() };
    let base = PartitionInput { cost: &cost, engine: &engine, traffic: &traffic, partition, coalesce: true };
    let out = simulate_partitioned(&base).unwrap();
    laws(&out, &traffic);
    let chunk = [PromptChunk { tokens: 1000, before: 0 }];
    let prompt =
        cost.seconds_on(&Lane { chunks: &chunk, ..Lane::default() }, Share { compute: 0.6, memory: 1.0 });
    let steps: f64 = (0..10)
        .map(|i| {
            let lane = Lane { decoding: 1, context: cost.reads(1, 1001 + i), chunks: &[] };
            cost.seconds_on(&lane, Share { compute: 0.4, memory: 0.8 })
        })
        .sum();
    let whole = cost.parameters().ttft_ms * 1e-3 + prompt + steps;
    let o = out.run.outcomes[0];
    assert!((o.finish.0 as f64 * 1e-12 - whole).abs() < 1e-8, "{o:?} {whole}");
}

#[test]
fn laws_hold_and_coalesced_is_step_by_step() {
    let engine = engine(Policy::ChunkedPrefill);
    let wide = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let mut tight = engine.clone();
    tight.reserve_gib += wide.cache_bytes() / 1024f64.powi(3) - 1.5;
    let cramped = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &tight);
    for (engine, cost) in [(&engine, &wide), (&tight, &cramped)] {
        for controller in [None, Some(Controller { window: Seconds(0.2), ..Controller::default() })] {
            for arrival in [Arrival::Poisson { rate: 15.0 }, Arrival::ClosedLoop { concurrency: 12 }] {
                let (lengths, answers) = (Lengths::Uniform([20, 4000]), Lengths::Uniform([1, 300]));
                let traffic = workload(arrival, 200, lengths, answers);
                let partition = Partition { controller, ..Partition::default() };
                let base = PartitionInput { cost, engine, traffic: &traffic, partition, coalesce: true };
                let out = simulate_partitioned(&base).unwrap();
                laws(&out, &traffic);
                let slow = simulate_partitioned(&PartitionInput { coalesce: false, ..base }).unwrap();
                assert_eq!(out, slow);
            }
        }
    }
}

#[test]
fn prompts_do_not_stop_answers() {
    // Whole prompts that interrupt decoding stretch the gaps; two processes do not.
    let engine = engine(Policy::Radix);
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let traffic = workload(Arrival::Poisson { rate: 5.0 }, 400, Lengths::Fixed(4000), Lengths::Fixed(150));
    let options = FleetOptions::default();
    let together =
        simulate(&ServingInput { cost: &cost, engine: &engine, traffic: &traffic, replicas: 1, options })
            .unwrap();
    let partition = Partition { controller: Some(Controller::default()), ..Partition::default() };
    let cut = simulate_partitioned(&PartitionInput {
        cost: &cost,
        engine: &engine,
        traffic: &traffic,
        partition,
        coalesce: true,
    })
    .unwrap();
    laws(&cut, &traffic);
    let (together, cut) =
        (ServingReport::new(&together, &traffic, &[]), ServingReport::new(&cut.run, &traffic, &[]));
    assert!(cut.itl_ms.p99 < 0.4 * together.itl_ms.p99, "{:?} {:?}", cut.itl_ms, together.itl_ms);
    assert!(cut.tpot_ms.p99 < together.tpot_ms.p99, "{:?} {:?}", cut.tpot_ms, together.tpot_ms);
}

#[test]
fn the_controller_gives_prompts_what_they_need() {
    // Long prompts and short answers: a fixed tenth for prompts drowns, the controller moves the border.
    let engine = engine(Policy::ChunkedPrefill);
    let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let traffic = workload(Arrival::Poisson { rate: 4.0 }, 400, Lengths::Fixed(4000), Lengths::Fixed(40));
    let run = |controller| {
        let partition = Partition { prompts: 0.2, controller, ..Partition::default() };
        let input =
            PartitionInput { cost: &cost, engine: &engine, traffic: &traffic, partition, coalesce: true };
        let out = simulate_partitioned(&input).unwrap();
        laws(&out, &traffic);
        (ServingReport::new(&out.run, &traffic, &[]).ttft_ms.p50, out.border)
    };
    let (fixed, still) = run(None);
    let (moved, border) = run(Some(Controller::default()));
    assert_eq!(still.len(), 1);
    assert!(border.iter().any(|(_, x)| *x > 0.4), "{border:?}");
    assert!(moved < 0.5 * fixed, "{moved} {fixed}");
}

#[test]
fn wrong_questions_are_refused() {
    let engine = engine(Policy::ChunkedPrefill);
    let cost = cost("llama3-8b", "H100-SXM-80GB", Deployment { pp: 2, ..bf16(1) }, &engine);
    let traffic = workload(Arrival::Burst, 1, Lengths::Fixed(10), Lengths::Fixed(2));
    let partition = Partition::default();
    let base = PartitionInput { cost: &cost, engine: &engine, traffic: &traffic, partition, coalesce: true };
    assert_eq!(simulate_partitioned(&base), Err(PartitionError::Lanes));
    let single = crate::serving::tests::cost("llama3-8b", "H100-SXM-80GB", bf16(1), &engine);
    let base = PartitionInput { cost: &single, ..base };
    let wide = Partition { prompts: 1.0, ..partition };
    assert!(simulate_partitioned(&PartitionInput { partition: wide, ..base }).is_err());
    let none = Traffic { requests: Vec::new(), clients: None, prefixes: SharedPrefixes::default() };
    assert!(simulate_partitioned(&PartitionInput { traffic: &none, ..base }).is_err());
}
