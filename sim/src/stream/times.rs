//! When the tasks of a graph ran.

use super::{StreamId, TaskGraph, TaskId};
use crate::timeline::{Span, Timeline, Track};
use psim_hardware::Time;

/// Start and end of every task of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskTimes {
    start: Vec<Time>,
    end: Vec<Time>,
    makespan: Time,
}

impl TaskTimes {
    pub(super) fn new(start: Vec<Time>, end: Vec<Time>) -> Self {
        let makespan = end.iter().copied().max().unwrap_or_default();
        Self { start, end, makespan }
    }

    /// Start of a task.
    pub fn start(&self, task: TaskId) -> Time {
        self.start[task.0 as usize]
    }

    /// End of a task.
    pub fn end(&self, task: TaskId) -> Time {
        self.end[task.0 as usize]
    }

    /// End of the last task.
    pub fn makespan(&self) -> Time {
        self.makespan
    }

    /// Time that a task lost to others on its device.
    pub fn slowed(&self, graph: &TaskGraph, task: TaskId) -> Time {
        self.end(task) - self.start(task) - graph.duration(task)
    }

    /// A chain of tasks without a gap from the start to the end of the last task, in order of time: what to shorten
    /// to get faster. Among tasks that end at the same time, the one added first is taken.
    pub fn critical_path(&self, graph: &TaskGraph) -> Vec<TaskId> {
        let mut before: Vec<Vec<u32>> = vec![Vec::new(); self.end.len()];
        let mut last = vec![None; graph.streams.len()];
        for (task, &stream) in graph.on_stream.iter().enumerate() {
            before[task].extend(last[stream as usize].replace(task as u32));
        }
        for &(task, on) in &graph.edges {
            before[task as usize].push(on);
        }
        let first = |tasks: &mut dyn Iterator<Item = u32>| {
            tasks.min_by_key(|&t| (std::cmp::Reverse(self.end[t as usize]), t))
        };
        let mut path = Vec::new();
        let mut at = first(&mut (0..self.end.len() as u32));
        while let Some(task) = at {
            path.push(TaskId(task));
            at = first(&mut before[task as usize].iter().copied());
        }
        path.reverse();
        path
    }

    /// Spans for a viewer: a process per device, a line per stream; tasks without duration are left out.
    pub fn timeline(
        &self,
        graph: &TaskGraph,
        process: impl Fn(u32) -> String,
        name: impl Fn(TaskId) -> String,
    ) -> Timeline {
        let tracks = (graph.streams.iter())
            .map(|stream| Track { process: process(stream.device), stream: stream.name.clone() })
            .collect();
        let mut order: Vec<u32> = (0..self.end.len() as u32)
            .filter(|&task| self.end[task as usize] > self.start[task as usize])
            .collect();
        order.sort_by_key(|&task| (self.start[task as usize], graph.on_stream[task as usize]));
        let spans = order
            .into_iter()
            .map(TaskId)
            .map(|task| {
                let StreamId(track) = graph.stream_of(task);
                let (start, end) = (self.start(task), self.end(task));
                Span { track, name: name(task), category: graph.category(task), start, end }
            })
            .collect();
        Timeline { tracks, spans }
    }
}
