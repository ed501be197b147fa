use super::dynamic::DynamicProgram;
use super::integer_program::IntegerProgram;
use super::*;
use proptest::prelude::*;

/// Every contiguous assignment, one after another.
fn exhaustive(problem: &Problem) -> Option<u64> {
    fn go(problem: &Problem, counts: &mut Vec<u32>, left: usize, best: &mut Option<u64>) {
        if counts.len() == problem.stages.len() {
            if let Some(t) = problem.slowest(counts) {
                *best = Some(best.map_or(t, |b| b.min(t)));
            }
            return;
        }
        for n in 1..=left {
            counts.push(n as u32);
            go(problem, counts, left - n, best);
            counts.pop();
        }
    }
    let mut best = None;
    go(problem, &mut Vec::new(), problem.layers.len(), &mut best);
    best
}

fn layer() -> impl Strategy<Value = LayerLoad> {
    (1..100u64, 0..50u64, 0..20u64).prop_map(|(time, state_bytes, activation_bytes)| LayerLoad {
        time,
        state_bytes,
        activation_bytes,
    })
}

fn stage() -> impl Strategy<Value = StageLimit> {
    (0..80u64, 0..50u64, 1..5u64, prop_oneof![40..600u64, 600..6000u64]).prop_map(
        |(extra_time, extra_bytes, in_flight, capacity)| StageLimit {
            extra_time,
            extra_bytes,
            in_flight,
            capacity,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_dynamic_program_equals_trying_everything(
        layers in prop::collection::vec(layer(), 1..10),
        stages in prop::collection::vec(stage(), 1..5),
    ) {
        let problem = Problem { layers, stages };
        let found = DynamicProgram.partition(&problem);
        let oracle = exhaustive(&problem);
        prop_assert_eq!(found.as_ref().ok().map(|p| p.slowest), oracle);
        if let Ok(partition) = found {
            prop_assert_eq!(problem.slowest(&partition.counts), oracle);
        }
    }

    #[test]
    fn the_integer_program_agrees_on_equal_layers(
        each in layer(),
        count in 1usize..40,
        stages in prop::collection::vec(stage(), 1..7),
    ) {
        let problem = Problem { layers: vec![each; count], stages };
        let dynamic = DynamicProgram.partition(&problem);
        let integer = IntegerProgram.partition(&problem);
        prop_assert!(!matches!(integer, Err(PartitionError::Solver(_))), "{:?}", integer);
        prop_assert_eq!(dynamic.ok().map(|p| p.slowest), integer.ok().map(|p| p.slowest));
    }
}

#[test]
fn a_heavy_output_layer_takes_layers_off_the_last_stage() {
    // Llama 3 405B gave the first and last stage one layer less for the same reason.
    let layers = vec![LayerLoad { time: 100, state_bytes: 1, activation_bytes: 1 }; 32];
    let plain = StageLimit { extra_time: 0, extra_bytes: 0, in_flight: 1, capacity: 1_000 };
    let mut stages = vec![plain; 4];
    stages[3].extra_time = 150;
    let found = DynamicProgram.partition(&Problem { layers, stages }).unwrap();
    assert_eq!(found.slowest, 900);
    assert!(found.counts[3] <= 7, "{found:?}");
}

#[test]
fn impossible_problems_say_why() {
    let layers = vec![LayerLoad { time: 1, state_bytes: 10, activation_bytes: 0 }; 4];
    let tight = StageLimit { extra_time: 0, extra_bytes: 0, in_flight: 1, capacity: 15 };
    let error = DynamicProgram.partition(&Problem { layers: layers.clone(), stages: vec![tight; 3] });
    assert!(matches!(error, Err(PartitionError::Memory { .. })));
    let error = DynamicProgram.partition(&Problem { layers, stages: vec![tight; 5] });
    assert!(matches!(error, Err(PartitionError::TooFewLayers { stages: 5, layers: 4 })));
}
