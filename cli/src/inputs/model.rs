//! `--model`: a preset, or a Hugging Face `config.json`.

use crate::Host;
use crate::failure::Failure;
use crate::files::read_text;
use psim_models::{Model, hf, presets};
use std::path::Path;

/// Longest `config.json` that is read.
pub(crate) const MAX_CONFIG_BYTES: usize = 4 << 20;

/// Loads a model: the file of that name if there is one (or the `config.json` of a directory), else the preset.
pub(crate) fn load(host: &Host<'_>, given: &str) -> Result<Model, Failure> {
    let path = Path::new(given);
    if given.trim().is_empty() {
        return Err(Failure::input("the model has no name", "`psim show models` lists the presets"));
    }
    let in_directory = path.join("config.json");
    if host.path(&in_directory).is_file() {
        return read(host, &in_directory);
    }
    let looks_like_a_file = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    if looks_like_a_file || host.path(path).is_file() {
        return read(host, path);
    }
    presets::find(given).map_err(|error| {
        if host.path(path).is_dir() {
            return Failure::input(
                format!("the directory `{given}` holds no config.json"),
                "name the directory of one model, its configuration, or a preset (`psim show models`)",
            );
        }
        Failure::input(error.to_string(), error.hint())
    })
}

/// Reads a `config.json`.
fn read(host: &Host<'_>, path: &Path) -> Result<Model, Failure> {
    let text = read_text(host, path, "config.json", MAX_CONFIG_BYTES)?;
    let shown = path.display().to_string();
    if text.trim().is_empty() {
        return Err(Failure::input_at(
            "the file is empty, expected a config.json",
            shown,
            "check that it was downloaded",
        ));
    }
    hf::import(&shown, &text).map_err(|error| {
        let place = match error.line {
            Some(line) => format!("{}:{line}", error.file),
            None => error.file.clone(),
        };
        let message: String = error.problem.to_string().chars().take(400).collect();
        Failure::input_at(message, place, error.hint())
    })
}
