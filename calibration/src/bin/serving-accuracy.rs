//! `serving-accuracy ROWS.jsonl [DUMP.csv [HALF [ENGINES]]]`: predicts published serving rows and prints the errors per
//! source; `HALF` is `held-out`, `fitting` (residuals may be studied there) or `all`. With `--write FOLDER` also the
//! accuracy page; with `--groups` the errors by model, engine and accelerator, those that lean to one side marked.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use psim_calibration::validate::row;
use psim_calibration::validate::score::{RowResult, Status};
use psim_calibration::validate_serving::accuracy::{Class, FAMILIES, class, coverage, macro_median, scores};
use psim_calibration::validate_serving::fit::is_training;
use psim_calibration::validate_serving::groups::{Group, groups};
use psim_calibration::validate_serving::predict::ServingPredictor;
use rayon::prelude::*;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let write = arguments.iter().position(|a| a == "--write").and_then(|i| {
        let folder = (i + 1 < arguments.len()).then(|| arguments.remove(i + 1));
        arguments.remove(i);
        folder
    });
    let grouped = arguments.iter().position(|a| a == "--groups").map(|i| arguments.remove(i)).is_some();
    let Some(path) = arguments.first() else {
        eprintln!(
            "usage: serving-accuracy ROWS.jsonl [DUMP.csv [held-out|fitting|all [ENGINES]]] [--write FOLDER] \
             [--groups]"
        );
        return ExitCode::from(2);
    };
    let rows = match std::fs::read_to_string(path)
        .map_err(|e| e.to_string())
        .and_then(|t| row::read(&t).map_err(|e| e.to_string()))
    {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("error: {path}: {error}");
            return ExitCode::from(2);
        }
    };
    let rows: Vec<row::Row> = rows.into_iter().filter(|r| r.kind == "serve").collect();
    let half = arguments.get(2).map(String::as_str);
    let wanted = |r: &row::Row| match half {
        Some("held-out") => !is_training(r),
        Some("fitting") => is_training(r),
        _ => true,
    };
    let rows: Vec<row::Row> = rows.into_iter().filter(wanted).collect();
    let mut predictor = ServingPredictor::built_in();
    // Profiles that are not built in yet: a folder of them as the fourth argument.
    if let Some(folder) = arguments.get(3) {
        for engine in psim_cost_models::serving::engine::engines() {
            let path = std::path::Path::new(folder).join(format!("{}.toml", engine.name));
            if let Some(tuned) = std::fs::read_to_string(&path).ok().and_then(|t| toml::from_str(&t).ok()) {
                predictor.tuned.insert(engine.name.clone(), tuned);
            }
        }
    }
    let start = Instant::now();
    let results: Vec<_> = rows.par_iter().map(|r| predictor.row(r)).collect();
    if let Some(folder) = &write {
        let profiles: Vec<_> = psim_cost_models::serving::engine::engines()
            .iter()
            .map(|e| predictor.tuned.get(&e.name).unwrap_or(e).clone())
            .collect();
        let page = psim_calibration::validate_serving::report::markdown(&rows, &results, &profiles);
        let file = std::path::Path::new(folder).join("accuracy-serving.md");
        if let Err(error) = std::fs::write(&file, page) {
            eprintln!("error: {}: {error}", file.display());
            return ExitCode::from(2);
        }
        let file = std::path::Path::new(folder).join("accuracy-serving.svg");
        let drawn = psim_calibration::validate_serving::report::plot::panels(&rows, &results)
            .and_then(|svg| std::fs::write(&file, svg).map_err(|e| e.to_string()));
        if let Err(error) = drawn {
            eprintln!("error: {}: {error}", file.display());
            return ExitCode::from(2);
        }
    }
    println!("{} rows in {:.1} s", rows.len(), start.elapsed().as_secs_f64());
    let (covered, all) = coverage(&rows, &results);
    println!("coverage {covered} of {all} ({:.1} %)", 100.0 * covered as f64 / all.max(1) as f64);
    for class in [Class::Aggregated, Class::Speculative, Class::Disaggregated] {
        for (family, metrics) in FAMILIES {
            let scores = scores(&rows, &results, class, metrics);
            for (source, s) in &scores {
                println!(
                    "{class:?} {family:10} {source:10} {:5}/{:5} median {:6.1} % p90 {:6.1} % bias {:+6.1} %",
                    s.covered, s.rows, s.median, s.p90, s.bias
                );
            }
            if let Some((median, p90)) = macro_median(&scores) {
                println!("{class:?} {family:10} MACRO median {median:.1} % p90 {p90:.1} %");
            }
        }
    }
    if grouped {
        print_groups(&rows, &results);
    }
    if let Some(dump) = arguments.get(1) {
        let mut text = String::from("id,class,weak,engine,gpu,metric,measured,predicted,error,status\n");
        for (row, r) in rows.iter().zip(&results) {
            let status = match &r.status {
                Status::Predicted => String::new(),
                Status::Unsupported(why) => format!("unsupported: {why}"),
                Status::Incomplete(why) => format!("incomplete: {why}"),
            };
            for e in &r.entries {
                let predicted = e.predicted.map_or(f64::NAN, |p| p[0]);
                let _ = writeln!(
                    text,
                    "{},{:?},{},{},{},{},{},{},{:.1},{}",
                    r.id,
                    class(row),
                    r.weak,
                    r.stack,
                    row.hardware.gpu,
                    e.metric,
                    e.measured,
                    predicted,
                    e.error().unwrap_or(f64::NAN),
                    status.replace([',', '\n'], ";")
                );
            }
        }
        if let Err(error) = std::fs::write(dump, text) {
            eprintln!("error: {dump}: {error}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Groups that weigh most, per family of metrics.
fn print_groups(rows: &[row::Row], results: &[RowResult]) {
    const MOST: usize = 40;
    for (family, _) in FAMILIES {
        println!("{family}: rows, median %, bias %, scatter, leaning, group");
        for g in groups(rows, results, family).iter().take(MOST) {
            let mark = if g.leans() { "leans" } else { "" };
            let Group { rows, median, bias, scatter, .. } = g;
            println!("{rows:5} {median:6.1} {bias:+7.1} {scatter:6.1} {mark:5}  {}", g.key.join(" | "));
        }
    }
}
