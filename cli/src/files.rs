//! Reading and writing files: the only place of the program that does.

use crate::Host;
use crate::failure::Failure;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

/// Reads a text file of at most `limit` bytes (one more is read, so that the caller's own limit can speak).
pub(crate) fn read_text(host: &Host<'_>, given: &Path, what: &str, limit: usize) -> Result<String, Failure> {
    let path = host.path(given);
    let shown = given.display();
    let fail = |error: &std::io::Error| match error.kind() {
        ErrorKind::NotFound => Failure::input(
            format!("there is no file `{shown}` ({what})"),
            "check the path; it is relative to the working directory",
        ),
        ErrorKind::PermissionDenied => {
            Failure::input(format!("`{shown}` ({what}) may not be read"), "check the permissions of the file")
        }
        _ => Failure::input(format!("`{shown}` ({what}) cannot be read: {error}"), "check the path"),
    };
    if path.is_dir() {
        return Err(Failure::input(
            format!("`{shown}` is a directory, expected a {what}"),
            "name the file itself",
        ));
    }
    let file = std::fs::File::open(&path).map_err(|e| fail(&e))?;
    host.has_read(&path);
    let size = file.metadata().map(|m| m.len()).unwrap_or(0);
    if size > limit as u64 {
        return Err(Failure::input_at(
            format!("the file has {size} bytes, more than the {limit} that a {what} may have"),
            shown.to_string(),
            format!("is this really a {what}?"),
        ));
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|e| fail(&e))?;
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..valid].iter().filter(|&&b| b == b'\n').count() + 1;
        Failure::input_at(
            format!("byte {valid} is not UTF-8 text, expected a {what}"),
            format!("{shown}:{line}"),
            "save the file as UTF-8, or check that it is the right file",
        )
    })
}

/// Reads a file of at most `limit` bytes as it is.
pub(crate) fn read_bytes(host: &Host<'_>, given: &Path, limit: usize) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(host.path(given))?;
    host.has_read(&host.path(given));
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(std::io::Error::other(format!("it is longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// Writes a file so that a reader never sees half of it: to a temporary neighbour, then renamed. A file that this command
/// has read is not overwritten; see [`write_back`].
pub(crate) fn write_atomically(host: &Host<'_>, given: &Path, contents: &[u8]) -> Result<(), Failure> {
    let shown = given.display();
    if host.path(given).canonicalize().is_ok_and(|path| host.read.borrow().contains(&path)) {
        return Err(Failure::input(
            format!("`{shown}` is an input of this command and would be overwritten by its output"),
            "give the output another name or directory",
        ));
    }
    write_back(host, given, contents)
}

/// The same for a file that is read, changed and kept.
pub(crate) fn write_back(host: &Host<'_>, given: &Path, contents: &[u8]) -> Result<(), Failure> {
    let shown = given.display().to_string();
    let named = host.path(given);
    // A link stays a link: what it points to is replaced.
    let path = named.canonicalize().unwrap_or(named);
    let fail = |e: &std::io::Error| Failure::writing(&format!("`{shown}`"), e);
    if path.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        // A pipe or a device is written to, never replaced.
        let opened = std::fs::OpenOptions::new().write(true).open(&path);
        return opened.and_then(|mut file| file.write_all(contents)).map_err(|e| fail(&e));
    }
    let Some(name) = path.file_name() else {
        return Err(Failure::input(format!("`{shown}` does not name a file"), "give a file name"));
    };
    let mut temporary = name.to_os_string();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        fail(&e)
    })
}

/// Makes a directory for output, with its parents.
pub(crate) fn make_directory(host: &Host<'_>, given: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(host.path(given))
        .map_err(|e| Failure::writing(&format!("`{}`", given.display()), &e))
}
