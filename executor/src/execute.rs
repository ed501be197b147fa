//! `psim execute`: run a plan, measure it phase by phase, put the prediction beside it.

use crate::comm::{Mpi, Process, Tcp, Wire};
use crate::error::{ExecutorError, Result, unsupported};
use crate::predict::{Basis, HostPrediction, StageTimes, predict};
use crate::run::{Job, RankRecord, Run, Settings};
use psim_kernels::cpu::CpuDevice;
use psim_models::operator::Dimension;
use psim_models::plan::Precision;
use psim_models::{Model, Plan, TrainingWorkload};
use psim_sim::residual::PhaseFactors;
use psim_sim::schedule::PassKind;
use serde::Serialize;

/// Where ranks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecuteDevice {
    /// Rank threads on this processor, fp32.
    Cpu,
}

impl std::str::FromStr for ExecuteDevice {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            other => Err(format!("unknown device `{other}`: the executor runs on `cpu`")),
        }
    }
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

/// One phase of one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseRow {
    /// Stage.
    pub stage: usize,
    /// `forward`, `backward`, `after` (reduction, optimizer, gathering), `wait` (for other stages).
    pub phase: &'static str,
    /// Median over steps of the mean over the stage's ranks, seconds.
    pub measured: f64,
    /// Predicted, seconds.
    pub predicted: Option<f64>,
    /// Processor seconds of a rank in it, likewise: what other programs on the machine do not change.
    pub processor: f64,
    /// Predicted processor seconds.
    pub predicted_processor: Option<f64>,
}

/// Communication of one dimension.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CommunicationRow {
    /// `tp`, `pp` …
    pub dimension: &'static str,
    /// Seconds per rank and step, waiting included.
    pub seconds: f64,
    /// Of them, blocked on peers.
    pub wait: f64,
    /// Bytes sent per rank and step.
    pub bytes: u64,
}

/// Outcome of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExecuteReport {
    /// What ran.
    pub device: String,
    /// Ranks, and the cores they shared.
    pub ranks: u32,
    /// Cores of the machine.
    pub cores: u32,
    /// Mean loss per token, per timed step.
    pub losses: Vec<f64>,
    /// Seconds of every timed step (the slowest rank).
    pub step_seconds: Vec<f64>,
    /// Median of them.
    pub measured: f64,
    /// (largest − smallest) / median of the timed steps: what repeating the same step changes.
    pub spread: f64,
    /// Predicted step, seconds.
    pub predicted: Option<f64>,
    /// Processor seconds of all ranks in a step, median over steps.
    pub processor: f64,
    /// Their (largest − smallest) / median over the timed steps.
    pub processor_spread: f64,
    /// Predicted processor seconds of all ranks.
    pub predicted_processor: Option<f64>,
    /// Phases per stage.
    pub phases: Vec<PhaseRow>,
    /// Communication per dimension, mean over ranks, last step.
    pub communication: Vec<CommunicationRow>,
    /// Largest memory held by buffers of one rank, bytes.
    pub memory: u64,
    /// Predicted memory of the fullest stage, bytes.
    pub predicted_memory: Option<u64>,
    /// Remarks.
    pub notes: Vec<String>,
}

impl ExecuteReport {
    /// Relative error of the predicted step, if there is one.
    pub fn error(&self) -> Option<f64> {
        self.predicted.map(|p| p / self.measured - 1.0)
    }

    /// Measured over predicted per phase, over all stages; `None` without a prediction. Processor time, which other
    /// programs do not change, where the processor does the work.
    pub fn factors(&self) -> Option<PhaseFactors> {
        let ratio = |phase: &str| -> Option<f64> {
            let rows = || self.phases.iter().filter(|r| r.phase == phase);
            let predicted: f64 = rows().map(|r| r.predicted_processor).sum::<Option<f64>>()?;
            let measured: f64 = rows().map(|r| r.processor).sum();
            Some(if predicted > 0.0 && measured > 0.0 { measured / predicted } else { 1.0 })
        };
        Some(PhaseFactors {
            forward: ratio("forward")?,
            backward: ratio("backward")?,
            after: ratio("after")?,
        })
    }
}

/// Median; zero for nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => 0.5 * (values[n / 2 - 1] + values[n / 2]),
    }
}

/// Runs a plan and compares. Where ranks are processes, the report comes out at rank 0 and `None` on the others.
///
/// # Errors
/// When the plan cannot run here; the reason says what and why.
pub fn execute(request: &ExecuteRequest<'_>) -> Result<Option<ExecuteReport>> {
    let ExecuteRequest { model, plan, workload, .. } = *request;
    let ExecuteDevice::Cpu = request.device;
    if plan.precision != Precision::Fp32 {
        return Err(ExecutorError::Unsupported {
            what: format!("precision {} on the CPU", plan.precision.name()),
            hint: "set `precision = \"fp32\"` in the plan".to_owned(),
        });
    }
    let job = Job::new(model, plan, workload)?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let prediction = match request.basis {
        Some(basis) => Some(predict(model, plan, workload, job.program(), basis)?),
        None => None,
    };
    let warm_up = 1;
    let settings =
        Settings { steps: request.steps.max(1) + warm_up, seed: request.seed, ..Settings::default() };
    let Some(run) = run_ranks(&job, &settings, request.ranks, plan.world() as usize)? else {
        return Ok(None);
    };
    let skip = warm_up as usize;
    let step_seconds: Vec<f64> = (skip..settings.steps as usize)
        .map(|s| run.ranks.iter().filter_map(|r| r.steps.get(s)).map(|s| s.total).fold(0.0, f64::max))
        .collect();
    let measured = median(step_seconds.clone());
    let processors: Vec<f64> = (skip..settings.steps as usize)
        .map(|s| run.ranks.iter().map(|r| stage_times(r, s).1.busy()).sum())
        .collect();
    let mut notes = Vec::new();
    let ranks = plan.world();
    if ranks > cores {
        notes.push(format!("{ranks} ranks share {cores} cores"));
    }
    Ok(Some(ExecuteReport {
        device: format!("cpu: {}", psim_kernels::cpu::processor_name()),
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
        phases: phases(&run.ranks, plan.pp as usize, skip, prediction.as_ref()),
        communication: communication(&run.ranks),
        memory: run.ranks.iter().map(|r| r.memory.peak).max().unwrap_or(0),
        predicted_memory: prediction.as_ref().map(|p| p.alone.peak_memory().0),
        notes,
    }))
}

/// Runs the ranks on CPU devices; `None` on processes other than rank 0.
fn run_ranks(job: &Job, settings: &Settings, ranks: RankMode, world: usize) -> Result<Option<Run>> {
    match ranks {
        RankMode::Threads => job.run_threads(settings, |_| Ok(CpuDevice::new())).map(Some),
        RankMode::Mpi => run_process(job, settings, Mpi::join()?, world),
        RankMode::Tcp => run_process(job, settings, Tcp::join()?, world),
        RankMode::Nccl => {
            let probe = psim_kernels::cuda::probe();
            if !probe.usable() || !probe.nccl {
                let missing =
                    if probe.usable() { "NCCL (libnccl.so) not found".to_owned() } else { probe.to_string() };
                return unsupported(
                    format!("ranks over NCCL: {missing}"),
                    "use `--ranks threads`, `mpi` or `tcp`",
                );
            }
            unsupported("CPU ranks over NCCL", "NCCL connects GPUs; on the CPU use `--ranks mpi` or `tcp`")
        }
    }
}

fn run_process<W: Wire>(job: &Job, settings: &Settings, wire: W, world: usize) -> Result<Option<Run>> {
    let process = Process::new(wire);
    if process.world() != world {
        return unsupported(
            format!("{world} ranks on {} processes", process.world()),
            format!("start as many processes as the plan has ranks: `mpirun -n {world} psim execute …`"),
        );
    }
    job.run_process(settings, CpuDevice::new(), &process)
}

/// (largest − smallest) / median.
fn spread(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(0.0, f64::max);
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    (largest - smallest) / median(values.to_vec()).max(f64::MIN_POSITIVE)
}

/// One rank's step by phase: clock time, processor time.
fn stage_times(rank: &RankRecord, step: usize) -> (StageTimes, StageTimes) {
    let Some(record) = rank.steps.get(step) else { return Default::default() };
    let mut times = StageTimes { after: record.optimizer, ..StageTimes::default() };
    let mut processor = StageTimes { after: record.optimizer_processor, ..StageTimes::default() };
    for pass in &record.passes {
        let own = pass.end - pass.start - pass.pipeline_wait;
        match pass.pass.kind {
            PassKind::Forward => {
                times.forward += own;
                processor.forward += pass.processor;
            }
            PassKind::Backward | PassKind::Weight => {
                times.backward += own;
                processor.backward += pass.processor;
            }
        }
        times.wait += pass.pipeline_wait;
    }
    (times, processor)
}

/// A phase out of the times of a stage.
type Select = fn(&StageTimes) -> f64;

fn phases(
    ranks: &[RankRecord],
    stages: usize,
    skip: usize,
    predicted: Option<&HostPrediction>,
) -> Vec<PhaseRow> {
    let steps = ranks.first().map_or(0, |r| r.steps.len());
    let mut rows = Vec::new();
    for stage in 0..stages {
        let own: Vec<&RankRecord> = ranks.iter().filter(|r| r.stage == stage).collect();
        let select: [(&'static str, Select); 4] = [
            ("forward", |t| t.forward),
            ("backward", |t| t.backward),
            ("after", |t| t.after),
            ("wait", |t| t.wait),
        ];
        for (phase, of) in select {
            let mean = |pick: fn((StageTimes, StageTimes)) -> StageTimes| {
                let per_step = (skip..steps)
                    .map(|s| {
                        own.iter().map(|r| of(&pick(stage_times(r, s)))).sum::<f64>()
                            / own.len().max(1) as f64
                    })
                    .collect();
                median(per_step)
            };
            rows.push(PhaseRow {
                stage,
                phase,
                measured: mean(|t| t.0),
                predicted: predicted.and_then(|p| p.stages.get(stage)).map(of),
                processor: mean(|t| t.1),
                predicted_processor: predicted.and_then(|p| p.processor.get(stage)).map(of),
            });
        }
    }
    rows
}

fn communication(ranks: &[RankRecord]) -> Vec<CommunicationRow> {
    let count = ranks.len().max(1) as f64;
    [
        (Dimension::Tp, "tp"),
        (Dimension::Pp, "pp"),
        (Dimension::Dp, "dp"),
        (Dimension::Cp, "cp"),
        (Dimension::Ep, "ep"),
        (Dimension::Etp, "etp"),
    ]
    .into_iter()
    .filter_map(|(dimension, name)| {
        let accounts: Vec<_> = ranks.iter().filter_map(|r| r.communication.get(&dimension)).collect();
        (!accounts.is_empty()).then(|| CommunicationRow {
            dimension: name,
            seconds: accounts.iter().map(|a| a.total).sum::<f64>() / count,
            wait: accounts.iter().map(|a| a.wait).sum::<f64>() / count,
            bytes: (accounts.iter().map(|a| a.sent).sum::<u64>() as f64 / count) as u64,
        })
    })
    .collect()
}
