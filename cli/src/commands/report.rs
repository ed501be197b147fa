//! `psim report`: searches like `psim plan` and writes the HTML page.

use super::plan::{SearchArguments, answer, write_report};
use crate::Host;
use crate::failure::Failure;
use crate::serving;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `psim report`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    search: SearchArguments,
    /// The page to write
    #[arg(long, value_name = "FILE.html")]
    out: PathBuf,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    if serving::is_serving(host, arguments.search.job.workload.as_deref())? {
        return serving::run_plan(&arguments.search, Some(&arguments.out), None, true, host);
    }
    let (job, report) = answer(&arguments.search, host)?;
    write_report(&job, &report, &arguments.out, host)?;
    if arguments.search.common.json {
        host.json(&json!({ "schema": 1, "written": [arguments.out.display().to_string()] }))?;
    }
    if report.plans.is_empty() {
        return Err(Failure::Infeasible {
            message: "no plan is feasible; the page says why".to_owned(),
            hint: format!("open {}", arguments.out.display()),
        });
    }
    Ok(())
}
