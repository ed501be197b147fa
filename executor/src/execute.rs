//! `psim execute`: run a plan, measure it phase by phase, put the prediction beside it.

mod report;

pub use report::{CommunicationRow, ExecuteReport, PhaseRow};

use crate::comm::{Mpi, Process, Tcp, Wire};
use crate::error::{Result, unsupported};
use crate::launch::{Launch, enough};
use crate::predict::{Basis, StageTimes, predict};
use crate::run::{Job, Run, Settings};
use psim_hardware::DType;
use psim_kernels::cpu::CpuDevice;
use psim_kernels::cuda::CudaDevice;
use psim_kernels::{Device, cuda};
use psim_models::plan::Precision;
use psim_models::{Model, Plan, TrainingWorkload};
use report::{communication, median, phases, spread, stage_times};

/// Where ranks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecuteDevice {
    /// This processor, fp32.
    Cpu,
    /// CUDA devices, bf16 or fp32: this one, or where ranks are processes the one of the rank's place on its host.
    Cuda(usize),
}

/// How ranks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RankMode {
    /// Threads of this process.
    Threads,
    /// Processes that `mpirun` started.
    Mpi,
    /// Processes that another launcher started (torchrun, `srun`), over TCP.
    Tcp,
    /// Processes with a GPU each, over NCCL.
    Nccl,
}

impl std::str::FromStr for RankMode {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "threads" => Ok(Self::Threads),
            "mpi" => Ok(Self::Mpi),
            "tcp" => Ok(Self::Tcp),
            "nccl" => Ok(Self::Nccl),
            other => {
                Err(format!("unknown rank mode `{other}`: ranks run as `threads`, `mpi`, `tcp` or `nccl`"))
            }
        }
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct ExecuteRequest<'a> {
    /// Model.
    pub model: &'a Model,
    /// Plan.
    pub plan: &'a Plan,
    /// Batch and sequence.
    pub workload: &'a TrainingWorkload,
    /// Device.
    pub device: ExecuteDevice,
    /// Rank mode.
    pub ranks: RankMode,
    /// Steps that are timed (one more runs first to warm up).
    pub steps: u32,
    /// Seed of parameters and tokens.
    pub seed: u64,
    /// What the prediction is made from; without it only measurements come out.
    pub basis: Option<Basis<'a>>,
}

/// Runs a plan and compares. Where ranks are processes, the report comes out at rank 0 and `None` on the others.
///
/// # Errors
/// When the plan cannot run here; the reason says what and why.
pub fn execute(request: &ExecuteRequest<'_>) -> Result<Option<ExecuteReport>> {
    let ExecuteRequest { model, plan, workload, .. } = *request;
    let job = Job::new(model, plan, workload)?;
    let on_gpu = matches!(request.device, ExecuteDevice::Cuda(_));
    let dtype = dtype(plan.precision, on_gpu)?;
    let prediction = match request.basis {
        Some(basis) => Some(predict(model, plan, workload, job.program(), basis)?),
        None => None,
    };
    let warm_up = 1;
    let settings =
        Settings { steps: request.steps.max(1) + warm_up, seed: request.seed, dtype, ..Settings::default() };
    let Some(run) = run_ranks(&job, &settings, request, plan.world() as usize)? else {
        return Ok(None);
    };
    let skip = warm_up as usize;
    let step_seconds: Vec<f64> = (skip..settings.steps as usize)
        .map(|s| run.ranks.iter().filter_map(|r| r.steps.get(s)).map(|s| s.total).fold(0.0, f64::max))
        .collect();
    let measured = median(step_seconds.clone());
    let processors: Vec<f64> = (skip..settings.steps as usize)
        .map(|s| run.ranks.iter().map(|r| stage_times(r, s, on_gpu).1.busy()).sum())
        .collect();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let mut notes = Vec::new();
    let ranks = plan.world();
    if request.ranks == RankMode::Threads && ranks > 1 {
        if on_gpu {
            notes.push(format!(
                "{ranks} ranks share one GPU and exchange through host memory: for numerics, the times say nothing"
            ));
        } else if ranks > cores {
            notes.push(format!("{ranks} ranks share {cores} cores"));
        }
    }
    Ok(Some(ExecuteReport {
        device: run.device.clone(),
        ranks,
        cores,
        losses: run.losses[skip..].to_vec(),
        spread: spread(&step_seconds),
        processor: median(processors.clone()),
        processor_spread: spread(&processors),
        predicted_processor: prediction.as_ref().map(|p| {
            let per_stage = f64::from(plan.world()) / f64::from(plan.pp.max(1));
            p.processor.iter().map(StageTimes::busy).sum::<f64>() * per_stage
        }),
        step_seconds,
        measured,
        predicted: prediction.as_ref().map(|p| p.step),
        phases: phases(&run.ranks, plan.pp as usize, skip, prediction.as_ref(), on_gpu),
        communication: communication(&run.ranks),
        memory: run.ranks.iter().map(|r| r.memory.peak).max().unwrap_or(0),
        predicted_memory: prediction.as_ref().map(|p| {
            let stages = 0..plan.pp as usize;
            stages.map(|stage| crate::shard::ledger(&p.alone, stage).1).max().unwrap_or(0)
        }),
        device_memory: run.device_memory,
        notes,
    }))
}

/// Format that a device computes a precision in.
fn dtype(precision: Precision, on_gpu: bool) -> Result<DType> {
    match (precision, on_gpu) {
        (Precision::Fp32, _) => Ok(DType::Fp32),
        (Precision::Bf16, true) => Ok(DType::Bf16),
        (other, true) => unsupported(
            format!("precision {} on a GPU", other.name()),
            "the executor computes in bf16 or fp32 there",
        ),
        (other, false) => unsupported(
            format!("precision {} on the CPU", other.name()),
            "set `precision = \"fp32\"` in the plan",
        ),
    }
}

/// Runs the ranks; `None` on processes other than rank 0.
fn run_ranks(
    job: &Job,
    settings: &Settings,
    request: &ExecuteRequest<'_>,
    world: usize,
) -> Result<Option<Run>> {
    let (ranks, device) = (request.ranks, request.device);
    match device {
        ExecuteDevice::Cpu => match ranks {
            RankMode::Threads => job.run_threads(settings, |_| Ok(CpuDevice::new())).map(Some),
            RankMode::Mpi => run_process(job, settings, Mpi::join()?, world, |_| Ok(CpuDevice::new())),
            RankMode::Tcp => run_process(job, settings, Tcp::join()?, world, |_| Ok(CpuDevice::new())),
            RankMode::Nccl => unsupported(
                "CPU ranks over NCCL",
                "NCCL connects GPUs; on the CPU use `--ranks mpi` or `tcp`",
            ),
        },
        ExecuteDevice::Cuda(index) => match ranks {
            RankMode::Threads => job.run_threads(settings, |_| Ok(cuda::open(index)?)).map(Some),
            RankMode::Mpi => run_process(job, settings, Mpi::join()?, world, |l| local_device(index, l)),
            RankMode::Tcp => run_process(job, settings, Tcp::join()?, world, |l| local_device(index, l)),
            RankMode::Nccl => crate::nccl::run(job, settings, world, |l| local_device(index, l)),
        },
    }
}

/// The device of this process among those of its host, counted from `first`; the only one, where the launcher shows every
/// process one of its own.
fn local_device(first: usize, launch: Option<&Launch>) -> Result<CudaDevice> {
    let only = cuda::probe().devices.len() == 1;
    let own = launch.map_or(0, |l| l.local_rank);
    Ok(cuda::open(if only { 0 } else { first + own })?)
}

fn run_process<D: Device, W: Wire>(
    job: &Job,
    settings: &Settings,
    wire: W,
    world: usize,
    device: impl FnOnce(Option<&Launch>) -> Result<D>,
) -> Result<Option<Run>> {
    let process = Process::new(wire);
    enough(process.world(), world)?;
    job.run_process(settings, device(Launch::from_environment()?.as_ref())?, &process)
}
