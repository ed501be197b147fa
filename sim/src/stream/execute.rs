//! Running a task graph: by relaxation where nothing is shared, event by event where it is.

use super::contention::{FULL_RATE, RATE_BITS, Rates};
use super::{CLASSES, StreamError, TaskGraph, TaskTimes};
use crate::engine::{Engine, EventKey};
use psim_hardware::Time;
use std::collections::BTreeMap;

const NONE: u32 = u32::MAX;

/// Who waits for whom, as arrays: successors of task `t` are `successors[starts[t]..starts[t + 1]]`.
pub(super) struct Links {
    starts: Vec<u32>,
    successors: Vec<u32>,
    /// Predecessors of each task that have not ended.
    open: Vec<u32>,
    /// The next task on the same stream.
    next: Vec<u32>,
}

impl Links {
    pub(super) fn new(graph: &TaskGraph) -> Result<Self, StreamError> {
        let count = graph.len();
        let mut open = vec![0_u32; count];
        let mut next = vec![NONE; count];
        let mut last = vec![NONE; graph.streams.len()];
        for (task, &stream) in graph.on_stream.iter().enumerate() {
            let Some(last) = last.get_mut(stream as usize) else {
                let (task, count) = (task as u32, graph.streams.len());
                return Err(StreamError::Unknown { task, what: "stream", id: stream, count });
            };
            if *last != NONE {
                next[*last as usize] = task as u32;
                open[task] = 1;
            }
            *last = task as u32;
        }
        let mut starts = vec![0_u32; count + 1];
        for &(task, on) in &graph.edges {
            if task.max(on) as usize >= count {
                return Err(StreamError::Unknown { task, what: "task", id: task.max(on), count });
            }
            open[task as usize] += 1;
            starts[on as usize + 1] += 1;
        }
        for i in 0..count {
            starts[i + 1] += starts[i];
        }
        let mut fill = starts.clone();
        let mut successors = vec![0_u32; graph.edges.len()];
        for &(task, on) in &graph.edges {
            let at = &mut fill[on as usize];
            successors[*at as usize] = task;
            *at += 1;
        }
        Ok(Self { starts, successors, open, next })
    }

    fn roots(&self) -> Vec<u32> {
        (0..self.open.len() as u32).filter(|&task| self.open[task as usize] == 0).collect()
    }

    /// Calls `released` for every task that waited only for `task`, after `touched` for every task that waited for it.
    #[inline]
    fn finish(&mut self, task: u32, mut touched: impl FnMut(u32), mut released: impl FnMut(u32)) {
        let (from, to) = (self.starts[task as usize], self.starts[task as usize + 1]);
        let next = self.next[task as usize];
        let on_stream = (next != NONE).then_some(next);
        for &successor in self.successors[from as usize..to as usize].iter().chain(&on_stream) {
            touched(successor);
            let open = &mut self.open[successor as usize];
            *open -= 1;
            if *open == 0 {
                released(successor);
            }
        }
    }
}

/// Error for a graph of which not everything ran.
fn cycle(links: &Links) -> StreamError {
    StreamError::Cycle { task: links.open.iter().position(|&open| open > 0).unwrap_or_default() as u32 }
}

/// Without contention a task starts when the last task that it waits for ends: longest paths in topological order.
pub(super) fn relax(graph: &TaskGraph, mut links: Links) -> Result<TaskTimes, StreamError> {
    let mut start = vec![Time::ZERO; graph.len()];
    let mut end = vec![Time::ZERO; graph.len()];
    let mut ready = links.roots();
    let mut done = 0;
    while let Some(task) = ready.pop() {
        let finished = start[task as usize] + Time(graph.durations[task as usize]);
        end[task as usize] = finished;
        done += 1;
        links.finish(
            task,
            |successor| {
                let start = &mut start[successor as usize];
                *start = finished.max(*start);
            },
            |successor| ready.push(successor),
        );
    }
    if done == graph.len() { Ok(TaskTimes::new(start, end)) } else { Err(cycle(&links)) }
}

/// The task that runs on a stream.
#[derive(Debug, Clone, Copy)]
struct Running {
    task: u32,
    /// Work left at `since`, in picoseconds at full speed with `RATE_BITS` binary places.
    left: u128,
    since: u64,
    rate: u64,
    end: Option<EventKey>,
}

/// What runs on a device.
#[derive(Debug, Clone, Default)]
struct Device {
    streams: Vec<u32>,
    classes: [u32; CLASSES],
    changed: bool,
}

/// With contention: rates change when tasks of a device start or end; the work left is kept in integers.
pub(super) fn share(graph: &TaskGraph, mut links: Links, rates: &Rates) -> Result<TaskTimes, StreamError> {
    let mut start = vec![Time::ZERO; graph.len()];
    let mut end = vec![Time::ZERO; graph.len()];
    let numbers: BTreeMap<u32, u32> = {
        let mut ids: Vec<u32> = graph.streams.iter().map(|stream| stream.device).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().zip(0..).collect()
    };
    let device_of: Vec<u32> = graph.streams.iter().map(|stream| numbers[&stream.device]).collect();
    let mut devices = vec![Device::default(); numbers.len()];
    let mut running =
        vec![Running { task: NONE, left: 0, since: 0, rate: 0, end: None }; graph.streams.len()];
    // Events are the streams whose task ends.
    let mut engine: Engine<u32> = Engine::new();
    let mut ready = links.roots();
    let mut changed: Vec<u32> = Vec::new();
    let mut done = 0;
    let mut now = Time::ZERO;
    loop {
        // Start what can start, one batch per point in time; tasks without duration end at once.
        while let Some(task) = ready.pop() {
            start[task as usize] = now;
            let duration = graph.durations[task as usize];
            if duration == 0 {
                end[task as usize] = now;
                done += 1;
                links.finish(task, |_| {}, |successor| ready.push(successor));
                continue;
            }
            let stream = graph.on_stream[task as usize];
            let left = u128::from(duration) << RATE_BITS;
            running[stream as usize] = Running { task, left, since: now.0, rate: 0, end: None };
            let number = device_of[stream as usize];
            let device = &mut devices[number as usize];
            device.streams.push(stream);
            device.classes[graph.classes[task as usize] as usize] += 1;
            mark(device, number, &mut changed);
        }
        for number in changed.drain(..) {
            let device = &mut devices[number as usize];
            device.changed = false;
            // The order of re-rating decides only the sequence of simultaneous ends, never a time.
            for &stream in &device.streams {
                let run = &mut running[stream as usize];
                let class = graph.classes[run.task as usize] as usize;
                let rate = rates.of(class, present(&device.classes, class), device.classes[class]);
                if rate != run.rate {
                    run.left = run.left.saturating_sub(u128::from(now.0 - run.since) * u128::from(run.rate));
                    run.since = now.0;
                    run.rate = rate;
                    if let Some(key) = run.end.take() {
                        engine.cancel(key);
                    }
                    run.end = Some(engine.schedule_after(time_for(run.left, rate), stream)?);
                }
            }
        }
        let Some((time, stream)) = engine.next() else { break };
        now = time;
        let mut ended = stream;
        loop {
            let task = running[ended as usize].task;
            end[task as usize] = now;
            done += 1;
            let number = device_of[ended as usize];
            let device = &mut devices[number as usize];
            device.classes[graph.classes[task as usize] as usize] -= 1;
            device.streams.retain(|&s| s != ended);
            mark(device, number, &mut changed);
            links.finish(task, |_| {}, |successor| ready.push(successor));
            if engine.peek() != Some(now) {
                break;
            }
            match engine.next() {
                Some((_, stream)) => ended = stream,
                None => break,
            }
        }
    }
    if done == graph.len() { Ok(TaskTimes::new(start, end)) } else { Err(cycle(&links)) }
}

/// Notes that a device needs new rates.
fn mark(device: &mut Device, number: u32, changed: &mut Vec<u32>) {
    if !device.changed {
        device.changed = true;
        changed.push(number);
    }
}

/// Set of classes that run beside one task of `class`.
fn present(running: &[u32; CLASSES], class: usize) -> usize {
    let mut set = 0;
    for (other, &count) in running.iter().enumerate() {
        let others = count - u32::from(other == class);
        set |= usize::from(others > 0) << other;
    }
    set
}

/// Time to do `left` at `rate`, rounded up to the next picosecond.
fn time_for(left: u128, rate: u64) -> Time {
    if rate == FULL_RATE {
        return Time((left.saturating_add(u128::from(FULL_RATE - 1)) >> RATE_BITS) as u64);
    }
    // Two 64-bit operations instead of a 128-bit division for anything below 17 seconds.
    match u64::try_from(left) {
        Ok(left) => Time(left.div_ceil(rate)),
        Err(_) => Time(u64::try_from(left.div_ceil(u128::from(rate))).unwrap_or(u64::MAX)),
    }
}
