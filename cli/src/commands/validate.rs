//! `psim validate`: published measurements against predictions.

use crate::Host;
use crate::failure::Failure;
use crate::files::read_text;
use crate::inputs::CommonArguments;
use crate::serving::load_engine;
use crate::table::{Align::Left, Align::Right, Table};
use clap::Args;
use psim_calibration::validate::ablations;
use psim_calibration::validate::row::{self, Row};
use psim_calibration::validate::score::RowResult;
use psim_calibration::validate::{Predictor, Report, RowsError};
use psim_calibration::validate_serving::ServingPredictor;
use psim_calibration::validate_serving::accuracy::{Class, FAMILIES, Score, macro_median, scores};
use psim_cost_models::serving::engine;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest file of rows.
const MAX_ROWS_BYTES: usize = 256 << 20;

/// Arguments of `psim validate`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Rows of published measurements, one JSON object a line
    #[arg(value_name = "ROWS.jsonl", required_unless_present = "ablations")]
    rows: Option<PathBuf>,
    /// Published ablations instead of rows: each mechanism's measured effect against the predicted one
    #[arg(long, conflicts_with_all = ["rows", "refused"])]
    ablations: bool,
    /// List the rows that were not predicted, with the reason
    #[arg(long)]
    refused: bool,
    #[command(flatten)]
    common: CommonArguments,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    let common = &arguments.common;
    let Some(path) = &arguments.rows else { return ablated(common, host) };
    let text = read_text(host, path, "file of rows", MAX_ROWS_BYTES)?;
    // `--stack` may name a training stack or a serving engine; each replaces that of the rows of its kind.
    let engine = common
        .stack
        .as_deref()
        .filter(|name| names_engine(host, name))
        .map(|n| load_engine(host, n))
        .transpose()?;
    let training =
        CommonArguments { stack: common.stack.clone().filter(|_| engine.is_none()), ..common.clone() };
    let software = training.software(host)?;
    let serving =
        ServingPredictor { library: software.library.clone(), engine, ..ServingPredictor::built_in() };
    let mut predictor = Predictor::new(software.library);
    if software.stack_chosen || !software.settings.is_empty() {
        predictor.stack = Some(software.stack);
    }
    let rows = row::read(&text).map_err(|e| refuse(&e, path))?;
    let results = common.on_threads(|| {
        rows.par_iter()
            .map(|row| if row.kind == "serve" { serving.row(row) } else { predictor.row(row) })
            .collect()
    })?;
    let report = Report::new(results);
    let families = summary(&rows, &report.rows);
    if common.json {
        let mut document = report.json();
        if !families.is_empty() {
            document["summary"]["serving"] = families_json(&families);
        }
        return host.json(&document);
    }
    host.print(report.table())?;
    if !families.is_empty() {
        host.print(families_table(&families))?;
    }
    let refused: Vec<_> = report.refused().collect();
    if arguments.refused {
        for (row, why) in &refused {
            host.line(format!("{}: {why}", row.id))?;
        }
    } else if !refused.is_empty() {
        host.say(format_args!(
            "{} rows were not predicted; --refused lists them with the reason",
            refused.len()
        ));
    }
    Ok(())
}

/// Published ablations: a Markdown table, or the effects as JSON.
fn ablated(common: &CommonArguments, host: &mut Host<'_>) -> Result<(), Failure> {
    let software = common.software(host)?;
    let mut predictor = Predictor::new(software.library);
    if software.stack_chosen || !software.settings.is_empty() {
        predictor.stack = Some(software.stack);
    }
    let effects = ablations::run(&predictor).map_err(Failure::defect)?;
    if !common.json {
        return host.print(ablations::table(&effects));
    }
    let rows: Vec<Value> = effects
        .iter()
        .map(|e| {
            json!({ "mechanism": e.mechanism, "what": e.what, "source": e.source, "note": e.note,
                    "measured": e.measured, "predicted": e.predicted, "ratio": e.ratio(),
                    "sign_right": e.sign_is_right(), "size_right": e.size_is_right() })
        })
        .collect();
    host.json(&json!({ "schema": 1, "ablations": rows }))
}

/// A fault in the file of rows at its line.
fn refuse(error: &RowsError, path: &Path) -> Failure {
    let file = path.display();
    let text = error.to_string();
    let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, "one JSON object a line"));
    let (place, message) = match message.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((line, rest)) if line.parse::<usize>().is_ok() => (format!("{file}:{line}"), rest),
        _ => (file.to_string(), message),
    };
    Failure::input_at(message, place, hint)
}

/// Whether `--stack` names a serving engine: a built-in one, or a file with a batching policy.
fn names_engine(host: &Host<'_>, name: &str) -> bool {
    let path = Path::new(name);
    if host.path(path).is_file() {
        let text = read_text(host, path, "profile", 1 << 20).unwrap_or_default();
        return toml::from_str::<toml::Table>(&text).is_ok_and(|t| t.contains_key("policy"));
    }
    !matches!(engine::named(name), Err(engine::VersionError::Engine(_)))
}

/// Scores of one class of serving rows and one family of metrics, per source.
type Family = (&'static str, &'static str, BTreeMap<String, Score>);

/// Serving rows per class, family of metrics and source; empty without serving rows.
fn summary(rows: &[Row], results: &[RowResult]) -> Vec<Family> {
    let picked: Vec<usize> = (0..rows.len()).filter(|i| rows[*i].kind == "serve").collect();
    if picked.is_empty() {
        return Vec::new();
    }
    let rows: Vec<Row> = picked.iter().map(|i| rows[*i].clone()).collect();
    let results: Vec<RowResult> = picked.iter().map(|i| results[*i].clone()).collect();
    let classes = [
        (Class::Aggregated, "aggregated"),
        (Class::Speculative, "speculative"),
        (Class::Disaggregated, "disaggregated"),
    ];
    let mut out = Vec::new();
    for (class, name) in classes {
        for (family, metrics) in FAMILIES {
            let found = scores(&rows, &results, class, metrics);
            if !found.is_empty() {
                out.push((name, family, found));
            }
        }
    }
    out
}

/// `{class: {family: {macro_median_ape, sources: {…}}}}`, percentages.
fn families_json(families: &[Family]) -> Value {
    let mut out: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for (class, family, sources) in families {
        let sources_json: Map<String, Value> = sources
            .iter()
            .map(|(name, s)| {
                let finite = |v: f64| if v.is_finite() { json!(v) } else { Value::Null };
                let value = json!({ "rows": s.rows, "covered": s.covered, "median_ape": finite(s.median),
                                    "p90_ape": finite(s.p90), "bias": finite(s.bias) });
                (name.clone(), value)
            })
            .collect();
        let middle = macro_median(sources);
        out.entry(class).or_default().insert(
            (*family).to_owned(),
            json!({ "macro_median_ape": middle.map(|m| m.0), "macro_p90_ape": middle.map(|m| m.1), "sources": sources_json }),
        );
    }
    json!(out)
}

/// A line per class, family and source.
fn families_table(families: &[Family]) -> String {
    let columns = [
        ("serving rows", Left),
        ("metric", Left),
        ("source", Left),
        ("rows", Right),
        ("covered", Right),
        ("median %", Right),
        ("p90 %", Right),
        ("bias %", Right),
    ];
    let mut table = Table::new(&columns);
    let percent = |v: f64| if v.is_finite() { format!("{v:.1}") } else { "-".to_owned() };
    for (class, family, sources) in families {
        for (source, s) in sources {
            table.row([
                (*class).to_owned(),
                (*family).to_owned(),
                source.clone(),
                s.rows.to_string(),
                s.covered.to_string(),
                percent(s.median),
                percent(s.p90),
                percent(s.bias),
            ]);
        }
        if let Some((median, p90)) = macro_median(sources) {
            let cells = [(*class).to_owned(), (*family).to_owned(), "macro".to_owned()];
            let rest = [String::new(), String::new(), percent(median), percent(p90), String::new()];
            table.row(cells.into_iter().chain(rest));
        }
    }
    format!("\n{}", table.render())
}
