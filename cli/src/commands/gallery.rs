//! `psim gallery`: techniques of the field, re-simulated and held against their published numbers.

use crate::Host;
use crate::failure::Failure;
use crate::number::three;
use crate::table::{Align::Left, Align::Right, Table};
use clap::Args;
use psim_sim::gallery::{GalleryError, ScenarioResult, select};
use serde_json::json;

/// Arguments of `psim gallery`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Scenarios; all of them where none is named. `name*` stands for all that begin so
    names: Vec<String>,
    /// Print the derivation of each scenario
    #[arg(long)]
    explain: bool,
    /// Print JSON with a `schema` key
    #[arg(long)]
    json: bool,
}

/// Simulates and prints.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    let entries = select(&arguments.names).map_err(|e| failure(&e))?;
    let mut results: Vec<ScenarioResult> = Vec::new();
    for entry in &entries {
        results.push(entry.result().map_err(|e| failure(&e))?);
    }
    if arguments.json {
        return host.json(&json!({ "schema": 1, "scenarios": results }));
    }
    let columns = [
        ("scenario", Left),
        ("published", Right),
        ("by hand", Right),
        ("simulated", Right),
        ("within", Right),
        ("verdict", Left),
        ("quantity", Left),
    ];
    let mut table = Table::new(&columns);
    for r in &results {
        let s = &r.scenario;
        let tolerance = if s.published.is_some() { s.tolerance } else { s.derived_tolerance };
        table.row([
            s.name.clone(),
            s.published.map_or_else(|| "-".to_owned(), three),
            three(s.derived),
            three(r.simulated),
            format!("{:.0}%", 100.0 * tolerance),
            r.verdict.name().to_owned(),
            s.quantity.clone(),
        ]);
    }
    host.print(table.render())?;
    if arguments.explain || (!arguments.names.is_empty() && results.len() == 1) {
        for r in &results {
            let s = &r.scenario;
            host.line(format_args!(
                "\n{}: {}\nsource: {}\n{}",
                s.name,
                s.technique,
                s.source,
                s.expectation.trim()
            ))?;
            if !s.known_gap.is_empty() {
                host.line(format_args!("known gap: {}", s.known_gap.trim()))?;
            }
        }
    } else {
        host.say("`psim gallery NAME` prints source and derivation");
    }
    Ok(())
}

fn failure(error: &GalleryError) -> Failure {
    match error {
        GalleryError::Unknown { name, known } => {
            Failure::input(format!("`{name}` is not in the gallery"), format!("known: {known}"))
        }
        GalleryError::Broken { .. } => Failure::defect(error),
    }
}
