//! Vocabulary Parallelism: 40 measured iterations from measured pass times, by the event schedule.
//!
//! The rows carry F, B, S, T and input-layer times per stage of a 4B model on 8 A100, 8 stages and 128 micro-batches
//! (Yeung et al. 2025, artifact). No kernel model takes part: only the order of the passes is psim's.
#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use psim_hardware::{Bytes, Time};
use psim_models::plan::Schedule;
use psim_sim::pipeline::vocabulary::{
    VocabularyCosts, VocabularySchedule, VocabularyStageCost, simulate_vocabulary,
};
use psim_sim::pipeline::{ChunkCost, ChunkMemory, PipelineCosts, PipelineResult, PipelineSpec, simulate};
use std::collections::BTreeMap;

type Row = BTreeMap<String, String>;

fn rows() -> Option<Vec<Row>> {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/anchors/vocabulary-parallelism-stages.csv");
    let Ok(text) = std::fs::read_to_string(path) else {
        println!("SKIP vocabulary_parallelism: {path} is not there");
        return None;
    };
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned));
    let names: Vec<String> = lines.next().unwrap().collect();
    Some(lines.map(|line| names.iter().cloned().zip(line).collect()).collect())
}

fn number(row: &Row, name: &str) -> f64 {
    row[name].parse().unwrap()
}

fn microseconds(row: &Row, name: &str) -> Vec<Time> {
    row[name].split_whitespace().map(|us| Time(us.parse::<u64>().unwrap() * 1_000_000)).collect()
}

/// Bytes per parameter: weight and gradient in bf16, master weight and two moments in fp32.
const STATE: f64 = 16.0;

fn run(row: &Row) -> PipelineResult {
    let micro_batches = number(row, "num_microbatches") as u32;
    let [forward, backward, softmax, gradient, input_layer] =
        ["f_us", "b_us", "s_us", "t_us", "side_us"].map(|name| microseconds(row, name));
    let (sequence, hidden) = (number(row, "seq_len"), number(row, "hidden"));
    // bf16 activations over third-generation NVLink, 300 GB/s per direction.
    let p2p = Time((sequence * hidden * 2.0 / 300e9 * 1e12) as u64);
    let layers = number(row, "layers") / number(row, "pp");
    // 34 s b h bytes per layer with flash attention (Korthikanti et al. 2022, without the attention matrices).
    let activation = Bytes((34.0 * sequence * hidden * layers) as u64);
    let schedule = match row["method"].as_str() {
        "vocab" => VocabularySchedule::OneBarrier,
        "synctwice" => VocabularySchedule::TwoBarriers,
        "interlaced" => VocabularySchedule::Interlaced,
        "base" | "redis" => {
            let spec = PipelineSpec {
                schedule: Schedule::OneFOneB,
                stages: 8,
                chunks_per_stage: 1,
                micro_batches,
                ..Default::default()
            };
            let chunk = |(&forward, &backward): (&Time, &Time)| ChunkCost {
                forward,
                backward_input: backward,
                backward_weight: Time::ZERO,
            };
            let memory = vec![ChunkMemory { forward: activation, weight: Bytes::ZERO }; 8];
            let chunks = forward.iter().zip(&backward).map(chunk).collect();
            return simulate(&spec, &PipelineCosts { chunks, p2p, memory, ..Default::default() }).unwrap();
        }
        other => panic!("unknown method {other}"),
    };
    let stages = (0..8)
        .map(|s| VocabularyStageCost {
            forward: forward[s],
            backward: backward[s],
            softmax: softmax[s],
            gradient: gradient[s],
            input_layer: input_layer[s],
            activation,
        })
        .collect();
    // The exchanges move as much as one boundary, among all.
    simulate_vocabulary(schedule, &VocabularyCosts { stages, p2p, barrier: p2p * 2 }, micro_batches).unwrap()
}

#[test]
fn iterations_follow_from_pass_times() {
    let Some(rows) = rows() else { return };
    assert_eq!(rows.len(), 40);
    let mut worst: f64 = 0.0;
    for row in &rows {
        let result = run(row);
        let simulated = result.makespan.seconds().0 * 1e3;
        let measured = number(row, "iteration_ms");
        let ratio = simulated / measured;
        println!(
            "{:12} s {} V {:6}: measured {measured:8.1} ms, simulated {simulated:8.1} ms, {:+.2} %",
            row["method"],
            row["seq_len"],
            row["vocab"],
            100.0 * (ratio - 1.0)
        );
        worst = worst.max((ratio - 1.0).abs());
    }
    println!("worst {:.2} %", 100.0 * worst);
    assert!(worst <= 0.02);
}

#[test]
fn micro_batches_in_flight_are_those_of_the_paper() {
    let Some(rows) = rows() else { return };
    for row in &rows {
        let (stages, held) = (8, run(row).stages[0].peak_total_in_flight);
        let expected = match row["method"].as_str() {
            "vocab" => stages + 1,
            "synctwice" => stages + 2,
            "interlaced" => stages * 3 / 2,
            _ => stages,
        };
        assert_eq!(held, expected, "{}", row["name"]);
        // Column c20 has no name upstream; it is the authors' own estimate of activations: this count times a
        // constant of the sequence length.
        let per_micro_batch = number(row, "c20") / f64::from(held);
        let constant = 909.1 * number(row, "seq_len") / 2048.0;
        assert!((per_micro_batch / constant - 1.0).abs() < 1e-3, "{}", row["name"]);
    }
}

/// Largest memory that a stage allocates, in MiB: states of its parameters, activations of the schedule's micro-batches
/// in flight, and the largest temporary of the vocabulary layers.
fn peak_memory(row: &Row) -> f64 {
    let (sequence, hidden, vocabulary) =
        (number(row, "seq_len"), number(row, "hidden"), number(row, "vocab"));
    let result = run(row);
    let embedding = vocabulary * hidden;
    let layers = 4.0 * (12.0 * hidden * hidden + 13.0 * hidden);
    // Logits in bf16 and fp32 and the softmax.
    let logits = 10.0 * sequence * vocabulary;
    let spread = matches!(row["method"].as_str(), "vocab" | "synctwice" | "interlaced");
    let peaks = result.stages.iter().enumerate().map(|(stage, outcome)| {
        let activations = outcome.peak_activations.as_f64();
        if spread {
            return STATE * (layers + 2.0 * embedding / 8.0) + activations + logits / 8.0;
        }
        let last_has_layers = row["method"] == "base";
        match stage {
            // The gradient of the embedding comes when the last micro-batch's activations are gone.
            0 => {
                let one = activations / f64::from(outcome.peak_total_in_flight);
                STATE * (layers + embedding) + activations.max(activations - one + 2.0 * embedding)
            }
            7 if last_has_layers => STATE * (layers + embedding) + activations + logits,
            7 => STATE * embedding + logits,
            _ => STATE * layers + activations,
        }
    });
    peaks.fold(0.0, f64::max) / 1_048_576.0
}

#[test]
fn peak_memory_follows_from_the_micro_batches_in_flight() {
    let Some(rows) = rows() else { return };
    let mut worst: f64 = 0.0;
    for row in &rows {
        // Column c24, the largest allocation over the stages (the named column is what the allocator has reserved).
        let (simulated, measured) = (peak_memory(row), number(row, "c24"));
        let difference = simulated / measured - 1.0;
        println!(
            "{:12} s {} V {:6}: measured {measured:7.0} MiB, simulated {simulated:7.0} MiB, {:+.1} %",
            row["method"],
            row["seq_len"],
            row["vocab"],
            100.0 * difference
        );
        worst = worst.max(difference.abs());
    }
    println!("worst {:.1} %", 100.0 * worst);
    assert!(worst <= 0.05);
}
