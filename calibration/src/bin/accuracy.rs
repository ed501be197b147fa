//! Predicts every published row and writes the accuracy report.
//!
//! `accuracy ROWS.jsonl` prints the table; `--rows [SOURCE]` the rows, worst first; `--json` the full report.

use psim_calibration::validate::{self, Predictor};
use std::io::Write as _;
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
    let started = std::time::Instant::now();
    let report = validate::run(&text, &Predictor::built_in()).map_err(|e| format!("{path}: {e}"))?;
    let elapsed = started.elapsed();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    if has("--json") {
        return Ok(format!("{:#}\n", report.json()));
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
