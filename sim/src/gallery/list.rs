//! The scenarios, one line each.

use super::{Entry, serving};

macro_rules! scenario {
    ($name:literal, $simulate:path) => {
        Entry {
            name: $name,
            text: include_str!(concat!("../../data/gallery/", $name, ".toml")),
            simulate: $simulate,
        }
    };
}

pub(super) const ENTRIES: &[Entry] = &[
    // Batching policies of one engine.
    scenario!("splitfuse-llama2-70b", serving::simulate),
    scenario!("radix-llama3-8b", serving::simulate),
    scenario!("conversations-llama3-8b", serving::simulate),
    scenario!("kv-tiers-llama3-8b", serving::simulate),
    scenario!("flover-llama-13b", serving::simulate),
];
