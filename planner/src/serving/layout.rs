//! What serves: replicas, or pools for prompts and for answers, and what runs beside them.

use super::{Arrangement, ExpertsOutside, FeedForwardApart, RedundantExperts};
use psim_models::Model;
use psim_models::serving::Deployment;
use psim_sim::serving::speculation::{Acceptance, TreeChances};
use psim_sim::serving::{FleetOptions, Placement, TransferMode};
use serde::Serialize;

/// Instances of one role of a split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PoolLayout {
    /// Layout of an instance; `replicas` of them.
    pub deployment: Deployment,
    /// Ranks that share each prompt's tokens, on top of the layout (prefill only; 1 without).
    pub context_parallel: u32,
    /// Group of the cluster's nodes on which it lies, from 0.
    pub group: usize,
    /// Most tokens of a step, where it is not the engine's own.
    pub token_budget: Option<u32>,
    /// Most sequences at once, where it is not the engine's own.
    pub max_sequences: Option<u32>,
}

impl From<Deployment> for PoolLayout {
    fn from(deployment: Deployment) -> Self {
        Self { deployment, context_parallel: 1, group: 0, token_budget: None, max_sequences: None }
    }
}

impl PoolLayout {
    /// Accelerators of the pool.
    pub fn accelerators(&self) -> u32 {
        self.deployment.accelerators() * self.context_parallel.max(1)
    }
}

/// Prompts and answers on instances of their own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Split {
    /// Prompts.
    pub prefill: PoolLayout,
    /// Answers.
    pub decode: PoolLayout,
    /// Where the roles lie.
    pub placement: Placement,
    /// When caches start to move.
    pub transfer: TransferMode,
}

impl Split {
    /// Accelerators of both pools.
    pub fn accelerators(&self) -> u32 {
        self.prefill.accelerators() + self.decode.accelerators()
    }
}

/// Who computes prompts and answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Replicas that do both.
    Replicas(Deployment),
    /// A pool for each.
    Pools(Split),
}

impl Layout {
    /// Accelerators in all.
    pub fn accelerators(&self) -> u32 {
        match self {
            Self::Replicas(d) => d.accelerators(),
            Self::Pools(split) => split.accelerators(),
        }
    }

    /// The layout that answers: of pools the decode instances.
    pub fn deployment(&self) -> &Deployment {
        match self {
            Self::Replicas(d) => d,
            Self::Pools(split) => &split.decode.deployment,
        }
    }
}

/// Where drafts of tokens come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Drafts {
    /// A small model on the same accelerators drafts, then the target verifies.
    Model(Box<Model>),
    /// A small model on accelerators of its own drafts while the target verifies (PEARL).
    Parallel {
        /// Draft model.
        model: Box<Model>,
        /// Accelerators of one draft model.
        tp: u32,
    },
    /// A small model whose attention layers run in groups side by side (EasySpec).
    LayerParallel {
        /// Draft model.
        model: Box<Model>,
        /// Layers of a group.
        group: u32,
    },
    /// Prediction heads of the target (multi-token prediction, EAGLE).
    Heads {
        /// Layers of each head.
        layers: u32,
    },
    /// A tree of candidates verified at once (Medusa, prompt tokens of PPD).
    Tree(TreeChances),
    /// Tokens copied from the prompt.
    Copy,
}

/// Speculative decoding.
#[derive(Debug, Clone, PartialEq)]
pub struct Speculation {
    /// Technique, as named by the user.
    pub name: String,
    /// Source of drafts.
    pub drafts: Drafts,
    /// Drafted tokens of a round; candidates of a tree. 0 where a search is to find the number.
    pub tokens: u32,
    /// Chances that drafts are taken; a tree brings its own.
    pub acceptance: Acceptance,
}

impl Speculation {
    /// Accelerators that a replica needs beside the target's.
    pub fn extra_accelerators(&self) -> u32 {
        match &self.drafts {
            Drafts::Parallel { tp, .. } => *tp,
            _ => 0,
        }
    }
}

/// A deployment with all that runs beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    /// Who computes.
    pub layout: Layout,
    /// Group of the cluster's nodes on which replicas lie, from 0; pools have their own.
    pub group: usize,
    /// Router, preemption, tiers of the cache, adapters, autoscaling.
    pub options: FleetOptions,
    /// Speculative decoding, if any.
    pub speculation: Option<Speculation>,
    /// How kernels share an accelerator.
    pub arrangement: Arrangement,
    /// Copies of hot experts, if any.
    pub redundant: Option<RedundantExperts>,
    /// Experts in host memory or on disk, if they are not on the accelerators.
    pub experts_outside: Option<ExpertsOutside>,
    /// Feed-forward layers on accelerators of their own, if they are.
    pub apart: Option<FeedForwardApart>,
}

impl Served {
    /// A layout with nothing but options beside it.
    pub fn of(layout: Layout, options: FleetOptions) -> Self {
        Self {
            layout,
            group: 0,
            options,
            speculation: None,
            arrangement: Arrangement::InTurn,
            redundant: None,
            experts_outside: None,
            apart: None,
        }
    }

    /// Plain replicas.
    pub fn replicas(deployment: Deployment, options: FleetOptions) -> Self {
        Self::of(Layout::Replicas(deployment), options)
    }

    /// Accelerators in all, those of drafts and of feed-forward layers included.
    pub fn accelerators(&self) -> u32 {
        let drafts = self.speculation.as_ref().map_or(0, Speculation::extra_accelerators);
        let behind = self.apart.map_or(0, |a| a.accelerators());
        self.layout.accelerators() + (drafts + behind) * self.layout.deployment().replicas
    }
}
