//! An append-only journal that survives `kill -9`, and files that appear whole or not at all.
//!
//! Every line is `crc32 json`. A line is flushed to the disk before the next point is measured; a torn or damaged last
//! line is cut off on opening, a damaged line in the middle is an error. The first line names the machine.

use super::MeasureError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// Format of the journal.
///
/// 2: products of few rows were measured with weights in the last cache.
const SCHEMA: u32 = 2;

/// What a journal belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    schema: u32,
    device: String,
}

impl Header {
    /// For this device, or whatever else its samples belong to.
    pub fn new(device: &str) -> Self {
        Self { schema: SCHEMA, device: device.to_owned() }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line<R> {
    Header(Header),
    Sample(R),
    Complete,
}

/// Why a journal cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// It was written on another machine or by another version.
    #[error("{} was measured on `{found}`, this is `{here}`\nhint: choose another `--out`, or remove the file", path.display())]
    OtherMachine {
        /// The journal.
        path: PathBuf,
        /// Its device.
        found: String,
        /// This device.
        here: String,
    },
    /// A line inside it is damaged.
    #[error("{}:{line}: damaged line\nhint: remove the file to measure again", path.display())]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
    /// Another run writes it.
    #[error("{} is in use by another run\nhint: wait for it, or choose another file", path.display())]
    InUse {
        /// The journal.
        path: PathBuf,
    },
}

/// An open journal of samples `R`. Only one run has it open at a time.
#[derive(Debug)]
pub struct Journal<R> {
    file: File,
    path: PathBuf,
    samples: PhantomData<R>,
}

/// CRC-32 (IEEE 802.3), bit by bit: lines are short.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> MeasureError + '_ {
    move |error| MeasureError::File { path: path.to_owned(), error }
}

fn decode<R: DeserializeOwned>(line: &str) -> Option<Line<R>> {
    let (crc, json) = line.split_once(' ')?;
    let crc = u32::from_str_radix(crc, 16).ok()?;
    (crc == crc32(json.as_bytes())).then(|| serde_json::from_str(json).ok()).flatten()
}

/// Valid lines, and the length of the file up to the end of the last one.
fn load<R: DeserializeOwned>(path: &Path) -> Result<(Vec<Line<R>>, u64), MeasureError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(at(path)(error)),
    };
    let mut lines = Vec::new();
    let mut good = 0;
    let mut start = 0;
    while start < bytes.len() {
        let end = bytes[start..].iter().position(|&b| b == b'\n').map(|n| start + n);
        let line = end.and_then(|end| std::str::from_utf8(&bytes[start..end]).ok()).and_then(decode);
        let next = end.map_or(bytes.len(), |end| end + 1);
        match line {
            Some(line) => lines.push(line),
            // Torn by a kill or a full disk: only the last line may be.
            None if next == bytes.len() => break,
            None => {
                return Err(JournalError::Damaged { path: path.to_owned(), line: lines.len() + 1 }.into());
            }
        }
        good = next;
        start = next;
    }
    Ok((lines, good as u64))
}

impl<R: Serialize + DeserializeOwned> Journal<R> {
    /// Opens or starts the journal; returns the samples of an interrupted run. A finished journal is set aside as
    /// `….previous`.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn open(path: &Path, header: &Header) -> Result<(Self, Vec<R>), MeasureError> {
        let (lines, good) = load(path)?;
        let complete = lines.iter().any(|l| matches!(l, Line::Complete));
        if complete {
            let mut previous = path.as_os_str().to_owned();
            previous.push(".previous");
            std::fs::rename(path, &previous).map_err(at(path))?;
        }
        let fresh = complete || lines.is_empty();
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(at(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(JournalError::InUse { path: path.to_owned() }.into());
            }
            // A file system without locks: the user is trusted not to run twice.
            Err(std::fs::TryLockError::Error(_)) => {}
        }
        file.set_len(if complete { 0 } else { good }).map_err(at(path))?;
        let mut journal = Self { file, path: path.to_owned(), samples: PhantomData };
        if fresh {
            journal.line(&Line::Header(header.clone()))?;
            return Ok((journal, Vec::new()));
        }
        Ok((journal, samples(path, lines, header)?))
    }

    fn line(&mut self, line: &Line<&R>) -> Result<(), MeasureError> {
        let json = serde_json::to_string(line).map_err(std::io::Error::from).map_err(at(&self.path))?;
        let text = format!("{:08x} {json}\n", crc32(json.as_bytes()));
        self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data()).map_err(at(&self.path))
    }

    /// Appends a sample; when this returns, it is on the disk.
    ///
    /// # Errors
    /// When writing fails.
    pub fn append(&mut self, record: &R) -> Result<(), MeasureError> {
        self.line(&Line::Sample(record))
    }

    /// Marks the journal as finished.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(&mut self) -> Result<(), MeasureError> {
        self.line(&Line::Complete)
    }
}

fn samples<R>(path: &Path, lines: Vec<Line<R>>, header: &Header) -> Result<Vec<R>, MeasureError> {
    match lines.first() {
        Some(Line::Header(found)) if found == header => {}
        first => {
            let found = match first {
                Some(Line::Header(found)) => format!("{} (format {})", found.device, found.schema),
                _ => "an unknown machine".to_owned(),
            };
            let here = format!("{} (format {SCHEMA})", header.device);
            return Err(JournalError::OtherMachine { path: path.to_owned(), found, here }.into());
        }
    }
    Ok(lines.into_iter().filter_map(|l| if let Line::Sample(r) = l { Some(r) } else { None }).collect())
}

/// The samples of a journal.
///
/// # Errors
/// When it is missing, damaged, or of another machine.
pub fn read<R: DeserializeOwned>(path: &Path, header: &Header) -> Result<Vec<R>, MeasureError> {
    let (lines, _) = load(path)?;
    if lines.is_empty() {
        return Err(at(path)(std::io::Error::from(std::io::ErrorKind::NotFound)));
    }
    samples(path, lines, header)
}

/// Writes a file so that a reader sees the old contents or the new ones, never a part.
///
/// # Errors
/// When writing fails.
pub fn write_atomically(path: &Path, text: &str) -> Result<(), MeasureError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        // The temporary file is of no use to anybody.
        let _ = std::fs::remove_file(&temporary);
        at(path)(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Point, Record};

    fn record(elements: u64) -> Record {
        let point = Point::Memory { class: "norm".to_owned(), rows: elements, width: 8 };
        Record::new(point, vec![1e-3, 2e-3], 0.01)
    }

    #[test]
    fn crc_is_the_standard_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn every_cut_leaves_whole_records() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        let header = Header::new("cpu: test");
        let (mut journal, _) = Journal::<Record>::open(&path, &header).unwrap();
        for i in 1..=3 {
            journal.append(&record(i)).unwrap();
        }
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(7).chain([whole.len() - 1, whole.len()]) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let lines = whole[..cut].iter().filter(|&&b| b == b'\n').count();
            let (mut journal, records) = Journal::<Record>::open(&path, &header).unwrap();
            assert_eq!(records.len(), lines.saturating_sub(1));
            // The journal can be continued after any cut.
            journal.append(&record(9)).unwrap();
            let again = read::<Record>(&path, &header).unwrap();
            assert_eq!(again.len(), records.len() + 1);
            assert_eq!(again.last().unwrap().point, record(9).point);
        }
    }

    #[test]
    fn damage_and_other_machines_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        let header = Header::new("cpu: test");
        let (mut journal, _) = Journal::<Record>::open(&path, &header).unwrap();
        journal.append(&record(1)).unwrap();
        journal.append(&record(2)).unwrap();
        let other = Journal::<Record>::open(&path, &Header::new("cpu: other")).unwrap_err().to_string();
        assert!(other.contains("hint:"), "{other}");
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.iter().position(|&b| b == b'\n').unwrap() + 30;
        bytes[middle] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = Journal::<Record>::open(&path, &header).unwrap_err().to_string();
        assert!(error.contains(":2: damaged line"), "{error}");
    }

    #[test]
    fn a_finished_journal_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        let header = Header::new("cpu: test");
        let (mut journal, _) = Journal::<Record>::open(&path, &header).unwrap();
        journal.append(&record(1)).unwrap();
        journal.finish().unwrap();
        let (_, records) = Journal::<Record>::open(&path, &header).unwrap();
        assert!(records.is_empty());
        assert!(folder.path().join("j.previous").exists());
    }
}
