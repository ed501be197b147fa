//! The task-graph executor against a simulator that recomputes everything at every point in time.
#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

use proptest::prelude::*;
use psim_hardware::Time;
use psim_sim::stream::{Contention, StreamError, StreamId, TaskClass, TaskGraph, TaskId, TaskSpec};

const CLASSES: [TaskClass; 4] =
    [TaskClass::Compute, TaskClass::Memory, TaskClass::Communication, TaskClass::Copy];

#[derive(Debug, Clone)]
struct Case {
    /// Device of each stream.
    streams: Vec<u32>,
    /// Stream, duration, class and earlier tasks to wait for.
    tasks: Vec<(usize, u64, usize, Vec<usize>)>,
    /// Slow-downs in quarters.
    slowdown: Vec<Vec<u32>>,
}

fn case() -> impl Strategy<Value = Case> {
    let streams = prop::collection::vec(0..3_u32, 1..6);
    let slowdown = prop::collection::vec(prop::collection::vec(4..12_u32, 4), 4);
    (streams, slowdown).prop_flat_map(|(streams, slowdown)| {
        let count = streams.len();
        let task =
            (0..count, 0..60_u64, 0..4_usize, prop::collection::vec(any::<prop::sample::Index>(), 0..3));
        prop::collection::vec(task, 1..40).prop_map(move |tasks| Case {
            streams: streams.clone(),
            tasks: (tasks.into_iter().enumerate())
                .map(|(i, (stream, duration, class, after))| {
                    let after = if i == 0 { Vec::new() } else { after.iter().map(|x| x.index(i)).collect() };
                    (stream, duration, class, after)
                })
                .collect(),
            slowdown: slowdown.clone(),
        })
    })
}

fn graph(case: &Case, scale: u64) -> TaskGraph {
    let mut graph = TaskGraph::new();
    let streams: Vec<StreamId> = case.streams.iter().map(|&d| graph.stream(d * 7, format!("s{d}"))).collect();
    for (stream, duration, class, after) in &case.tasks {
        let after: Vec<TaskId> = after.iter().map(|&i| TaskId(i as u32)).collect();
        let spec = TaskSpec::new(streams[*stream], Time(duration * scale), CLASSES[*class], "work");
        graph.add(TaskSpec { after: &after, ..spec });
    }
    graph
}

fn contention(case: &Case) -> Contention {
    let mut contention = Contention::none();
    for (a, row) in case.slowdown.iter().enumerate() {
        for (b, &quarters) in row.iter().enumerate() {
            contention = contention.with(CLASSES[a], CLASSES[b], f64::from(quarters) / 4.0);
        }
    }
    contention
}

/// Advances all running tasks from one end to the next, with everything recomputed: O(n²), obviously right.
fn oracle(case: &Case, slow: bool) -> Vec<(u64, u64)> {
    const FULL: u128 = 1 << 20;
    let count = case.tasks.len();
    let (mut start, mut end) = (vec![None; count], vec![None; count]);
    let mut left: Vec<u128> = case.tasks.iter().map(|t| u128::from(t.1) * FULL).collect();
    let mut now = 0_u64;
    while end.iter().any(Option::is_none) {
        loop {
            let mut moved = false;
            for i in 0..count {
                let before_on_stream = (0..i).rev().find(|&j| case.tasks[j].0 == case.tasks[i].0);
                let mut needs = case.tasks[i].3.iter().copied().chain(before_on_stream);
                if start[i].is_none() && needs.all(|j| end[j].is_some()) {
                    start[i] = Some(now);
                    moved = true;
                }
                if start[i].is_some() && end[i].is_none() && left[i] == 0 {
                    end[i] = Some(now);
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        let running: Vec<usize> = (0..count).filter(|&i| start[i].is_some() && end[i].is_none()).collect();
        let rate = |i: usize| {
            let mut factor = 1.0;
            for class in 0..4 {
                let device = |j: usize| case.streams[case.tasks[j].0];
                let beside =
                    running.iter().any(|&j| j != i && device(j) == device(i) && case.tasks[j].2 == class);
                if slow && beside {
                    factor *= f64::from(case.slowdown[case.tasks[i].2][class]) / 4.0;
                }
            }
            ((FULL as f64 / factor).round() as u128).max(1)
        };
        let rates: Vec<u128> = running.iter().map(|&i| rate(i)).collect();
        let Some(step) = running.iter().zip(&rates).map(|(&i, &r)| left[i].div_ceil(r)).min() else { break };
        now += step as u64;
        for (&i, &r) in running.iter().zip(&rates) {
            left[i] = left[i].saturating_sub(step * r);
        }
    }
    start.into_iter().zip(end).map(|(s, e)| (s.unwrap(), e.unwrap())).collect()
}

fn times(graph: &TaskGraph, contention: &Contention) -> Vec<(u64, u64)> {
    let times = graph.run(contention).unwrap();
    (0..graph.len() as u32).map(|i| (times.start(TaskId(i)).0, times.end(TaskId(i)).0)).collect()
}

proptest! {
    #[test]
    fn contention_agrees_with_the_oracle(case in case()) {
        prop_assert_eq!(times(&graph(&case, 1), &contention(&case)), oracle(&case, true));
    }

    #[test]
    fn relaxation_agrees_with_the_oracle_and_scales(case in case()) {
        let once = times(&graph(&case, 1), &Contention::none());
        prop_assert_eq!(&once, &oracle(&case, false));
        let twice: Vec<_> = once.iter().map(|&(s, e)| (2 * s, 2 * e)).collect();
        prop_assert_eq!(times(&graph(&case, 2), &Contention::none()), twice);
    }

    #[test]
    fn contention_never_helps_and_stretches_at_most_by_the_largest_product(case in case()) {
        let graph = graph(&case, 1000);
        let alone = graph.run(&Contention::none()).unwrap().makespan().0;
        let shared = graph.run(&contention(&case)).unwrap().makespan().0;
        prop_assert!(shared >= alone);
        let worst = case.slowdown.iter().map(|r| r.iter().map(|&q| f64::from(q) / 4.0).product::<f64>()).fold(1.0, f64::max);
        prop_assert!(shared as f64 <= alone as f64 * worst * 1.0001 + case.tasks.len() as f64);
    }

    #[test]
    fn the_critical_path_has_no_gap(case in case()) {
        let graph = graph(&case, 1);
        let times = graph.run(&contention(&case)).unwrap();
        let path = times.critical_path(&graph);
        prop_assert_eq!(path.first().map(|&t| times.start(t)), Some(Time::ZERO));
        prop_assert_eq!(path.last().map(|&t| times.end(t)), Some(times.makespan()));
        prop_assert!(path.windows(2).all(|pair| times.end(pair[0]) == times.start(pair[1])));
    }
}

#[test]
fn circles_and_strangers_are_refused() {
    let mut graph = TaskGraph::new();
    let (a, b) = (graph.stream(0, "a"), graph.stream(0, "b"));
    let task = |stream| TaskSpec::new(stream, Time(1), TaskClass::Compute, "work");
    let first = graph.add(task(a));
    let second = graph.add(TaskSpec { after: &[first], ..task(b) });
    for contention in [Contention::none(), Contention::between_compute_and_communication(1.1, 1.2)] {
        assert!(graph.run(&contention).is_ok());
        let mut circle = graph.clone();
        circle.depend(first, second);
        assert_eq!(circle.run(&contention), Err(StreamError::Cycle { task: 0 }));
        let mut stranger = graph.clone();
        stranger.depend(first, TaskId(9));
        assert!(matches!(stranger.run(&contention), Err(StreamError::Unknown { what: "task", id: 9, .. })));
    }
    graph.add(task(StreamId(5)));
    assert!(matches!(
        graph.run(&Contention::none()),
        Err(StreamError::Unknown { what: "stream", id: 5, .. })
    ));
    let bad = Contention::between_compute_and_communication(f64::NAN, 1.0);
    assert!(matches!(TaskGraph::new().run(&bad), Err(StreamError::Slowdown(_))));
}

#[test]
fn the_timeline_names_devices_and_streams() {
    let mut graph = TaskGraph::new();
    let compute = graph.stream(3, "compute");
    let a = graph.add(TaskSpec::new(compute, Time(5), TaskClass::Compute, "forward"));
    graph.add(TaskSpec::new(compute, Time(0), TaskClass::Compute, "marker"));
    let times = graph.run(&Contention::none()).unwrap();
    let timeline = times.timeline(&graph, |device| format!("stage {device}"), |task| format!("F{}", task.0));
    assert_eq!(timeline.tracks[0].process, "stage 3");
    assert_eq!(timeline.spans.len(), 1);
    assert_eq!((timeline.spans[0].name.as_str(), timeline.spans[0].end), ("F0", times.end(a)));
}
