//! The built-in software stack profiles, listed in one place.

use psim_hardware::profile::StackProfile;

/// The stack of a training job that names none: the newest Megatron-Core.
pub const DEFAULT_TRAINING: &str = "megatron-bridge-2025";

/// File names below `data/stacks/` with their text.
const FILES: [(&str, &str); 18] = [
    ("deepspeed-zero", include_str!("../data/stacks/deepspeed-zero.toml")),
    ("flash-attention-script", include_str!("../data/stacks/flash-attention-script.toml")),
    ("fsdp-generic", include_str!("../data/stacks/fsdp-generic.toml")),
    ("llm-foundry-2023", include_str!("../data/stacks/llm-foundry-2023.toml")),
    ("maxtext", include_str!("../data/stacks/maxtext.toml")),
    ("megatron-2020", include_str!("../data/stacks/megatron-2020.toml")),
    ("megatron-2021", include_str!("../data/stacks/megatron-2021.toml")),
    ("megatron-2022", include_str!("../data/stacks/megatron-2022.toml")),
    ("megatron-bridge-2025", include_str!("../data/stacks/megatron-bridge-2025.toml")),
    ("megatron-core-2024", include_str!("../data/stacks/megatron-core-2024.toml")),
    ("megatron-core-2025", include_str!("../data/stacks/megatron-core-2025.toml")),
    ("megatron-deepspeed", include_str!("../data/stacks/megatron-deepspeed.toml")),
    ("megatron-deepspeed-2023", include_str!("../data/stacks/megatron-deepspeed-2023.toml")),
    ("nemo-24.07", include_str!("../data/stacks/nemo-24.07.toml")),
    ("nemo-25", include_str!("../data/stacks/nemo-25.toml")),
    ("torchtitan", include_str!("../data/stacks/torchtitan.toml")),
    ("vocabulary-parallelism", include_str!("../data/stacks/vocabulary-parallelism.toml")),
    ("zero-bubble", include_str!("../data/stacks/zero-bubble.toml")),
];

/// Parses every built-in stack; a file that does not parse is left out (a test asserts that none is).
pub(crate) fn built_in() -> Vec<StackProfile> {
    FILES.iter().filter_map(|(_, text)| toml::from_str(text).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_stack_parses() {
        for (name, text) in FILES {
            let parsed: Result<StackProfile, _> = toml::from_str(text);
            assert!(parsed.is_ok(), "{name}: {:?}", parsed.err());
        }
    }
}
