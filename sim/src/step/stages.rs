//! The step at operator level across stages and micro-batches (L2): one representative rank per pipeline stage.
//!
//! The passes of [`super::operators`] run in the order of the schedule. Where something else runs beside them they are
//! laid out operator by operator: the first forward pass of every chunk waits layer by layer for its gathered
//! parameters, and the gradients of every layer of the last backward pass leave in buckets, on a stream that shares
//! multiprocessors and links with the passes and the sends. In between every micro-batch repeats the one before, so
//! only the first [`FOLD_ROUNDS`] rounds of the pipeline are simulated and the rest is added from the pipeline's own
//! events (tested against all of them in full).

use super::Parts;
use super::data_parallel::Reduction;
use super::device::{Cause, Causes, Device, contention};
use super::mesh::Prepared;
use super::model::is_split;
use super::operators::{Direction, Passes, Unit};
use super::program::{StepProgram, spec};
use crate::pipeline::{PipelineCosts, PipelineError, PipelineSim, PipelineSpec, order_for};
use crate::schedule::{self, Order, PassKind};
use crate::stream::{StreamError, TaskClass, TaskGraph, TaskId, TaskSpec};
use psim_hardware::Time;
use psim_hardware::profile::stack::Overlap;
use psim_models::plan::Plan;

/// Rounds of the pipeline that are simulated before it repeats.
const FOLD_ROUNDS: u32 = 3;

/// When the passes of a step and the communication of its parameters and gradients are over.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Events {
    /// Seconds from the start of the step, or from the first to the last work of one stage where stages run on into
    /// the next step.
    pub(super) end: f64,
    /// Of these, compute slowed by what ran beside it, beyond what the passes hold already.
    pub(super) slowed: f64,
}

/// Why the events could not be simulated.
#[derive(Debug, thiserror::Error)]
pub(super) enum EventsError {
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// What [`simulate`] runs.
pub(super) struct Step<'a> {
    pub(super) plan: &'a Plan,
    pub(super) passes: Passes<'a>,
    /// Units of every chunk in forward order, by class of chunk.
    pub(super) units: &'a [Vec<Unit>],
    /// Parameters of every unit, in the same order.
    pub(super) weights: &'a [Vec<f64>],
    pub(super) prepared: &'a Prepared<'a>,
    pub(super) costs: &'a PipelineCosts,
    pub(super) overlap: Overlap,
    /// Tier of gradient reduction.
    pub(super) reduce_class: TaskClass,
    /// Passes in a given order instead of the schedule's.
    pub(super) program: Option<&'a StepProgram>,
    /// Lay every pass of every micro-batch out operator by operator.
    pub(super) in_full: bool,
    /// Data-parallel replicas that differ: compute time of every stage over that in `prepared`.
    pub(super) replicas: &'a [Vec<f64>],
}

/// Fewer micro-batches with the same remainder in the rounds of the schedule.
fn fold(spec: &PipelineSpec) -> PipelineSpec {
    let round = spec.stages.max(1);
    let least = FOLD_ROUNDS * round;
    let short = if spec.micro_batches <= least + round {
        spec.micro_batches
    } else {
        least + spec.micro_batches % round
    };
    PipelineSpec { micro_batches: short, ..*spec }
}

/// Runs the step.
pub(super) fn simulate(step: &Step<'_>, sim: &mut PipelineSim) -> Result<Events, EventsError> {
    let whole = step.program.map_or_else(|| spec(step.plan), |program| program.spec);
    let short = if step.in_full || step.program.is_some() { whole } else { fold(&whole) };
    let costs = PipelineCosts { memory: Vec::new(), ..step.costs.clone() };
    // What the folded rounds add, for the replica that takes longest.
    let (mut rest, mut longest) = (0.0, 0.0);
    if short != whole {
        for row in step.replicas {
            let mut costs = costs.clone();
            for (chunk, stage) in costs.chunks.iter_mut().zip(&step.prepared.mesh.stage_of) {
                let pace = pace_of(row, *stage);
                if pace != 1.0 {
                    for pass in [&mut chunk.forward, &mut chunk.backward_input, &mut chunk.backward_weight] {
                        *pass = super::device::time(pass.seconds().0 * pace);
                    }
                }
            }
            let of = |result: crate::PipelineResult| result.step(whole.schedule).seconds().0;
            let all = of(sim.run(&whole, &costs)?);
            if all > longest {
                (longest, rest) = (all, all - of(sim.run(&short, &costs)?));
            }
        }
    }
    let mut built = Order::default();
    let order = match step.program {
        Some(program) => &program.order,
        None => {
            schedule::check(&short)?;
            order_for(&short, &costs, &mut built)?;
            &built
        }
    };
    let mut laid = Laid::new(&short, step.replicas.len());
    for (replica, row) in step.replicas.iter().enumerate() {
        laid.begin(replica);
        for stage in 0..short.stages {
            laid.stage(step, &short, order, stage, pace_of(row, stage));
        }
        laid.connect(&short);
    }
    laid.couple();
    let times = laid.graph.run(&contention(step.passes.stack, step.passes.sends_leave_domain))?;
    let mut out = Events::default();
    let mut slowest = Time::ZERO;
    for (stage, device) in laid.ends.iter().zip(&laid.devices) {
        let from = if is_split(whole.schedule) { times.start(stage.first) } else { Time::ZERO };
        let span = times.end(stage.last) - from;
        if span > slowest {
            slowest = span;
            out.slowed = (device.slowed(&laid.graph, &times).seconds().0 - stage.held).max(0.0);
        }
    }
    out.end = slowest.seconds().0 + rest;
    Ok(out)
}

fn pace_of(row: &[f64], stage: u32) -> f64 {
    row.get(stage as usize).copied().unwrap_or(1.0)
}

/// Marks the meeting points of replicas, which are on no device.
const MEETING: u32 = 1 << 30;

/// First and last task of a stage, and the slow-down that its passes in detail hold anyway.
struct StageEnds {
    first: TaskId,
    last: TaskId,
    held: f64,
}

/// The graph while it is laid out.
struct Laid {
    graph: TaskGraph,
    causes: Causes,
    devices: Vec<Device>,
    ends: Vec<StageEnds>,
    /// First task, and the task after which the output is there, of every pass: by kind, chunk and micro-batch.
    slots: Vec<(Option<TaskId>, Option<TaskId>)>,
    chunks: u32,
    /// The replica being laid.
    replica: usize,
    /// Communication that replicas do together, by replica and stage: the task, and the one after which it may begin.
    together: Vec<Vec<Vec<(TaskId, TaskId)>>>,
}

impl Laid {
    fn new(spec: &PipelineSpec, replicas: usize) -> Self {
        let chunks = spec.stages * spec.chunks_per_stage;
        Self {
            graph: TaskGraph::new(),
            causes: Causes::new(),
            devices: Vec::new(),
            ends: Vec::new(),
            slots: vec![(None, None); (3 * chunks * spec.micro_batches) as usize],
            chunks,
            replica: 0,
            together: vec![vec![Vec::new(); spec.stages as usize]; replicas],
        }
    }

    /// Begins another replica.
    fn begin(&mut self, replica: usize) {
        self.replica = replica;
        self.slots.fill((None, None));
    }

    /// Lets every reduction and gathering begin when all replicas are ready for it.
    fn couple(&mut self) {
        if self.together.len() < 2 {
            return;
        }
        for stage in 0..self.together[0].len() {
            let meeting = self.graph.stream(MEETING | stage as u32, "meeting");
            for bucket in 0..self.together[0][stage].len() {
                let all: Vec<(TaskId, TaskId)> =
                    self.together.iter().filter_map(|r| r[stage].get(bucket)).copied().collect();
                let ready: Vec<TaskId> = all.iter().map(|(_, ready)| *ready).collect();
                let met = TaskSpec::new(meeting, Time::ZERO, TaskClass::Copy, "meeting");
                let met = self.graph.add(TaskSpec { after: &ready, ..met });
                self.causes.push(Cause::Host);
                for (task, _) in all {
                    self.graph.depend(task, met);
                }
            }
        }
    }

    fn slot(&self, kind: PassKind, chunk: u32, micro_batch: u32, batches: u32) -> usize {
        ((kind as u32 * self.chunks + chunk) * batches + micro_batch) as usize
    }

    /// Lays the passes of one stage in the order of the schedule.
    fn stage(&mut self, step: &Step<'_>, spec: &PipelineSpec, order: &Order, stage: u32, pace: f64) {
        let reduction = step.prepared.mesh.reductions[stage as usize];
        let passes = order.stage(stage as usize);
        let gradients = if order.split_backward { PassKind::Weight } else { PassKind::Backward };
        let mut last_of = vec![usize::MAX; spec.chunks_per_stage as usize];
        for (i, pass) in passes.iter().enumerate() {
            if pass.kind == gradients {
                last_of[usize::from(pass.chunk)] = i;
            }
        }
        let mut seen = vec![false; spec.chunks_per_stage as usize];
        let number = self.replica as u32 * spec.stages + stage;
        let mut device = Device::new(&mut self.graph, number);
        let mut held = 0.0;
        let sends: [_; 2] = ["send to next", "send to previous"].map(|name| self.graph.stream(number, name));
        let first = device.mark(&mut self.graph, &mut self.causes, [None; 2]);
        let class_of = |local: u16| {
            let chunk = schedule::model_chunk(spec, stage, u32::from(local));
            usize::from(step.prepared.mesh.class_of[chunk as usize])
        };
        let weight: f64 =
            (0..spec.chunks_per_stage).map(|c| step.weights[class_of(c as u16)].iter().sum::<f64>()).sum();
        let mut gather = Buckets::new(reduction.gather, reduction.buckets, weight);
        let mut reduce = Buckets::new(reduction.reduce, reduction.buckets, weight);
        if !step.overlap.param_gather && reduction.gather > 0.0 {
            // Nothing of the step runs before all parameters are there.
            self.exposed(&mut device, stage, reduction.gather);
        }
        let overlapped_gather = step.overlap.param_gather && reduction.gather > 0.0;
        let overlapped_reduce = step.overlap.grad_reduce && reduction.reduce > 0.0;
        for (i, pass) in passes.iter().enumerate() {
            let local = usize::from(pass.chunk);
            let chunk = schedule::model_chunk(spec, stage, u32::from(pass.chunk));
            let class = class_of(pass.chunk);
            let times = &step.prepared.chunks[chunk as usize];
            let begin = device.mark(&mut self.graph, &mut self.causes, [None; 2]);
            let gathers = overlapped_gather && pass.kind == PassKind::Forward && !seen[local];
            let reduces = overlapped_reduce && i == last_of[local];
            seen[local] |= pass.kind == PassKind::Forward;
            if gathers || reduces || step.in_full {
                let mut detail =
                    Detail { step, class, stage, pace, first, gather: &mut gather, reduce: &mut reduce };
                self.in_detail(&mut device, &mut detail, begin, pass.kind, gathers, reduces);
                held += match pass.kind {
                    PassKind::Forward => times.forward.parts.contention,
                    PassKind::Weight => times.weight.parts.contention,
                    PassKind::Backward => times.backward.parts.contention,
                };
            } else {
                let seconds = match pass.kind {
                    PassKind::Forward => times.forward.time,
                    PassKind::Weight => times.weight.time,
                    PassKind::Backward => times.backward.time,
                };
                let cause = Cause::Compute(Parts::default());
                device.compute(
                    &mut self.graph,
                    &mut self.causes,
                    seconds * pace,
                    TaskClass::Compute,
                    cause,
                    [None; 2],
                );
            }
            let done = device.mark(&mut self.graph, &mut self.causes, [None; 2]);
            let out = self.send(step, spec, &mut device, sends, stage, chunk, pass.kind, done);
            let slot = self.slot(pass.kind, chunk, pass.micro_batch, spec.micro_batches);
            self.slots[slot] = (Some(begin), Some(out));
        }
        if !step.overlap.grad_reduce && reduction.reduce > 0.0 {
            self.exposed(&mut device, stage, reduction.reduce);
        }
        let last = device.join(&mut self.graph, &mut self.causes, true);
        self.devices.push(device);
        self.ends.push(StageEnds { first, last, held });
    }

    /// Communication that nothing runs beside.
    fn exposed(&mut self, device: &mut Device, stage: u32, seconds: f64) {
        let cause = Cause::Exchange(psim_models::operator::Dimension::Dp);
        let ready = device.mark(&mut self.graph, &mut self.causes, [None; 2]);
        let task =
            device.compute(&mut self.graph, &mut self.causes, seconds, TaskClass::Copy, cause, [None; 2]);
        self.together[self.replica][stage as usize].push((task, ready));
    }

    /// A pass layer by layer, behind its gathers and before its reductions.
    fn in_detail(
        &mut self,
        device: &mut Device,
        detail: &mut Detail<'_>,
        begin: TaskId,
        kind: PassKind,
        gathers: bool,
        reduces: bool,
    ) {
        let step = detail.step;
        let direction = match kind {
            PassKind::Forward => Direction::Forward,
            PassKind::Backward => Direction::Backward,
            PassKind::Weight => Direction::Weight,
        };
        device.synchronise(begin);
        if kind != PassKind::Weight {
            let seconds = step.passes.stack.host.per_micro_batch.0 / 2.0;
            let cause = Cause::Compute(Parts::default());
            let fixed = device.compute(
                &mut self.graph,
                &mut self.causes,
                seconds,
                TaskClass::Compute,
                cause,
                [None; 2],
            );
            // The host launches nothing while it is busy with the micro-batch itself.
            device.synchronise(fixed);
        }
        let units = &step.units[detail.class];
        let weights = &step.weights[detail.class];
        let mut visit = |this: &mut Self, i: usize| {
            if gathers {
                // Buckets are gathered from the start of the step on, in the order in which they are needed.
                let seconds = detail.gather.needed(weights[i]);
                if seconds > 0.0 {
                    let class = step.reduce_class;
                    let first = detail.first;
                    let task = device.share(&mut this.graph, &mut this.causes, seconds, class, Some(first));
                    this.together[this.replica][detail.stage as usize].push((task, first));
                }
                if let Some(bucket) = device.last_shard {
                    device.mark(&mut this.graph, &mut this.causes, [Some(bucket), None]);
                }
            }
            let unit = units[i].scaled(detail.pace);
            step.passes.place(&mut this.graph, &mut this.causes, device, &unit, direction);
            if reduces {
                let seconds = detail.reduce.filled(weights[i]);
                if seconds > 0.0 {
                    let end = device.mark(&mut this.graph, &mut this.causes, [None; 2]);
                    let class = step.reduce_class;
                    let task = device.share(&mut this.graph, &mut this.causes, seconds, class, Some(end));
                    this.together[this.replica][detail.stage as usize].push((task, end));
                }
            }
        };
        if kind == PassKind::Forward {
            (0..units.len()).for_each(|i| visit(self, i));
        } else {
            (0..units.len()).rev().for_each(|i| visit(self, i));
        }
        device.join(&mut self.graph, &mut self.causes, false);
    }

    /// The transfer to the stage that waits for the pass; the task after which its input is there.
    #[expect(clippy::too_many_arguments, reason = "one call, all distinct")]
    fn send(
        &mut self,
        step: &Step<'_>,
        spec: &PipelineSpec,
        device: &mut Device,
        sends: [crate::stream::StreamId; 2],
        stage: u32,
        chunk: u32,
        kind: PassKind,
        done: TaskId,
    ) -> TaskId {
        let (to, boundary, way) = match kind {
            PassKind::Forward if chunk + 1 < self.chunks => (chunk + 1, chunk, 0),
            PassKind::Backward if chunk > 0 => (chunk - 1, chunk - 1, 1),
            _ => return done,
        };
        let transfer = step.costs.boundary(boundary);
        if schedule::stage_of_chunk(spec, to) == stage || transfer == Time::ZERO {
            return done;
        }
        if step.costs.p2p_overlap {
            let after = [done];
            let send =
                TaskSpec { after: &after, ..TaskSpec::new(sends[way], transfer, TaskClass::Copy, "send") };
            self.causes.push(Cause::Exchange(psim_models::operator::Dimension::Pp));
            return self.graph.add(send);
        }
        let cause = Cause::Exchange(psim_models::operator::Dimension::Pp);
        device.compute(
            &mut self.graph,
            &mut self.causes,
            transfer.seconds().0,
            TaskClass::Copy,
            cause,
            [None; 2],
        )
    }

    /// Lets every pass wait for its input.
    fn connect(&mut self, spec: &PipelineSpec) {
        let batches = spec.micro_batches;
        for chunk in 0..self.chunks {
            for batch in 0..batches {
                for kind in [PassKind::Forward, PassKind::Backward] {
                    let from = match kind {
                        PassKind::Forward if chunk > 0 => (PassKind::Forward, chunk - 1),
                        PassKind::Forward => continue,
                        _ if chunk + 1 < self.chunks => (PassKind::Backward, chunk + 1),
                        _ => (PassKind::Forward, chunk),
                    };
                    let begin = self.slots[self.slot(kind, chunk, batch, batches)].0;
                    let input = self.slots[self.slot(from.0, from.1, batch, batches)].1;
                    if let (Some(begin), Some(input)) = (begin, input) {
                        self.graph.depend(begin, input);
                    }
                }
            }
        }
    }
}

/// What a pass in detail needs besides its units.
struct Detail<'a> {
    step: &'a Step<'a>,
    class: usize,
    stage: u32,
    /// Compute time over that of the reference.
    pace: f64,
    /// Start of the step on this stage.
    first: TaskId,
    gather: &'a mut Buckets,
    reduce: &'a mut Buckets,
}

/// Buckets of a stage's parameters in the order of its layers.
struct Buckets {
    each: f64,
    count: f64,
    weight: f64,
    seen: f64,
    sent: f64,
}

impl Buckets {
    fn new(seconds: f64, count: f64, weight: f64) -> Self {
        let count = count.max(1.0);
        Self { each: seconds / count, count, weight: weight.max(1.0), seen: 0.0, sent: 0.0 }
    }

    /// Seconds of the buckets that `weight` more parameters complete.
    fn filled(&mut self, weight: f64) -> f64 {
        self.seen += weight;
        let full = (self.seen / self.weight * self.count + 1e-6).floor().min(self.count);
        let more = full - self.sent;
        self.sent = full;
        more * self.each
    }

    /// Seconds of the buckets that `weight` more parameters touch and nobody has asked for.
    fn needed(&mut self, weight: f64) -> f64 {
        self.seen += weight;
        let touched = (self.seen / self.weight * self.count - 1e-6).ceil().min(self.count);
        let more = (touched - self.sent).max(0.0);
        self.sent = self.sent.max(touched);
        more * self.each
    }
}

/// Nothing is reduced or gathered beside the passes of any stage.
pub(super) fn is_quiet(reductions: &[Reduction]) -> bool {
    reductions.iter().all(|r| r.reduce <= 0.0 && r.gather <= 0.0)
}
