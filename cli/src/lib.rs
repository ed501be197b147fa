//! The `psim` command line: arguments, files, output and exit codes. No modelling happens here.
//!
//! stdout carries data, stderr talk. Exit codes: 0 done, 1 no feasible plan, 2 bad input or not built yet.
//! [`run`] is the whole program with its surroundings passed in, so that tests run it in-process.

mod commands;
mod failure;
mod files;
mod host;
mod inputs;
mod machine;
mod number;
mod progress;
mod render;
mod serving;
mod table;

pub use failure::{EXIT_BAD_INPUT, EXIT_INFEASIBLE, EXIT_OK};
pub use host::Host;

use clap::{CommandFactory, Parser};
use commands::Command;
use failure::Failure;
use std::ffi::OsString;

/// Predict how fast, how large and how expensive an LLM training or serving job will be on a GPU cluster, and find the
/// configuration that does it best.
#[derive(Debug, Parser)]
#[command(
    name = "psim",
    version,
    term_width = 100,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done; 1 no feasible plan (the reasons are printed, largest first); 2 bad input, or a \
                  command that is not built yet.\n\nExample: psim plan --model 70b --cluster h100x64.toml"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The command definition, for completions and documentation.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Runs the program with `arguments` (the first is the program's name) and returns its exit code.
pub fn run(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>, host: &mut Host<'_>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, host),
    };
    let outcome = cli.command.run(host).and_then(|()| host.flush());
    match outcome {
        Ok(()) => EXIT_OK,
        Err(Failure::Pipe) => EXIT_OK,
        Err(failure) => {
            let _ = host.out.flush();
            let _ = failure.render(host.err);
            failure.code()
        }
    }
}

/// Prints what clap has to say: help and version as data, mistakes as an error with a hint.
fn usage(error: &clap::Error, host: &mut Host<'_>) -> u8 {
    let text = error.render();
    if error.use_stderr() {
        let _ = write!(host.err, "{}", text.ansi());
        if error.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let _ = writeln!(
                host.err,
                "hint: `psim help` lists the commands, `psim COMMAND --help` the options of one"
            );
        }
        EXIT_BAD_INPUT
    } else {
        let _ = write!(host.out, "{}", text.ansi());
        let _ = host.out.flush();
        EXIT_OK
    }
}
