//! Tasks with dependencies on the streams of devices (L2).
//!
//! A stream runs its tasks one after another in the order in which they were added, as a CUDA stream does; a task
//! starts when the task before it on its stream and everything it depends on have ended. Tasks that run at the same
//! time on one device slow each other down ([`Contention`]): a collective takes multiprocessors and memory bandwidth
//! from a GEMM, and the other way round.
//!
//! ```
//! use psim_hardware::Time;
//! use psim_sim::stream::{Contention, TaskClass, TaskGraph, TaskSpec};
//!
//! let mut graph = TaskGraph::new();
//! let compute = graph.stream(0, "compute");
//! let comm = graph.stream(0, "dp");
//! let gemm = graph.add(TaskSpec::new(compute, Time(100), TaskClass::Compute, "backward"));
//! let reduce = graph.add(TaskSpec::new(comm, Time(50), TaskClass::Communication, "communication"));
//! let step = graph.add(TaskSpec { after: &[gemm, reduce], ..TaskSpec::new(compute, Time(10), TaskClass::Memory, "optimizer") });
//!
//! let alone = graph.run(&Contention::none()).unwrap();
//! assert_eq!(alone.end(step), Time(110));
//! // Compute takes 1.25 times, communication twice as long while the other runs: 100 ps side by side, in which the
//! // GEMM does 80 ps of its work; the rest is alone.
//! let shared = graph.run(&Contention::between_compute_and_communication(1.25, 2.0)).unwrap();
//! assert_eq!((shared.end(reduce), shared.end(gemm)), (Time(100), Time(120)));
//! ```

mod contention;
mod execute;
mod times;

pub use contention::Contention;
pub use times::TaskTimes;

use psim_hardware::Time;

/// A stream of a device, within one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// A task, within one graph; counts up from zero in the order of adding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u32);

/// What a task uses most; decides how it slows others and is slowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TaskClass {
    /// Bound by arithmetic: GEMM, attention.
    Compute = 0,
    /// Bound by device memory: normalisation, activation, optimizer.
    Memory = 1,
    /// Network traffic driven by the device: collectives between scale-up domains, point-to-point.
    Communication = 2,
    /// Copy engines and transfers that take no multiprocessors.
    Copy = 3,
    /// Collectives inside a scale-up domain, on its own links.
    Local = 4,
    /// Token exchange between experts that runs beside the compute of another micro-batch.
    Dispatch = 5,
}

/// Number of [`TaskClass`] values.
pub(crate) const CLASSES: usize = 6;

/// One task to add.
#[derive(Debug, Clone, Copy)]
pub struct TaskSpec<'a> {
    /// Where it runs.
    pub stream: StreamId,
    /// How long it takes alone on its device.
    pub duration: Time,
    /// How it shares its device.
    pub class: TaskClass,
    /// For timelines and sums: `forward`, `backward`, `communication` …
    pub category: &'static str,
    /// What must have ended before, besides the task before it on its stream.
    pub after: &'a [TaskId],
}

impl TaskSpec<'_> {
    /// A task without dependencies across streams.
    pub fn new(stream: StreamId, duration: Time, class: TaskClass, category: &'static str) -> Self {
        Self { stream, duration, class, category, after: &[] }
    }
}

/// Why a graph cannot be run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StreamError {
    /// A task or stream of another graph.
    #[error("task {task} names {what} {id}, of which this graph has {count}")]
    Unknown {
        /// Task.
        task: u32,
        /// `stream` or `task`.
        what: &'static str,
        /// The unknown number.
        id: u32,
        /// How many there are.
        count: usize,
    },
    /// Dependencies and stream orders form a circle.
    #[error("the tasks wait for each other in a circle; task {task} is the first that never starts")]
    Cycle {
        /// First task that never starts.
        task: u32,
    },
    /// A slow-down that is not a finite number of at least 1.
    #[error("a slow-down must be a finite number of at least 1, not {0}")]
    Slowdown(f64),
    /// The event queue is exhausted.
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
}

#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) device: u32,
    pub(crate) name: String,
}

/// Tasks, streams and dependencies.
#[derive(Debug, Clone, Default)]
pub struct TaskGraph {
    pub(crate) streams: Vec<Stream>,
    pub(crate) durations: Vec<u64>,
    pub(crate) on_stream: Vec<u32>,
    pub(crate) classes: Vec<TaskClass>,
    pub(crate) categories: Vec<&'static str>,
    /// (task, what it waits for)
    pub(crate) edges: Vec<(u32, u32)>,
}

impl TaskGraph {
    /// A graph without streams and tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a stream to `device`.
    pub fn stream(&mut self, device: u32, name: impl Into<String>) -> StreamId {
        self.streams.push(Stream { device, name: name.into() });
        StreamId(self.streams.len() as u32 - 1)
    }

    /// Adds a task at the end of its stream.
    pub fn add(&mut self, task: TaskSpec<'_>) -> TaskId {
        let id = self.durations.len() as u32;
        self.durations.push(task.duration.0);
        self.on_stream.push(task.stream.0);
        self.classes.push(task.class);
        self.categories.push(task.category);
        self.edges.extend(task.after.iter().map(|on| (id, on.0)));
        TaskId(id)
    }

    /// Lets `task` wait for `on`, which may have been added later.
    pub fn depend(&mut self, task: TaskId, on: TaskId) {
        self.edges.push((task.0, on.0));
    }

    /// Number of tasks.
    pub fn len(&self) -> usize {
        self.durations.len()
    }

    /// No task yet.
    pub fn is_empty(&self) -> bool {
        self.durations.is_empty()
    }

    /// Duration of a task alone on its device.
    pub fn duration(&self, task: TaskId) -> Time {
        Time(self.durations[task.0 as usize])
    }

    /// Stream of a task.
    pub fn stream_of(&self, task: TaskId) -> StreamId {
        StreamId(self.on_stream[task.0 as usize])
    }

    /// Device of a stream.
    pub fn device_of(&self, stream: StreamId) -> u32 {
        self.streams[stream.0 as usize].device
    }

    /// Category of a task.
    pub fn category(&self, task: TaskId) -> &'static str {
        self.categories[task.0 as usize]
    }

    /// Start and end of every task.
    ///
    /// # Errors
    /// Tasks or streams that do not exist, circular dependencies, or an invalid slow-down.
    pub fn run(&self, contention: &Contention) -> Result<TaskTimes, StreamError> {
        let rates = contention.rates()?;
        let links = execute::Links::new(self)?;
        if contention.is_none() { execute::relax(self, links) } else { execute::share(self, links, &rates) }
    }
}
