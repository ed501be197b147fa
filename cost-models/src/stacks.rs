//! The built-in software stack profiles, listed in one place.

use psim_hardware::profile::StackProfile;

/// File names below `data/stacks/` with their text.
const FILES: [(&str, &str); 1] = [("default", include_str!("../data/stacks/default.toml"))];

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
