//! Errors in files people write: what is wrong, where, and what to do about it.

use serde::de::DeserializeOwned;
use std::fmt;
use std::ops::Range;

/// Largest description file that is read; longer ones are refused before they are parsed.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// Characters of a source line that are shown round the fault.
const WINDOW: usize = 100;

/// A fault in a text file, printed as message, `file:line:column`, the line with a caret, and a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceError {
    /// Name of the file as the user gave it.
    pub file: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Where, if one place can be named.
    pub location: Option<Box<Location>>,
}

/// A place in a text file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line, or the part of a long line round the fault; control characters replaced.
    pub excerpt: String,
    /// Characters before the caret in `excerpt`.
    pub caret: usize,
    /// Characters marked.
    pub width: usize,
}

impl Location {
    /// Finds line and column of a byte range of `text`.
    pub fn of(text: &str, span: &Range<usize>) -> Self {
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let line = text[..start].matches('\n').count() + 1;
        let before = text[line_start..start].chars().count();
        let mut end = span.end.clamp(start, line_end);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let width = text[start..end].chars().count().max(1);
        let skipped = before.saturating_sub(WINDOW / 2);
        let shown = |c: char| if c.is_control() { '\u{b7}' } else { c };
        let excerpt: String = text[line_start..line_end]
            .trim_end_matches('\r')
            .chars()
            .skip(skipped)
            .take(WINDOW)
            .map(shown)
            .collect();
        let caret = before - skipped;
        let room = WINDOW.saturating_sub(caret).max(1);
        Self { line, column: before + 1, excerpt, caret, width: width.min(room) }
    }
}

impl SourceError {
    /// A fault of the whole file.
    pub fn whole(file: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { file: file.to_owned(), message: message.into(), hint: Some(hint.into()), location: None }
    }

    /// A fault at a byte range of the file.
    pub fn at(
        file: &str,
        text: &str,
        span: &Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { location: Some(Box::new(Location::of(text, span))), ..Self::whole(file, message, hint) }
    }

    /// From a TOML error; `hint` is used where the message itself does not suggest one.
    pub fn from_toml(file: &str, text: &str, error: &toml::de::Error, hint: &str) -> Self {
        let mut message: String = error.message().trim().replace('\n', "; ");
        if message.len() > 600 {
            let cut = (0..=600).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
            message.truncate(cut);
            message.push('…');
        }
        let hint = hint_for(error.message()).unwrap_or_else(|| hint.to_owned());
        let location = error.span().map(|span| Box::new(Location::of(text, &span)));
        Self { file: file.to_owned(), message, hint: Some(hint), location }
    }
}

/// A hint that follows from serde's own message.
fn hint_for(message: &str) -> Option<String> {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field") || message.starts_with("unknown variant") {
        let (unknown, known) = quoted.split_first()?;
        return Some(match crate::suggest::closest(unknown, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("remove it, or use one of: {}", known.join(", ")),
        });
    }
    if message.starts_with("missing field") {
        return Some(format!("add `{} = …`", quoted.first()?));
    }
    if message.contains("has unit") || message.contains("is not a number") {
        return Some(format!("write a number with its unit in quotes, like \"{}\"", quoted.last()?));
    }
    if message.starts_with("invalid type") && message.contains("expected a string") {
        return Some(
            "write it in quotes; quantities carry their unit, like \"80GiB\" or \"400Gb/s\"".to_owned(),
        );
    }
    None
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.message)?;
        match &self.location {
            None => write!(f, "  --> {}", self.file)?,
            Some(at) => {
                let number = at.line.to_string();
                let pad = " ".repeat(number.len());
                writeln!(f, "{pad}--> {}:{}:{}", self.file, at.line, at.column)?;
                writeln!(f, "{pad} |")?;
                writeln!(f, "{number} | {}", at.excerpt)?;
                write!(f, "{pad} | {}{}", " ".repeat(at.caret), "^".repeat(at.width))?;
            }
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SourceError {}

/// Reads a TOML description of schema version `version` into `T`.
///
/// `what` names the kind of file in messages (`cluster description`); `hint` is shown where nothing better is known.
///
/// # Errors
/// Files that are empty, longer than [`MAX_FILE_BYTES`], not TOML, of another schema version, or that do not match `T`.
pub fn parse_toml<T: DeserializeOwned>(
    file: &str,
    text: &str,
    what: &str,
    version: i64,
    hint: &str,
) -> Result<T, SourceError> {
    check_size(file, text, what, hint)?;
    check_schema(file, text, what, version, hint)?;
    toml::from_str(text).map_err(|e| SourceError::from_toml(file, text, &e, hint))
}

/// As [`parse_toml`], for types that have no `schema` field of their own.
///
/// # Errors
/// As [`parse_toml`].
pub fn parse_toml_body<T: DeserializeOwned>(
    file: &str,
    text: &str,
    what: &str,
    version: i64,
    hint: &str,
) -> Result<T, SourceError> {
    check_size(file, text, what, hint)?;
    check_schema(file, text, what, version, hint)?;
    let mut body = text.to_owned();
    if let Some(span) = find_key(text, "schema") {
        // Blanks keep every other byte where it was, so that errors point at the right place.
        body.replace_range(span.clone(), &" ".repeat(span.len()));
    }
    toml::from_str(&body).map_err(|e| SourceError::from_toml(file, text, &e, hint))
}

/// Refuses empty and oversized files before they are parsed.
fn check_size(file: &str, text: &str, what: &str, hint: &str) -> Result<(), SourceError> {
    if text.len() > MAX_FILE_BYTES {
        let message = format!(
            "the file has {} bytes, more than the {MAX_FILE_BYTES} that a {what} may have",
            text.len()
        );
        return Err(SourceError::whole(file, message, format!("is this really a {what}? {hint}")));
    }
    if text.trim_start_matches('\u{feff}').trim().is_empty() {
        return Err(SourceError::whole(file, format!("the file is empty, expected a {what}"), hint));
    }
    Ok(())
}

/// Checks the `schema` key of a file.
fn check_schema(file: &str, text: &str, what: &str, version: i64, hint: &str) -> Result<(), SourceError> {
    let table: toml::Table =
        toml::from_str(text).map_err(|e| SourceError::from_toml(file, text, &e, hint))?;
    match table.get("schema") {
        Some(toml::Value::Integer(found)) if *found == version => {}
        Some(found) => {
            let message =
                format!("schema {found} is not understood, this psim reads schema {version} of a {what}");
            let hint = match found {
                toml::Value::Integer(n) if *n > version => "the file is newer than this psim: update psim",
                _ => "write `schema = 1` and compare the keys with the documentation",
            };
            return Err(match find_key(text, "schema") {
                Some(span) => SourceError::at(file, text, &span, message, hint),
                None => SourceError::whole(file, message, hint),
            });
        }
        None => {
            let message = format!("the file does not say which schema it follows, expected a {what}");
            return Err(SourceError::whole(
                file,
                message,
                format!("add `schema = {version}` as its first line"),
            ));
        }
    }
    Ok(())
}

/// Byte range of the first line that assigns `key` at its start.
pub fn find_key(text: &str, key: &str) -> Option<Range<usize>> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        if trimmed.starts_with(key) && trimmed[key.len()..].trim_start().starts_with('=') {
            let start = at + (line.len() - trimmed.len());
            return Some(start..at + line.trim_end().len());
        }
        at += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_counts_lines_and_columns_in_characters() {
        let text = "a = 1\nµ = 2 x\n";
        let x = text.find('x').unwrap();
        let at = Location::of(text, &(x..x + 1));
        assert_eq!((at.line, at.column, at.width), (2, 7, 1));
        let error = SourceError::at("f.toml", text, &(x..x + 1), "stray x", "remove it").to_string();
        assert_eq!(error, "stray x\n --> f.toml:2:7\n  |\n2 | µ = 2 x\n  |       ^\nhint: remove it");
    }

    #[test]
    fn long_lines_are_cut_round_the_fault() {
        let text = format!("{}X{}", "a".repeat(5000), "b".repeat(5000));
        let at = Location::of(&text, &(5000..5001));
        assert_eq!(at.column, 5001);
        assert!(at.excerpt.chars().count() <= WINDOW);
        assert_eq!(at.excerpt.chars().nth(at.caret), Some('X'));
    }

    #[test]
    fn any_range_is_survived() {
        let text = "é\u{1F600}\n\u{0}";
        for start in 0..=text.len() + 2 {
            for end in start..=text.len() + 2 {
                let _ = SourceError::at("f", text, &(start..end), "m", "h").to_string();
            }
        }
    }
}
