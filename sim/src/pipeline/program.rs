//! The passes of a pipeline in an order in which every input is there when it is needed.
//!
//! Which pass waits for which follows from the order per stage alone, so one list of all passes in topological order
//! serves every plan with the same schedule, stages, chunks and micro-batches: timing it is a loop without waiting.

use super::{ChunkMemory, PipelineError, PipelineSpec};
use crate::schedule::{self, Order, PassKind};
use psim_hardware::Bytes;
use std::collections::VecDeque;

/// Kinds of passes: routes come in threes.
pub(super) const KINDS: u32 = 3;

/// One pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// `(stage · chunks per stage + local chunk) · KINDS + kind`.
    pub(super) route: u32,
    /// Micro-batch.
    pub(super) micro_batch: u32,
}

/// Activations that a stage holds at most; follows from the order alone.
#[derive(Debug, Clone, Default)]
pub(super) struct Holding {
    /// Per local chunk.
    pub(super) per_chunk: Vec<u32>,
    /// Over all chunks.
    pub(super) total: u32,
}

/// All passes of a pipeline.
#[derive(Debug, Clone, Default)]
pub(super) struct Program {
    pub(super) steps: Vec<Step>,
    pub(super) holdings: Vec<Holding>,
    pub(super) split_backward: bool,
}

/// Where the input of a pass comes from and where its output goes, as (kind, model chunk).
pub(super) struct Ends {
    pub(super) input: Option<(PassKind, u32)>,
    pub(super) output: Option<(PassKind, u32)>,
}

/// Ends of a pass of `kind` in model chunk `chunk` out of `chunks`; the output is the pass that waits for it.
pub(super) fn ends(kind: PassKind, chunk: u32, chunks: u32) -> Ends {
    use PassKind::{Backward, Forward, Weight};
    let last = chunk + 1 == chunks;
    match kind {
        Forward => Ends {
            input: chunk.checked_sub(1).map(|c| (Forward, c)),
            output: Some(if last { (Backward, chunk) } else { (Forward, chunk + 1) }),
        },
        Backward => Ends {
            input: Some(if last { (Forward, chunk) } else { (Backward, chunk + 1) }),
            output: chunk.checked_sub(1).map(|c| (Backward, c)),
        },
        Weight => Ends { input: Some((Backward, chunk)), output: None },
    }
}

/// A slot that no stage waits for.
const NONE: usize = usize::MAX;
/// Passes that a stage adds before the next stage's turn.
const TURN: usize = 4;

/// Slots of a route, and the stage that waits for its output.
struct Place {
    input: usize,
    output: usize,
    consumer: u32,
}

impl Program {
    /// Sorts the passes of `order`.
    ///
    /// # Errors
    /// The order contradicts the dependencies.
    pub(super) fn new(spec: &PipelineSpec, order: &Order) -> Result<Self, PipelineError> {
        let (per_stage, batches) = (spec.chunks_per_stage, spec.micro_batches as usize);
        let chunks = spec.stages * per_stage;
        // What each route needs, by model chunk and kind; one slot per output of a forward or backward pass.
        let row = |kind: PassKind, chunk: u32| (kind as u32 * chunks + chunk) as usize * batches;
        let mut places = Vec::with_capacity((chunks * KINDS) as usize);
        for stage in 0..spec.stages {
            for local in 0..per_stage {
                let chunk = schedule::model_chunk(spec, stage, local);
                for kind in [PassKind::Forward, PassKind::Backward, PassKind::Weight] {
                    let ends = ends(kind, chunk, chunks);
                    places.push(Place {
                        input: ends.input.map_or(NONE, |(kind, chunk)| row(kind, chunk)),
                        output: if kind == PassKind::Weight { NONE } else { row(kind, chunk) },
                        consumer: ends.output.map_or(stage, |(_, to)| schedule::stage_of_chunk(spec, to)),
                    });
                }
            }
        }
        let mut arrived = vec![false; 2 * chunks as usize * batches];
        let mut next: Vec<usize> = order.starts[..spec.stages as usize].to_vec();
        let mut waits = vec![NONE; spec.stages as usize];
        let mut steps = Vec::with_capacity(order.passes.len());
        // Stages take turns, so that passes that follow each other in the list rarely wait for each other.
        let mut turn: VecDeque<u32> = (0..spec.stages).collect();
        while let Some(stage) = turn.pop_front() {
            let from = next[stage as usize];
            let to = order.starts[stage as usize + 1].min(from + TURN);
            let mut blocked = from == to;
            for pass in &order.passes[from..to] {
                let route = (stage * per_stage + u32::from(pass.chunk)) * KINDS + pass.kind as u32;
                let place = &places[route as usize];
                let batch = pass.micro_batch as usize;
                if place.input != NONE && !arrived[place.input + batch] {
                    waits[stage as usize] = place.input + batch;
                    blocked = true;
                    break;
                }
                if place.output != NONE {
                    let slot = place.output + batch;
                    arrived[slot] = true;
                    let wait = &mut waits[place.consumer as usize];
                    if *wait == slot {
                        *wait = NONE;
                        turn.push_back(place.consumer);
                    }
                }
                steps.push(Step { route, micro_batch: pass.micro_batch });
                next[stage as usize] += 1;
            }
            if !blocked {
                turn.push_back(stage);
            }
        }
        for (stage, (&next, range)) in next.iter().zip(order.starts.windows(2)).enumerate() {
            if next < range[1] {
                return Err(PipelineError::Deadlock { stage: stage as u32, position: next - range[0] });
            }
        }
        let holdings =
            (0..spec.stages as usize).map(|stage| holding(spec.chunks_per_stage, order, stage)).collect();
        Ok(Self { steps, holdings, split_backward: order.split_backward })
    }

    /// Largest activation memory that each stage holds at once, into `peaks`.
    pub(super) fn peak_activations(&self, spec: &PipelineSpec, memory: &[ChunkMemory]) -> Vec<Bytes> {
        let mut peaks = vec![Bytes::ZERO; spec.stages as usize];
        if memory.is_empty() {
            return peaks;
        }
        let mut held = vec![0_u64; spec.stages as usize];
        for step in &self.steps {
            let (place, kind) = (step.route / KINDS, step.route % KINDS);
            let (stage, local) = (place / spec.chunks_per_stage, place % spec.chunks_per_stage);
            let chunk = memory[schedule::model_chunk(spec, stage, local) as usize];
            let held = &mut held[stage as usize];
            if kind == PassKind::Forward as u32 {
                *held += chunk.forward.0;
            } else if kind == PassKind::Weight as u32 {
                *held -= chunk.weight.0;
            } else {
                *held -= chunk.forward.0;
                if self.split_backward {
                    *held += chunk.weight.0;
                }
            }
            let peak = &mut peaks[stage as usize];
            *peak = Bytes(*held).max(*peak);
        }
        peaks
    }
}

/// Counts what the order of one stage holds: a chunk's activations from its forward pass to its last backward pass.
fn holding(chunks: u32, order: &Order, stage: usize) -> Holding {
    let mut now = vec![0_u32; chunks as usize];
    let mut most = Holding { per_chunk: now.clone(), total: 0 };
    let mut total = 0;
    let release = if order.split_backward { PassKind::Weight } else { PassKind::Backward };
    for pass in order.stage(stage) {
        let chunk = usize::from(pass.chunk);
        if pass.kind == PassKind::Forward {
            now[chunk] += 1;
            total += 1;
            most.per_chunk[chunk] = most.per_chunk[chunk].max(now[chunk]);
            most.total = most.total.max(total);
        } else if pass.kind == release {
            now[chunk] -= 1;
            total -= 1;
        }
    }
    most
}
