//! Scenarios of training: one or two plans of a job, and a figure of their predicted steps.
//!
//! ```toml
//! kind = "training"
//! measure = "ratio"            # see `runs`
//! metric = "step_s"            # see `figure`
//! [base]
//! accelerator = "A100-SXM-80GB"
//! stack = "megatron-2021"
//! seq_len = 2048
//! [base.model]                 # a preset's name, or dimensions as in rows of published measurements
//! name = "gpt3-175b"
//! [[run]]
//! plan = { tp = 8, pp = 8, dp = 4, micro_batch = 1, global_batch = 768 }
//! ```
//!
//! Steps are simulated operator by operator (level L2). A scenario of `kind = "pipeline"` has no kernels: passes of given
//! lengths under a schedule.

use super::runs;
use crate::pipeline::{ChunkCost, PipelineCosts, PipelineSpec, simulate as schedule_passes};
use crate::step::{StepInput, predict_step};
use crate::{Level, StepPrediction};
use psim_cost_models::ProfileLibrary;
use psim_hardware::Time;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_hardware::profile::StackProfile;
use psim_models::plan::Schedule;
use psim_models::presets::{RowDims, from_row};
use psim_models::{Plan, TrainingWorkload};
use serde::Deserialize;

/// One plan of one job.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    model: RowDims,
    accelerator: String,
    /// Kind of node in place of the usual one.
    system: Option<String>,
    stack: String,
    /// Values of the stack by dotted key.
    #[serde(default)]
    set: toml::Table,
    seq_len: u64,
    plan: Plan,
}

/// Passes of one pipeline.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Passes {
    schedule: Schedule,
    stages: u32,
    #[serde(default = "one")]
    chunks_per_stage: u32,
    micro_batches: u32,
    /// Work of all passes of the step on one device, any unit of time.
    work: f64,
    /// Shares of it: forward, gradient of the inputs, gradient of the weights.
    #[serde(default = "shares")]
    shares: [f64; 3],
}

fn one() -> u32 {
    1
}

/// A backward pass costs two forward passes.
fn shares() -> [f64; 3] {
    [1.0 / 3.0; 3]
}

/// Simulates the steps of a file and takes the figure.
///
/// # Errors
/// What is wrong with the file, or why a plan is impossible.
pub(super) fn training(file: &toml::Table) -> Result<f64, String> {
    runs::compare(file, |run: &Run, metric| figure(metric, run, &run.predict()?))
}

/// Simulates the passes of a file and takes the figure.
///
/// # Errors
/// What is wrong with the file, or why a schedule is impossible.
pub(super) fn pipeline(file: &toml::Table) -> Result<f64, String> {
    runs::compare(file, |passes: &Passes, metric| passes.figure(metric))
}

impl Run {
    fn predict(&self) -> Result<StepPrediction, String> {
        let library = ProfileLibrary::built_in();
        let known =
            library.stack(&self.stack).ok_or_else(|| format!("no software stack `{}`", self.stack))?;
        let stack = changed(known, &self.set)?;
        let model = from_row(&self.model).map_err(|e| e.to_string())?;
        let options = HomogeneousOptions { system: self.system.clone(), ..HomogeneousOptions::default() };
        let cluster =
            homogeneous(&self.accelerator, self.plan.world(), &options).map_err(|e| e.to_string())?;
        let workload = TrainingWorkload {
            seq_len: self.seq_len,
            global_batch: self.plan.global_batch,
            ..TrainingWorkload::default()
        };
        let input = StepInput {
            model: &model,
            plan: &self.plan,
            workload: &workload,
            cluster: &cluster,
            stack: &stack,
            library: &library,
        };
        predict_step(&input, Level::L2).map_err(|e| e.to_string())
    }
}

/// The stack with values replaced by dotted key.
fn changed(stack: &StackProfile, values: &toml::Table) -> Result<StackProfile, String> {
    let mut tree = toml::Value::try_from(stack).map_err(|e| e.to_string())?;
    for (key, value) in values {
        let slot = key.split('.').try_fold(&mut tree, |at, part| at.get_mut(part));
        *slot.ok_or_else(|| format!("no key `{key}` of a software stack"))? = value.clone();
    }
    tree.try_into().map_err(|e| e.to_string())
}

/// A figure of a predicted step by name.
fn figure(name: &str, run: &Run, step: &StepPrediction) -> Result<f64, String> {
    Ok(match name {
        "step_s" => step.step_time.value,
        "sequences_per_s" => f64::from(run.plan.global_batch) / step.step_time.value,
        "tokens_per_s_per_gpu" => step.tokens_per_s_per_gpu,
        "mfu_percent" => step.mfu,
        "bubble_percent" => 100.0 * step.bubble,
        "peak_gb" => step.peak_memory().0 as f64 / 1e9,
        // Parameters, gradients and optimizer states, as ZeRO counts them.
        "states_gb" => {
            let states = ["parameters", "gradients", "optimizer states"];
            let of = |parts: &[(&'static str, psim_hardware::Bytes)]| -> u64 {
                parts.iter().filter(|(part, _)| states.contains(part)).map(|(_, bytes)| bytes.0).sum()
            };
            step.memory.iter().map(|stage| of(&stage.parts)).max().unwrap_or(0) as f64 / 1e9
        }
        _ => return Err(format!("`{name}` is not a figure of a step")),
    })
}

impl Passes {
    /// `step` in the unit of the work, or `bubble_percent` of all stages' time.
    fn figure(&self, metric: &str) -> Result<f64, String> {
        const TICKS: f64 = 1e9;
        let pieces =
            f64::from(self.stages) * f64::from(self.chunks_per_stage) * f64::from(self.micro_batches);
        let pass = |share: f64| Time((TICKS * self.work * share / pieces).round() as u64);
        let [forward, input, weight] = self.shares.map(pass);
        let chunk = ChunkCost { forward, backward_input: input, backward_weight: weight };
        let spec = PipelineSpec {
            schedule: self.schedule,
            stages: self.stages,
            chunks_per_stage: self.chunks_per_stage,
            micro_batches: self.micro_batches,
            ..PipelineSpec::default()
        };
        let chunks = (self.stages * self.chunks_per_stage) as usize;
        let costs = PipelineCosts { chunks: vec![chunk; chunks], ..PipelineCosts::default() };
        let run = schedule_passes(&spec, &costs).map_err(|e| e.to_string())?;
        let step = run.step(self.schedule).0 as f64 / TICKS;
        match metric {
            "step" => Ok(step),
            "bubble_percent" => Ok(100.0 * (1.0 - self.work / (f64::from(self.stages) * step))),
            _ => Err(format!("`{metric}` is not a figure of a pipeline")),
        }
    }
}
