//! Timelines in the Chrome trace format (Trace Event Format), which <https://ui.perfetto.dev> and `chrome://tracing` open.

use psim_hardware::Time;
use psim_sim::Timeline;
use psim_sim::serving::ServingRun;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Microseconds with picosecond digits, the unit of the format.
fn microseconds(time: Time) -> f64 {
    time.0 as f64 * 1e-6
}

/// The timeline as one JSON document. Tracks with equal `process` share a group in the viewer; groups and lines keep
/// the order of their first appearance. `metadata` is kept under `otherData`.
pub fn chrome(timeline: &Timeline, metadata: &Value) -> String {
    let mut processes: Vec<&str> = Vec::new();
    let mut events: Vec<Value> = Vec::new();
    let mut place = Vec::with_capacity(timeline.tracks.len());
    for (thread, track) in timeline.tracks.iter().enumerate() {
        let process = match processes.iter().position(|p| *p == track.process) {
            Some(at) => at,
            None => {
                processes.push(&track.process);
                let pid = processes.len() - 1;
                events.push(meta("process_name", pid, 0, &json!({ "name": track.process })));
                events.push(meta("process_sort_index", pid, 0, &json!({ "sort_index": pid })));
                pid
            }
        };
        events.push(meta("thread_name", process, thread, &json!({ "name": track.stream })));
        events.push(meta("thread_sort_index", process, thread, &json!({ "sort_index": thread })));
        place.push((process, thread));
    }
    for span in &timeline.spans {
        let Some(&(pid, tid)) = place.get(span.track as usize) else { continue };
        events.push(json!({
            "ph": "X", "name": span.name, "cat": span.category, "pid": pid, "tid": tid,
            "ts": microseconds(span.start), "dur": microseconds(span.end - span.start),
        }));
    }
    let document = json!({ "displayTimeUnit": "ms", "otherData": metadata, "traceEvents": events });
    document.to_string()
}

/// Requests drawn at most; of longer runs the beginning is kept.
const MOST_REQUESTS: usize = 20_000;

/// A serving run: every request as an asynchronous span of its replica with the wait for the first token inside, and
/// queue, batch and cache as counters where the run kept a timeline.
pub fn serving(run: &ServingRun, metadata: &Value) -> String {
    let mut events: Vec<Value> = Vec::new();
    let mut named: BTreeSet<u32> = BTreeSet::new();
    let span = |name: &str, replica: u32, id: usize, from: Time, to: Time, events: &mut Vec<Value>| {
        for (phase, at) in [("b", from), ("e", to)] {
            events.push(
                json!({ "ph": phase, "name": name, "cat": "request", "id": id, "pid": replica, "tid": 0,
                                "ts": microseconds(at) }),
            );
        }
    };
    for (id, outcome) in run.outcomes.iter().enumerate().take(MOST_REQUESTS).filter(|(_, o)| !o.refused) {
        if named.insert(outcome.replica) {
            let name = format!("replica {}", outcome.replica);
            events.push(meta("process_name", outcome.replica as usize, 0, &json!({ "name": name })));
        }
        span("request", outcome.replica, id, outcome.sent, outcome.finish, &mut events);
        span("to first token", outcome.replica, id, outcome.sent, outcome.first_token, &mut events);
    }
    for s in &run.samples {
        let mut counter = |name: &str, args: Value| {
            events.push(json!({ "ph": "C", "name": name, "pid": s.replica, "ts": microseconds(s.time), "args": args }));
        };
        counter("requests", json!({ "running": s.running, "waiting": s.waiting }));
        counter("KV cache", json!({ "used %": (f64::from(s.cache) * 1000.0).round() / 10.0 }));
    }
    json!({ "displayTimeUnit": "ms", "otherData": metadata, "traceEvents": events }).to_string()
}

/// A metadata event.
fn meta(name: &str, pid: usize, tid: usize, args: &Value) -> Value {
    json!({ "ph": "M", "name": name, "pid": pid, "tid": tid, "args": args })
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_sim::timeline::{Span, Track};

    #[test]
    fn every_span_keeps_its_place_and_length() {
        let track = |process: &str, stream: &str| Track { process: process.into(), stream: stream.into() };
        let timeline = Timeline {
            tracks: vec![track("stage 0", "compute"), track("stage 1", "compute"), track("stage 0", "dp")],
            spans: vec![
                Span {
                    track: 0,
                    name: "F0".into(),
                    category: "forward",
                    start: Time(0),
                    end: Time(2_000_000),
                },
                Span {
                    track: 2,
                    name: "reduce".into(),
                    category: "communication",
                    start: Time(1_500_000),
                    end: Time(3_000_000),
                },
            ],
        };
        let value: Value = serde_json::from_str(&chrome(&timeline, &json!({"a": 1}))).unwrap();
        let events = value["traceEvents"].as_array().unwrap();
        let spans: Vec<&Value> = events.iter().filter(|e| e["ph"] == "X").collect();
        assert_eq!(spans.len(), 2);
        assert_eq!((spans[0]["pid"].as_u64(), spans[1]["pid"].as_u64()), (Some(0), Some(0)));
        assert_ne!(spans[0]["tid"], spans[1]["tid"]);
        assert_eq!(spans[1]["ts"], 1.5);
        assert_eq!(spans[1]["dur"], 1.5);
        let processes = events.iter().filter(|e| e["name"] == "process_name").count();
        assert_eq!(processes, 2);
    }
}
