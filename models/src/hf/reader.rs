//! Typed access to the keys of a configuration, with errors that name file, line and key.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::error::{HfError, HfProblem};

/// Largest dimension that is believed; beyond it a file is a mistake or an attack.
pub(crate) const LARGEST: u64 = 1 << 40;

/// Result of reading.
pub(crate) type Read<T> = Result<T, HfError>;

/// A configuration object being read as one family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) file: &'a str,
    text: &'a str,
    map: &'a Map<String, Value>,
    pub(super) family: &'a str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a str, text: &'a str, map: &'a Map<String, Value>, family: &'a str) -> Self {
        Self { file, text, map, family }
    }

    /// The value under the first of `keys` that is present and not null.
    pub(super) fn get(&self, keys: &[&'a str]) -> Option<(&'a str, &'a Value)> {
        keys.iter().find_map(|key| self.map.get(*key).filter(|v| !v.is_null()).map(|v| (*key, v)))
    }

    pub(super) fn has(&self, key: &'a str) -> bool {
        self.get(&[key]).is_some()
    }

    fn error(&self, key: Option<&str>, problem: HfProblem) -> HfError {
        HfError { file: self.file.to_owned(), line: key.and_then(|k| line_of(self.text, k)), problem }
    }

    pub(super) fn missing<T>(&self, keys: &[&str]) -> Read<T> {
        let alternatives = match keys {
            [_, rest @ ..] if !rest.is_empty() => {
                let rest: Vec<String> = rest.iter().map(|k| format!("`{k}`")).collect();
                format!(" (or {})", rest.join(", "))
            }
            _ => String::new(),
        };
        let key = keys.first().copied().unwrap_or_default().to_owned();
        Err(self.error(None, HfProblem::MissingKey { key, alternatives, family: self.family.to_owned() }))
    }

    pub(super) fn bad<T>(&self, key: &str, expected: impl Into<String>) -> Read<T> {
        let found = self.map.get(key).map_or_else(|| "absent".to_owned(), short);
        let problem = HfProblem::BadValue { key: key.to_owned(), found, expected: expected.into() };
        Err(self.error(Some(key), problem))
    }

    pub(super) fn inconsistent<T>(&self, key: &str, message: String) -> Read<T> {
        Err(self.error(Some(key), HfProblem::Inconsistent(message)))
    }

    pub(super) fn unsupported<T>(&self, key: Option<&str>, reason: impl Into<String>) -> Read<T> {
        let problem = HfProblem::Unsupported { architecture: self.family.to_owned(), reason: reason.into() };
        Err(self.error(key, problem))
    }

    fn integer(&self, key: &str, value: &Value, least: u64) -> Read<u64> {
        let whole = value.as_u64().or_else(|| {
            // Some tools write sizes as floats.
            value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0 && *f <= LARGEST as f64).map(|f| f as u64)
        });
        match whole {
            Some(n) if (least..=LARGEST).contains(&n) => Ok(n),
            _ => self.bad(key, format!("a whole number from {least} to 2^40")),
        }
    }

    /// A required size, at least 1, under the first of `keys` that is present.
    pub(super) fn size(&self, keys: &[&'a str]) -> Read<u64> {
        match self.get(keys) {
            Some((key, value)) => self.integer(key, value, 1),
            None => self.missing(keys),
        }
    }

    /// An optional size, at least 1.
    pub(super) fn size_opt(&self, keys: &[&'a str]) -> Read<Option<u64>> {
        self.get(keys).map(|(key, value)| self.integer(key, value, 1)).transpose()
    }

    /// A size with a default.
    pub(super) fn size_or(&self, keys: &[&'a str], default: u64) -> Read<u64> {
        Ok(self.size_opt(keys)?.unwrap_or(default))
    }

    /// A count that may be 0, which is also the default.
    pub(super) fn count(&self, keys: &[&'a str]) -> Read<u64> {
        self.get(keys).map_or(Ok(0), |(key, value)| self.integer(key, value, 0))
    }

    /// A number.
    pub(super) fn number(&self, key: &'a str) -> Read<Option<f64>> {
        match self.get(&[key]) {
            None => Ok(None),
            Some((_, value)) => match value.as_f64() {
                Some(f) if f.is_finite() => Ok(Some(f)),
                _ => self.bad(key, "a finite number"),
            },
        }
    }

    /// A flag with the default of the family's own configuration class.
    pub(super) fn flag(&self, keys: &[&'a str], default: bool) -> Read<bool> {
        match self.get(keys) {
            None => Ok(default),
            Some((_, Value::Bool(b))) => Ok(*b),
            Some((key, _)) => self.bad(key, "true or false"),
        }
    }

    /// A string.
    pub(super) fn string(&self, key: &'a str) -> Read<Option<&'a str>> {
        match self.get(&[key]) {
            None => Ok(None),
            Some((_, Value::String(s))) => Ok(Some(s)),
            Some(_) => self.bad(key, "a string"),
        }
    }

    /// A nested object, read as the same family.
    pub(super) fn nested(&self, key: &'a str) -> Read<Option<Self>> {
        match self.get(&[key]) {
            None => Ok(None),
            Some((_, Value::Object(map))) => Ok(Some(Self { map, ..*self })),
            Some(_) => self.bad(key, "an object"),
        }
    }

    /// A list.
    pub(super) fn list(&self, key: &'a str) -> Read<Option<&'a [Value]>> {
        match self.get(&[key]) {
            None => Ok(None),
            Some((_, Value::Array(list))) => Ok(Some(list)),
            Some(_) => self.bad(key, "a list"),
        }
    }

    /// A list with one entry per layer.
    pub(super) fn per_layer(&self, key: &'a str, layers: u64) -> Read<Option<&'a [Value]>> {
        match self.list(key)? {
            Some(list) if (list.len() as u64) < layers => self.bad(
                key,
                format!("a list with an entry for each of the {layers} layers, not {}", list.len()),
            ),
            list => Ok(list.map(|l| &l[..layers as usize])),
        }
    }

    /// A list of whole numbers.
    pub(super) fn integers(&self, key: &'a str) -> Read<Option<Vec<u64>>> {
        match self.list(key)? {
            None => Ok(None),
            Some(list) => {
                let numbers: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
                match numbers {
                    Some(numbers) => Ok(Some(numbers)),
                    None => self.bad(key, "a list of whole numbers"),
                }
            }
        }
    }

    /// A list of whole numbers as a set; empty where absent.
    pub(super) fn integer_set(&self, key: &'a str) -> Read<BTreeSet<u64>> {
        Ok(self.integers(key)?.unwrap_or_default().into_iter().collect())
    }

    /// Entries of a list of objects, each read as the same family.
    pub(super) fn objects(&self, key: &'a str) -> Read<Vec<Self>> {
        let Some(list) = self.list(key)? else { return self.missing(&[key]) };
        let mut readers = Vec::with_capacity(list.len());
        for entry in list {
            match entry {
                Value::Object(map) => readers.push(Self { map, ..*self }),
                _ => return self.bad(key, "a list of objects"),
            }
        }
        Ok(readers)
    }
}

/// A value as it is shown in an error.
fn short(value: &Value) -> String {
    let text = match value {
        Value::Array(list) if list.len() > 8 => format!("a list of {} entries", list.len()),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    };
    if text.chars().count() > 60 { text.chars().take(57).chain("...".chars()).collect() } else { text }
}

/// Line of the first occurrence of `"key"` as a key.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let quoted = format!("\"{key}\"");
    let at = text
        .match_indices(&quoted)
        .map(|(at, _)| at)
        .find(|at| text[at + quoted.len()..].trim_start().starts_with(':'))?;
    Some(text[..at].bytes().filter(|b| *b == b'\n').count() + 1)
}
