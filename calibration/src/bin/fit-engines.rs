//! `fit-engines ROWS.jsonl OUT [ENGINE,… [releases]]`: fits engine profiles to half of the serving rows and writes `OUT/*.toml`.
//! A run that was cut off goes on where it was: engines with a file are done, of the one in work `ENGINE.part` is kept.
//!
//! The same rows and built-in profiles give the same files, byte for byte, whatever the number of threads. The profiles
//! `trtllm-1.0`, `vllm-v1` and `sglang` in `cost-models/data/serving/engines` are what this printed, copied as they are:
//!
//! ```text
//! cargo run --release -p psim-calibration --bin fit-engines -- serve.jsonl OUT trtllm-1.0,vllm-v1,sglang
//! cargo run --release -p psim-calibration --bin serving-accuracy -- serve.jsonl DUMP.csv fitting OUT
//! ```
//!
//! Two runs of it: a first from the profiles before (the parent of the commit that brought `[[release]]`), a second from the
//! files of the first (that commit). Then `front_us` was taken out of the numbers of accelerators, and what hardly helps is
//! put back one by one; with that the accelerators of `vllm-v1` were fitted again on the engine's numbers of the second run
//! (its `.part` with nothing done). A run from the present files starts nearer and may end elsewhere by rounding.
//!
//! Numbers of `[[release]]` tables come last, each over the rows of its releases with all others held; those that are counted
//! in an engine's code (`expert_rows`) pass through. With `releases` as the last argument nothing else is fitted. `vllm-2023` and `distserve-2024` have no rows here; their numbers
//! come from laws that their files name.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use psim_calibration::validate::row;
use psim_calibration::validate_serving::fit::{Progress, fit, fit_releases};
use psim_calibration::validate_serving::predict::ServingPredictor;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (rows, out, only, part) = match arguments.as_slice() {
        [rows, out] => (rows, out, None, None),
        [rows, out, only] => (rows, out, Some(only.as_str()), None),
        [rows, out, only, part] if part == "releases" => (rows, out, Some(only.as_str()), Some(())),
        _ => {
            eprintln!("usage: fit-engines ROWS.jsonl OUT [ENGINE,ENGINE… [releases]]");
            return ExitCode::from(2);
        }
    };
    match run(rows, Path::new(out), only, part.is_some()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(rows: &str, out: &Path, only: Option<&str>, releases: bool) -> Result<(), String> {
    let text = std::fs::read_to_string(rows).map_err(|e| format!("{rows}: {e}"))?;
    let rows = row::read(&text).map_err(|e| e.to_string())?;
    let predictor = ServingPredictor::built_in();
    let start = Instant::now();
    for engine in psim_cost_models::serving::engine::engines() {
        let done = out.join(format!("{}.toml", engine.name));
        if done.exists() || only.is_some_and(|o| !o.split(',').any(|name| name == engine.name)) {
            continue;
        }
        let part = out.join(format!("{}.part", engine.name));
        let so_far: Option<Progress> =
            std::fs::read_to_string(&part).ok().and_then(|text| serde_json::from_str(&text).ok());
        let mut lost = None;
        let keep = &mut |progress: &Progress, line: &str| {
            println!("{:6.0} s  {line}", start.elapsed().as_secs_f64());
            let kept = serde_json::to_string(progress).map_err(|e| e.to_string());
            lost = kept.and_then(|text| replace(&part, &text)).err().or(lost.take());
        };
        let fitted = if releases {
            fit_releases(&rows, &predictor, &engine.name, keep)
        } else {
            fit(&rows, &predictor, &engine.name, so_far, keep)
        };
        if let Some(why) = lost {
            return Err(why);
        }
        if let Some(profile) = fitted {
            let text = toml::to_string(&profile).map_err(|e| e.to_string())?;
            replace(&done, &text)?;
            // What is left of the work in progress harms nobody.
            let _ = std::fs::remove_file(&part);
        }
    }
    Ok(())
}

/// Writes a file so that it is there whole or not at all.
fn replace(path: &Path, text: &str) -> Result<(), String> {
    let beside = path.with_extension("new");
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    std::fs::write(&beside, text).map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)
}
