//! Runs all ranks of a plan as threads of this process.

use crate::comm::{Account, Hub};
use crate::error::{ExecutorError, Result};
use crate::network::Network;
use crate::rank::Rank;
use crate::step::StepRecord;
use crate::update::Piece;
use psim_hardware::DType;
use psim_kernels::{Adam, Device, MemoryUse};
use psim_models::layout::Layout;
use psim_models::operator::Dimension;
use psim_models::{Model, Plan, TrainingWorkload};
use psim_sim::pipeline::PipelineSpec;
use psim_sim::schedule::{self, Order};
use std::collections::BTreeMap;
use std::sync::Arc;

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
#[derive(Debug, Clone, PartialEq)]
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
    pub memory: MemoryUse,
    /// Reduced gradients owned by this rank, if asked for.
    pub gradients: Vec<Piece>,
}

/// Outcome of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Mean loss per token, per step.
    pub losses: Vec<f64>,
    /// Ranks in order.
    pub ranks: Vec<RankRecord>,
}

/// The pipeline of a plan, as the simulator and the executor both read it.
pub fn pipeline_spec(plan: &Plan) -> PipelineSpec {
    PipelineSpec {
        schedule: plan.schedule,
        stages: plan.pp,
        chunks_per_stage: plan.vpp,
        micro_batches: plan.micro_batches(),
        ..PipelineSpec::default()
    }
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
    let network = Network::new(model)?;
    network.check(plan, workload)?;
    let layout = Layout::new(model, plan)?;
    let spec = pipeline_spec(plan);
    let mut order = Order::default();
    schedule::build(&spec, &mut order)?;
    let world = plan.world() as usize;
    let hub = Hub::new(world);
    let outcomes: Vec<Result<RankRecord>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..world)
            .map(|rank| {
                let (hub, network, layout, spec, order, device) =
                    (&hub, &network, &layout, &spec, &order, &device);
                scope.spawn(move || {
                    let work = || {
                        let transport = hub.endpoint(rank);
                        let dtype = settings.dtype;
                        let device = device(rank)?;
                        let rank = Rank::new(
                            device,
                            transport,
                            network,
                            layout,
                            plan,
                            workload,
                            dtype,
                            settings.seed,
                        )?;
                        run_rank(rank, spec, order, settings)
                    };
                    let outcome = work();
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
    drop(Arc::clone(&hub));
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
    if let Some(error) = stopped {
        return Err(error);
    }
    let tokens = f64::from(plan.global_batch) * workload.seq_len as f64;
    let losses = (0..settings.steps as usize)
        .map(|s| ranks.iter().filter_map(|r| r.steps.get(s)).map(|s| s.loss_sum).sum::<f64>() / tokens)
        .collect();
    Ok(Run { losses, ranks })
}

fn run_rank<D: Device, T: crate::comm::Transport>(
    mut rank: Rank<D, T>,
    spec: &PipelineSpec,
    order: &Order,
    settings: &Settings,
) -> Result<RankRecord> {
    let mut buckets = rank.buckets(settings.bucket)?;
    rank.device.reset_peak();
    let mut steps = Vec::with_capacity(settings.steps as usize);
    for step in 1..=settings.steps {
        rank.comm.reset();
        let adam = Adam { step, ..settings.adam };
        steps.push(rank.step(spec, order, &mut buckets, &adam, settings.seed)?);
    }
    Ok(RankRecord {
        rank: rank.mesh.rank,
        stage: rank.mesh.stage(),
        steps,
        communication: rank.comm.accounts(),
        memory: rank.device.memory(),
        gradients: if settings.gradients { rank.pieces(&buckets) } else { Vec::new() },
    })
}
