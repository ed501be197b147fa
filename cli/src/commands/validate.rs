//! `psim validate`: published measurements against predictions.

use crate::Host;
use crate::failure::Failure;
use crate::files::read_text;
use crate::inputs::CommonArguments;
use clap::Args;
use psim_calibration::validate::{self, Predictor, RowsError};
use std::path::PathBuf;

/// Longest file of rows.
const MAX_ROWS_BYTES: usize = 256 << 20;

/// Arguments of `psim validate`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Rows of published measurements, one JSON object a line
    #[arg(value_name = "ROWS.jsonl")]
    rows: PathBuf,
    /// List the rows that were not predicted, with the reason
    #[arg(long)]
    refused: bool,
    #[command(flatten)]
    common: CommonArguments,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    let common = &arguments.common;
    let text = read_text(host, &arguments.rows, "file of rows", MAX_ROWS_BYTES)?;
    let software = common.software(host)?;
    let mut predictor = Predictor::new(software.library);
    if software.stack_chosen || !software.settings.is_empty() {
        predictor.stack = Some(software.stack);
    }
    let report =
        common.on_threads(|| validate::run(&text, &predictor))?.map_err(|e| refuse(&e, arguments))?;
    if common.json {
        return host.json(&report.json());
    }
    host.print(report.table())?;
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

/// A fault in the file of rows at its line.
fn refuse(error: &RowsError, arguments: &Arguments) -> Failure {
    let file = arguments.rows.display();
    let text = error.to_string();
    let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, "one JSON object a line"));
    let (place, message) = match message.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((line, rest)) if line.parse::<usize>().is_ok() => (format!("{file}:{line}"), rest),
        _ => (file.to_string(), message),
    };
    Failure::input_at(message, place, hint)
}
