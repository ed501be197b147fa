//! What the program sees of the process it runs in.

use crate::failure::Failure;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Working directory and streams.
pub struct Host<'a> {
    /// Directory that relative paths start from.
    pub directory: PathBuf,
    /// Data.
    pub out: &'a mut dyn Write,
    /// Talk.
    pub err: &'a mut dyn Write,
    /// Progress bars may be drawn on the real stderr.
    pub progress: bool,
    /// Files that this command has read: it never writes over them by accident.
    pub read: RefCell<BTreeSet<PathBuf>>,
}

impl fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Host<'_> {
    /// A path as the user meant it.
    pub(crate) fn path(&self, given: &Path) -> PathBuf {
        self.directory.join(given)
    }

    /// Remembers that `path` is an input.
    pub(crate) fn has_read(&self, path: &Path) {
        if let Ok(path) = path.canonicalize() {
            self.read.borrow_mut().insert(path);
        }
    }

    /// Writes data. A reader that has gone away ends the program quietly.
    pub(crate) fn print(&mut self, text: impl fmt::Display) -> Result<(), Failure> {
        write!(self.out, "{text}").map_err(|e| Failure::writing("stdout", &e))
    }

    /// Writes a line of data.
    pub(crate) fn line(&mut self, text: impl fmt::Display) -> Result<(), Failure> {
        writeln!(self.out, "{text}").map_err(|e| Failure::writing("stdout", &e))
    }

    /// Writes data as JSON, indented.
    pub(crate) fn json(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(Failure::defect)?;
        self.line(text)
    }

    /// Says something on stderr.
    pub(crate) fn say(&mut self, text: impl fmt::Display) {
        let _ = writeln!(self.err, "{text}");
    }

    /// Empties the buffers.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|e| Failure::writing("stdout", &e))
    }
}
