//! Shard execution: one rank of a plan on one device, to check the compute and the memory of a plan for a cluster.
//!
//! The rank has its own shapes, parameters, memory and order of passes. Its peers do not run: every collective is a wait
//! of its predicted duration, and those waits are kept apart, so that what is compared is computation and memory.

use crate::comm::{Absent, Comm, Pricing};
use crate::error::{ExecutorError, Result, unsupported};
use crate::run::{Job, RankRecord, Settings};
use psim_cost_models::ProfileLibrary;
use psim_hardware::profile::StackProfile;
use psim_hardware::{Cluster, GroupShape};
use psim_kernels::Device;
use psim_models::lowering::Groups;
use psim_models::operator::{CollectiveKind, Dimension};
use psim_models::{Model, Plan, TrainingWorkload};
use psim_sim::schedule::{PassKind, model_chunk};
use psim_sim::step::StepModel;
use psim_sim::{Level, StepPrediction};
use serde::Serialize;
use std::sync::Arc;

/// What a shard run is priced with.
#[derive(Debug, Clone, Copy)]
pub struct ShardBasis<'a> {
    /// Accelerators like the device at hand: they price the computation.
    pub cluster: &'a Cluster,
    /// The cluster that the plan is for: it prices the collectives.
    pub network: &'a Cluster,
    /// Under which stack.
    pub stack: &'a StackProfile,
    /// With which profiles.
    pub library: &'a ProfileLibrary,
}

/// One phase of the rank, per step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShardPhase {
    /// `forward`, `backward`, `weight`, `optimizer`.
    pub phase: &'static str,
    /// Computation, seconds: median over steps.
    pub compute: f64,
    /// Predicted computation, seconds.
    pub predicted: f64,
    /// Waits that stand in for peers, and the copies beside them, seconds.
    pub inserted: f64,
}

/// Outcome of a shard run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShardReport {
    /// What it ran on.
    pub device: String,
    /// Rank of the plan.
    pub rank: usize,
    /// Its pipeline stage.
    pub stage: usize,
    /// By phase.
    pub phases: Vec<ShardPhase>,
    /// Bytes of parameters, gradients and optimizer states.
    pub states: u64,
    /// The ledger's parameters, gradients and optimizer states of this stage, bytes.
    pub predicted_states: u64,
    /// Largest memory held by buffers, bytes.
    pub memory: u64,
    /// The ledger's total of this stage without context and fragmentation, bytes.
    pub predicted_memory: u64,
    /// (largest − smallest) / median of the computation of a step.
    pub spread: f64,
}

impl ShardReport {
    /// Computation of a step, seconds: measured and predicted.
    pub fn compute(&self) -> [f64; 2] {
        [self.phases.iter().map(|p| p.compute).sum(), self.phases.iter().map(|p| p.predicted).sum()]
    }
}

impl Job {
    /// Runs `rank` alone; `price` gives the seconds of the collectives that it would take part in.
    ///
    /// # Errors
    /// When the plan has no such rank, or the device fails.
    pub fn run_shard<D: Device>(
        &self,
        settings: &Settings,
        device: D,
        rank: usize,
        price: Arc<Pricing>,
    ) -> Result<RankRecord> {
        let world = self.plan.world() as usize;
        if rank >= world {
            return unsupported(
                format!("rank {rank} of a plan with {world} ranks"),
                format!("ranks go from 0 to {}", world.saturating_sub(1)),
            );
        }
        let comm: Comm<Absent> = Comm::alone(rank, price);
        self.run_rank(device, comm, None, settings)
    }
}

/// Seconds of (computation, communication) of a step: forward, backward and weight passes, then the optimizer.
pub type StepTimes = [(f64, f64); 4];

/// Computation and communication of one step of a record.
pub fn step_compute(record: &RankRecord, step: usize) -> StepTimes {
    let mut sums = StepTimes::default();
    let Some(step) = record.steps.get(step) else { return sums };
    for pass in &step.passes {
        let sum = &mut sums[pass.pass.kind as usize];
        sum.0 += pass.end - pass.start - pass.communication;
        sum.1 += pass.communication;
    }
    sums[3] = (step.optimizer - step.optimizer_communication, step.optimizer_communication);
    sums
}

/// Prices collectives as the simulator does.
fn pricing(model: &StepModel<'_>, plan: &Plan, groups: &Groups) -> Arc<Pricing> {
    let (cost, groups) = (model.cost().clone(), *groups);
    let expert_replicas = plan.edp().max(1);
    Arc::new(move |dimension, kind, bytes, ranks| {
        let group: GroupShape = match dimension {
            Dimension::Tp => groups.tp,
            Dimension::Pp => groups.pp,
            Dimension::Dp => groups.dp,
            Dimension::Cp => groups.cp,
            // Experts' gradients and states are shared by their replicas, tokens by the expert-parallel group.
            Dimension::Ep if kind != CollectiveKind::AllToAll && ranks as u32 == expert_replicas => {
                groups.edp
            }
            Dimension::Ep => groups.ep,
            Dimension::Etp => groups.etp,
        };
        cost.collective(kind, bytes, &group).time.0
    })
}

/// Runs one rank of a plan alone and compares its computation and memory with the prediction.
///
/// # Errors
/// When the plan cannot run or cannot be priced.
pub fn shard<D: Device>(
    model: &Model,
    plan: &Plan,
    workload: &TrainingWorkload,
    settings: &Settings,
    basis: ShardBasis<'_>,
    device: D,
    rank: usize,
) -> Result<ShardReport> {
    let job = Job::new(model, plan, workload)?;
    let priced = StepModel::new(model, workload, basis.cluster, basis.stack, basis.library);
    let failed = |e: psim_sim::step::SimError| ExecutorError::Prediction(e.to_string());
    let prediction = priced.predict_program(plan, Level::L2, job.program()).map_err(failed)?;
    let computation = priced.computation(plan).map_err(failed)?;
    let network = StepModel::new(model, workload, basis.network, basis.stack, basis.library);
    let price = pricing(&network, plan, &network.shape(plan).groups);
    let name = device.name();
    let warm_up = 1;
    let settings = Settings { steps: settings.steps.max(1) + warm_up, ..*settings };
    let record = job.run_shard(&settings, device, rank, price)?;
    let stage = record.stage;
    let mut predicted = [0.0, 0.0, 0.0, computation.optimizer];
    for pass in job.program().order.stage(stage) {
        let chunk = model_chunk(&job.program().spec, stage as u32, u32::from(pass.chunk));
        if let Some(passes) = computation.chunks.get(chunk as usize) {
            predicted[pass.kind as usize] += passes[pass.kind as usize];
        }
    }
    let steps: Vec<StepTimes> =
        (warm_up as usize..record.steps.len()).map(|step| step_compute(&record, step)).collect();
    let median = |of: &dyn Fn(&StepTimes) -> f64| {
        let mut values: Vec<f64> = steps.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    let phases = ["forward", "backward", "weight", "optimizer"]
        .into_iter()
        .enumerate()
        .filter(|&(kind, _)| kind != PassKind::Weight as usize || job.program().order.split_backward)
        .map(|(kind, phase)| ShardPhase {
            phase,
            compute: median(&|s| s[kind].0),
            predicted: predicted[kind],
            inserted: median(&|s| s[kind].1),
        })
        .collect();
    let whole = |s: &StepTimes| s.iter().map(|k| k.0).sum::<f64>();
    let largest = steps.iter().map(whole).fold(0.0, f64::max);
    let smallest = steps.iter().map(whole).fold(f64::INFINITY, f64::min);
    let (states, total) = ledger(&prediction, stage);
    Ok(ShardReport {
        device: name,
        rank,
        stage,
        phases,
        states: record.states,
        predicted_states: states,
        memory: record.memory.peak,
        predicted_memory: total,
        spread: (largest - smallest) / median(&whole).max(f64::MIN_POSITIVE),
    })
}

/// The ledger of a stage: states, and everything that buffers hold.
pub(crate) fn ledger(prediction: &StepPrediction, stage: usize) -> (u64, u64) {
    let (mut states, mut total) = (0, 0);
    if let Some(memory) = prediction.memory.iter().find(|m| m.stage as usize == stage) {
        for &(name, bytes) in &memory.parts {
            if ["parameters", "gradients", "optimizer states"].contains(&name) {
                states += bytes.0;
            }
            if name != "context and fragmentation" {
                total += bytes.0;
            }
        }
    }
    (states, total)
}
