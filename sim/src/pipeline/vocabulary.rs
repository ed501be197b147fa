//! Vocabulary parallelism: the output layer spread over all stages of 1F1B (Yeung et al. 2025, "Balancing Pipeline
//! Parallelism with Vocabulary Parallelism").
//!
//! The output layer of every micro-batch is cut over the vocabulary into two passes that every stage runs: S (local
//! logits and softmax statistics) and T (gradients). Between them, and before the first backward pass, all stages
//! exchange what the softmax needs. Three ways to place S and T:
//!
//! | schedule | barriers between F and B of the last stage | micro-batches held by stage `s` |
//! | --- | --- | --- |
//! | [`VocabularySchedule::TwoBarriers`] (Vocab-1) | S, barrier, T, barrier | `p - s + 2` |
//! | [`VocabularySchedule::OneBarrier`] (Vocab-2) | S (with the input gradient), barrier; T whenever | `p - s + 1` |
//! | [`VocabularySchedule::Interlaced`] | S and T at the same time on all stages (Lin et al. 2024, nnScaler) | `1.5 p` |
//!
//! The order on each stage is the paper's building block, repeated every `F + B + S + T`: F goes down and B goes up
//! the stages, a barrier costs one repetition, and S and T go where the stage has neither F nor B. Times then follow
//! from the task graph with the real durations.

use super::{PipelineError, PipelineResult, StageResult};
use crate::stream::{Contention, TaskClass, TaskGraph, TaskId, TaskSpec};
use psim_hardware::{Bytes, Time};

/// Where the passes of the output layer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VocabularySchedule {
    /// Vocab-1: a barrier after S and one after T.
    TwoBarriers,
    /// Vocab-2: a barrier after S, which also yields the gradient of the input.
    OneBarrier,
    /// All stages stop for S and T of one micro-batch, as in tensor parallelism.
    Interlaced,
}

/// Durations of the passes of one stage for one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VocabularyStageCost {
    /// Forward pass of the layers.
    pub forward: Time,
    /// Backward pass of the layers.
    pub backward: Time,
    /// S: logits and softmax statistics of the local part of the vocabulary.
    pub softmax: Time,
    /// T: gradients of the output layer.
    pub gradient: Time,
    /// Passes of the input layer, which is spread over the stages in the same way.
    pub input_layer: Time,
    /// Activations that one micro-batch holds on this stage from F to B.
    pub activation: Bytes,
}

/// Costs of a pipeline with vocabulary parallelism.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VocabularyCosts {
    /// Per stage.
    pub stages: Vec<VocabularyStageCost>,
    /// Transfer across one stage boundary; the sender waits for it.
    pub p2p: Time,
    /// One exchange among all stages (broadcast of the last activations, reduction of statistics or gradients).
    pub barrier: Time,
}

/// A pass in the order of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Forward,
    Backward,
    Softmax,
    Gradient,
}

/// Simulates one step.
///
/// # Errors
/// No stage, no micro-batch, or more passes than [`crate::schedule::PASS_LIMIT`].
pub fn simulate_vocabulary(
    schedule: VocabularySchedule,
    costs: &VocabularyCosts,
    micro_batches: u32,
) -> Result<PipelineResult, PipelineError> {
    let stages = costs.stages.len();
    if stages == 0 || micro_batches == 0 {
        return Err(PipelineError::Empty);
    }
    let (passes, limit) =
        ((stages as u64).saturating_mul(8).saturating_mul(micro_batches.into()), crate::schedule::PASS_LIMIT);
    if passes > limit {
        return Err(PipelineError::TooLarge { passes, limit });
    }
    let orders: Vec<_> = (0..stages)
        .map(|stage| match schedule {
            VocabularySchedule::Interlaced => interlaced(stages as u32, stage as u32, micro_batches),
            VocabularySchedule::OneBarrier => building_block(costs, stage, micro_batches, 1),
            VocabularySchedule::TwoBarriers => building_block(costs, stage, micro_batches, 2),
        })
        .collect();
    execute(schedule, costs, micro_batches, &orders)
}

/// Order of a stage in the repeated building block with `barriers` repetitions between F and B of the last stage.
fn building_block(
    costs: &VocabularyCosts,
    stage: usize,
    micro_batches: u32,
    barriers: u64,
) -> Vec<(Kind, u32)> {
    let count = costs.stages.len() as u64;
    // Means over the stages, in millionths of their sum: only the order of the passes depends on them.
    let sum = |of: fn(&VocabularyStageCost) -> Time| {
        costs.stages.iter().map(|stage| u128::from(of(stage).0)).sum::<u128>()
    };
    let sums = [
        sum(|s| s.forward),
        sum(|s| s.backward),
        sum(|s| s.softmax),
        sum(|s| s.gradient) + sum(|s| s.input_layer),
    ];
    let all = sums.iter().sum::<u128>().max(1);
    let [forward, backward, softmax, gradient] = sums.map(|sum| (sum * 1_000_000 / all) as u64 + 1);
    let period = forward + backward + softmax + gradient;
    // F and B move on by their share of a whole period per stage, so that stage `s` holds `p - s` and the barriers.
    let down = period * forward / (forward + backward);
    let up = period - down;
    let stage = stage as u64;
    let first_forward = stage * down;
    let arrival = count * down;
    let first_backward = arrival + barriers * period + (count - 1 - stage) * up;
    // The two gaps of the period: after F until B, and after B until F; as offsets from the arrival at the last stage.
    let phase = |at: u64| (at + count * period - arrival) % period;
    let (after_forward, after_backward) = (phase(first_forward + forward), phase(first_backward + backward));
    let gap = |from: u64, to: u64| (phase(to) + period - from) % period;
    let (room_forward, room_backward) =
        (gap(after_forward, first_backward), gap(after_backward, first_forward));
    let (softmax_at, gradient_at) = if room_forward >= softmax + gradient {
        (after_forward, (after_forward + softmax) % period)
    } else if room_backward >= softmax + gradient {
        (after_backward, (after_backward + softmax) % period)
    } else if (room_forward >= room_backward) == (softmax >= gradient) {
        (after_forward, after_backward)
    } else {
        (after_backward, after_forward)
    };
    let mut keyed = Vec::with_capacity(4 * micro_batches as usize);
    for i in 0..micro_batches {
        let base = u64::from(i) * period;
        keyed.push((base + first_forward, Kind::Forward, i));
        keyed.push((base + first_backward, Kind::Backward, i));
        keyed.push((base + arrival + softmax_at, Kind::Softmax, i));
        keyed.push((base + arrival + period + gradient_at, Kind::Gradient, i));
    }
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, kind, i)| (kind, i)).collect()
}

/// Order of a stage in the interlaced pipeline, window by window: S and T of one micro-batch on all stages together,
/// then F and B, in this order on every other stage. F passes two stages per window and B one, hence `1.5 p`.
fn interlaced(stages: u32, stage: u32, micro_batches: u32) -> Vec<(Kind, u32)> {
    let behind = i64::from(stages - 1 - stage);
    let total = i64::from(micro_batches);
    let mut order = Vec::with_capacity(4 * micro_batches as usize);
    for window in -i64::from(stages)..total + i64::from(stages) + 1 {
        let forward = (Kind::Forward, window + behind / 2);
        let backward = (Kind::Backward, window - 1 - behind);
        let (first, second) = if behind % 2 == 1 { (forward, backward) } else { (backward, forward) };
        for (kind, i) in [(Kind::Softmax, window - 1), (Kind::Gradient, window - 1), first, second] {
            if (0..total).contains(&i) {
                order.push((kind, i as u32));
            }
        }
    }
    order
}

/// Runs the orders as a task graph: a stream per stage and one per kind of exchange.
fn execute(
    schedule: VocabularySchedule,
    costs: &VocabularyCosts,
    micro_batches: u32,
    orders: &[Vec<(Kind, u32)>],
) -> Result<PipelineResult, PipelineError> {
    let (stages, batches) = (costs.stages.len(), micro_batches as usize);
    let mut graph = TaskGraph::new();
    let compute: Vec<_> = (0..stages).map(|stage| graph.stream(stage as u32, "compute")).collect();
    // Exchanges of each kind follow one another; they run beside the passes.
    let exchange: Vec<Vec<TaskId>> = (0..3)
        .map(|_| {
            let stream = graph.stream(stages as u32, "exchange");
            (0..batches)
                .map(|_| {
                    graph.add(TaskSpec::new(stream, costs.barrier, TaskClass::Communication, "communication"))
                })
                .collect()
        })
        .collect();
    // First and last task of each pass; the send of a pass is a task of its own behind it.
    let mut tasks = vec![vec![[(TaskId(0), TaskId(0)); 4]; batches]; stages];
    for (stage, order) in orders.iter().enumerate() {
        let cost = costs.stages[stage];
        for &(kind, i) in order {
            let (duration, sends, category) = match kind {
                Kind::Forward => (cost.forward, stage + 1 < stages, "forward"),
                Kind::Backward => (cost.backward, stage > 0, "backward"),
                Kind::Softmax => (cost.softmax, false, "forward"),
                Kind::Gradient => (cost.gradient + cost.input_layer, false, "weight"),
            };
            let spec = TaskSpec::new(compute[stage], duration, TaskClass::Compute, category);
            let first = graph.add(spec);
            let last = if sends && costs.p2p > Time::ZERO {
                graph.add(TaskSpec::new(compute[stage], costs.p2p, TaskClass::Communication, "communication"))
            } else {
                first
            };
            tasks[stage][i as usize][kind as usize] = (first, last);
        }
    }
    for i in 0..batches {
        let of = |stage: usize, kind: Kind| tasks[stage][i][kind as usize];
        for stage in 1..stages {
            graph.depend(of(stage, Kind::Forward).0, of(stage - 1, Kind::Forward).1);
            graph.depend(of(stage - 1, Kind::Backward).0, of(stage, Kind::Backward).1);
        }
        graph.depend(exchange[0][i], of(stages - 1, Kind::Forward).1);
        for stage in 0..stages {
            graph.depend(of(stage, Kind::Softmax).0, exchange[0][i]);
            graph.depend(exchange[1][i], of(stage, Kind::Softmax).1);
            graph.depend(of(stage, Kind::Gradient).0, exchange[1][i]);
            if schedule != VocabularySchedule::OneBarrier {
                graph.depend(exchange[2][i], of(stage, Kind::Gradient).1);
            }
        }
        let before_backward = if schedule == VocabularySchedule::OneBarrier { 1 } else { 2 };
        graph.depend(of(stages - 1, Kind::Backward).0, exchange[before_backward][i]);
    }
    // The orders contradict their dependencies; none of the three does, as the tests show.
    let times =
        graph.run(&Contention::none()).map_err(|_| PipelineError::Deadlock { stage: 0, position: 0 })?;
    let mut result = PipelineResult::default();
    for (stage, order) in orders.iter().enumerate() {
        let cost = costs.stages[stage];
        let (mut held, mut peak) = (0_u32, 0);
        for (kind, _) in order {
            match kind {
                Kind::Forward => held += 1,
                Kind::Backward => held -= 1,
                Kind::Softmax | Kind::Gradient => {}
            }
            peak = peak.max(held);
        }
        let ends = |i: usize| tasks[stage][i].iter().map(|pass| times.end(pass.0)).max();
        let last_end = (0..batches).filter_map(ends).max().unwrap_or_default();
        let once = cost.forward + cost.backward + cost.softmax + cost.gradient + cost.input_layer;
        result.makespan = result.makespan.max(last_end);
        result.stages.push(StageResult {
            busy: once * u64::from(micro_batches),
            first_start: times.start(tasks[stage][0][Kind::Forward as usize].0),
            last_end,
            chunk_done: vec![last_end],
            peak_in_flight: vec![peak],
            peak_total_in_flight: peak,
            peak_activations: cost.activation * u64::from(peak),
        });
    }
    Ok(result)
}
