//! `psim import`: reads what other tools wrote. A model configuration is printed as psim understood it; measurements
//! (nccl-tests logs, PyTorch and Nsight Systems traces, folders of CSV tables) are summed up and, with `--out`, become a
//! profile.

use crate::Host;
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::inputs::model;
use crate::machine::hinted;
use crate::number::{grouped, short, three};
use crate::table::{Align, Table};
use clap::Args;
use psim_calibration::import::kineto::{self, Trace};
use psim_calibration::import::profile::{Imported, correct, curves};
use psim_calibration::import::{ImportError, nccl, nsys, sqlite, tables, unpack};
use psim_hardware::{Accelerator, catalogue};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Longest file that is read: traces of large jobs are long.
const MAX_BYTES: u64 = 4 << 30;
/// Kernels listed of a trace.
const LISTED: usize = 12;

/// Arguments of `psim import`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A Hugging Face config.json (or its directory), an nccl-tests log, a trace of PyTorch's profiler (.json, .json.gz),
    /// an Nsight Systems export (.sqlite), or a folder with CSV tables of measurements
    file: String,
    /// Write the accelerator profile that the measurements make, over the built-in one
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Accelerator that was measured, where the file does not say (`psim show accelerators`)
    #[arg(long, value_name = "NAME")]
    accelerator: Option<String>,
    /// Operation of an nccl-tests log that does not name its program: all-reduce, all-gather …
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
    /// Ranks of an nccl-tests log that does not list them
    #[arg(long, value_name = "N")]
    ranks: Option<u32>,
    /// Print JSON with a `schema` key
    #[arg(long)]
    json: bool,
}

/// What a file holds.
enum Kind {
    Model,
    Nccl(String),
    Kineto(Vec<u8>),
    Nsight(Vec<u8>),
    Tables,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    for ending in [".sh", ".py", ".yaml", ".yml", ".toml"] {
        if arguments.file.ends_with(ending) {
            return Err(Failure::not_built(
                &format!("importing `{ending}` launch files"),
                "import reads model configurations, nccl-tests logs, traces and tables today",
            ));
        }
    }
    match kind(arguments, host)? {
        Kind::Model => import_model(arguments, host),
        Kind::Nccl(text) => import_log(arguments, &text, host),
        Kind::Kineto(bytes) => {
            let trace = kineto::parse(&bytes).map_err(|e| refused(&e, arguments))?;
            import_trace(arguments, &trace, "a PyTorch trace", host)
        }
        Kind::Nsight(bytes) => {
            let trace = nsys::parse(&bytes).map_err(|e| refused(&e, arguments))?;
            import_trace(arguments, &trace, "an Nsight Systems export", host)
        }
        Kind::Tables => {
            let accelerator = accelerator(arguments, None)?;
            let imported = tables::fit(&host.path(Path::new(&arguments.file)), accelerator)
                .map_err(|e| refused(&e, arguments))?;
            learned(arguments, &json!({ "kind": "tables" }), Some(&imported), host)
        }
    }
}

/// Looks at the file itself, not at its name; what is nothing else is taken for a model.
fn kind(arguments: &Arguments, host: &Host<'_>) -> Result<Kind, Failure> {
    let path = host.path(Path::new(&arguments.file));
    if path.is_dir() {
        let measured = ["gemm.csv.gz", "gemm.csv", "collectives.csv", "peaks.csv"];
        let tables = measured.iter().any(|name| path.join(name).is_file());
        return Ok(if tables { Kind::Tables } else { Kind::Model });
    }
    let Ok(about) = std::fs::metadata(&path) else { return Ok(Kind::Model) };
    if about.len() > MAX_BYTES {
        return Err(Failure::input_at(
            format!("the file has {} bytes, more than the {MAX_BYTES} that are read", about.len()),
            arguments.file.clone(),
            "record fewer steps",
        ));
    }
    host.has_read(&path);
    let raw = std::fs::read(&path).map_err(|e| {
        Failure::input(format!("`{}` cannot be read: {e}", arguments.file), "check its permissions")
    })?;
    let bytes = unpack(&raw).map_err(|e| refused(&e, arguments))?;
    if bytes.starts_with(sqlite::MAGIC) {
        return Ok(Kind::Nsight(bytes));
    }
    // A list in brackets is no configuration; launchers prefix the lines of a log with `[1,0]<stdout>:`.
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
        let has = |word: &[u8]| bytes.windows(word.len()).any(|w| w == word);
        let trace = has(b"\"traceEvents\"") || (has(b"\"nodes\"") && has(b"\"schema\""));
        return Ok(if trace { Kind::Kineto(bytes) } else { Kind::Model });
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.trim().is_empty() && !arguments.file.ends_with(".json") => Ok(Kind::Nccl(text)),
        _ => Ok(Kind::Model),
    }
}

fn refused(error: &ImportError, arguments: &Arguments) -> Failure {
    let text = error.to_string();
    let (message, hint) = text.split_once("\nhint: ").unwrap_or((
        &text,
        "import reads config.json, nccl-tests logs, PyTorch traces, Nsight Systems exports and folders of tables",
    ));
    let (place, message) = match error {
        ImportError::Line { line, reason } => (format!("{}:{line}", arguments.file), reason.as_str()),
        ImportError::Kind { .. } => (arguments.file.clone(), message),
        _ => (arguments.file.clone(), message),
    };
    Failure::input_at(message, place, hint)
}

/// The accelerator that was measured: named, or as the driver calls it.
fn accelerator(arguments: &Arguments, device: Option<&str>) -> Result<&'static Accelerator, Failure> {
    if let Some(name) = &arguments.accelerator {
        return catalogue::accelerator(name).map_err(|e| Failure::input(e.to_string(), e.hint()));
    }
    let known = device.and_then(psim_calibration::measure::machine::cuda_datasheet);
    known.ok_or_else(|| {
        let what = device.map_or_else(
            || "the file does not say which accelerator was measured".to_owned(),
            |d| format!("the datasheet of `{d}` is not known"),
        );
        Failure::input(what, "name it with --accelerator (`psim show accelerators` lists them)")
    })
}

/// Prints what was read, and writes the profile where one is wanted.
fn learned(
    arguments: &Arguments,
    about: &serde_json::Value,
    imported: Option<&Imported>,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    if let (Some(out), Some(imported)) = (&arguments.out, imported) {
        let text = toml::to_string(&imported.profile).map_err(Failure::defect)?;
        write_atomically(host, out, text.as_bytes())?;
    }
    let changes = imported.map(|i| i.changes.clone()).unwrap_or_default();
    if arguments.json {
        let mut document = about.clone();
        document["schema"] = json!(1);
        document["learned"] = json!(changes);
        document["profile"] = json!(arguments.out);
        return host.json(&document);
    }
    for change in changes {
        host.line(change)?;
    }
    match (&arguments.out, imported) {
        (Some(out), Some(i)) => host.line(format!(
            "wrote {} (for {}; use it with --profile)",
            out.display(),
            i.profile.accelerator
        )),
        _ => Ok(()),
    }
}

fn import_log(arguments: &Arguments, text: &str, host: &mut Host<'_>) -> Result<(), Failure> {
    let log = nccl::parse(text).map_err(|e| refused(&e, arguments))?;
    if !arguments.json {
        let operation =
            log.operation.as_deref().or(arguments.operation.as_deref()).unwrap_or("unnamed operation");
        let ranks =
            log.ranks.or(arguments.ranks).map_or("ranks not listed".to_owned(), |r| format!("{r} ranks"));
        host.line(format!(
            "nccl-tests: {operation}, {ranks} on {} hosts, {}; {} sizes",
            log.hosts.len(),
            log.device.as_deref().unwrap_or("device not named"),
            log.rows.len()
        ))?;
        let mut table =
            Table::new(&[("bytes", Align::Right), ("us", Align::Right), ("bus GB/s", Align::Right)]);
        for row in &log.rows {
            table.row([grouped(row.bytes), three(row.out_of_place.time_us), three(row.out_of_place.busbw)]);
        }
        host.print(table.render())?;
        for note in &log.notes {
            host.say(format_args!("note: {note}"));
        }
    }
    let imported = match &arguments.out {
        None => None,
        Some(_) => {
            let curve = nccl::curve(&log, arguments.operation.as_deref(), arguments.ranks)
                .map_err(|e| refused(&e, arguments))?;
            let part = accelerator(arguments, log.device.as_deref())?;
            Some(correct(part, &[], vec![curve], "nccl-tests log").map_err(|e| refused(&e, arguments))?)
        }
    };
    learned(arguments, &json!({ "kind": "nccl-tests", "log": log }), imported.as_ref(), host)
}

fn import_trace(
    arguments: &Arguments,
    trace: &Trace,
    what: &str,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    if !arguments.json {
        let share = |us: f64| format!("{:.1} %", 100.0 * us / trace.span_us.max(1e-9));
        host.line(format!(
            "{what}: {}, {} kernels over {} ms; compute {}, only communication {}, idle {}",
            trace.device.as_deref().unwrap_or("device not named"),
            grouped(trace.kernels.iter().map(|k| k.count as u64).sum()),
            three(trace.span_us * 1e-3),
            share(trace.compute_us),
            share(trace.exposed_communication_us),
            share(trace.idle_us)
        ))?;
        let mut table = Table::new(&[
            ("total us", Align::Right),
            ("calls", Align::Right),
            ("median us", Align::Right),
            ("kind", Align::Left),
            ("kernel", Align::Left),
        ]);
        for k in trace.kernels.iter().take(LISTED) {
            let name: String = k.name.chars().take(60).collect();
            let kind = format!("{:?}", k.kind).to_lowercase();
            table.row([three(k.total_us), k.count.to_string(), three(k.median_us), kind, name]);
        }
        host.print(table.render())?;
    }
    let imported = match &arguments.out {
        None => None,
        Some(_) => {
            let part = accelerator(arguments, trace.device.as_deref())?;
            let curves = curves(&trace.collectives);
            Some(correct(part, &trace.gemms, curves, what).map_err(|e| refused(&e, arguments))?)
        }
    };
    learned(arguments, &json!({ "kind": "trace", "trace": trace }), imported.as_ref(), host)
}

fn import_model(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    if arguments.out.is_some() {
        return Err(hinted(
            &format!("`{}` is a model configuration, or not there; it makes no profile", arguments.file),
            "--out goes with measurements: logs, traces, tables",
        ));
    }
    let model = model::load(host, &arguments.file)?;
    let count = model.parameters();
    if arguments.json {
        return host.json(&json!({ "schema": 1, "model": model, "parameters": count }));
    }
    let (heads, kv_heads, head_dim) = model.attention_shape();
    host.line(format!(
        "{} ({}): {} layers, hidden {}, {heads} heads ({kv_heads} kv) of {head_dim}, vocabulary {}",
        model.name,
        model.family,
        model.layers(),
        grouped(model.hidden),
        grouped(model.vocab),
    ))?;
    host.line(format!("parameters: {} ({})", grouped(count.total), short(count.total as f64)))?;
    if count.active != count.total {
        host.line(format!("active per token: {} ({})", grouped(count.active), short(count.active as f64)))?;
    }
    if count.mtp > 0 {
        host.line(format!("multi-token-prediction layers beside: {}", grouped(count.mtp)))?;
    }
    Ok(())
}
