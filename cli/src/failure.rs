//! Why a command ends without doing its work, and with which exit code.

use psim_hardware::SourceError;
use std::io::{self, Write};

/// Done.
pub const EXIT_OK: u8 = 0;
/// The question is understood and has no feasible answer.
pub const EXIT_INFEASIBLE: u8 = 1;
/// The question is not understood, or the command does not exist yet.
pub const EXIT_BAD_INPUT: u8 = 2;

/// A failed command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Bad input: message, lines that locate it, hint.
    Input { message: String, place: Vec<String>, hint: String },
    /// A fault in a file, with its place.
    Source(Box<SourceError>),
    /// Nothing is feasible. What was found out is printed already, or is this message.
    Infeasible { message: String, hint: String },
    /// The reader of stdout has gone away.
    Pipe,
}

impl Failure {
    /// Bad input.
    pub(crate) fn input(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Input { message: message.into(), place: Vec::new(), hint: hint.into() }
    }

    /// Bad input at a place that is not a line of TOML.
    pub(crate) fn input_at(
        message: impl Into<String>,
        place: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Input { message: message.into(), place: vec![place.into()], hint: hint.into() }
    }

    /// A command or option that does not exist yet.
    pub(crate) fn not_built(what: &str, hint: &str) -> Self {
        Self::input(format!("{what} is not built yet"), hint)
    }

    /// A defect of psim itself.
    pub(crate) fn defect(message: impl std::fmt::Display) -> Self {
        Self::input(
            format!("internal error: {message}"),
            "this is a defect of psim: please report it with the command",
        )
    }

    /// Writing failed.
    pub(crate) fn writing(what: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::Pipe;
        }
        Self::input(
            format!("cannot write {what}: {error}"),
            "check the path, its permissions and the free space",
        )
    }

    /// Exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Input { .. } | Self::Source(_) => EXIT_BAD_INPUT,
            Self::Infeasible { .. } => EXIT_INFEASIBLE,
            Self::Pipe => EXIT_OK,
        }
    }

    /// Prints `error: …`, the place, and `hint: …`.
    pub(crate) fn render(&self, to: &mut dyn Write) -> io::Result<()> {
        let error = anstyle::AnsiColor::Red.on_default().bold();
        let hinted = anstyle::AnsiColor::Cyan.on_default();
        match self {
            Self::Input { message, place, hint } => {
                writeln!(to, "{error}error:{error:#} {message}")?;
                for line in place {
                    writeln!(to, " --> {line}")?;
                }
                writeln!(to, "{hinted}hint:{hinted:#} {hint}")
            }
            Self::Source(source) => writeln!(to, "{error}error:{error:#} {source}"),
            Self::Infeasible { message, hint } => {
                writeln!(to, "{error}infeasible:{error:#} {message}")?;
                writeln!(to, "{hinted}hint:{hinted:#} {hint}")
            }
            Self::Pipe => Ok(()),
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Source(Box::new(error))
    }
}
