//! Runs the program in an empty directory and keeps what it said.

use std::panic::{AssertUnwindSafe, catch_unwind};
use tempfile::TempDir;

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: u8,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    /// Exit code and both streams in one text.
    pub(crate) fn transcript(&self) -> String {
        format!("exit: {}\n--- stdout\n{}--- stderr\n{}", self.code, self.out, self.err)
    }
}

/// A working directory with files.
pub(crate) fn directory(files: &[(&str, &[u8])]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        std::fs::write(directory.path().join(name), contents).unwrap();
    }
    directory
}

/// Runs `psim` with arguments split at blanks (`'…'` keeps blanks) in a directory.
pub(crate) fn psim_in(directory: &TempDir, arguments: &str) -> Run {
    psim_at(directory.path(), arguments)
}

/// As [`psim_in`], in any directory.
pub(crate) fn psim_at(directory: &std::path::Path, arguments: &str) -> Run {
    let mut words = vec!["psim".to_owned()];
    let mut quoted = false;
    let mut word = String::new();
    let mut any = false;
    for c in arguments.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                any = true;
            }
            ' ' if !quoted => {
                if any {
                    words.push(std::mem::take(&mut word));
                    any = false;
                }
            }
            c => {
                word.push(c);
                any = true;
            }
        }
    }
    if any {
        words.push(word);
    }
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = {
        let mut plain_out = anstream::StripStream::new(&mut out);
        let mut plain_err = anstream::StripStream::new(&mut err);
        let mut host = psim_cli::Host {
            directory: directory.to_owned(),
            out: &mut plain_out,
            err: &mut plain_err,
            progress: false,
            read: std::cell::RefCell::default(),
        };
        catch_unwind(AssertUnwindSafe(|| psim_cli::run(words, &mut host)))
            .unwrap_or_else(|_| panic!("psim {arguments} panicked"))
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code, out: text(out), err: text(err) }
}

/// Runs `psim` in an empty directory.
pub(crate) fn psim(arguments: &str) -> Run {
    psim_in(&directory(&[]), arguments)
}
