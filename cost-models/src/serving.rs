//! What one step of a serving engine costs: kernels from measured laws, collectives from measured curves, host time
//! from an engine profile.
//!
//! - [`kernels`]: laws of decode attention, prompt attention, fused experts and weight-only products, per accelerator
//!   and kernel library, fitted from measured tables by `fit-serving`;
//! - [`reduce`]: all-reduce curves of the engines' own kernels;
//! - [`engine`]: engine profiles (an engine's release on an accelerator): policy, limits, host time;
//! - [`step`]: the cost of a step for a deployment.

mod attention_ffn;
pub mod engine;
pub mod kernels;
pub mod reduce;
pub mod step;

pub mod tables;

pub use attention_ffn::AttentionFfn;
pub use engine::{EngineParameters, EngineProfile, Policy};
pub use step::{
    Crossing, DecodeRun, Drafting, KINDS, Lane, LanesRun, NanoPlan, PricedStep, PromptChunk, Share, StepCost,
    StepCostError, StepPieces, StepResources, Work,
};
