//! The commands, one file each.

mod calibrate;
mod capacity;
mod compare;
mod completions;
mod emit;
mod execute;
mod explain;
mod gallery;
mod import;
pub(crate) mod plan;
mod report;
mod show;
mod simulate;
mod validate;

use crate::Host;
use crate::failure::Failure;
use clap::Subcommand;

/// A command with its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Find the best plans for a model on a cluster
    Plan(plan::Arguments),
    /// Predict one plan: time, memory, cost, where the time goes
    Simulate(simulate::Arguments),
    /// Show what stands between the datasheet peak and what a plan achieves
    Explain(explain::Arguments),
    /// Compare two plans, or a plan and a measurement, term by term
    Compare(compare::Arguments),
    /// Which accelerators, how many, for how long, at what price
    Capacity(capacity::Arguments),
    /// Score predictions against published measurements
    Validate(validate::Arguments),
    /// Search like `plan` and write the HTML report
    Report(report::Arguments),
    /// Write launch files of training frameworks or serving engines for a plan
    Emit(emit::Arguments),
    /// Read what other tools wrote: model configurations, logs, traces, tables
    Import(import::Arguments),
    /// List what is built in: models, accelerators, devices, systems, clusters, profiles, engines, workloads
    Show(show::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
    /// Measure this machine's kernels and write a profile
    Calibrate(calibrate::Arguments),
    /// Run a plan for real and compare it with its prediction
    Execute(execute::Arguments),
    /// Re-simulate published techniques and compare with their numbers
    Gallery(gallery::Arguments),
}

impl Command {
    /// Runs the command.
    pub(crate) fn run(self, host: &mut Host<'_>) -> Result<(), Failure> {
        match self {
            Self::Plan(arguments) => plan::run(&arguments, host),
            Self::Capacity(arguments) => capacity::run(&arguments, host),
            Self::Validate(arguments) => validate::run(&arguments, host),
            Self::Report(arguments) => report::run(&arguments, host),
            Self::Emit(arguments) => emit::run(&arguments, host),
            Self::Simulate(arguments) => simulate::run(&arguments, host),
            Self::Explain(arguments) => explain::run(&arguments, host),
            Self::Compare(arguments) => compare::run(&arguments, host),
            Self::Import(arguments) => import::run(&arguments, host),
            Self::Show(arguments) => show::run(&arguments, host),
            Self::Completions(arguments) => completions::run(&arguments, host),
            Self::Calibrate(arguments) => calibrate::run(&arguments, host),
            Self::Execute(arguments) => execute::run(&arguments, host),
            Self::Gallery(arguments) => gallery::run(&arguments, host),
        }
    }
}
