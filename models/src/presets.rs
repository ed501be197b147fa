//! Models by the names that people type.
//!
//! A preset is a name, its aliases, a source and the keys of a Hugging Face configuration (`models/data/presets/*.toml`);
//! it goes through the same importer as a file, so that a preset and the released file give the same model.
//!
//! ```
//! use psim_models::presets;
//! let model = presets::find("70b")?;
//! assert_eq!(model.name, "llama3-70b");
//! assert_eq!(presets::find("meta-llama/Meta-Llama-3-70B-Instruct")?, model);
//! assert_eq!(presets::find("llama3-70b (12 layers)")?.layers(), 12);
//! # Ok::<(), presets::PresetError>(())
//! ```

mod build;
mod catalogue;
mod error;
mod row;

pub use build::{DenseDims, FfnKind, MoeDims, dense, gpt, moe};
use catalogue::{catalogue, key};
pub use error::PresetError;
pub use row::{RowDims, from_row};

use crate::arch::Model;

/// Names of all presets, in the order of the catalogue.
///
/// # Errors
/// Only if the embedded catalogue is broken.
pub fn names() -> Result<Vec<&'static str>, PresetError> {
    Ok(catalogue()?.presets.iter().map(|preset| preset.name.as_str()).collect())
}

/// A preset with its aliases and source, for listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Its name.
    pub name: &'static str,
    /// Other names that give the same model.
    pub aliases: Vec<&'static str>,
    /// Where the dimensions come from.
    pub source: &'static str,
}

/// All presets with their aliases and sources.
///
/// # Errors
/// Only if the embedded catalogue is broken.
pub fn list() -> Result<Vec<Listing>, PresetError> {
    let listing = |preset: &'static catalogue::Preset| Listing {
        name: &preset.name,
        aliases: preset.aliases.iter().map(String::as_str).collect(),
        source: &preset.source,
    };
    Ok(catalogue()?.presets.iter().map(listing).collect())
}

/// The configuration that stands behind a preset, in the keys of Hugging Face.
///
/// # Errors
/// [`PresetError::Unknown`] when no preset has the name.
pub fn configuration(name: &str) -> Result<serde_json::Value, PresetError> {
    let catalogue = catalogue()?;
    match catalogue.get(&key(name)) {
        Some(preset) => Ok(preset.config.clone()),
        None => Err(PresetError::Unknown { name: shorten(name), nearest: catalogue.nearest(&key(name)) }),
    }
}

/// The model of that name or alias.
///
/// Upper and lower case, `-`, `_`, an organisation in front (`meta-llama/`) and endings such as `-Instruct` make no
/// difference. `name (N layers)` and `name (proxy, N layers)` give the first N layers.
///
/// # Errors
/// [`PresetError::Unknown`] with the nearest names, or what is wrong with the part in parentheses.
pub fn find(name: &str) -> Result<Model, PresetError> {
    let catalogue = catalogue()?;
    if let Some(preset) = catalogue.get(&key(name)) {
        return preset.model();
    }
    let (plain, remark) = match name.trim().strip_suffix(')').and_then(|s| s.split_once('(')) {
        Some((plain, remark)) => (plain.trim(), Some(remark)),
        None => (name.trim(), None),
    };
    let Some(preset) = catalogue.get(&key(plain)) else {
        let nearest = catalogue.nearest(&key(plain));
        return Err(PresetError::Unknown { name: shorten(name), nearest });
    };
    let model = preset.model()?;
    match remark.map(requested_layers).transpose()?.flatten() {
        None => Ok(model),
        Some(layers) => match u32::try_from(layers).ok().and_then(|n| model.first_layers(n)) {
            Some(short) => Ok(short),
            None => Err(PresetError::Layers {
                name: preset.name.clone(),
                requested: layers,
                available: model.layers(),
            }),
        },
    }
}

fn shorten(name: &str) -> String {
    name.chars().take(80).collect()
}

/// The number in `N layers`, among the remarks that say nothing about dimensions.
fn requested_layers(remark: &str) -> Result<Option<u64>, PresetError> {
    let mut layers = None;
    for part in remark.split(',').map(str::trim) {
        let count = part.strip_suffix("layers").or_else(|| part.strip_suffix("layer"));
        match count.map(|n| n.trim().parse::<u64>()) {
            Some(Ok(n)) => layers = Some(n),
            None if part == "proxy" => {}
            _ => return Err(PresetError::Remark { remark: shorten(part) }),
        }
    }
    Ok(layers)
}
