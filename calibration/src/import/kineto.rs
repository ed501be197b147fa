//! Traces of PyTorch's profiler (Kineto, Chrome JSON): kernels by name and kind, and where the time of a device went.

use super::ImportError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a kernel does, from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelKind {
    /// Matrix product or convolution.
    Gemm,
    /// Fused attention.
    Attention,
    /// NCCL or RCCL.
    Communication,
    /// Everything else, mostly memory-bound.
    Other,
}

/// Kernels of one name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelSummary {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: KernelKind,
    /// Launches.
    pub count: usize,
    /// Microseconds altogether.
    pub total_us: f64,
    /// Median microseconds.
    pub median_us: f64,
}

/// A trace of one process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trace {
    /// Rank and ranks of the job, where recorded.
    pub rank: Option<(u32, u32)>,
    /// Device name, where recorded.
    pub device: Option<String>,
    /// Durations of annotated profiler steps, microseconds, in order.
    pub steps_us: Vec<f64>,
    /// From the first kernel's start to the last one's end, microseconds.
    pub span_us: f64,
    /// At least one kernel that is not communication runs.
    pub compute_us: f64,
    /// Only communication runs.
    pub exposed_communication_us: f64,
    /// Nothing runs.
    pub idle_us: f64,
    /// Kernels, longest total first.
    pub kernels: Vec<KernelSummary>,
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "traceEvents")]
    events: Option<Vec<Event>>,
    #[serde(rename = "distributedInfo")]
    distributed: Option<serde_json::Value>,
    #[serde(rename = "deviceProperties")]
    devices: Option<Vec<serde_json::Value>>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    ph: Option<String>,
    #[serde(default)]
    ts: Option<f64>,
    #[serde(default)]
    dur: Option<f64>,
}

fn refuse(reason: impl Into<String>) -> ImportError {
    ImportError::Kind { expected: "a Kineto trace with GPU kernels", reason: reason.into() }
}

/// Kind of a kernel.
pub fn kind(name: &str) -> KernelKind {
    let lower = name.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| lower.contains(w));
    if has(&["nccl", "rccl"]) {
        KernelKind::Communication
    } else if has(&["flash", "fmha", "attention"]) {
        KernelKind::Attention
    } else if has(&["gemm", "cutlass", "cublas", "cijk_", "_mma", "xmma", "conv", "nvjet"]) {
        KernelKind::Gemm
    } else {
        KernelKind::Other
    }
}

/// Reads a trace, gzip or plain.
///
/// # Errors
/// When it is not JSON, is another kind of trace, has no GPU kernels, or a kernel has no valid time.
pub fn parse(bytes: &[u8]) -> Result<Trace, ImportError> {
    let text = super::unpack(bytes)?;
    let file: File = serde_json::from_slice(&text).map_err(|e| refuse(format!("not valid JSON: {e}")))?;
    let Some(events) = file.events else {
        return Err(refuse("it has no `traceEvents` (an execution trace of operators has none)"));
    };
    let mut by_name: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut intervals = Vec::new();
    let mut steps = Vec::new();
    for event in &events {
        let (category, name) = (event.cat.as_deref().unwrap_or(""), event.name.as_deref().unwrap_or(""));
        if event.ph.as_deref() != Some("X") {
            continue;
        }
        let is_kernel = category.eq_ignore_ascii_case("kernel");
        let is_step = category == "user_annotation" && name.starts_with("ProfilerStep");
        if !is_kernel && !is_step {
            continue;
        }
        let times =
            event.ts.zip(event.dur).filter(|(ts, dur)| ts.is_finite() && dur.is_finite() && *dur >= 0.0);
        let Some((start, duration)) = times else {
            return Err(refuse(format!("`{name}` has no valid start and duration")));
        };
        if is_step {
            steps.push((start, duration));
            continue;
        }
        by_name.entry(name).or_default().push(duration);
        intervals.push((start, start + duration, kind(name) == KernelKind::Communication));
    }
    if intervals.is_empty() {
        return Err(refuse(format!("none of its {} events is a kernel (a CPU-only trace?)", events.len())));
    }
    let mut kernels: Vec<KernelSummary> = by_name
        .into_iter()
        .map(|(name, durations)| KernelSummary {
            name: name.to_owned(),
            kind: kind(name),
            count: durations.len(),
            total_us: durations.iter().sum(),
            median_us: crate::measure::point::median(&durations),
        })
        .collect();
    kernels.sort_by(|a, b| b.total_us.total_cmp(&a.total_us).then(a.name.cmp(&b.name)));
    let (span_us, compute_us, exposed_communication_us) = occupancy(&intervals);
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let number = |key: &str| file.distributed.as_ref().and_then(|d| d.get(key)?.as_u64()).map(|n| n as u32);
    Ok(Trace {
        rank: number("rank").zip(number("world_size")),
        device: file.devices.as_ref().and_then(|d| Some(d.first()?.get("name")?.as_str()?.to_owned())),
        steps_us: steps.into_iter().map(|s| s.1).collect(),
        span_us,
        compute_us,
        exposed_communication_us,
        idle_us: (span_us - compute_us - exposed_communication_us).max(0.0),
        kernels,
    })
}

/// Span, time with compute, time with communication only.
fn occupancy(intervals: &[(f64, f64, bool)]) -> (f64, f64, f64) {
    // (time, change of compute, change of communication)
    let mut edges: Vec<(f64, i32, i32)> = Vec::with_capacity(2 * intervals.len());
    for &(start, end, communication) in intervals {
        let (compute, other) = if communication { (0, 1) } else { (1, 0) };
        edges.push((start, compute, other));
        edges.push((end, -compute, -other));
    }
    edges.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut compute, mut communication) = (0, 0);
    let (mut busy, mut exposed) = (0.0, 0.0);
    let mut last = edges.first().map_or(0.0, |e| e.0);
    let first = last;
    for (time, a, b) in edges {
        if compute > 0 {
            busy += time - last;
        } else if communication > 0 {
            exposed += time - last;
        }
        compute += a;
        communication += b;
        last = time;
    }
    (last - first, busy, exposed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_kernels_count_once() {
        let (span, compute, exposed) =
            occupancy(&[(0.0, 4.0, false), (2.0, 6.0, false), (5.0, 9.0, true), (11.0, 12.0, false)]);
        assert_eq!((span, compute, exposed), (12.0, 7.0, 3.0));
    }

    #[test]
    fn other_files_are_refused() {
        for (text, reason) in [
            ("{", "not valid JSON"),
            ("{\"nodes\": []}", "no `traceEvents`"),
            ("{\"traceEvents\": []}", "CPU-only"),
            (
                "{\"traceEvents\": [{\"ph\": \"X\", \"cat\": \"kernel\", \"name\": \"k\", \"ts\": 1}]}",
                "no valid start",
            ),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
