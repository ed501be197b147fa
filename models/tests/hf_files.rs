//! Every real configuration is read, or refused with its reason.

use std::path::PathBuf;

fn folder() -> Option<PathBuf> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/hf-configs"));
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIP: {} is absent, the real configurations are not checked", folder.display());
    None
}

#[test]
fn every_released_configuration_is_read_or_refused_with_a_reason() {
    let Some(folder) = folder() else { return };
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "json"));
    files.sort();
    assert_eq!(files.len(), 82);
    for file in &files {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        match psim_models::hf::import(name, &text) {
            Ok(m) => {
                let p = m.parameters();
                println!(
                    "{name}: {} active {} mtp {} with {} kinds {}",
                    p.total,
                    p.active,
                    p.mtp,
                    p.total_with_mtp(),
                    m.kinds.len()
                );
            }
            Err(e) => println!("{name}: REFUSED {e} hint {}", e.hint()),
        }
    }
}
