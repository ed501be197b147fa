//! `psim completions SHELL`: a completion script on stdout.

use crate::Host;
use crate::failure::Failure;
use clap::Args;
use clap_complete::Shell;

/// Arguments of `psim completions`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Shell to complete in
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::definition(), "psim", &mut script);
    host.print(String::from_utf8_lossy(&script))
}
