//! Times of a fixed order of passes per stage, by relaxation.
//!
//! Each stage runs its passes in a given order, so a pass starts at the later of the end of the pass before it and the
//! arrival of its input. With the passes in topological order ([`Program`]) that is one loop of a few instructions per
//! pass, without a queue of events. 1F1B does not even need the list ([`super::wavefront`]).

use super::program::{KINDS, Program, ends};
use super::wavefront::{self, Lane};
use super::{PipelineCosts, PipelineError, PipelineResult, PipelineSpec, StageResult};
use crate::schedule::{self, Order, PassKind};
use crate::timeline::{Span, Timeline, Track};
use psim_hardware::{Bytes, Time};
use std::collections::BTreeMap;

/// Passes in all programs that a simulator keeps (8 bytes each).
const KEPT_PASSES: usize = 1 << 20;

/// What a pass of one kind does in one chunk.
#[derive(Debug, Clone, Copy)]
struct Route {
    /// Time on the stage.
    duration: u64,
    /// Time after the end during which the stage is blocked by its send.
    blocked: u64,
    /// From the end to the arrival at the consumer.
    latency: u64,
    /// First slot of the inputs, one per micro-batch.
    input: u32,
    /// First slot of the outputs.
    output: u32,
    /// Stage.
    stage: u32,
}

/// Simulator of pipelines. Keeps its buffers, and the programs of the schedules that it has seen, between runs.
#[derive(Debug, Default)]
pub struct PipelineSim {
    programs: BTreeMap<PipelineSpec, Program>,
    kept: usize,
    order: Order,
    routes: Vec<Route>,
    arrivals: Vec<u64>,
    /// From when each stage is free.
    free: Vec<u64>,
    /// End of the last pass of each route.
    ends: Vec<u64>,
    lanes: Vec<Lane>,
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
        check(spec, costs)?;
        if wavefront::applies(spec) {
            wavefront::run(spec, costs, &mut self.lanes);
            return Ok(self.result_of_rounds(spec, costs));
        }
        self.with_program(spec, costs, |sim, program| {
            sim.time(spec, costs, program, |_, _, _| {});
            sim.result(spec, costs, program)
        })
    }

    /// End of the last pass alone, without collecting the outcome per stage.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn makespan(&mut self, spec: &PipelineSpec, costs: &PipelineCosts) -> Result<Time, PipelineError> {
        check(spec, costs)?;
        if wavefront::applies(spec) {
            wavefront::run(spec, costs, &mut self.lanes);
            return Ok(Time(self.lanes.iter().map(|lane| lane.last_end).max().unwrap_or_default()));
        }
        self.with_program(spec, costs, |sim, program| {
            sim.time(spec, costs, program, |_, _, _| {});
            Time(sim.ends.iter().copied().max().unwrap_or_default())
        })
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
        check(spec, costs)?;
        self.with_program(spec, costs, |sim, program| sim.record(spec, costs, program))
    }

    /// Simulates this order of passes and records every pass.
    ///
    /// # Errors
    /// As [`Self::run`], and when the order cannot run (a pass waits for one behind it).
    pub fn run_order_with_timeline(
        &mut self,
        spec: &PipelineSpec,
        costs: &PipelineCosts,
        order: &Order,
    ) -> Result<(PipelineResult, Timeline), PipelineError> {
        check(spec, costs)?;
        let program = Program::new(spec, order)?;
        Ok(self.record(spec, costs, &program))
    }

    fn record(
        &mut self,
        spec: &PipelineSpec,
        costs: &PipelineCosts,
        program: &Program,
    ) -> (PipelineResult, Timeline) {
        let mut passes = Vec::with_capacity(program.steps.len());
        self.time(spec, costs, program, |index, start, end| passes.push((start, index, end)));
        passes.sort_by_key(|&(start, index, _)| (start, program.steps[index].route));
        let tracks = (0..spec.stages)
            .map(|stage| Track { process: format!("stage {stage}"), stream: "compute".to_owned() })
            .collect();
        let spans = passes
            .into_iter()
            .map(|(start, index, end)| {
                let step = program.steps[index];
                let (place, kind) = (step.route / KINDS, step.route % KINDS);
                let (letter, category) =
                    [('F', "forward"), ('B', "backward"), ('W', "weight")][kind as usize];
                let name = if spec.chunks_per_stage == 1 {
                    format!("{letter}{}", step.micro_batch)
                } else {
                    format!("{letter}{}.{}", step.micro_batch, place % spec.chunks_per_stage)
                };
                let track = place / spec.chunks_per_stage;
                Span { track, name, category, start: Time(start), end: Time(end) }
            })
            .collect();
        (self.result(spec, costs, program), Timeline { tracks, spans })
    }

    /// Forgets all programs, so that the next run builds its own again (for benchmarks).
    pub fn forget(&mut self) {
        self.programs.clear();
        self.kept = 0;
    }

    /// Simulates a given order of passes, which may be unlike that of the schedule in `spec`.
    pub(crate) fn run_order(
        &mut self,
        spec: &PipelineSpec,
        costs: &PipelineCosts,
        order: &Order,
    ) -> Result<PipelineResult, PipelineError> {
        check(spec, costs)?;
        let program = Program::new(spec, order)?;
        self.time(spec, costs, &program, |_, _, _| {});
        Ok(self.result(spec, costs, &program))
    }

    /// Calls `run` with the program of `spec`, which is kept unless it depends on the durations.
    fn with_program<T>(
        &mut self,
        spec: &PipelineSpec,
        costs: &PipelineCosts,
        run: impl FnOnce(&mut Self, &Program) -> T,
    ) -> Result<T, PipelineError> {
        let program = match self.programs.remove(spec) {
            Some(program) => {
                self.kept -= program.steps.len();
                program
            }
            None => {
                order_for(spec, costs, &mut self.order)?;
                Program::new(spec, &self.order)?
            }
        };
        let outcome = run(self, &program);
        if !spec.automatic && program.steps.len() <= KEPT_PASSES {
            if self.kept + program.steps.len() > KEPT_PASSES {
                self.forget();
            }
            self.kept += program.steps.len();
            self.programs.insert(*spec, program);
        }
        Ok(outcome)
    }

    /// Fills `routes`, three per chunk of a stage, stage by stage. Slots: outputs of forward passes by model chunk,
    /// outputs of backward passes, then one row that is always there and one that nobody reads.
    fn route(&mut self, spec: &PipelineSpec, costs: &PipelineCosts, split_backward: bool) {
        let (per_stage, batches) = (spec.chunks_per_stage, spec.micro_batches);
        let chunks = spec.stages * per_stage;
        let (source, sink) = (2 * chunks * batches, (2 * chunks + 1) * batches);
        let row = |kind: PassKind, chunk: u32| (kind as u32 * chunks + chunk) * batches;
        self.routes.clear();
        for stage in 0..spec.stages {
            for local in 0..per_stage {
                let chunk = schedule::model_chunk(spec, stage, local);
                let cost = costs.chunks[chunk as usize];
                for kind in [PassKind::Forward, PassKind::Backward, PassKind::Weight] {
                    let ends = ends(kind, chunk, chunks);
                    let duration = match kind {
                        PassKind::Forward => cost.forward,
                        PassKind::Backward if split_backward => cost.backward_input,
                        PassKind::Backward => cost.backward_input + cost.backward_weight,
                        PassKind::Weight => cost.backward_weight,
                    };
                    let latency = match ends.output {
                        Some((_, to)) if schedule::stage_of_chunk(spec, to) != stage => {
                            costs.boundary(chunk.min(to)).0
                        }
                        _ => 0,
                    };
                    self.routes.push(Route {
                        duration: duration.0,
                        blocked: if costs.p2p_overlap { 0 } else { latency },
                        latency,
                        input: ends.input.map_or(source, |(kind, chunk)| row(kind, chunk)),
                        output: if kind == PassKind::Weight { sink } else { row(kind, chunk) },
                        stage,
                    });
                }
            }
        }
        self.arrivals.clear();
        self.arrivals.resize(sink as usize + batches as usize, 0);
        self.free.clear();
        self.free.resize(spec.stages as usize, 0);
        self.ends.clear();
        self.ends.resize(self.routes.len(), 0);
    }

    /// Runs the program; `record` gets the index of each step, its start and its end.
    fn time(
        &mut self,
        spec: &PipelineSpec,
        costs: &PipelineCosts,
        program: &Program,
        mut record: impl FnMut(usize, u64, u64),
    ) {
        self.route(spec, costs, program.split_backward);
        let (routes, arrivals) = (self.routes.as_slice(), self.arrivals.as_mut_slice());
        let (free, ends) = (self.free.as_mut_slice(), self.ends.as_mut_slice());
        for (index, step) in program.steps.iter().enumerate() {
            let route = &routes[step.route as usize];
            let free = &mut free[route.stage as usize];
            let start = arrivals[(route.input + step.micro_batch) as usize].max(*free);
            let end = start.saturating_add(route.duration);
            arrivals[(route.output + step.micro_batch) as usize] = end.saturating_add(route.latency);
            *free = end.saturating_add(route.blocked);
            ends[step.route as usize] = end;
            record(index, start, end);
        }
    }

    /// Collects the outcome per stage.
    fn result(&self, spec: &PipelineSpec, costs: &PipelineCosts, program: &Program) -> PipelineResult {
        let per_stage = spec.chunks_per_stage as usize;
        let peaks = program.peak_activations(spec, &costs.memory);
        let mut makespan = Time::ZERO;
        let stages = (program.holdings.iter().zip(peaks).enumerate())
            .map(|(stage, (holding, peak_activations))| {
                let routes = stage * per_stage * KINDS as usize..(stage + 1) * per_stage * KINDS as usize;
                let ends = &self.ends[routes.clone()];
                let last_end = Time(ends.iter().copied().max().unwrap_or_default());
                makespan = makespan.max(last_end);
                let once: Time = (0..per_stage)
                    .map(|local| {
                        let chunk = schedule::model_chunk(spec, stage as u32, local as u32);
                        let cost = costs.chunks[chunk as usize];
                        cost.forward + cost.backward_input + cost.backward_weight
                    })
                    .sum();
                // Every stage begins with the forward pass of micro-batch 0 through its first chunk.
                let first_start = Time(self.arrivals[self.routes[routes.start].input as usize]);
                StageResult {
                    busy: once * u64::from(spec.micro_batches),
                    first_start,
                    last_end,
                    chunk_done: ends
                        .chunks(KINDS as usize)
                        .map(|kinds| Time(kinds[1..].iter().copied().max().unwrap_or_default()))
                        .collect(),
                    peak_in_flight: holding.per_chunk.clone(),
                    peak_total_in_flight: holding.total,
                    peak_activations,
                }
            })
            .collect();
        PipelineResult { makespan, stages }
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
}

/// Writes the order of a checked specification for given costs: automatic schedules are judged by simulating them.
pub(crate) fn order_for(
    spec: &PipelineSpec,
    costs: &PipelineCosts,
    order: &mut Order,
) -> Result<(), PipelineError> {
    let mut simulator = PipelineSim::new();
    let mut judge = |costs: &PipelineCosts, order: &Order| {
        let result = simulator.run_order(spec, costs, order)?;
        Ok((result.period(), result.makespan))
    };
    schedule::build_for(spec, costs, order, &mut judge)
}

/// Rejects specifications that the schedule cannot run, and lists without one entry per chunk or boundary.
fn check(spec: &PipelineSpec, costs: &PipelineCosts) -> Result<(), PipelineError> {
    schedule::check(spec)?;
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
