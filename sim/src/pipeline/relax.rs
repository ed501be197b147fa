//! Times of a fixed order of passes per stage, by relaxation.
//!
//! Each stage runs its passes in a given order, so a pass starts at the later of the end of the pass before it and the
//! arrival of its input. Stages are advanced until they wait for an input and woken when it arrives; every pass is
//! visited once and the result does not depend on the order in which stages are advanced. O(passes), no queue of
//! events. Buffers are kept between runs, and the order too while the specification stays the same.

use super::wavefront::{self, Lane};
use super::{ChunkMemory, PipelineCosts, PipelineError, PipelineResult, PipelineSpec, StageResult};
use crate::schedule::{self, Order, PassKind};
use crate::timeline::{Span, Timeline, Track};
use psim_hardware::{Bytes, Time};

/// No input, no output, no consumer.
const NONE: u32 = u32::MAX;
/// An input that has not arrived.
const PENDING: u64 = u64::MAX;

/// What a pass of one kind does in one chunk.
#[derive(Debug, Clone, Copy)]
struct Route {
    /// Time on the stage.
    duration: u64,
    /// Time after the end during which the stage is blocked by its send.
    blocked: u64,
    /// From the end to the arrival at the consumer.
    latency: u64,
    /// First slot of the inputs (one per micro-batch), or [`NONE`].
    input: u32,
    /// First slot of the outputs, or [`NONE`].
    output: u32,
    /// Stage that the output goes to (the own stage where nobody waits for it).
    consumer: u32,
}

/// Where a stage stands.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    /// Next pass, an index into the order.
    next: usize,
    /// End of its passes.
    end: usize,
    /// From when the stage is free.
    free: u64,
    /// Slot that it waits for.
    waits: u32,
}

/// Simulator of pipelines that keeps its buffers between runs.
#[derive(Debug, Default)]
pub struct PipelineSim {
    spec: Option<PipelineSpec>,
    order: Order,
    holdings: Vec<Holding>,
    routes: Vec<Route>,
    arrivals: Vec<u64>,
    cursors: Vec<Cursor>,
    first_start: Vec<u64>,
    last_end: Vec<u64>,
    chunk_done: Vec<u64>,
    runnable: Vec<u32>,
    lanes: Vec<Lane>,
}

/// Activations that a stage holds at most; follows from the order alone.
#[derive(Debug, Clone, Default)]
struct Holding {
    per_chunk: Vec<u32>,
    total: u32,
}

impl PipelineSim {
    /// A simulator with empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Simulates one step.
    ///
    /// # Errors
    /// A specification that the schedule cannot run, or costs that do not match it.
    pub fn run(
        &mut self,
        spec: &PipelineSpec,
        costs: &PipelineCosts,
    ) -> Result<PipelineResult, PipelineError> {
        if wavefront::applies(spec) {
            schedule::check(spec)?;
            check_lengths(spec, costs)?;
            wavefront::run(spec, costs, &mut self.lanes);
            return Ok(self.result_of_rounds(spec, costs));
        }
        self.prepare(spec, costs)?;
        self.relax(spec, |_, _, _, _| {})?;
        Ok(self.result(spec, costs))
    }

    /// End of the last pass alone, without collecting the outcome per stage.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn makespan(&mut self, spec: &PipelineSpec, costs: &PipelineCosts) -> Result<Time, PipelineError> {
        let end = if wavefront::applies(spec) {
            schedule::check(spec)?;
            check_lengths(spec, costs)?;
            wavefront::run(spec, costs, &mut self.lanes);
            self.lanes.iter().map(|lane| lane.last_end).max()
        } else {
            self.prepare(spec, costs)?;
            self.relax(spec, |_, _, _, _| {})?;
            self.last_end.iter().copied().max()
        };
        Ok(Time(end.unwrap_or_default()))
    }

    /// Simulates one step and records every pass.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with_timeline(
        &mut self,
        spec: &PipelineSpec,
        costs: &PipelineCosts,
    ) -> Result<(PipelineResult, Timeline), PipelineError> {
        self.prepare(spec, costs)?;
        let mut passes = Vec::with_capacity(self.order.passes.len());
        self.relax(spec, |stage, index, start, end| passes.push((start, stage, index, end)))?;
        passes.sort_unstable();
        let tracks = (0..spec.stages)
            .map(|stage| Track { process: format!("stage {stage}"), stream: "compute".to_owned() })
            .collect();
        let spans = passes
            .into_iter()
            .map(|(start, stage, index, end)| {
                let pass = self.order.passes[index];
                let (letter, category) = match pass.kind {
                    PassKind::Forward => ('F', "forward"),
                    PassKind::Backward => ('B', "backward"),
                    PassKind::Weight => ('W', "weight"),
                };
                let name = if spec.chunks_per_stage == 1 {
                    format!("{letter}{}", pass.micro_batch)
                } else {
                    format!("{letter}{}.{}", pass.micro_batch, pass.chunk)
                };
                Span { track: stage, name, category, start: Time(start), end: Time(end) }
            })
            .collect();
        Ok((self.result(spec, costs), Timeline { tracks, spans }))
    }

    /// Forgets the order of the last run, so that the next one builds it again (for benchmarks).
    pub fn forget(&mut self) {
        self.spec = None;
    }

    /// Simulates a given order of passes, which may be unlike that of the schedule in `spec`.
    pub(crate) fn run_order(
        &mut self,
        spec: &PipelineSpec,
        costs: &PipelineCosts,
        order: &Order,
    ) -> Result<PipelineResult, PipelineError> {
        check_lengths(spec, costs)?;
        self.spec = None;
        self.order.clone_from(order);
        self.hold(spec);
        self.reset(spec, costs);
        self.relax(spec, |_, _, _, _| {})?;
        Ok(self.result(spec, costs))
    }

    /// Checks lengths, builds the order if it is not known, and the routes.
    fn prepare(&mut self, spec: &PipelineSpec, costs: &PipelineCosts) -> Result<(), PipelineError> {
        schedule::check(spec)?;
        check_lengths(spec, costs)?;
        // An automatic order depends on the durations too.
        if self.spec.as_ref() != Some(spec) || spec.automatic {
            self.spec = None;
            schedule::build_for(spec, costs, &mut self.order)?;
            self.hold(spec);
            self.spec = Some(*spec);
        }
        self.reset(spec, costs);
        Ok(())
    }

    /// Counts what the order holds.
    fn hold(&mut self, spec: &PipelineSpec) {
        self.holdings.clear();
        for stage in 0..spec.stages as usize {
            self.holdings.push(holding(spec.chunks_per_stage, &self.order, stage));
        }
    }

    /// Fills the routes and clears what the last run left.
    fn reset(&mut self, spec: &PipelineSpec, costs: &PipelineCosts) {
        let chunks = (spec.stages * spec.chunks_per_stage) as usize;
        self.route(spec, costs);
        let slots = 2 * chunks * spec.micro_batches as usize;
        self.arrivals.clear();
        self.arrivals.resize(slots, PENDING);
        self.first_start.clear();
        self.first_start.resize(spec.stages as usize, 0);
        self.last_end.clear();
        self.last_end.resize(spec.stages as usize, 0);
        self.chunk_done.clear();
        self.chunk_done.resize(chunks, 0);
    }

    /// Fills `routes`, three per chunk of a stage, stage by stage.
    fn route(&mut self, spec: &PipelineSpec, costs: &PipelineCosts) {
        let (stages, per_stage) = (spec.stages, spec.chunks_per_stage);
        let (chunks, batches) = (stages * per_stage, spec.micro_batches);
        let transfer = |from: u32, to: u32, boundary| if from == to { 0 } else { costs.boundary(boundary).0 };
        self.routes.clear();
        for stage in 0..stages {
            for local in 0..per_stage {
                let chunk = schedule::model_chunk(spec, stage, local);
                let cost = costs.chunks[chunk as usize];
                let next = (chunk + 1 < chunks).then(|| schedule::stage_of_chunk(spec, chunk + 1));
                let previous = chunk.checked_sub(1).map(|c| schedule::stage_of_chunk(spec, c));
                let blocked = |latency: u64| if costs.p2p_overlap { 0 } else { latency };
                let up = next.map_or(0, |to| transfer(stage, to, chunk));
                let down = previous.map_or(0, |to| transfer(stage, to, chunk.saturating_sub(1)));
                let backward = if self.order.split_backward {
                    cost.backward_input
                } else {
                    cost.backward_input + cost.backward_weight
                };
                self.routes.push(Route {
                    duration: cost.forward.0,
                    blocked: blocked(up),
                    latency: up,
                    input: if previous.is_some() { (chunk - 1) * batches } else { NONE },
                    output: chunk * batches,
                    consumer: next.unwrap_or(stage),
                });
                self.routes.push(Route {
                    duration: backward.0,
                    blocked: blocked(down),
                    latency: down,
                    input: if next.is_some() { (chunks + chunk + 1) * batches } else { chunk * batches },
                    output: (chunks + chunk) * batches,
                    consumer: previous.unwrap_or(stage),
                });
                self.routes.push(Route {
                    duration: cost.backward_weight.0,
                    blocked: 0,
                    latency: 0,
                    input: (chunks + chunk) * batches,
                    output: NONE,
                    consumer: stage,
                });
            }
        }
    }

    /// Runs all stages; `record` gets (stage, index of the pass, start, end).
    fn relax(
        &mut self,
        spec: &PipelineSpec,
        mut record: impl FnMut(u32, usize, u64, u64),
    ) -> Result<(), PipelineError> {
        let per_stage = spec.chunks_per_stage as usize;
        self.cursors.clear();
        self.cursors.extend(self.order.starts.windows(2).map(|range| Cursor {
            next: range[0],
            end: range[1],
            free: 0,
            waits: NONE,
        }));
        self.runnable.clear();
        self.runnable.extend((0..spec.stages).rev());
        while let Some(stage) = self.runnable.pop() {
            let mut cursor = self.cursors[stage as usize];
            cursor.waits = NONE;
            let base = stage as usize * per_stage;
            while cursor.next < cursor.end {
                let pass = self.order.passes[cursor.next];
                let local = base + usize::from(pass.chunk);
                let route = &self.routes[local * 3 + pass.kind as usize];
                let mut start = cursor.free;
                if route.input != NONE {
                    let slot = route.input + pass.micro_batch;
                    let arrival = self.arrivals[slot as usize];
                    if arrival == PENDING {
                        cursor.waits = slot;
                        break;
                    }
                    start = start.max(arrival);
                }
                let end = start.saturating_add(route.duration);
                if route.output != NONE {
                    let slot = route.output + pass.micro_batch;
                    self.arrivals[slot as usize] = end.saturating_add(route.latency).min(PENDING - 1);
                    let consumer = &mut self.cursors[route.consumer as usize];
                    if consumer.waits == slot {
                        consumer.waits = NONE;
                        self.runnable.push(route.consumer);
                    }
                }
                if pass.kind != PassKind::Forward {
                    self.chunk_done[local] = end;
                }
                if cursor.next == self.order.starts[stage as usize] {
                    self.first_start[stage as usize] = start;
                }
                record(stage, cursor.next, start, end);
                self.last_end[stage as usize] = end;
                cursor.free = end.saturating_add(route.blocked);
                cursor.next += 1;
            }
            self.cursors[stage as usize] = cursor;
        }
        match self.cursors.iter().position(|cursor| cursor.next < cursor.end) {
            None => Ok(()),
            Some(stage) => Err(PipelineError::Deadlock {
                stage: stage as u32,
                position: self.cursors[stage].next - self.order.starts[stage],
            }),
        }
    }

    /// Collects the outcome per stage.
    fn result(&self, spec: &PipelineSpec, costs: &PipelineCosts) -> PipelineResult {
        let per_stage = spec.chunks_per_stage as usize;
        let mut makespan = 0;
        let stages = (0..spec.stages as usize)
            .map(|stage| {
                let mut busy = Time::ZERO;
                for local in 0..per_stage {
                    let cost = costs.chunks[schedule::model_chunk(spec, stage as u32, local as u32) as usize];
                    let once = cost.forward + cost.backward_input + cost.backward_weight;
                    busy += once * u64::from(spec.micro_batches);
                }
                makespan = makespan.max(self.last_end[stage]);
                let done = &self.chunk_done[stage * per_stage..(stage + 1) * per_stage];
                StageResult {
                    busy,
                    first_start: Time(self.first_start[stage]),
                    last_end: Time(self.last_end[stage]),
                    chunk_done: done.iter().map(|&t| Time(t)).collect(),
                    peak_in_flight: self.holdings[stage].per_chunk.clone(),
                    peak_total_in_flight: self.holdings[stage].total,
                    peak_activations: self.peak_activations(spec, stage, &costs.memory),
                }
            })
            .collect();
        PipelineResult { makespan: Time(makespan), stages }
    }

    /// Collects the outcome of [`wavefront::run`]; what 1F1B holds is known without counting.
    fn result_of_rounds(&self, spec: &PipelineSpec, costs: &PipelineCosts) -> PipelineResult {
        let stages = (self.lanes.iter().zip(&costs.chunks).zip(0..))
            .map(|((lane, cost), stage)| {
                let held = spec.micro_batches.min(spec.stages - stage);
                let once = cost.forward + cost.backward_input + cost.backward_weight;
                StageResult {
                    busy: once * u64::from(spec.micro_batches),
                    first_start: Time(lane.first_start),
                    last_end: Time(lane.last_end),
                    chunk_done: vec![Time(lane.last_end)],
                    peak_in_flight: vec![held],
                    peak_total_in_flight: held,
                    peak_activations: costs
                        .memory
                        .get(stage as usize)
                        .map_or(Bytes::ZERO, |memory| memory.forward * u64::from(held)),
                }
            })
            .collect::<Vec<_>>();
        let makespan = stages.iter().map(|stage: &StageResult| stage.last_end).max().unwrap_or_default();
        PipelineResult { makespan, stages }
    }

    /// Largest activation memory that `stage` holds at once.
    fn peak_activations(&self, spec: &PipelineSpec, stage: usize, memory: &[ChunkMemory]) -> Bytes {
        if memory.is_empty() {
            return Bytes::ZERO;
        }
        let of = |chunk: u16| memory[schedule::model_chunk(spec, stage as u32, u32::from(chunk)) as usize];
        let (mut held, mut peak) = (0_u64, 0);
        for pass in self.order.stage(stage) {
            let chunk = of(pass.chunk);
            match pass.kind {
                PassKind::Forward => held += chunk.forward.0,
                PassKind::Backward if self.order.split_backward => {
                    held = held + chunk.weight.0 - chunk.forward.0;
                }
                PassKind::Backward => held -= chunk.forward.0,
                PassKind::Weight => held -= chunk.weight.0,
            }
            peak = peak.max(held);
        }
        Bytes(peak)
    }
}

/// Lists per chunk must have one entry per chunk, or per boundary.
fn check_lengths(spec: &PipelineSpec, costs: &PipelineCosts) -> Result<(), PipelineError> {
    let chunks = (spec.stages * spec.chunks_per_stage) as usize;
    let lengths = [
        ("the list of chunk costs", costs.chunks.len(), chunks, false),
        ("the list of transfer times", costs.p2p_per_boundary.len(), chunks - 1, true),
        ("the list of chunk memories", costs.memory.len(), chunks, true),
    ];
    for (what, found, expected, optional) in lengths {
        if found != expected && !(optional && found == 0) {
            return Err(PipelineError::Length { what, found, expected });
        }
    }
    Ok(())
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
