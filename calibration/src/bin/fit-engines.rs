//! `fit-engines ROWS.jsonl OUT`: fits engine profiles to half of the serving rows and writes `OUT/*.toml`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use psim_calibration::validate::row;
use psim_calibration::validate_serving::fit::fit;
use psim_calibration::validate_serving::predict::ServingPredictor;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (rows, out, only) = match arguments.as_slice() {
        [rows, out] => (rows, out, None),
        [rows, out, only] => (rows, out, Some(only.as_str())),
        _ => {
            eprintln!("usage: fit-engines ROWS.jsonl OUT [ENGINE,ENGINE…]");
            return ExitCode::from(2);
        }
    };
    match run(rows, Path::new(out), only) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(rows: &str, out: &Path, only: Option<&str>) -> Result<(), String> {
    let text = std::fs::read_to_string(rows).map_err(|e| format!("{rows}: {e}"))?;
    let rows = row::read(&text).map_err(|e| e.to_string())?;
    let predictor = ServingPredictor::built_in();
    for engine in psim_cost_models::serving::engine::engines() {
        if only.is_some_and(|o| !o.split(',').any(|name| name == engine.name)) {
            continue;
        }
        let (profiles, lines) = fit(&rows, &predictor, Some(&engine.name));
        for line in lines {
            println!("{line}");
        }
        for profile in &profiles {
            let text = toml::to_string(profile).map_err(|e| e.to_string())?;
            let path = out.join(format!("{}.toml", profile.name));
            std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(())
}
