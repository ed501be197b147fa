//! The `psim` program: the process around [`psim_cli::run`].

use std::io::IsTerminal;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut out = anstream::stdout();
    let mut err = anstream::stderr();
    let mut host = psim_cli::Host {
        directory: std::env::current_dir().unwrap_or_default(),
        out: &mut out,
        err: &mut err,
        progress: std::io::stderr().is_terminal(),
        read: std::cell::RefCell::default(),
    };
    ExitCode::from(psim_cli::run(std::env::args_os(), &mut host))
}
