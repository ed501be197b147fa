//! Traces of PyTorch's profiler (Kineto, Chrome JSON): kernels by name and kind, and where the time of a device went.

use super::ImportError;
use super::profile::{CollectiveSample, GemmSample};
use psim_hardware::DType;
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
    /// Matrix products whose shapes were recorded (`record_shapes`).
    pub gemms: Vec<GemmSample>,
    /// Collectives whose sizes were recorded.
    pub collectives: Vec<CollectiveSample>,
}

/// A kernel as it ran.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelRun {
    /// Start, microseconds.
    pub start_us: f64,
    /// Duration, microseconds.
    pub duration_us: f64,
    /// Name.
    pub name: String,
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
    #[serde(default)]
    args: Option<serde_json::Value>,
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
    let mut runs = Vec::new();
    let mut arguments = Vec::new();
    let mut shapes = BTreeMap::new();
    let mut steps = Vec::new();
    for event in &events {
        let (category, name) = (event.cat.as_deref().unwrap_or(""), event.name.as_deref().unwrap_or(""));
        if event.ph.as_deref() != Some("X") {
            continue;
        }
        if let Some((id, shape)) = gemm_shape(category, name, event.args.as_ref()) {
            shapes.insert(id, shape);
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
        runs.push(KernelRun { start_us: start, duration_us: duration, name: name.to_owned() });
        arguments.push(event.args.as_ref());
    }
    if runs.is_empty() {
        return Err(refuse(format!("none of its {} events is a kernel (a CPU-only trace?)", events.len())));
    }
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let number = |key: &str| file.distributed.as_ref().and_then(|d| d.get(key)?.as_u64()).map(|n| n as u32);
    Ok(Trace {
        rank: number("rank").zip(number("world_size")),
        device: file.devices.as_ref().and_then(|d| Some(d.first()?.get("name")?.as_str()?.to_owned())),
        steps_us: steps.into_iter().map(|s| s.1).collect(),
        gemms: gemms(&runs, &arguments, &shapes),
        collectives: runs.iter().zip(&arguments).filter_map(|(run, args)| collective(run, *args)).collect(),
        ..summarise(&runs)
    })
}

/// Kernels by name, and how the time of the device is spent.
pub fn summarise(runs: &[KernelRun]) -> Trace {
    let mut by_name: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut intervals = Vec::with_capacity(runs.len());
    for run in runs {
        by_name.entry(&run.name).or_default().push(run.duration_us);
        let communication = kind(&run.name) == KernelKind::Communication;
        intervals.push((run.start_us, run.start_us + run.duration_us, communication));
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
    Trace {
        rank: None,
        device: None,
        steps_us: Vec::new(),
        span_us,
        compute_us,
        exposed_communication_us,
        idle_us: (span_us - compute_us - exposed_communication_us).max(0.0),
        kernels,
        gemms: Vec::new(),
        collectives: Vec::new(),
    }
}

/// Format by its name in PyTorch, and bytes of an element.
fn dtype(name: &str) -> Option<(Option<DType>, f64)> {
    let lower = name.to_ascii_lowercase();
    Some(match lower.trim_start_matches("c10::") {
        "bfloat16" => (Some(DType::Bf16), 2.0),
        "half" => (Some(DType::Fp16), 2.0),
        "float" => (Some(DType::Fp32), 4.0),
        "double" | "long" => (None, 8.0),
        "int" => (None, 4.0),
        "byte" | "char" | "bool" => (None, 1.0),
        _ => return None,
    })
}

/// Operator number and shape of a matrix product with recorded shapes.
fn gemm_shape(
    category: &str,
    name: &str,
    args: Option<&serde_json::Value>,
) -> Option<(u64, (DType, [f64; 4]))> {
    if !(category.eq_ignore_ascii_case("cpu_op") || category.eq_ignore_ascii_case("operator")) {
        return None;
    }
    // aten::addmm and aten::baddbmm take the summand first.
    let first = match name {
        "aten::mm" | "aten::bmm" => 0,
        "aten::addmm" | "aten::baddbmm" => 1,
        _ => return None,
    };
    let args = args?;
    let id = args.get("External id").or_else(|| args.get("external id"))?.as_u64()?;
    let dims = args.get("Input Dims").or_else(|| args.get("Input dims"))?;
    let types = args.get("Input type")?;
    let shape = |i: usize| -> Option<Vec<f64>> {
        dims.get(i)?.as_array()?.iter().map(serde_json::Value::as_f64).collect()
    };
    let (a, b) = (shape(first)?, shape(first + 1)?);
    let (format, _) = dtype(types.get(first)?.as_str()?)?;
    let (batch, a, b) = match (&a[..], &b[..]) {
        ([m, k], [k2, n]) if k == k2 => (1.0, [*m, *k], *n),
        ([batch, m, k], [_, k2, n]) if k == k2 => (*batch, [*m, *k], *n),
        _ => return None,
    };
    let sizes = [a[0], b, a[1], batch];
    sizes.iter().all(|s| *s >= 1.0).then_some(())?;
    Some((id, (format?, sizes)))
}

/// Matrix products: all GEMM kernels that an operator launched belong to it.
fn gemms(
    runs: &[KernelRun],
    arguments: &[Option<&serde_json::Value>],
    shapes: &BTreeMap<u64, (DType, [f64; 4])>,
) -> Vec<GemmSample> {
    let mut times: BTreeMap<u64, f64> = BTreeMap::new();
    for (run, args) in runs.iter().zip(arguments) {
        let id = args.and_then(|a| a.get("External id").or_else(|| a.get("external id"))?.as_u64());
        if let Some(id) = id.filter(|id| shapes.contains_key(id) && kind(&run.name) == KernelKind::Gemm) {
            *times.entry(id).or_default() += run.duration_us * 1e-6;
        }
    }
    times
        .into_iter()
        .filter_map(|(id, seconds)| {
            let &(dtype, [m, n, k, batch]) = shapes.get(&id)?;
            (seconds > 0.0).then_some(GemmSample { dtype, m, n, k, batch, seconds })
        })
        .collect()
}

/// A collective whose size was recorded, in nccl-tests' convention of sizes.
fn collective(run: &KernelRun, args: Option<&serde_json::Value>) -> Option<CollectiveSample> {
    let args = args?;
    let number = |key: &str| args.get(key).and_then(serde_json::Value::as_f64);
    let (sent, received) = (number("In msg nelems")?, number("Out msg nelems")?);
    let ranks = number("Group size").filter(|r| *r >= 2.0)? as u32;
    let name = args.get("Collective name")?.as_str()?.to_ascii_lowercase();
    let (operation, elements) = match name.trim_start_matches('_') {
        "allreduce" => ("all-reduce", sent),
        "allgather" | "allgather_base" | "all_gather_into_tensor" => ("all-gather", received),
        "reduce_scatter" | "reduce_scatter_base" | "reduce_scatter_tensor" => ("reduce-scatter", sent),
        "all_to_all" | "all_to_allv" | "alltoall" | "alltoall_base" => ("all-to-all", sent),
        _ => return None,
    };
    let (_, size) = dtype(args.get("dtype")?.as_str()?)?;
    let bytes = (elements * size) as u64;
    (bytes > 0 && run.duration_us > 0.0).then(|| CollectiveSample {
        operation: operation.to_owned(),
        ranks,
        bytes,
        seconds: run.duration_us * 1e-6,
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
