//! `psim calibrate`: measures this machine and writes a profile; `--check` measures a part of it again.

use crate::Host;
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::machine::{hinted, runners};
use crate::number::three;
use crate::progress::Bar;
use crate::table::{Align, Table};
use clap::Args;
use psim_calibration::measure::{
    self, Calibration, DeviceChoice, Drift, MeasureError, Options, samples_path, threads_cluster,
};
use psim_hardware::profile::accelerator::{ResidualModel, TableModel};
use psim_hardware::{Accelerator, catalogue, schema};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Drift that is noise on most machines.
const USUAL_DRIFT: f64 = 0.1;

/// Arguments of `psim calibrate`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What is measured: cpu (one core, fp32, and rank threads), or cuda:N (bf16)
    #[arg(long, value_name = "cpu|cuda:N", default_value = "cpu")]
    device: DeviceChoice,
    /// Profile to write (TOML); raw samples go to FILE.samples.jsonl, and for the CPU a cluster of rank threads to
    /// *.cluster.toml beside it. Started again after a kill, it goes on where it stopped
    #[arg(long, value_name = "FILE", required_unless_present = "check")]
    out: Option<PathBuf>,
    /// Time budget in minutes, fractions allowed
    #[arg(long, value_name = "F", default_value_t = 5.0)]
    minutes: f64,
    /// Measure some points of this profile again and say how far they drifted
    #[arg(long, value_name = "FILE", conflicts_with = "out")]
    check: Option<PathBuf>,
    /// Points that --check measures
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    points: u32,
    /// Rank threads in the cluster file (default: the cores, at least 2)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    ranks: Option<u32>,
    /// Datasheet that a CUDA device is measured against, where its name does not say (`psim show accelerators`)
    #[arg(long, value_name = "NAME")]
    accelerator: Option<String>,
    /// Seed of random inputs and of the subset of --check
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print JSON with a `schema` key
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    if !(arguments.minutes.is_finite() && arguments.minutes > 0.0 && arguments.minutes <= 10_000.0) {
        return Err(Failure::input(
            format!("--minutes {} is not a positive number of minutes", arguments.minutes),
            "write for example --minutes 5 or --minutes 0.5",
        ));
    }
    let accelerator = datasheet(arguments)?;
    match (&arguments.check, &arguments.out) {
        (Some(profile), _) => check(arguments, profile, host),
        (None, Some(out)) => calibrate(arguments, out, accelerator, host),
        (None, None) => Err(Failure::input("nothing to write to", "give --out FILE")),
    }
}

/// The datasheet of a CUDA device; says what is missing where CUDA cannot be used.
fn datasheet(arguments: &Arguments) -> Result<Option<Accelerator>, Failure> {
    let DeviceChoice::Cuda(index) = arguments.device else { return Ok(None) };
    let found = psim_kernels::cuda::probe();
    if !found.usable() {
        return Err(hinted(&found.to_string(), "`--device cpu` works everywhere"));
    }
    let Some(device) = found.devices.get(index) else {
        return Err(Failure::input(format!("there is no device cuda:{index}"), found.to_string()));
    };
    let known = match &arguments.accelerator {
        Some(name) => catalogue::accelerator(name).map_err(|e| Failure::input(e.to_string(), e.hint()))?,
        None => measure::machine::cuda_datasheet(device).ok_or_else(|| {
            Failure::input(
                format!("the datasheet of `{device}` is not known"),
                "name it with --accelerator (`psim show accelerators` lists them)",
            )
        })?,
    };
    Ok(Some(known.clone()))
}

fn failed(error: &MeasureError) -> Failure {
    hinted(&error.to_string(), "check the path, and that nothing else uses the file")
}

fn calibrate(
    arguments: &Arguments,
    out: &Path,
    accelerator: Option<Accelerator>,
    host: &mut Host<'_>,
) -> Result<(), Failure> {
    let cpu = arguments.device == DeviceChoice::Cpu;
    let options = Options {
        device: arguments.device,
        out: host.path(out),
        minutes: arguments.minutes,
        seed: arguments.seed,
        runners: cpu.then(runners),
        accelerator,
    };
    let bar = Bar::new(host.progress);
    let mut progress = |done: f64, message: &str| {
        bar.show(message, done);
        true
    };
    let measured = measure::calibrate(&options, &mut progress);
    bar.finish();
    let calibration = measured.map_err(|e| failed(&e))?;
    let cluster = cpu.then(|| cluster_path(out));
    if let Some(path) = &cluster {
        let ranks = arguments.ranks.unwrap_or_else(|| measure::machine::cores().max(2));
        let text = format!(
            "# {ranks} rank threads on the machine that {} was measured on.\n{}",
            out.display(),
            schema::print_cluster(&threads_cluster(&calibration.accelerator, ranks))
        );
        write_atomically(host, path, text.as_bytes())?;
    }
    if arguments.json {
        let tables: Vec<_> = calibration
            .tables
            .iter()
            .map(|(name, points, sigma)| json!({ "name": name, "points": points, "fit_error": sigma }))
            .collect();
        return host.json(&json!({
            "schema": 1, "profile": out, "samples": samples_path(out), "cluster": cluster,
            "accelerator": calibration.accelerator.name, "points": calibration.points,
            "resumed": calibration.resumed, "seconds": calibration.seconds, "tables": tables,
            "models": calibration.profile.models,
            "machine": calibration.profile.machine, "notes": calibration.notes,
        }));
    }
    host.print(text(&calibration))?;
    host.line(format!("wrote {} and {}", out.display(), samples_path(out).display()))?;
    if let Some(path) = &cluster {
        host.line(format!("wrote {} (a cluster of rank threads, for --cluster)", path.display()))?;
    }
    Ok(())
}

/// `cpu.toml` → `cpu.cluster.toml`.
fn cluster_path(out: &Path) -> PathBuf {
    out.with_extension("cluster.toml")
}

fn text(c: &Calibration) -> String {
    let resumed =
        if c.resumed > 0 { format!(", {} of them by an earlier run", c.resumed) } else { String::new() };
    let mut out = format!("{}: {} points in {:.1} s{resumed}\n", c.accelerator.name, c.points, c.seconds);
    for (dtype, peak) in &c.accelerator.peak {
        out.push_str(&format!(
            "best seen: {} GFLOP/s in {dtype}, {} GB/s (a tenth of headroom included)\n",
            three(peak.0 * 1e-9),
            three(c.accelerator.memory_bandwidth.0 * 1e-9)
        ));
    }
    if let Some(machine) = &c.profile.machine {
        let caches: Vec<String> =
            machine.caches.iter().map(|k| format!("L{} {} KiB", k.level, k.bytes >> 10)).collect();
        let latency: Vec<String> = machine
            .latency
            .iter()
            .map(|l| format!("{} KiB {} ns", l.bytes >> 10, three(l.nanoseconds)))
            .collect();
        let together: Vec<String> =
            machine.sharing.together.iter().map(|t| format!("{} x{:.2}", t.threads, t.rate)).collect();
        out.push_str(&format!(
            "{} cores; rate of each of n threads: {}\n",
            machine.sharing.cores,
            together.join(", ")
        ));
        if !caches.is_empty() {
            out.push_str(&format!("caches: {}\n", caches.join(", ")));
        }
        if !latency.is_empty() {
            out.push_str(&crate::table::wrap(&format!("load latency: {}", latency.join(", ")), 100, "  "));
            out.push('\n');
        }
        if let Some(far) = machine.streams.last().filter(|s| s.picoseconds > 0.0) {
            out.push_str(&format!(
                "weights that no cache holds: {} ns longer for each KiB (out of {} MiB)\n",
                three(far.picoseconds * 1.024),
                far.bytes >> 20
            ));
        }
        if machine.sustained > 0.0 {
            out.push_str(&format!("sustained against first clocks: {:.2}\n", machine.sustained));
        }
    }
    let mut table =
        Table::new(&[("table", Align::Left), ("points", Align::Right), ("fit error %", Align::Right)]);
    for (name, points, sigma) in &c.tables {
        table.row([name.clone(), points.to_string(), format!("{:.1}", sigma * 100.0)]);
    }
    out.push_str(&table.render());
    out.push_str(&models(&c.profile.models));
    c.notes.iter().for_each(|note| out.push_str(&format!("note: {note}\n")));
    out
}

/// Which model fills the gaps of each table, beside what the others were worth.
fn models(models: &[TableModel]) -> String {
    if models.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("between measured shapes", Align::Left),
        ("model used", Align::Left),
        ("planes %", Align::Right),
        ("kriging %", Align::Right),
        ("forest %", Align::Right),
    ]);
    for m in models {
        let used = match m.model {
            ResidualModel::Interpolation => "planes",
            ResidualModel::Kriging => "kriging",
            ResidualModel::Forest => "forest",
        };
        let error = |[mean, _]: [f64; 2]| format!("{:.1}", mean * 100.0);
        table.row([
            m.table.clone(),
            used.to_owned(),
            error(m.interpolation),
            error(m.kriging),
            error(m.forest),
        ]);
    }
    format!("mean error on shapes left out of the fit:\n{}", table.render())
}

fn check(arguments: &Arguments, profile: &Path, host: &mut Host<'_>) -> Result<(), Failure> {
    let bar = Bar::new(host.progress);
    let mut progress = |done: f64, message: &str| {
        bar.show(message, done);
        true
    };
    let runners = runners();
    let measured = measure::check(
        &host.path(profile),
        arguments.device,
        arguments.points as usize,
        arguments.seed,
        Some(&runners),
        &mut progress,
    );
    bar.finish();
    let drifts = measured.map_err(|e| failed(&e))?;
    let change = |d: &Drift| d.now / d.before - 1.0;
    let mut sizes: Vec<f64> = drifts.iter().map(|d| change(d).abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let median = sizes.get(sizes.len() / 2).copied().unwrap_or(0.0);
    let worst = sizes.last().copied().unwrap_or(0.0);
    if arguments.json {
        let points: Vec<_> = drifts
            .iter()
            .map(|d| json!({ "point": d.point, "before_s": d.before, "now_s": d.now, "change": change(d) }))
            .collect();
        return host.json(&json!({
            "schema": 1, "profile": profile, "points": points, "median_drift": median, "largest_drift": worst,
            "drifted": median > USUAL_DRIFT,
        }));
    }
    let mut table = Table::new(&[
        ("point", Align::Left),
        ("before us", Align::Right),
        ("now us", Align::Right),
        ("change %", Align::Right),
    ]);
    for d in &drifts {
        let us = |seconds: f64| three(seconds * 1e6);
        table.row([d.point.to_string(), us(d.before), us(d.now), format!("{:+.1}", change(d) * 100.0)]);
    }
    host.print(table.render())?;
    let verdict = if median > USUAL_DRIFT { "drifted: calibrate again" } else { "holds" };
    host.line(format!(
        "{} points measured again: median drift {:.1} %, largest {:.1} %: {verdict}",
        drifts.len(),
        median * 100.0,
        worst * 100.0
    ))
}
