//! The embedded catalogue and how names are matched.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use psim_hardware::suggest::nearest;
use serde::Deserialize;
use serde_json::Value;

use super::error::PresetError;
use crate::arch::Model;
use crate::hf;

/// The files of the catalogue.
const FILES: &[(&str, &str)] = &[
    ("llama.toml", include_str!("../../data/presets/llama.toml")),
    ("gpt.toml", include_str!("../../data/presets/gpt.toml")),
    ("experts.toml", include_str!("../../data/presets/experts.toml")),
    ("open.toml", include_str!("../../data/presets/open.toml")),
    ("hybrid.toml", include_str!("../../data/presets/hybrid.toml")),
];

/// Endings of released names that do not change the architecture.
const ENDINGS: &[&str] = &[
    "-instruct",
    "-chat",
    "-base",
    "-hf",
    "-it",
    "-bf16",
    "-fp8",
    "-nvfp4",
    "-fp4",
    "-v0.1",
    "-v0.2",
    "-v0.3",
    "-8k",
    "-2407",
    "-2411",
    "-2507",
    "-0905",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    preset: Vec<Preset>,
}

/// One entry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Preset {
    pub(super) name: String,
    #[serde(default)]
    pub(super) aliases: Vec<String>,
    pub(super) source: String,
    pub(super) config: Value,
}

impl Preset {
    pub(super) fn model(&self) -> Result<Model, PresetError> {
        let mut model = hf::import_value(&self.name, "", &self.config)?;
        model.source.clone_from(&self.source);
        Ok(model)
    }
}

/// All entries and an index of their keys.
pub(super) struct Catalogue {
    pub(super) presets: Vec<Preset>,
    index: BTreeMap<String, usize>,
}

impl Catalogue {
    fn read() -> Result<Self, String> {
        let mut presets = Vec::new();
        for (name, text) in FILES {
            let file: File = toml::from_str(text).map_err(|e| format!("{name}: {e}"))?;
            presets.extend(file.preset);
        }
        let mut index = BTreeMap::new();
        for (at, preset) in presets.iter().enumerate() {
            for name in std::iter::once(&preset.name).chain(&preset.aliases) {
                if index.insert(key(name), at).is_some_and(|other| other != at) {
                    return Err(format!("two presets are called `{name}`"));
                }
            }
        }
        Ok(Self { presets, index })
    }

    pub(super) fn get(&self, key: &str) -> Option<&Preset> {
        self.index.get(key).and_then(|at| self.presets.get(*at))
    }

    /// Names of up to three presets that the question may mean: it is their beginning, a part of them or few edits away.
    pub(super) fn nearest(&self, wanted: &str) -> Vec<String> {
        let slips = nearest(wanted, self.index.keys().map(String::as_str));
        let parts =
            self.index.keys().map(String::as_str).filter(|key| wanted.len() > 1 && key.contains(wanted));
        let mut names: Vec<String> = Vec::new();
        for preset in slips.into_iter().chain(parts).filter_map(|key| self.get(key)) {
            if !names.contains(&preset.name) && names.len() < 3 {
                names.push(preset.name.clone());
            }
        }
        names
    }
}

/// The catalogue, read once.
pub(super) fn catalogue() -> Result<&'static Catalogue, PresetError> {
    static CATALOGUE: OnceLock<Result<Catalogue, String>> = OnceLock::new();
    CATALOGUE.get_or_init(Catalogue::read).as_ref().map_err(|e| PresetError::Catalogue(e.clone()))
}

/// What names are compared by: lower case, without organisation, endings and separators.
pub(super) fn key(name: &str) -> String {
    let lower = name.trim().to_lowercase().replace(['_', ' '], "-");
    let mut plain = lower.rsplit('/').next().unwrap_or_default();
    if plain.starts_with("meta-llama") {
        plain = &plain["meta-".len()..];
    }
    while let Some(shorter) = ENDINGS.iter().find_map(|ending| plain.strip_suffix(ending)) {
        plain = shorter;
    }
    plain.chars().filter(|c| *c != '-').collect()
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn spellings_of_one_model_share_a_key() {
        for name in [
            "llama3.1-405b",
            "Llama-3.1-405B-Instruct-FP8",
            "meta-llama/Meta-Llama-3.1-405B",
            "LLAMA_3.1_405B",
        ] {
            assert_eq!(key(name), "llama3.1405b", "{name}");
        }
    }

    #[test]
    fn names_left_unfinished_are_found() {
        let catalogue = super::catalogue().unwrap();
        assert_eq!(catalogue.nearest(&key("qwen3-235b"))[0], "qwen3-235b-a22b");
        assert!(catalogue.nearest(&key("scout"))[0].contains("scout"));
        assert!(catalogue.nearest("").is_empty() && catalogue.nearest("zzzzzzzzzzzz").is_empty());
    }
}
