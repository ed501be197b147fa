//! Fits the free parameters of software stacks and accelerators on published training rows.
//!
//! `fit-stacks ROWS.jsonl` prints the fitted values; `--write DIR` writes them into `DIR/stacks/*.toml` and
//! `DIR/sustained.toml`; `--loso` refits without each source in turn, scores it, and keeps the fits in `--fits FILE`;
//! `--sweeps N` bounds the work;
//! `--data DIR` starts from the files in `DIR` in place of the built-in ones.

use psim_calibration::validate::refit::{Problem, left_out, write};
use psim_calibration::validate::row;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "error: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let value = |flag: &str| {
        arguments.iter().position(|a| a == flag).and_then(|at| arguments.get(at + 1)).map(String::as_str)
    };
    let path = arguments.iter().find(|a| a.ends_with(".jsonl")).ok_or("name a file of rows (.jsonl)")?;
    let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    let rows = row::read(&text).map_err(|e| format!("{path}: {e}"))?;
    let sweeps: usize = value("--sweeps").and_then(|n| n.parse().ok()).unwrap_or(30);
    let problem = Problem::with(&rows, write::predictor(arguments)?);
    let say = |text: String| {
        let _ = writeln!(std::io::stdout(), "{text}");
    };
    let start = problem.start();
    let before = problem.medians(&start);
    say(format!("{} rows, {} free parameters", problem.rows.len(), problem.slots.len()));
    let mut progress = |sweep: usize, loss: f64| {
        let _ = writeln!(std::io::stderr(), "sweep {sweep}: {loss:.5}");
    };
    let fitted = problem.fit(start.clone(), None, sweeps, &mut progress);
    let after = problem.medians(&fitted);
    for slot in &problem.slots {
        say(format!("{:<60} {:>12.6} -> {:>12.6}", slot.name(), slot.value(&start), slot.value(&fitted)));
    }
    let mut left_out: BTreeMap<String, f64> = BTreeMap::new();
    if arguments.iter().any(|a| a == "--loso") {
        let states = problem.fits_without(&fitted, sweeps.min(12), &mut |_| {});
        if let Some(path) = value("--fits") {
            std::fs::write(path, left_out::text(&problem, &states)?).map_err(|e| format!("{path}: {e}"))?;
        }
        for (source, summary) in &problem.left_out(&rows, &states).sources {
            left_out.extend(summary.median_ape.map(|m| (source.clone(), m)));
            let interval = summary.interval;
            say(format!(
                "{source:<20} left out: in interval {:.0} %, width {:.0} %",
                interval.coverage.unwrap_or(f64::NAN),
                interval.mean_width.unwrap_or(f64::NAN),
            ));
        }
    }
    say(format!("{:<20} {:>8} {:>8} {:>9}", "median error, %", "before", "fitted", "left out"));
    for (source, old) in &before {
        let new = after.get(source).copied().unwrap_or(f64::NAN);
        let out = left_out.get(source).map_or("-".to_owned(), |v| format!("{v:.2}"));
        say(format!("{source:<20} {old:>8.2} {new:>8.2} {out:>9}"));
    }
    let mean = |m: &BTreeMap<String, f64>| m.values().sum::<f64>() / m.len().max(1) as f64;
    say(format!("{:<20} {:>8.2} {:>8.2} {:>9.2}", "macro", mean(&before), mean(&after), mean(&left_out)));
    if let Some(folder) = value("--write") {
        save(Path::new(folder), &problem, &fitted)?;
    }
    Ok(())
}

fn save(
    folder: &Path,
    problem: &Problem,
    fitted: &psim_calibration::validate::refit::State,
) -> Result<(), String> {
    let stacks = folder.join("stacks");
    let mut files = BTreeMap::new();
    for name in fitted.stacks.keys() {
        let path = stacks.join(format!("{name}.toml"));
        files.insert(
            name.clone(),
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?,
        );
    }
    let slots: Vec<_> = problem.slots.iter().chain(&problem.idle).cloned().collect();
    for (name, text) in write::stacks(&files, &slots, fitted) {
        if files.get(&name) != Some(&text) {
            let path = stacks.join(format!("{name}.toml"));
            std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    let path = folder.join("sustained.toml");
    std::fs::write(&path, write::sustained(fitted)).map_err(|e| format!("{}: {e}", path.display()))
}
