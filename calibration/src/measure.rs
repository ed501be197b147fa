//! `psim calibrate`: measures the machine it runs on and writes a profile.
//!
//! A sweep of points ([`Point`]) per table, first a coarse base, then wherever the fitted law is least sure
//! ([`sweep`]). Every measured point goes to an append-only journal with a checksum per line before the next one starts
//! ([`journal`]), so a killed run loses at most the point in hand and goes on where it stopped; the profile is written
//! to a temporary file and renamed. Raw samples are kept beside the profile.

pub mod calm;
pub mod fit;
pub mod host;
pub mod journal;
pub mod machine;
pub mod point;
pub mod stream;
pub mod sweep;

pub use machine::{cpu_accelerator, threads_cluster, threads_stack};
pub use point::{Point, Record, State};

use journal::{Header, Journal, JournalError};
use psim_hardware::Accelerator;
use psim_hardware::profile::AcceleratorProfile;
use psim_kernels::cpu::CpuDevice;
use psim_kernels::{DeviceError, Micro};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use sweep::{Limits, Sweep};

/// Runs a collective among rank threads: operation, ranks, bytes (nccl-tests size) → seconds of each repeat.
pub type CollectiveRunner = Arc<dyn Fn(&str, u32, u64) -> Result<Vec<f64>, String> + Send + Sync>;

/// Runs steps of a serving engine with a network of next to no arithmetic: layers, decoding sequences, vocabulary →
/// processor seconds of each step.
pub type EngineRunner = Arc<dyn Fn(u32, u32, u32) -> Result<Vec<f64>, String> + Send + Sync>;

/// What is measured beside a device: the executor that will run there.
#[derive(Clone)]
pub struct Runners {
    /// Collectives among its ranks.
    pub collective: CollectiveRunner,
    /// Steps of its serving engine.
    pub engine: EngineRunner,
}

/// Which machine to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// One core of this processor, in fp32.
    Cpu,
    /// This CUDA device, in bf16.
    Cuda(usize),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", index)) => {
                index.parse().map(Self::Cuda).map_err(|_| format!("`{index}` is not a device number"))
            }
            _ => Err(format!("unknown device `{text}`: use `cpu` or `cuda:0`")),
        }
    }
}

/// What to do.
#[derive(Clone)]
pub struct Options {
    /// Machine.
    pub device: DeviceChoice,
    /// Where the profile goes; samples go to the same name with `.samples.jsonl` added.
    pub out: PathBuf,
    /// Time budget.
    pub minutes: f64,
    /// Seed of random inputs.
    pub seed: u64,
    /// How collectives and serving steps are run; without it the profile has none.
    pub runners: Option<Runners>,
    /// Datasheet of the device, if known; the CPU's is made from its best measured rates.
    pub accelerator: Option<Accelerator>,
}

/// Told how far a calibration is; may stop it.
pub trait Progress {
    /// `done` runs from 0 to 1. Returning `false` stops: what is measured is fitted and written.
    fn update(&mut self, done: f64, message: &str) -> bool;
}

impl<F: FnMut(f64, &str) -> bool> Progress for F {
    fn update(&mut self, done: f64, message: &str) -> bool {
        self(done, message)
    }
}

/// Why a calibration failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The budget is not a positive number.
    #[error("`--minutes {0}` is not a positive number of minutes")]
    Budget(f64),
    /// Reading or writing a file failed.
    #[error("{}: {error}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The journal belongs to something else.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A collective failed.
    #[error("measuring collectives: {0}")]
    Collective(String),
    /// Too little was measured for a profile.
    #[error("nothing was measured for {0}\nhint: give a larger `--minutes`")]
    Empty(&'static str),
    /// A GPU is measured relative to its datasheet.
    #[error("the datasheet of `{0}` is not known\nhint: name the accelerator")]
    Datasheet(String),
    /// A profile file cannot be read.
    #[error("{}: {message}", path.display())]
    Profile {
        /// Which file.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

/// Outcome of a calibration.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// The fitted profile, as written.
    pub profile: AcceleratorProfile,
    /// Datasheet that the profile's factors are relative to.
    pub accelerator: Accelerator,
    /// Points behind it.
    pub points: usize,
    /// Of them, points that an earlier, interrupted run had measured.
    pub resumed: usize,
    /// Seconds spent measuring, earlier runs included.
    pub seconds: f64,
    /// Fit quality per table: name, points, sigma.
    pub tables: Vec<(String, u32, f64)>,
    /// Stopped by the caller; starting again goes on.
    pub stopped: bool,
    /// How much slower the processor was than at its best around the median point, as a share: what neighbours on the
    /// same machine do; 0 where that is not watched.
    pub disturbed: f64,
    /// Remarks (a busy machine, tables left out).
    pub notes: Vec<String>,
}

/// Samples file of a profile.
pub fn samples_path(profile: &Path) -> PathBuf {
    let mut name = profile.as_os_str().to_owned();
    name.push(".samples.jsonl");
    PathBuf::from(name)
}

/// Measures, fits, writes.
///
/// # Errors
/// [`MeasureError`]; a stopped or killed run can be started again with the same options.
pub fn calibrate(options: &Options, progress: &mut dyn Progress) -> Result<Calibration, MeasureError> {
    if !(options.minutes > 0.0 && options.minutes.is_finite()) {
        return Err(MeasureError::Budget(options.minutes));
    }
    match options.device {
        DeviceChoice::Cpu => on_device(&CpuDevice::new(), options, progress),
        DeviceChoice::Cuda(index) => on_device(&psim_kernels::cuda::open(index)?, options, progress),
    }
}

fn on_device<D: Micro>(
    device: &D,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Calibration, MeasureError> {
    let begin = Instant::now();
    let budget = options.minutes * 60.0;
    let path = samples_path(&options.out);
    let header = Header::new(&device.name());
    let (mut journal, records) = Journal::<Record>::open(&path, &header)?;
    let resumed = records.len();
    let spent: f64 = records.iter().map(|r| r.spent).sum();
    let limits = Limits::new(device, budget, options.runners.is_some());
    let mut sweep = Sweep::new(&limits, records);
    // Devices with clocks of their own tell their state instead.
    let mut calm = match options.device {
        DeviceChoice::Cpu => Some(calm::Calm::new()?),
        DeviceChoice::Cuda(_) => None,
    };
    let mut stopped = false;
    loop {
        let elapsed = spent + begin.elapsed().as_secs_f64();
        if elapsed >= budget {
            break;
        }
        // What would run past the budget by more than a tenth is not begun.
        let left = budget - elapsed + 0.1 * budget;
        let Some(point) = sweep.again(budget).or_else(|| sweep.next(left)) else { break };
        if !progress.update((elapsed / budget).min(1.0), &point.to_string()) {
            stopped = true;
            break;
        }
        let start = Instant::now();
        let allowance = sweep.allowance(budget - elapsed);
        let before = calm.as_mut().map(calm::Calm::look).transpose()?;
        let seconds = point::measure(device, &point, options.seed, allowance, options.runners.as_ref())?;
        let after = calm.as_mut().map(calm::Calm::look).transpose()?;
        let mut record = Record::new(point, seconds, start.elapsed().as_secs_f64());
        record.reference = before.zip(after).map(|(before, after)| before.max(after));
        record.state = device.telemetry().map(State::from);
        journal.append(&record)?;
        sweep.add(record);
    }
    let records = sweep.into_records();
    let mut notes = Vec::new();
    let disturbed = calm::disturbed(&records);
    if disturbed > calm::DISTURBED - 1.0 {
        notes.push(format!(
            "a neighbour slowed the processor: {:.0} % around the median point, in bursts that no law follows",
            disturbed * 1e2
        ));
    }
    if let Some(note) = machine::load_note(&records) {
        notes.push(note);
    }
    let fitted = fit::fit(device, options.accelerator.as_ref(), &records)?;
    notes.extend(fitted.notes);
    let text = print_profile(&fitted.profile, &fitted.accelerator, &notes);
    journal::write_atomically(&options.out, &text)?;
    if !stopped {
        journal.finish()?;
    }
    progress.update(1.0, "done");
    Ok(Calibration {
        tables: fit::tables(&fitted.profile),
        profile: fitted.profile,
        accelerator: fitted.accelerator,
        points: records.len(),
        resumed,
        seconds: records.iter().map(|r| r.spent).sum(),
        stopped,
        disturbed,
        notes,
    })
}

/// The profile as TOML, with the datasheet it is relative to as comments for a cluster file.
fn print_profile(profile: &AcceleratorProfile, accelerator: &Accelerator, notes: &[String]) -> String {
    let mut text = String::from("# Measured by `psim calibrate`; raw samples lie beside this file.\n");
    for note in notes {
        text.push_str(&format!("# note: {note}\n"));
    }
    text.push_str("# Relative to this part; in a cluster file it is an `[[accelerator]]`:\n");
    let datasheet = toml::to_string(accelerator).unwrap_or_default();
    for line in datasheet.lines() {
        text.push_str(&format!("#   {line}\n"));
    }
    text.push_str(&toml::to_string(profile).unwrap_or_default());
    text
}

/// One point measured again.
#[derive(Debug, Clone, PartialEq)]
pub struct Drift {
    /// Which point.
    pub point: Point,
    /// Median seconds when the profile was made.
    pub before: f64,
    /// Median seconds now.
    pub now: f64,
}

/// Measures a random subset of a profile's points again.
///
/// # Errors
/// When the samples of the profile are missing or belong to another machine, or the device fails.
pub fn check(
    profile: &Path,
    device: DeviceChoice,
    count: usize,
    seed: u64,
    runners: Option<&Runners>,
    progress: &mut dyn Progress,
) -> Result<Vec<Drift>, MeasureError> {
    let text = std::fs::read_to_string(profile)
        .map_err(|error| MeasureError::File { path: profile.to_owned(), error })?;
    toml::from_str::<AcceleratorProfile>(&text)
        .map_err(|e| MeasureError::Profile { path: profile.to_owned(), message: e.to_string() })?;
    match device {
        DeviceChoice::Cpu => check_on(&CpuDevice::new(), profile, count, seed, runners, progress),
        DeviceChoice::Cuda(index) => {
            check_on(&psim_kernels::cuda::open(index)?, profile, count, seed, runners, progress)
        }
    }
}

fn check_on<D: Micro>(
    device: &D,
    profile: &Path,
    count: usize,
    seed: u64,
    runners: Option<&Runners>,
    progress: &mut dyn Progress,
) -> Result<Vec<Drift>, MeasureError> {
    let path = samples_path(profile);
    let mut records = sweep::merged(journal::read(&path, &Header::new(&device.name()))?);
    if runners.is_none() {
        records.retain(|r| !matches!(r.point, Point::Collective { .. } | Point::EngineStep { .. }));
    }
    let chosen = sweep::choose(records.len(), count, seed);
    let mut drifts = Vec::with_capacity(chosen.len());
    for (done, &index) in chosen.iter().enumerate() {
        let record = &records[index];
        if !progress.update(done as f64 / chosen.len() as f64, &record.point.to_string()) {
            break;
        }
        let seconds = point::measure(device, &record.point, seed, 0.2, runners)?;
        let now = point::median(&seconds);
        // What the device does not have cannot drift.
        if !(now.is_finite() && record.median() > 0.0) {
            continue;
        }
        drifts.push(Drift { point: record.point.clone(), before: record.median(), now });
    }
    Ok(drifts)
}
