//! The residual profile of this machine: read before a loop, written after it.

use crate::Host;
use crate::failure::Failure;
use crate::files::{read_text, write_back};
use psim_sim::residual::{RESIDUAL_SCHEMA, Residuals};
use std::path::Path;

/// Longest residual file that is read.
const MAX_RESIDUAL_BYTES: usize = 16 << 20;

/// The profile, empty where there is none yet.
///
/// # Errors
/// A file that is no residual profile, or another machine's.
pub(super) fn load(path: &Path, machine: &str, host: &Host<'_>) -> Result<Residuals, Failure> {
    if !host.path(path).exists() {
        return Ok(Residuals::new(machine));
    }
    let shown = path.display().to_string();
    let text = read_text(host, path, "residual profile", MAX_RESIDUAL_BYTES)?;
    let hint = "choose another --residuals FILE, or remove it to start anew";
    let found: Residuals = toml::from_str(&text).map_err(|e| {
        Failure::input_at(format!("this is no residual profile: {}", e.message()), shown.clone(), hint)
    })?;
    if found.schema != RESIDUAL_SCHEMA {
        let message =
            format!("schema {} of a residual profile, this program knows {RESIDUAL_SCHEMA}", found.schema);
        return Err(Failure::input_at(message, shown, hint));
    }
    if found.machine != machine {
        let message = format!("it belongs to `{}`, this machine is `{machine}`", found.machine);
        return Err(Failure::input_at(message, shown, hint));
    }
    if !found.sound() {
        return Err(Failure::input_at("an observation has a factor that is no positive number", shown, hint));
    }
    Ok(found)
}

/// Writes it, whole or not at all.
///
/// # Errors
/// What the disk says.
pub(super) fn save(residuals: &Residuals, path: &Path, host: &mut Host<'_>) -> Result<(), Failure> {
    let text = toml::to_string(residuals).map_err(Failure::defect)?;
    write_back(host, path, text.as_bytes())
}
