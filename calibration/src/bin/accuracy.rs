//! Predicts every published row and writes the accuracy report.
//!
//! `--inspect PREFIX` prints plan, memory and breakdown of the rows whose id starts so;
//! `accuracy ROWS.jsonl` prints the table; `--rows [SOURCE]` the rows, worst first; `--json` the full report;
//! `--write DIR` writes `DIR/accuracy.md` with its plots and updates the table between the markers of `DIR/../README.md`;
//! `--fits FILE` reads the fits without each source for its left-out columns; with `--loso` they are made anew (minutes)
//! and written there. `--residuals FILE` writes every left-out row with what its interval is made of; `--data DIR` reads
//! stacks and shares from `DIR` in place of the built-in ones.

use psim_calibration::validate::accuracy::{markdown, plot, readme_table, replace_between_markers};
use psim_calibration::validate::left_out::LeftOut;
use psim_calibration::validate::refit::{Problem, left_out, write::predictor};
use psim_calibration::validate::{self, Predictor, Report, row};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(text) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "error: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[String]) -> Result<String, String> {
    let path = arguments.iter().find(|a| a.ends_with(".jsonl")).ok_or("name a file of rows (.jsonl)")?;
    let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    let predictor = predictor(arguments)?;
    if let Some(at) = arguments.iter().position(|a| a == "--inspect") {
        return inspect(&text, arguments.get(at + 1).map_or("", String::as_str), &predictor);
    }
    let started = std::time::Instant::now();
    let report = validate::run(&text, &predictor).map_err(|e| format!("{path}: {e}"))?;
    let elapsed = started.elapsed();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let value = |flag: &str| {
        arguments.iter().position(|a| a == flag).and_then(|at| arguments.get(at + 1)).map(String::as_str)
    };
    if has("--json") {
        return Ok(format!("{:#}\n", report.json()));
    }
    if let Some(folder) = arguments.iter().position(|a| a == "--write").and_then(|at| arguments.get(at + 1)) {
        let rows = row::read(&text).map_err(|e| e.to_string())?;
        let problem = Problem::with(&rows, predictor.clone());
        let left_out = scores_without(&rows, &problem, value("--fits"), has("--loso"))?;
        if let (Some(path), Some(scores)) = (value("--residuals"), &left_out) {
            save(Path::new(path), &left_out::residuals(&scores.rows))?;
        }
        write(Path::new(folder), &report, &problem, left_out.as_ref())?;
    }
    let mut out = report.table();
    out += &format!("{} rows in {:.2} s\n", report.rows.len(), elapsed.as_secs_f64());
    if let Some(at) = arguments.iter().position(|a| a == "--rows") {
        let wanted = arguments.get(at + 1).filter(|a| !a.ends_with(".jsonl")).map_or("", String::as_str);
        let mut rows: Vec<_> = report.rows.iter().filter(|r| r.id.starts_with(wanted)).collect();
        rows.sort_by(|a, b| {
            let ape =
                |r: &&validate::score::RowResult| r.scored.and_then(|i| r.entries[i].ape()).unwrap_or(-1.0);
            ape(b).total_cmp(&ape(a))
        });
        for row in rows {
            let Some(entry) = row.scored.map(|i| &row.entries[i]) else { continue };
            let terms: Vec<String> =
                row.breakdown.iter().take(7).map(|(n, s)| format!("{n} {:.0}", 100.0 * s)).collect();
            out += &format!(
                "{:>7.1} {} {} [{}] {:.4} -> {:.4}{}  {}\n",
                entry.error().unwrap_or(f64::NAN),
                row.id,
                entry.metric,
                row.stack,
                entry.measured,
                entry.predicted.map_or(f64::NAN, |p| p[0]),
                if row.weak { " weak" } else { "" },
                terms.join(", "),
            );
        }
    }
    for (row, why) in report.refused() {
        out += &format!("not predicted: {}: {why}\n", row.id);
    }
    Ok(out)
}

/// Plan, memory ledger and waterfall of every row whose id starts with `prefix`.
fn inspect(text: &str, prefix: &str, predictor: &Predictor) -> Result<String, String> {
    let mut out = String::new();
    for row in validate::row::read(text).map_err(|e| e.to_string())? {
        if !row.id.starts_with(prefix) {
            continue;
        }
        out += &format!("{}\n", row.id);
        let mapped = match validate::map::map(&row) {
            Ok(mapped) => mapped,
            Err(reason) => {
                out += &format!("  not mapped: {reason:?}\n");
                continue;
            }
        };
        let (stack, note) = predictor.stack_of(&mapped)?;
        let prediction = match predictor.predict(&mapped, &stack) {
            Ok(prediction) => prediction,
            Err(why) => {
                out += &format!("  not predicted: {why}\n");
                continue;
            }
        };
        out += &format!("  {} {:?} {}\n  {:?}\n", stack.name, note, mapped.cluster.name, mapped.plan);
        out += &format!("  measured {:?}\n", row.measured);
        out += &format!(
            "  step {:.4} s, {:.1} tokens/s/GPU, {:.1} TFLOP/s, MFU {:.1}, fits {} ({:.1} of {:.1} GiB)\n",
            prediction.step_time.value,
            prediction.tokens_per_s_per_gpu,
            prediction.model_tflops_per_gpu,
            prediction.mfu,
            prediction.fits,
            prediction.peak_memory().gib(),
            prediction.memory_capacity.gib(),
        );
        if let Some(largest) = prediction.memory.iter().max_by_key(|m| m.total) {
            let parts: Vec<String> =
                largest.parts.iter().map(|(n, b)| format!("{n} {:.2}", b.gib())).collect();
            out += &format!("  stage {}: {}\n", largest.stage, parts.join(", "));
        }
        let terms: Vec<String> =
            prediction.breakdown.terms().iter().map(|(n, t)| format!("{n} {:.4}", t.0)).collect();
        out += &format!("  {}\n", terms.join(", "));
    }
    Ok(out)
}

/// Scores by fits that never saw the source: read from a file, or made anew (and written there).
fn scores_without(
    rows: &[row::Row],
    problem: &Problem,
    fits: Option<&str>,
    refit: bool,
) -> Result<Option<LeftOut>, String> {
    let start = problem.start();
    let states = match (refit, fits) {
        (false, None) => return Ok(None),
        (false, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
            left_out::read(problem, &start, &text).map_err(|e| format!("{path}: {e}"))?
        }
        (true, path) => {
            let states = problem.fits_without(&start, 12, &mut |source| {
                let _ = writeln!(std::io::stderr(), "refitting without {source}");
            });
            if let Some(path) = path {
                save(Path::new(path), &left_out::text(problem, &states)?)?;
            }
            states
        }
    };
    Ok(Some(problem.left_out(rows, &states)))
}

fn save(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(
    folder: &Path,
    report: &Report,
    problem: &Problem,
    left_out: Option<&LeftOut>,
) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    save(&folder.join("accuracy.md"), &markdown(report, problem, left_out))?;
    save(&folder.join("accuracy-times.svg"), &plot::times(report)?)?;
    save(&folder.join("accuracy-errors.svg"), &plot::errors(report)?)?;
    let readme = folder.join("..").join("README.md");
    if let Ok(document) = std::fs::read_to_string(&readme)
        && let Some(new) = replace_between_markers(&document, &readme_table(report, left_out))
    {
        save(&readme, &new)?;
    }
    Ok(())
}
