//! This machine as `psim calibrate` measured it, for the commands that run plans on it.

use crate::Host;
use crate::failure::Failure;
use crate::files::read_text;
use crate::inputs::{CommonArguments, Job, settings};
use crate::progress::Bar;
use psim_calibration::measure::machine::cuda_datasheet;
use psim_calibration::measure::{self, DeviceChoice, Options, threads_cluster, threads_stack};
use psim_cost_models::ProfileLibrary;
use psim_executor::execute::ExecuteDevice;
use psim_executor::stack::cuda_stack;
use psim_hardware::profile::machine::{MachineFacts, Sharing};
use psim_hardware::profile::{AcceleratorProfile, StackProfile};
use psim_hardware::{Accelerator, Cluster};
use std::path::PathBuf;
use std::sync::Arc;

/// Longest profile that is read.
const MAX_PROFILE_BYTES: usize = 64 << 20;
/// Minutes of the calibration that stands in for a profile.
const QUICK_MINUTES: f64 = 0.1;
/// Most rank threads that a command starts.
pub(crate) const MAX_RANKS: u32 = 256;

/// The machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) accelerator: Accelerator,
    pub(crate) facts: MachineFacts,
    pub(crate) library: ProfileLibrary,
    /// Where the numbers come from, for people.
    pub(crate) origin: String,
}

impl Machine {
    /// From the first `--profile` that `psim calibrate` wrote for a CPU; without one, from a short calibration now.
    pub(crate) fn load(
        common: &CommonArguments,
        library: &ProfileLibrary,
        host: &mut Host<'_>,
    ) -> Result<Self, Failure> {
        let mut library = library.clone();
        for path in &common.profiles {
            let text = read_text(host, path, "profile", MAX_PROFILE_BYTES)?;
            let Ok(profile) = toml::from_str::<AcceleratorProfile>(&text) else { continue };
            if let Some(facts) = profile.machine.clone() {
                let origin = format!("profile {}", path.display());
                return Ok(Self { accelerator: facts.datasheet.clone(), facts, library, origin });
            }
        }
        host.say(
            "no --profile of this machine: measuring it for a few seconds (`psim calibrate` does it well)",
        );
        let profile = quick(host)?;
        let missing = || {
            Failure::input(
                "a few seconds were too short to measure this machine",
                "run `psim calibrate --device cpu --out cpu.toml` and give --profile cpu.toml",
            )
        };
        let facts = profile.machine.clone().ok_or_else(missing)?;
        library.add_accelerator(profile);
        let origin = "a few seconds of measuring now".to_owned();
        Ok(Self { accelerator: facts.datasheet.clone(), facts, library, origin })
    }

    /// That many rank threads on it.
    pub(crate) fn cluster(&self, ranks: u32) -> Cluster {
        threads_cluster(&self.accelerator, ranks)
    }

    /// The executor as a software stack, with every `--set`.
    pub(crate) fn stack(&self, common: &CommonArguments) -> Result<StackProfile, Failure> {
        common.settings.iter().try_fold(threads_stack(), |stack, setting| settings::apply(&stack, setting))
    }

    /// Says so where the cluster that was named is not this machine.
    pub(crate) fn stand_in(&self, cluster: &Cluster) -> Option<String> {
        let named = &cluster.first_node().accelerator.name;
        (*named != self.accelerator.name).then(|| {
            format!(
                "{} x {named} of `{}` are played by rank threads of this machine ({})",
                cluster.accelerators(),
                cluster.name,
                self.accelerator.name
            )
        })
    }
}

/// Where plans run, and what predicts them there.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) device: ExecuteDevice,
    /// Name of the accelerator, to which residuals belong.
    pub(crate) accelerator: String,
    pub(crate) library: ProfileLibrary,
    pub(crate) stack: StackProfile,
    pub(crate) sharing: Sharing,
    /// Where the numbers come from, for people.
    pub(crate) origin: String,
    /// The cluster that was named is played by something else.
    pub(crate) note: Option<String>,
    /// One core, where ranks are threads; otherwise the cluster itself.
    core: Option<Accelerator>,
    named: Cluster,
}

impl Place {
    /// This processor, with ranks as threads or processes.
    pub(crate) fn processor(
        common: &CommonArguments,
        job: &Job,
        host: &mut Host<'_>,
    ) -> Result<Self, Failure> {
        let machine = Machine::load(common, &job.software.library, host)?;
        Ok(Self {
            device: ExecuteDevice::Cpu,
            accelerator: machine.accelerator.name.clone(),
            stack: machine.stack(common)?,
            note: machine.stand_in(&job.cluster),
            named: job.cluster.clone(),
            sharing: machine.facts.sharing.clone(),
            core: Some(machine.accelerator),
            library: machine.library,
            origin: machine.origin,
        })
    }

    /// CUDA devices, which are those of the cluster that was named.
    pub(crate) fn gpu(common: &CommonArguments, job: &Job, index: usize) -> Result<Self, Failure> {
        let found = psim_kernels::cuda::probe();
        if !found.usable() {
            return Err(hinted(&found.to_string(), "`--device cpu` works everywhere"));
        }
        let named = &job.cluster.first_node().accelerator.name;
        let device = found.devices.get(index).cloned().unwrap_or_default();
        let note = match cuda_datasheet(&device) {
            Some(part) if part.name == *named => None,
            _ => Some(format!(
                "the prediction is for {named} of `{}`, and the device is {device}",
                job.cluster.name
            )),
        };
        let mut stack =
            if job.software.stack_chosen { job.software.stack.clone() } else { cuda_stack(threads_stack()) };
        for setting in &common.settings {
            stack = settings::apply(&stack, setting)?;
        }
        let measured = common.profiles.iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        Ok(Self {
            device: ExecuteDevice::Cuda(index),
            accelerator: named.clone(),
            library: job.software.library.clone(),
            stack,
            sharing: Sharing::default(),
            origin: if measured.is_empty() {
                format!(
                    "the built-in profile of {named} (`psim calibrate --device cuda:{index}` measures this one)"
                )
            } else {
                format!("profile {}", measured.join(", "))
            },
            note,
            core: None,
            named: job.cluster.clone(),
        })
    }

    /// Ranks of this place: threads of this machine, or the cluster itself.
    pub(crate) fn cluster(&self, ranks: u32) -> Cluster {
        match &self.core {
            Some(core) => threads_cluster(core, ranks),
            None => self.named.clone(),
        }
    }
}

/// How collectives among rank threads and the steps of the serving engine are measured.
pub(crate) fn runners() -> measure::Runners {
    measure::Runners {
        collective: Arc::new(psim_executor::bench::collective),
        engine: Arc::new(psim_executor::bench::engine_step),
    }
}

/// A short calibration of the processor, kept nowhere.
fn quick(host: &Host<'_>) -> Result<AcceleratorProfile, Failure> {
    let folder = Folder::new()?;
    let options = Options {
        device: DeviceChoice::Cpu,
        out: folder.0.join("cpu.toml"),
        minutes: QUICK_MINUTES,
        seed: 1,
        runners: Some(runners()),
        accelerator: None,
    };
    let bar = Bar::new(host.progress);
    let mut progress = |done: f64, message: &str| {
        bar.show(message, done);
        true
    };
    let measured = measure::calibrate(&options, &mut progress);
    bar.finish();
    measured
        .map(|c| c.profile)
        .map_err(|e| hinted(&e.to_string(), "`psim calibrate --help` says what is measured"))
}

/// A folder of this process, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("psim-calibration-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|e| Failure::writing(&format!("`{}`", path.display()), &e))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What remains is a few kilobytes in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A library's message with its `hint:` line, or with another hint.
pub(crate) fn hinted(text: &str, otherwise: &str) -> Failure {
    match text.split_once("\nhint: ") {
        Some((message, hint)) => Failure::input(message, hint),
        None => Failure::input(text, otherwise),
    }
}
