//! Model architectures, workloads and parallel plans, and their lowering to operators.
//!
//! The road: a [`Model`] and a [`Plan`] with a [`TrainingWorkload`] become [`Operator`]s with shapes and bytes for
//! one rank, and a memory ledger. Nothing here knows how long anything takes.
//!
//! ```text
//! preset name ─┐
//! config.json ─┼→ Model ─┬→ parameters, caches            (what is there)
//! dimensions  ─┘         └→ Plan + workload → lowering    (operators of a layer on one rank, shapes and bytes)
//!                                           → memory      (ledger of a stage, verdict)
//! ```
//!
//! # A tour
//!
//! **Where models come from.** [`presets::find`] knows the names that people type, [`hf::import`] reads a released
//! `config.json`, and [`presets::dense`], [`presets::moe`], [`presets::gpt`] and [`presets::from_row`] build from bare
//! dimensions. All give the same type.
//!
//! ```
//! use psim_models::{hf, presets};
//! let by_name = presets::find("mixtral-8x7b")?;
//! let from_file = hf::import("config.json", r#"{"model_type": "mixtral", "hidden_size": 4096,
//!     "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
//!     "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}"#)?;
//! assert_eq!(by_name.parameters().total, 46_702_792_704);
//! assert_eq!(from_file.parameters(), by_name.parameters());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **What a model is.** A [`Model`] is a width, a vocabulary and a list of layers. Equal layers share a
//! [`Block`](arch::Block): a sequence [`Mixer`](arch::Mixer) (attention, latent attention, Mamba-2, linear attention,
//! or none) and a feed-forward part ([`Ffn`](arch::Ffn): dense, experts, or none). `kinds` holds the distinct blocks
//! and `pattern` says which layer is which, so a hybrid is nothing special:
//!
//! ```
//! use psim_models::{arch::Mixer, presets};
//! let hybrid = presets::find("nemotron-3-nano")?;
//! let count = |wanted: fn(&Mixer) -> bool| {
//!     (0..hybrid.pattern.len()).filter(|&layer| wanted(&hybrid.block(layer).mixer)).count()
//! };
//! assert_eq!(count(|m| matches!(m, Mixer::Mamba2(_))), 23);
//! assert_eq!(count(|m| matches!(m, Mixer::Attention(_))), 6);
//! # Ok::<(), presets::PresetError>(())
//! ```
//!
//! **What it weighs.** [`Model::parameters`] counts tensors as checkpoints hold them, to the last digit where a source
//! prints it; [`BlockParameters`] splits a layer by what tensor and expert parallelism do with it.
//! [`Model::cache_elements`] says what a sequence leaves behind between decoding steps.
//!
//! ```
//! let model = psim_models::presets::find("deepseek-v3")?;
//! let count = model.parameters();
//! assert_eq!((count.total / 1_000_000_000, count.active / 1_000_000_000), (671, 37));
//! // One latent of 512 and one rotary key of 64 for each of 61 layers (DeepSeek-V2, section 2.1).
//! assert_eq!(model.cache_elements(1), 61 * (512 + 64));
//! # Ok::<(), psim_models::presets::PresetError>(())
//! ```
//!
//! **How it runs.** A [`Plan`] divides the work; [`lowering`] turns one block into the operators of one rank with their
//! collectives, forward and backward; [`memory`] adds up what a stage holds.
//!
//! # Guarantees
//!
//! Pure: no files, no clock, no environment. Deterministic. Sizes are checked where they come in (at most 2^40 a
//! dimension, 65,536 layers and 2^60 parameters) and counted with saturating arithmetic; what cannot be read is refused
//! with the key, the line and a hint, and nothing is guessed.

pub mod arch;
pub mod cache;
pub mod flops;
pub mod hf;
pub mod layout;
pub mod lowering;
pub mod memory;
pub mod operator;
pub mod parameters;
pub mod plan;
pub mod presets;
mod quantization;
pub mod serving;
pub mod workload;

pub use arch::Model;
pub use lowering::{Groups, LayerProgram, Shape};
pub use operator::{Operator, OperatorKind};
pub use parameters::{BlockParameters, ParameterCount};
pub use plan::Plan;
pub use workload::TrainingWorkload;
