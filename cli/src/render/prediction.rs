//! One prediction: figures of merit, where the time goes, memory per stage.

use crate::Host;
use crate::failure::Failure;
use crate::inputs::Job;
use crate::number::{grouped, seconds, short, three};
use crate::render::switched::{self, Fall};
use crate::table::{Align::Left, Align::Right, Table, wrap};
use psim_models::Plan;
use psim_reports::plan_label;
use psim_sim::{Level, StepPrediction};
use serde_json::{Value, json};

/// Money, energy and days that follow from a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Economics {
    /// US dollars per 10⁹ tokens, the whole cluster paid.
    pub(crate) usd_per_btok: f64,
    /// Joules per token.
    pub(crate) joule_per_token: f64,
    /// Days for the token budget.
    pub(crate) days: Option<f64>,
}

impl Economics {
    /// From the step and the job.
    pub(crate) fn new(job: &Job, plan: &Plan, prediction: &StepPrediction) -> Self {
        let tokens = f64::from(plan.global_batch) * job.workload.seq_len as f64;
        let step = prediction.step_time.value;
        Self {
            usd_per_btok: job.cluster.price_per_hour() / 3600.0 * step / tokens * 1e9,
            joule_per_token: prediction.energy_joule / tokens,
            days: job.workload.tokens.map(|all| all / tokens * step / 86_400.0),
        }
    }
}

/// `l2`.
pub(crate) fn level_name(level: Level) -> &'static str {
    match level {
        Level::L0 => "l0",
        Level::L1 => "l1",
        Level::L2 => "l2",
        Level::L3 => "l3",
    }
}

/// What was asked, in one or two lines, and every default taken.
pub(crate) fn header(job: &Job) -> String {
    let parameters = job.model.parameters().total;
    let first = format!(
        "{} ({} parameters) on {}: {} x {}, {} {}",
        job.model.name,
        short(parameters as f64),
        job.cluster.name,
        grouped(u64::from(job.cluster.accelerators())),
        parts(job),
        grouped(u64::from(job.cluster.nodes())),
        if job.cluster.nodes() == 1 { "node" } else { "nodes" },
    );
    let batch = match job.global_batch {
        (low, high) if low == high => grouped(u64::from(low)),
        (low, high) => format!("{} to {}", grouped(u64::from(low)), grouped(u64::from(high))),
    };
    let second = format!(
        "sequences of {} tokens, {batch} per step, {}{}, software stack {}",
        grouped(job.workload.seq_len),
        job.precision.name(),
        job.workload.tokens.map(|t| format!(", {} tokens in all", short(t))).unwrap_or_default(),
        job.software.stack.name,
    );
    let mut out = format!("{}\n{}\n", wrap(&first, 100, "  "), wrap(&second, 100, "  "));
    if !job.software.settings.is_empty() {
        out.push_str(&wrap(&format!("with {}", job.software.settings.join(", ")), 100, "  "));
        out.push('\n');
    }
    if !job.assumptions.is_empty() {
        let list: Vec<String> =
            job.assumptions.iter().map(|a| format!("{} {} ({})", a.name, a.value, a.why)).collect();
        out.push_str(&wrap(&format!("assumed: {}", list.join("; ")), 100, "  "));
        out.push('\n');
    }
    out
}

/// Names of the accelerators of the cluster.
fn parts(job: &Job) -> String {
    let mut names: Vec<&str> = Vec::new();
    for group in &job.cluster.groups {
        let name = group.node.accelerator.name.as_str();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(" + ")
}

/// The prediction as text.
pub(crate) fn text(job: &Job, plan: &Plan, prediction: &StepPrediction, falls: &[Fall]) -> String {
    let economics = Economics::new(job, plan, prediction);
    let p = prediction;
    let peak = p.peak_memory().as_f64() / 1e9;
    let capacity = p.memory_capacity.as_f64() / 1e9;
    let mut table = Table::new(&[("", Left), ("", Right), ("", Left)]);
    let mut row = |name: &str, value: String, note: String| table.row([name.to_owned(), value, note]);
    let interval = format!("80 % interval {} to {}", seconds(p.step_time.low), seconds(p.step_time.high));
    row("step time", seconds(p.step_time.value), interval);
    row("tokens/s per GPU", grouped(p.tokens_per_s_per_gpu.round() as u64), String::new());
    row("MFU", format!("{:.1} %", p.mfu), format!("{} TFLOP/s per GPU", three(p.model_tflops_per_gpu)));
    let verdict = if p.fits {
        format!("{:.1} GB of {capacity:.1} GB free", capacity - peak)
    } else {
        format!("DOES NOT FIT in {capacity:.1} GB")
    };
    row("peak memory", format!("{peak:.1} GB"), verdict);
    row("pipeline bubble", format!("{:.1} %", p.bubble * 100.0), String::new());
    row("exposed communication", format!("{:.1} %", p.exposed_comm * 100.0), String::new());
    row("cost", format!("{} $", three(economics.usd_per_btok)), "per billion tokens".to_owned());
    row("energy", format!("{} J", three(economics.joule_per_token)), "per token".to_owned());
    if let (Some(days), Some(tokens)) = (economics.days, job.workload.tokens) {
        row("time", crate::number::days(days), format!("for {} tokens", short(tokens)));
    }
    let provenance = format!("{:?}", p.provenance).to_lowercase();
    row("level", level_name(p.level).to_owned(), format!("weakest provenance: {provenance}"));
    let mut out = format!("plan: {}\n", plan_label(plan));
    out.push_str(table.render().trim_start_matches('\n'));
    out.push_str("\nwhere the time goes, from the peak down\n");
    out.push_str(switched::text(falls).trim_start_matches('\n'));
    out.push_str("\nmemory per stage, GB\n");
    out.push_str(&memory(p));
    for note in &p.notes {
        out.push_str(&wrap(&format!("note: {note}"), 100, "  "));
        out.push('\n');
    }
    out
}

/// Parts of the memory of each stage; equal neighbours share a line.
fn memory(prediction: &StepPrediction) -> String {
    let mut names: Vec<&'static str> = Vec::new();
    for stage in &prediction.memory {
        for (name, bytes) in &stage.parts {
            if bytes.0 > 0 && !names.contains(name) {
                names.push(name);
            }
        }
    }
    let mut columns = vec![("  part", Left)];
    let shown: Vec<usize> = match prediction.memory.len() {
        n if n <= 8 => (0..n).collect(),
        n => [0, 1, 2, 3, n - 4, n - 3, n - 2, n - 1].into(),
    };
    let titles: Vec<String> =
        shown.iter().map(|i| format!("stage {}", prediction.memory[*i].stage)).collect();
    columns.extend(titles.iter().map(|t| (t.as_str(), Right)));
    let mut table = Table::new(&columns);
    let gigabytes = |bytes: f64| format!("{:.1}", bytes / 1e9);
    for name in names {
        let value = |i: &usize| {
            let parts = &prediction.memory[*i].parts;
            gigabytes(parts.iter().filter(|p| p.0 == name).map(|p| p.1.as_f64()).sum())
        };
        table.row(std::iter::once(format!("  {name}")).chain(shown.iter().map(value)));
    }
    let total = |i: &usize| gigabytes(prediction.memory[*i].total.as_f64());
    table.row(std::iter::once("  total".to_owned()).chain(shown.iter().map(total)));
    table.render()
}

/// The prediction as JSON, keys as in `psim plan --json` and the waterfall beside.
pub(crate) fn as_json(job: &Job, plan: &Plan, prediction: &StepPrediction, falls: &[Fall]) -> Value {
    let economics = Economics::new(job, plan, prediction);
    let p = prediction;
    let memory: Vec<Value> = p
        .memory
        .iter()
        .map(|stage| {
            let parts: serde_json::Map<String, Value> =
                stage.parts.iter().map(|(name, b)| ((*name).to_owned(), json!(b.as_f64() / 1e9))).collect();
            json!({ "stage": stage.stage, "total_gb": stage.total.as_f64() / 1e9, "parts_gb": parts })
        })
        .collect();
    json!({
        "model": job.model.name,
        "cluster": job.cluster.name,
        "stack": job.software.stack.name,
        "settings": job.software.settings,
        "assumptions": job.assumptions,
        "level": level_name(p.level),
        "plan": plan,
        "step_time_s": p.step_time,
        "tokens_per_s_per_gpu": p.tokens_per_s_per_gpu,
        "mfu": p.mfu,
        "model_tflops_per_gpu": p.model_tflops_per_gpu,
        "fits": p.fits,
        "peak_mem_gb": p.peak_memory().as_f64() / 1e9,
        "mem_capacity_gb": p.memory_capacity.as_f64() / 1e9,
        "bubble": p.bubble,
        "exposed_comm": p.exposed_comm,
        "cost_usd_per_btok": economics.usd_per_btok,
        "energy_j_per_token": economics.joule_per_token,
        "days": economics.days,
        "waterfall": falls,
        "memory": memory,
        "provenance": p.provenance,
        "notes": p.notes,
    })
}

/// Fails with exit code 1 when the plan does not fit, naming the largest parts.
pub(crate) fn must_fit(prediction: &StepPrediction, host: &mut Host<'_>) -> Result<(), Failure> {
    if prediction.fits {
        return Ok(());
    }
    host.flush()?;
    let Some(worst) = prediction.memory.iter().max_by_key(|m| m.total) else { return Ok(()) };
    let mut parts = worst.parts.clone();
    parts.sort_by_key(|p| std::cmp::Reverse(p.1));
    let largest: Vec<String> =
        parts.iter().take(3).map(|(name, b)| format!("{name} {:.1} GB", b.as_f64() / 1e9)).collect();
    Err(Failure::Infeasible {
        message: format!(
            "stage {} needs {:.1} GB, an accelerator has {:.1} GB; largest parts: {}",
            worst.stage,
            worst.total.as_f64() / 1e9,
            prediction.memory_capacity.as_f64() / 1e9,
            largest.join(", ")
        ),
        hint: "more tensor or pipeline parallelism, sharding = \"parameters\", recompute = \"full\", or a smaller micro_batch"
            .to_owned(),
    })
}
