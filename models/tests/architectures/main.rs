//! Models against their published sources: counts, released files, names, bad input.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod bad_input;
mod catalogue;
mod counts;
mod files;
mod lowered;
mod published;
mod rows;

use std::path::PathBuf;

#[expect(clippy::print_stderr, reason = "a skipped check says so")]
/// A folder or file that lies beside the repository on machines that have the data; `None`, loudly, elsewhere.
fn shared(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")).join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIP: {} is absent, nothing is checked against it", path.display());
    None
}

/// A released configuration by its file stem.
fn released(stem: &str) -> Option<psim_models::Model> {
    let path = shared("data/hf-configs")?.join(format!("{stem}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Some(psim_models::hf::import(stem, &text).unwrap_or_else(|e| panic!("{e}")))
}
