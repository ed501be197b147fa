//! `fit-serving MEASURED OUT`: fits the serving kernels from a folder of measured tables and writes `OUT/kernels/*.toml`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use psim_calibration::fit_serving::{FitError, fit};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [measured, out] = arguments.as_slice() else {
        eprintln!("usage: fit-serving MEASURED OUT");
        return ExitCode::from(2);
    };
    match run(Path::new(measured), Path::new(out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(measured: &Path, out: &Path) -> Result<(), FitError> {
    let (file, lines) = fit(measured)?;
    for line in &lines {
        println!(
            "{:60} {:6} rows  median {:5.1} %  p90 {:6.1} %",
            line.what, line.rows, line.median, line.p90
        );
    }
    let header = "# Written by fit-serving from the measured tables; do not edit.\n\n";
    for tables in &file {
        let text = toml::to_string(tables).map_err(|e| FitError::Write(e.to_string()))?;
        let path = out.join("kernels").join(format!("{}.toml", tables.accelerator));
        std::fs::write(&path, format!("{header}{text}"))
            .map_err(|e| FitError::Write(format!("{}: {e}", path.display())))?;
    }
    Ok(())
}
