//! The commands, one file each.

mod compare;
mod completions;
mod explain;
mod import;
mod not_built;
mod show;
mod simulate;

use crate::Host;
use crate::failure::Failure;
use clap::Subcommand;

/// A command with its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Predict one plan: time, memory, cost, where the time goes
    Simulate(simulate::Arguments),
    /// Show what stands between the datasheet peak and what a plan achieves
    Explain(explain::Arguments),
    /// Compare two plans, or a plan and a measurement, term by term
    Compare(compare::Arguments),
    /// Read a model configuration of another tool and print what psim understood
    Import(import::Arguments),
    /// List what is built in: models, accelerators, systems, clusters, profiles
    Show(show::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
    /// Measure this machine's kernels and write a profile (not built yet)
    Calibrate(not_built::Arguments),
    /// Run a plan for real and compare it with its prediction (not built yet)
    Execute(not_built::Arguments),
    /// Re-simulate published scenarios and compare (not built yet)
    Gallery(not_built::Arguments),
}

impl Command {
    /// Runs the command.
    pub(crate) fn run(self, host: &mut Host<'_>) -> Result<(), Failure> {
        match self {
            Self::Simulate(arguments) => simulate::run(&arguments, host),
            Self::Explain(arguments) => explain::run(&arguments, host),
            Self::Compare(arguments) => compare::run(&arguments, host),
            Self::Import(arguments) => import::run(&arguments, host),
            Self::Show(arguments) => show::run(&arguments, host),
            Self::Completions(arguments) => completions::run(&arguments, host),
            Self::Calibrate(_) => not_built::run("psim calibrate"),
            Self::Execute(_) => not_built::run("psim execute"),
            Self::Gallery(_) => not_built::run("psim gallery"),
        }
    }
}
