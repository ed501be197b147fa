//! The crate arrows of the design: a value flows one way, nothing downstream is known upstream.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const ALL: &[&str] =
    &["hardware", "models", "cost-models", "sim", "planner", "kernels", "calibration", "executor", "reports"];

/// Crate and what it may know of psim.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("hardware", &[]),
    ("models", &["hardware"]),
    ("cost-models", &["hardware", "models"]),
    ("sim", &["hardware", "models", "cost-models"]),
    ("planner", &["hardware", "models", "cost-models", "sim"]),
    ("kernels", &["hardware"]),
    ("calibration", &["hardware", "models", "cost-models", "sim", "kernels"]),
    ("executor", &["hardware", "models", "cost-models", "sim", "kernels"]),
    ("reports", &["hardware", "models", "cost-models", "sim", "planner"]),
    ("cli", ALL),
    ("tests", ALL),
];

/// Crates that touch no files, clocks, environment or threads.
const PURE: [&str; 6] = ["hardware", "models", "cost-models", "sim", "planner", "reports"];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn dependencies(folder: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let Some(toml::Value::Table(all)) = manifest.get("dependencies") else { return BTreeSet::new() };
    all.keys().filter_map(|k| k.strip_prefix("psim-")).map(str::to_owned).collect()
}

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn crates_know_only_what_lies_upstream() {
    for (folder, allowed) in ALLOWED {
        for name in dependencies(folder) {
            assert!(allowed.contains(&name.as_str()), "`{folder}` must not know `{name}`");
        }
    }
}

#[test]
fn every_folder_with_a_manifest_is_listed() {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        if path.join("Cargo.toml").exists() {
            found.insert(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    let listed: BTreeSet<String> = ALLOWED.iter().map(|(f, _)| (*f).to_owned()).collect();
    assert_eq!(found, listed);
}

#[test]
fn pure_crates_touch_no_files_clocks_environment_or_threads() {
    let forbidden =
        ["std::fs", "std::time::Instant", "SystemTime", "std::env::var", "std::thread::", "std::process"];
    for folder in PURE {
        let mut files = Vec::new();
        sources(&root().join(folder).join("src"), &mut files);
        for file in files {
            if file.file_name().is_some_and(|n| n == "tests.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            // Unit tests at the end of a file may read the shared data.
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in forbidden {
                assert!(!product.contains(word), "{} uses {word}", file.display());
            }
        }
    }
}
