//! Runs the ranks of a plan: all as threads of this process, or this process's one among others.

use crate::comm::{Account, Comm, Hub, Process, Transport, Wire};
use crate::error::{ExecutorError, Result, unsupported};
use crate::fabric::Fabric;
use crate::network::Network;
use crate::rank::Rank;
use crate::step::StepRecord;
use crate::update::Piece;
use psim_hardware::DType;
use psim_kernels::{Adam, Device, MemoryUse};
use psim_models::layout::Layout;
use psim_models::operator::Dimension;
use psim_models::{Model, Plan, TrainingWorkload};
use psim_sim::step::StepProgram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How to run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Steps.
    pub steps: u32,
    /// Seed of parameters and tokens.
    pub seed: u64,
    /// Optimizer; its `step` is set per step.
    pub adam: Adam,
    /// Elements of a gradient bucket.
    pub bucket: usize,
    /// Compute format.
    pub dtype: DType,
    /// Return the reduced gradients of the last step.
    pub gradients: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            steps: 1,
            seed: 1,
            adam: Adam { rate: 1e-3, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, step: 1 },
            bucket: 10_000_000,
            dtype: DType::Fp32,
            gradients: false,
        }
    }
}

/// What one rank did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankRecord {
    /// Rank.
    pub rank: usize,
    /// Stage.
    pub stage: usize,
    /// Steps.
    pub steps: Vec<StepRecord>,
    /// Communication of the last step per dimension.
    pub communication: BTreeMap<Dimension, Account>,
    /// Device memory.
    #[serde(with = "MemoryFields")]
    pub memory: MemoryUse,
    /// Bytes of parameters, gradients and optimizer states before the first step.
    pub states: u64,
    /// What it ran on.
    pub device: String,
    /// Memory taken on the device behind the last step, as its driver says, bytes.
    pub device_memory: Option<u64>,
    /// Reduced gradients owned by this rank, if asked for.
    pub gradients: Vec<Piece>,
}

/// [`MemoryUse`] as it travels between processes.
#[derive(Serialize, Deserialize)]
#[serde(remote = "MemoryUse")]
struct MemoryFields {
    live: u64,
    peak: u64,
}

/// Outcome of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Mean loss per token, per step.
    pub losses: Vec<f64>,
    /// Ranks in order.
    pub ranks: Vec<RankRecord>,
    /// Device of rank 0.
    pub device: String,
    /// Largest memory taken on a rank's device at the end, as its driver says, bytes.
    pub device_memory: Option<u64>,
}

/// What is run: a model under a plan, in the order of a program.
#[derive(Debug, Clone)]
pub struct Job {
    pub(crate) network: Network,
    pub(crate) layout: Layout,
    pub(crate) plan: Plan,
    pub(crate) workload: TrainingWorkload,
    pub(crate) program: StepProgram,
}

impl Job {
    /// Checks that the executor can run `plan`, and takes the program that the simulator prices.
    ///
    /// # Errors
    /// The first reason why it cannot.
    pub fn new(model: &Model, plan: &Plan, workload: &TrainingWorkload) -> Result<Self> {
        let network = Network::new(model)?;
        network.check(plan, workload)?;
        let layout = Layout::new(model, plan)?;
        let program = StepProgram::new(plan)?;
        Ok(Self { network, layout, plan: plan.clone(), workload: workload.clone(), program })
    }

    /// The passes that will run: hand it to the simulator to price the very same.
    pub fn program(&self) -> &StepProgram {
        &self.program
    }

    /// Runs all ranks as threads; `device` makes each rank's device.
    ///
    /// # Errors
    /// When a rank fails.
    pub fn run_threads<D: Device>(
        &self,
        settings: &Settings,
        device: impl Fn(usize) -> Result<D> + Sync,
    ) -> Result<Run> {
        let world = self.plan.world() as usize;
        let hub = Hub::new(world);
        let outcomes: Vec<Result<RankRecord>> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..world)
                .map(|rank| {
                    let (hub, device) = (&hub, &device);
                    scope.spawn(move || {
                        let outcome = device(rank)
                            .and_then(|d| self.run_rank(d, Comm::new(hub.endpoint(rank)), None, settings));
                        if let Err(error) = &outcome {
                            hub.stop(&error.to_string());
                        }
                        outcome
                    })
                })
                .collect();
            handles
                .into_iter()
                .enumerate()
                .map(|(rank, handle)| {
                    handle.join().unwrap_or_else(|_| {
                        Err(ExecutorError::Peer { rank, reason: "its thread panicked".to_owned() })
                    })
                })
                .collect()
        });
        // The rank that failed first says why; the others only say that it stopped.
        let mut ranks = Vec::with_capacity(world);
        let mut stopped = None;
        for outcome in outcomes {
            match outcome {
                Ok(record) => ranks.push(record),
                Err(error @ ExecutorError::Peer { .. }) => stopped = stopped.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        match stopped {
            Some(error) => Err(error),
            None => Ok(self.outcome(ranks, settings)),
        }
    }

    /// Runs this process's rank. The run comes out at rank 0, `None` on the others; processes beyond the plan's ranks
    /// have nothing to do.
    ///
    /// # Errors
    /// When there are fewer processes than ranks, or any rank fails (its peers are told).
    pub fn run_process<D: Device, W: Wire>(
        &self,
        settings: &Settings,
        device: D,
        process: &Process<W>,
    ) -> Result<Option<Run>> {
        self.run_process_with(settings, device, process, None)
    }

    /// As [`Job::run_process`], with tensors over a fabric.
    ///
    /// # Errors
    /// As [`Job::run_process`].
    pub fn run_process_with<D: Device, W: Wire>(
        &self,
        settings: &Settings,
        device: D,
        process: &Process<W>,
        fabric: Option<Box<dyn Fabric<D>>>,
    ) -> Result<Option<Run>> {
        let (ranks, world) = (self.plan.world() as usize, process.world());
        if world < ranks {
            return unsupported(
                format!("{ranks} ranks on {world} processes"),
                format!("start as many processes as the plan has ranks: `mpirun -n {ranks} …`"),
            );
        }
        if process.rank() >= ranks {
            return Ok(None);
        }
        let reports = self.run_rank(device, Comm::new(process), fabric, settings).and_then(|record| {
            let report = serde_json::to_vec(&record).map_err(|e| unreadable(&e))?;
            process.gather(ranks, report)
        });
        let reports = match reports {
            Ok(reports) => reports,
            Err(error) => {
                process.stop(&error.to_string());
                return Err(error);
            }
        };
        let Some(reports) = reports else { return Ok(None) };
        let records: std::result::Result<Vec<RankRecord>, _> =
            reports.iter().map(|r| serde_json::from_slice(r)).collect();
        Ok(Some(self.outcome(records.map_err(|e| unreadable(&e))?, settings)))
    }

    /// The run of these ranks, given in order.
    pub fn outcome(&self, ranks: Vec<RankRecord>, settings: &Settings) -> Run {
        let tokens = f64::from(self.plan.global_batch) * self.workload.seq_len as f64;
        let losses = (0..settings.steps as usize)
            .map(|s| ranks.iter().filter_map(|r| r.steps.get(s)).map(|s| s.loss_sum).sum::<f64>() / tokens)
            .collect();
        let device = ranks.first().map(|r| r.device.clone()).unwrap_or_default();
        let device_memory = ranks.iter().filter_map(|r| r.device_memory).max();
        Run { losses, ranks, device, device_memory }
    }

    /// Runs one rank to the end; tensors go over the fabric where there is one, everything else over `comm`.
    ///
    /// # Errors
    /// When the rank fails; its peers are not told.
    pub fn run_rank<D: Device, T: Transport>(
        &self,
        device: D,
        comm: Comm<T>,
        fabric: Option<Box<dyn Fabric<D>>>,
        settings: &Settings,
    ) -> Result<RankRecord> {
        let mut rank = Rank::new(
            device,
            comm,
            &self.network,
            &self.layout,
            &self.plan,
            &self.workload,
            settings.dtype,
            settings.seed,
        )?;
        rank.fabric = fabric;
        rank.keep_gradients = settings.gradients;
        let mut buckets = rank.buckets(settings.bucket)?;
        let states = rank.device.memory().live;
        rank.device.reset_peak();
        let mut steps = Vec::with_capacity(settings.steps as usize);
        for step in 1..=settings.steps {
            rank.comm.reset();
            let adam = Adam { step, ..settings.adam };
            steps.push(rank.step(&self.program, &mut buckets, &adam, settings.seed)?);
        }
        Ok(RankRecord {
            rank: rank.mesh.rank,
            stage: rank.mesh.stage(),
            steps,
            communication: rank.comm.accounts(),
            memory: rank.device.memory(),
            device: rank.device.name(),
            device_memory: rank.device.taken(),
            states,
            gradients: if settings.gradients { rank.pieces(&buckets)? } else { Vec::new() },
        })
    }
}

fn unreadable(error: &serde_json::Error) -> ExecutorError {
    ExecutorError::Communicator { library: "report of a rank", reason: error.to_string() }
}

/// Runs `settings.steps` training steps of a plan, one thread per rank; `device` makes each rank's device.
///
/// # Errors
/// When the plan cannot run, or a rank fails.
pub fn run_threads<D: Device>(
    model: &Model,
    plan: &Plan,
    workload: &TrainingWorkload,
    settings: &Settings,
    device: impl Fn(usize) -> Result<D> + Sync,
) -> Result<Run> {
    Job::new(model, plan, workload)?.run_threads(settings, device)
}
