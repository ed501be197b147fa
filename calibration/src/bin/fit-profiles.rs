//! Fits the built-in profiles: `fit-profiles MEASURED_FOLDER DATA_FOLDER`.
//!
//! Reads the measured tables, writes `accelerators/*.toml`, `fabrics/*.toml` and `FIT.md` into the data folder, and
//! prints one line per table. Same input, same output.

use psim_calibration::fit::assemble::{MEASURED, PEAK_ONLY, Tables, assemble, peak_only};
use psim_calibration::fit::{Summary, fabric, relatives, report};
use psim_cost_models::ProfileLibrary;
use serde::Serialize;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Kinds of fabric with enough rows.
const FABRICS: [&str; 2] = ["infiniband", "efa"];

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(measured), Some(data)) = (arguments.next(), arguments.next()) else {
        let _ = writeln!(std::io::stderr(), "usage: fit-profiles MEASURED_FOLDER DATA_FOLDER");
        return ExitCode::from(2);
    };
    match run(&measured, &data) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "error: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(measured: &Path, data: &Path) -> Result<(), String> {
    let tables = Tables::read(measured).map_err(|e| e.to_string())?;
    let mut all: Vec<_> = MEASURED.iter().filter_map(|gpu| assemble(&tables, gpu)).collect();
    relatives::complete(&mut all);
    let mut summaries = Vec::new();
    let mut notes = Vec::new();
    let mut library = ProfileLibrary::built_in();
    for mut machine in all {
        relatives::fill_classes(&mut machine.profile);
        let name = machine.profile.accelerator.clone();
        write(&data.join("accelerators").join(format!("{name}.toml")), &machine.profile)?;
        machine.summaries.iter().for_each(show);
        summaries.append(&mut machine.summaries);
        notes.append(&mut machine.notes);
        library.add_accelerator(machine.profile);
    }
    for name in PEAK_ONLY {
        let Some(profile) = peak_only(&tables, name) else { continue };
        write(&data.join("accelerators").join(format!("{name}.toml")), &profile)?;
        notes
            .push(format!("{name}: only the best matrix rate is measured; the rest are documented defaults"));
    }
    for kind in FABRICS {
        let Some((profile, summary)) = fabric::fit(kind, &tables.collectives, &tables.points, &library)
        else {
            continue;
        };
        write(&data.join("fabrics").join(format!("{kind}.toml")), &profile)?;
        show(&summary);
        summaries.push(summary);
    }
    let page = data.join("FIT.md");
    std::fs::write(&page, report::page(&summaries, &notes)).map_err(|e| format!("{}: {e}", page.display()))
}

fn write<T: Serialize>(path: &Path, profile: &T) -> Result<(), String> {
    let text = toml::to_string(profile).map_err(|e| e.to_string())?;
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

fn show(s: &Summary) {
    let _ = writeln!(
        std::io::stdout(),
        "{:20} {:30} {:5} in {:.3}/{:.3} held {:.3}/{:.3} core {:.3}/{:.3}  {}",
        s.machine,
        s.table,
        s.points,
        s.median,
        s.p90,
        s.held_median,
        s.held_p90,
        s.core_median,
        s.core_p90,
        s.law
    );
}
