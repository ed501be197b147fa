//! The lowering multiplies every matrix of a model once: operators and parameter counts come from one description.

use psim_hardware::profile::StackProfile;
use psim_models::arch::{Ffn, Mixer};
use psim_models::flops::forward_flops_per_sequence;
use psim_models::workload::TrainingWorkload;
use psim_models::{Model, presets};

/// Presets whose projections the lowering does not follow in every detail, and by how much it may be off.
const DEPARTURES: &[(&str, f64, &str)] = &[
    ("deepseek-v3.2", 0.03, "the indexer is not lowered"),
    (
        "deepseek-v4-flash",
        0.50,
        "low-rank queries and the grouped output projection are lowered at full rank",
    ),
    ("deepseek-v4-pro", 0.80, "low-rank queries and the grouped output projection are lowered at full rank"),
    ("step-3", 0.12, "queries are lowered without their bottleneck"),
];

/// Parameters that multiply one token: active ones without the embedding look-up, prediction layers with their own
/// pass through the output layer.
fn multiplied(model: &Model) -> f64 {
    let count = model.parameters();
    let table = model.vocab * model.hidden;
    let prediction = model.mtp_block().map_or(0, |block| block.parameters(model.hidden, model.norm).active());
    let prediction = u64::from(model.mtp_layers) * (prediction + 2 * model.hidden * model.hidden + table);
    let head = if model.tied_embeddings { table } else { 0 };
    (count.active - count.embedding + head + prediction) as f64
}

#[test]
fn forward_flops_are_twice_the_active_parameters() {
    let text = include_str!("../../../cost-models/data/stacks/megatron-2022.toml");
    let stack: StackProfile = toml::from_str(text).unwrap();
    let mut off = Vec::new();
    for name in presets::names().unwrap() {
        let model = presets::find(name).unwrap();
        if model.encoder.is_some() {
            continue;
        }
        // Short enough that attention scores hardly count.
        let workload = TrainingWorkload { seq_len: 16, ..TrainingWorkload::default() };
        let flops = forward_flops_per_sequence(&model, &workload, &stack);
        let ratio = flops / (2.0 * 16.0 * multiplied(&model));
        // Recurrent scans cost the same per token however short the sequence is.
        let recurrent = model.kinds.iter().any(|b| matches!(b.mixer, Mixer::Mamba2(_) | Mixer::Linear(_)));
        let dense = model.kinds.iter().all(|b| !matches!(b.ffn, Ffn::Moe(_)));
        let usual = match (recurrent, dense) {
            (true, _) => 0.10,
            (false, true) => 0.01,
            (false, false) => 0.02,
        };
        let allowed =
            DEPARTURES.iter().find(|(n, _, _)| *n == name).map_or(usual, |(_, allowed, _)| *allowed);
        println!("{name}: {ratio:.4}");
        if (ratio - 1.0).abs() > allowed {
            off.push(format!("{name}: {ratio:.4} of the flops that its matrices make"));
        }
    }
    assert!(off.is_empty(), "{off:#?}");
}
