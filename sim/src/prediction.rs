//! Result types: estimates with an interval, breakdowns, memory per stage.

use crate::Timeline;
use psim_hardware::profile::Provenance;
use psim_hardware::{Bytes, Seconds};
use serde::Serialize;

/// Depth of simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Closed-form lower bound.
    L0,
    /// Pipeline-level events.
    L1,
    /// Operator-level events on representative ranks.
    L2,
    /// All ranks, shared links.
    L3,
}

/// A value with an 80 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Predicted value.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Where the time of a step goes on the critical stage; the parts sum to the step time.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Breakdown {
    /// GEMMs and attention at datasheet peak for the model's useful flops.
    pub ideal_compute: Seconds,
    /// Kernels below peak.
    pub kernel_inefficiency: Seconds,
    /// Forward passes run again.
    pub recompute: Seconds,
    /// Memory-bound operators.
    pub memory_bound: Seconds,
    /// Launch gaps and host-bound time.
    pub launch: Seconds,
    /// Exposed tensor-parallel communication.
    pub tp_exposed: Seconds,
    /// Exposed context-parallel communication.
    pub cp_exposed: Seconds,
    /// Exposed expert-parallel communication.
    pub ep_exposed: Seconds,
    /// Exposed pipeline sends and receives.
    pub pp_exposed: Seconds,
    /// Exposed gradient reduction and parameter gathering.
    pub dp_exposed: Seconds,
    /// Compute slowed by communication beside it.
    pub contention: Seconds,
    /// Pipeline fill and drain.
    pub bubble: Seconds,
    /// Waiting for slower stages.
    pub imbalance: Seconds,
    /// Optimizer step and gradient norm.
    pub optimizer: Seconds,
    /// Slow nodes and jitter at scale.
    pub straggler: Seconds,
    /// Fixed cost per step.
    pub fixed: Seconds,
}

impl Breakdown {
    /// The parts with their names, in waterfall order.
    pub fn terms(&self) -> [(&'static str, Seconds); 16] {
        [
            ("ideal compute", self.ideal_compute),
            ("kernel inefficiency", self.kernel_inefficiency),
            ("recompute", self.recompute),
            ("memory-bound operators", self.memory_bound),
            ("launch and host", self.launch),
            ("exposed TP communication", self.tp_exposed),
            ("exposed CP communication", self.cp_exposed),
            ("exposed EP communication", self.ep_exposed),
            ("exposed PP communication", self.pp_exposed),
            ("exposed DP communication", self.dp_exposed),
            ("contention", self.contention),
            ("pipeline bubble", self.bubble),
            ("stage imbalance", self.imbalance),
            ("optimizer", self.optimizer),
            ("stragglers", self.straggler),
            ("fixed step cost", self.fixed),
        ]
    }

    /// Every part times `factor`.
    pub(crate) fn scale(&mut self, factor: f64) {
        for part in [
            &mut self.ideal_compute,
            &mut self.kernel_inefficiency,
            &mut self.recompute,
            &mut self.memory_bound,
            &mut self.launch,
            &mut self.tp_exposed,
            &mut self.cp_exposed,
            &mut self.ep_exposed,
            &mut self.pp_exposed,
            &mut self.dp_exposed,
            &mut self.contention,
            &mut self.bubble,
            &mut self.imbalance,
            &mut self.optimizer,
            &mut self.straggler,
            &mut self.fixed,
        ] {
            part.0 *= factor;
        }
    }

    /// Sum of all parts.
    pub fn total(&self) -> Seconds {
        self.terms().iter().map(|t| t.1).sum()
    }
}

/// Memory of one pipeline stage at its peak.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageMemory {
    /// Pipeline stage.
    pub stage: u32,
    /// Named parts, largest first.
    pub parts: Vec<(&'static str, Bytes)>,
    /// Sum.
    pub total: Bytes,
}

/// Prediction for one training step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepPrediction {
    /// Depth used.
    pub level: Level,
    /// Step time, seconds.
    pub step_time: Estimate,
    /// Tokens per second and accelerator.
    pub tokens_per_s_per_gpu: f64,
    /// Model flops utilisation in percent of the peak of the GEMM format (causal attention counted as half).
    pub mfu: f64,
    /// Model TFLOP/s per accelerator (same convention).
    pub model_tflops_per_gpu: f64,
    /// Memory per stage.
    pub memory: Vec<StageMemory>,
    /// Usable memory of one accelerator.
    pub memory_capacity: Bytes,
    /// The largest stage fits.
    pub fits: bool,
    /// Share of the step in pipeline fill, drain and imbalance.
    pub bubble: f64,
    /// Share of the step in exposed communication.
    pub exposed_comm: f64,
    /// Where the time goes.
    pub breakdown: Breakdown,
    /// Energy of the whole cluster for one step, joules, PUE included.
    pub energy_joule: f64,
    /// Weakest provenance among the operators that make up 90 % of the time.
    pub provenance: Provenance,
    /// What the interval is made of: standard deviation of ln(step time) by cause, largest first.
    #[serde(skip)]
    pub doubts: Vec<(&'static str, f64)>,
    /// Timeline, if asked for.
    #[serde(skip)]
    pub timeline: Option<Timeline>,
    /// Remarks (transferred profiles, assumptions taken).
    pub notes: Vec<String>,
}

impl StepPrediction {
    /// Peak memory over all stages.
    pub fn peak_memory(&self) -> Bytes {
        self.memory.iter().map(|m| m.total).max().unwrap_or_default()
    }
}
