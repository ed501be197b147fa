//! Streams of one representative rank in a task graph, and where the time of its compute stream went.
//!
//! | stream | what runs on it |
//! | --- | --- |
//! | compute | kernels, in program order |
//! | exchange | TP, CP and EP collectives, in program order |
//! | shard | gathering of parameters, scattering or reduction of gradients |
//! | host | the CPU that launches the kernels of the other streams |
//! | send | activations and gradients to the neighbouring stages, one stream each way |

use super::Parts;
use super::work::{BEFORE, Lane, NONE, Work};
use crate::stream::{Contention, StreamId, TaskClass, TaskGraph, TaskId, TaskSpec, TaskTimes};
use psim_hardware::profile::StackProfile;
use psim_hardware::{Seconds, Time};
use psim_models::operator::Dimension;

/// Why the compute stream waited.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cause {
    Compute(Parts),
    Exchange(Dimension),
    Host,
}

/// A task of the compute stream and what it waited for.
#[derive(Debug, Clone, Copy)]
struct Logged {
    task: TaskId,
    after: [Option<TaskId>; 3],
}

/// One rank.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) compute: StreamId,
    pub(super) exchange: StreamId,
    pub(super) shard: StreamId,
    host: StreamId,
    /// Exchange that the next compute task waits for.
    gate: Option<TaskId>,
    /// Last compute task.
    last: Option<TaskId>,
    /// Last task on the exchange stream.
    last_exchange: Option<TaskId>,
    /// Last task on the shard stream.
    pub(super) last_shard: Option<TaskId>,
    /// Host's last launch.
    launched: Option<TaskId>,
    /// Cause of every task, in the order of adding; empty unless asked for.
    log: Vec<Logged>,
}

/// Marks the processor beside an accelerator.
const HOST: u32 = 1 << 31;

/// What [`Cause`] each task of a graph stands for, by task number.
pub(super) type Causes = Vec<Cause>;

pub(super) fn time(seconds: f64) -> Time {
    Time::from(Seconds(seconds.max(0.0)))
}

impl Device {
    pub(super) fn new(graph: &mut TaskGraph, number: u32) -> Self {
        let mut stream = |device: u32, name: &str| graph.stream(device, name);
        Self {
            compute: stream(number, "compute"),
            exchange: stream(number, "exchange"),
            shard: stream(number, "shard"),
            // The processor shares nothing with the accelerator: a device of its own.
            host: stream(number | HOST, "host"),
            gate: None,
            last: None,
            last_exchange: None,
            last_shard: None,
            launched: None,
            log: Vec::new(),
        }
    }

    /// Adds a compute task behind the gate and `after`.
    pub(super) fn compute(
        &mut self,
        graph: &mut TaskGraph,
        causes: &mut Causes,
        seconds: f64,
        class: TaskClass,
        cause: Cause,
        after: [Option<TaskId>; 2],
    ) -> TaskId {
        let after = [self.gate.take(), after[0], after[1]];
        let task = graph.add(TaskSpec::new(self.compute, time(seconds), class, "compute"));
        for on in after.into_iter().flatten() {
            graph.depend(task, on);
        }
        causes.push(cause);
        self.log.push(Logged { task, after });
        self.last = Some(task);
        task
    }

    /// A point in program order that everything after it waits for; takes no time.
    pub(super) fn mark(
        &mut self,
        graph: &mut TaskGraph,
        causes: &mut Causes,
        after: [Option<TaskId>; 2],
    ) -> TaskId {
        self.compute(graph, causes, 0.0, TaskClass::Compute, Cause::Compute(Parts::default()), after)
    }

    /// The host starts launching no earlier than `from`: the framework has synchronised.
    pub(super) fn synchronise(&mut self, from: TaskId) {
        self.launched = Some(from);
    }

    /// Adds communication of parameters or gradients behind `after`.
    pub(super) fn share(
        &mut self,
        graph: &mut TaskGraph,
        causes: &mut Causes,
        seconds: f64,
        class: TaskClass,
        after: Option<TaskId>,
    ) -> TaskId {
        let task = graph.add(TaskSpec::new(self.shard, time(seconds), class, "communication"));
        if let Some(on) = after {
            graph.depend(task, on);
        }
        causes.push(Cause::Exchange(Dimension::Dp));
        self.last_shard = Some(task);
        task
    }

    /// Adds `scale` of a work; as recomputation its compute counts as run again. Returns its last task.
    pub(super) fn work(
        &mut self,
        graph: &mut TaskGraph,
        causes: &mut Causes,
        work: &Work,
        scale: f64,
        again: bool,
    ) -> Option<TaskId> {
        let launch = |device: &mut Self,
                      graph: &mut TaskGraph,
                      causes: &mut Causes,
                      seconds: f64,
                      from: Option<TaskId>| {
            if seconds <= 0.0 {
                return None;
            }
            let task = graph.add(TaskSpec::new(device.host, time(seconds * scale), TaskClass::Copy, "host"));
            for on in [device.launched.take(), from].into_iter().flatten() {
                graph.depend(task, on);
            }
            causes.push(Cause::Host);
            Some(task)
        };
        let mut issued = launch(self, graph, causes, work.host[0], None);
        let mut placed: Vec<TaskId> = Vec::with_capacity(work.pieces.len());
        let before = self.last;
        for (i, piece) in work.pieces.iter().enumerate() {
            let on = |index: u16| match index {
                NONE => None,
                BEFORE => before,
                index => placed.get(usize::from(index)).copied(),
            };
            let after = [on(piece.after[0]), on(piece.after[1])];
            let task = match piece.lane {
                Lane::Compute(parts) => {
                    let parts = if again { parts.as_recompute() } else { parts };
                    let cause = Cause::Compute(Parts::default().plus(&parts, scale));
                    self.compute(graph, causes, piece.seconds * scale, piece.class, cause, after)
                }
                Lane::Exchange(dimension) => {
                    let spec =
                        TaskSpec::new(self.exchange, time(piece.seconds * scale), piece.class, "exchange");
                    let task = graph.add(spec);
                    // What gates compute gates the exchanges behind that compute as well.
                    for on in after.into_iter().flatten() {
                        graph.depend(task, on);
                    }
                    causes.push(Cause::Exchange(dimension));
                    self.last_exchange = Some(task);
                    task
                }
            };
            placed.push(task);
            if i == usize::from(work.read_back) {
                if issued.is_some() {
                    let joined = self.compute(
                        graph,
                        causes,
                        0.0,
                        TaskClass::Compute,
                        Cause::Compute(Parts::default()),
                        [issued, None],
                    );
                    issued = launch(self, graph, causes, work.host[1], Some(joined));
                } else {
                    issued = launch(self, graph, causes, work.host[1], Some(task));
                }
            }
        }
        self.gate = if work.gate == NONE { self.gate } else { placed.get(usize::from(work.gate)).copied() };
        if issued.is_some() {
            // No kernel runs before it is launched: the work is not over before its last launch.
            self.mark(graph, causes, [issued, None]);
        }
        self.last
    }

    /// A point at which every stream of the rank has come to rest.
    pub(super) fn join(&mut self, graph: &mut TaskGraph, causes: &mut Causes, with_shard: bool) -> TaskId {
        let shard = if with_shard { self.last_shard } else { None };
        self.mark(graph, causes, [self.last_exchange, shard])
    }

    /// Time of the compute stream from the start to its last task, by cause.
    pub(super) fn parts(&self, graph: &TaskGraph, causes: &Causes, times: &TaskTimes) -> Parts {
        let mut out = Parts::default();
        let mut clock = Time::ZERO;
        for logged in &self.log {
            let (start, end) = (times.start(logged.task), times.end(logged.task));
            let waited = start.max(clock) - clock;
            if waited > Time::ZERO {
                let blocker = logged.after.iter().flatten().max_by_key(|&&on| (times.end(on), on));
                match blocker.map(|on| causes[on.0 as usize]) {
                    Some(Cause::Exchange(dimension)) => out.expose(dimension, waited.seconds().0),
                    _ => out.launch += waited.seconds().0,
                }
            }
            if let Cause::Compute(parts) = causes[logged.task.0 as usize] {
                out = out.plus(&parts, 1.0);
            }
            out.contention += times.slowed(graph, logged.task).seconds().0;
            clock = end;
        }
        out
    }

    /// Time that the compute stream lost to others.
    pub(super) fn slowed(&self, graph: &TaskGraph, times: &TaskTimes) -> Time {
        self.log.iter().map(|logged| times.slowed(graph, logged.task)).sum()
    }
}

/// Who slows whom: collectives take multiprocessors and memory bandwidth from compute, those on the same links share
/// them evenly, and sends share with collectives of the same tier.
pub(super) fn contention(stack: &StackProfile, sends_leave_domain: bool) -> Contention {
    let slowed = 1.0 + stack.efficiency.contention.max(0.0);
    let dispatched = 1.0 + stack.efficiency.dispatch_contention.max(0.0);
    let tier = if sends_leave_domain { TaskClass::Communication } else { TaskClass::Local };
    Contention::between_compute_and_communication(slowed, 1.0)
        .with(TaskClass::Compute, TaskClass::Dispatch, dispatched)
        .with(TaskClass::Memory, TaskClass::Dispatch, dispatched)
        .with(TaskClass::Communication, TaskClass::Dispatch, 2.0)
        .with(TaskClass::Dispatch, TaskClass::Communication, 2.0)
        .sharing(TaskClass::Communication)
        .sharing(TaskClass::Local)
        .with(tier, TaskClass::Copy, 2.0)
        .with(TaskClass::Copy, tier, 2.0)
}
