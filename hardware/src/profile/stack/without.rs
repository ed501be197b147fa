//! Mechanisms taken out, to see what each one costs.
//!
//! A waterfall takes them out one after another, in the order of [`MECHANISMS`]: what the step gets shorter by is the
//! mechanism's term. `--set` names the same switches, so that every term can be found again.

use serde::{Deserialize, Serialize};

/// Mechanisms that take no time. All false in a real stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Without {
    /// Optimizer step and gradient norm.
    pub optimizer: bool,
    /// Gradient reduction and parameter gathering.
    pub dp: bool,
    /// Sends between pipeline stages.
    pub pp: bool,
    /// Differences between stages: every stage does the mean work.
    pub imbalance: bool,
    /// Pipeline fill and drain: every stage is busy all the time.
    pub bubble: bool,
    /// Expert-parallel exchanges.
    pub ep: bool,
    /// Context-parallel exchanges.
    pub cp: bool,
    /// Tensor-parallel collectives.
    pub tp: bool,
    /// Passes run again for activations that were not kept.
    pub recompute: bool,
    /// Memory-bound operators.
    pub memory: bool,
    /// Matrix kernels below the datasheet peak.
    pub inefficiency: bool,
}

/// A term of the waterfall and the settings that take its mechanism out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mechanism {
    /// Name, as in the breakdown of a step.
    pub term: &'static str,
    /// `key=value` settings of the stack profile.
    pub settings: &'static [&'static str],
}

/// The mechanisms in the order in which a waterfall takes them out: from the ends of the step to its kernels.
pub const MECHANISMS: &[Mechanism] = &[
    Mechanism { term: "stragglers", settings: &["efficiency.straggler=0"] },
    Mechanism { term: "fixed step cost", settings: &["host.per_step=0"] },
    Mechanism { term: "optimizer", settings: &["without.optimizer=true"] },
    Mechanism { term: "exposed DP communication", settings: &["without.dp=true"] },
    Mechanism { term: "exposed PP communication", settings: &["without.pp=true"] },
    Mechanism { term: "stage imbalance", settings: &["without.imbalance=true"] },
    Mechanism { term: "pipeline bubble", settings: &["without.bubble=true"] },
    Mechanism {
        term: "contention",
        settings: &["efficiency.contention=0", "efficiency.dispatch_contention=0"],
    },
    Mechanism { term: "exposed EP communication", settings: &["without.ep=true"] },
    Mechanism { term: "exposed CP communication", settings: &["without.cp=true"] },
    Mechanism { term: "exposed TP communication", settings: &["without.tp=true"] },
    Mechanism {
        term: "launch and host",
        settings: &["host.cuda_graphs=true", "host.gap=0", "host.per_micro_batch=0", "host.moe_sync=0"],
    },
    Mechanism { term: "recompute", settings: &["without.recompute=true"] },
    Mechanism { term: "memory-bound operators", settings: &["without.memory=true"] },
    Mechanism { term: "kernel inefficiency", settings: &["without.inefficiency=true"] },
];
