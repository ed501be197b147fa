//! Commands that are promised and whose engine does not exist yet: they say so and exit with 2.

use crate::failure::Failure;
use clap::Args;

/// Whatever follows is accepted, so that the answer is always the same.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Arguments that the command will take
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub(crate) rest: Vec<String>,
}

/// Refuses.
pub(crate) fn run(command: &str) -> Result<(), Failure> {
    Err(Failure::not_built(&format!("`{command}`"), "`psim help` lists the commands that work today"))
}
