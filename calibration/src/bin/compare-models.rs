//! Law and interpolation against random forests on shapes left out:
//! `compare-models [MEASURED_FOLDER] [SAMPLES.jsonl…]`.
//!
//! The folder holds the measured tables (`gemm.csv.gz`); sample files are those that `psim calibrate` keeps beside a
//! profile of this machine's processor.

use psim_calibration::learned::compare;
use psim_calibration::measure::Record;
use psim_calibration::measure::journal::{Header, read};
use psim_calibration::tables;
use psim_kernels::Device;
use psim_kernels::cpu::CpuDevice;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "error: {message}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<String, String> {
    let mut compared = Vec::new();
    for path in std::env::args_os().skip(1).map(PathBuf::from) {
        if path.is_dir() {
            let rows = tables::read(&path, "gemm.csv.gz").map_err(|e| e.to_string())?;
            compared.extend(compare::measured_tables(&rows));
        } else {
            let header = Header::new(&CpuDevice::new().name());
            let records: Vec<Record> = read(&path, &header).map_err(|e| e.to_string())?;
            compared.push(compare::calibration(&records).map_err(|e| e.to_string())?);
        }
    }
    if compared.is_empty() {
        return Err("nothing to compare\nusage: compare-models [MEASURED_FOLDER] [SAMPLES.jsonl…]".to_owned());
    }
    Ok(compare::text(&compared))
}
