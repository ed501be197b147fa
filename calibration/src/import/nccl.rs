//! Logs of nccl-tests (`all_reduce_perf` and its kin), as printed, with launcher prefixes (`[1,0]<stdout>:`) and noise
//! around them.
//!
//! Every row is checked: `algbw = size / time` must hold, no wrong values may be reported, sizes must not fall. In-place
//! and out-of-place times are both kept.

use super::ImportError;
use psim_hardware::profile::accelerator::{CollectiveCurve, FitQuality};
use serde::Serialize;
use std::collections::BTreeMap;

/// One of the two measurements of a row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Timing {
    /// Microseconds.
    pub time_us: f64,
    /// Size over time, GB/s.
    pub algbw: f64,
    /// Bus bandwidth, GB/s.
    pub busbw: f64,
}

/// One message size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// nccl-tests size, bytes.
    pub bytes: u64,
    /// Element type (`float`, `half`).
    pub dtype: String,
    /// Out of place.
    pub out_of_place: Timing,
    /// In place, where printed.
    pub in_place: Option<Timing>,
}

/// A log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Log {
    /// Profile name of the operation (`all-reduce`), where the log names its program.
    pub operation: Option<String>,
    /// Ranks, where the header lists them (the highest rank listed, plus one).
    pub ranks: Option<u32>,
    /// Ranks per host among those listed, hosts in order of appearance.
    pub hosts: Vec<(String, u32)>,
    /// Device name of the ranks listed.
    pub device: Option<String>,
    /// Rows, by size.
    pub rows: Vec<Row>,
    /// Remarks on what was left out.
    pub notes: Vec<String>,
}

const PROGRAMS: [(&str, &str); 6] = [
    ("all_reduce_perf", "all-reduce"),
    ("all_gather_perf", "all-gather"),
    ("reduce_scatter_perf", "reduce-scatter"),
    ("alltoall_perf", "all-to-all"),
    ("sendrecv_perf", "send-recv"),
    ("broadcast_perf", "broadcast"),
];

/// What follows a launcher's prefix.
fn without_prefix(line: &str) -> &str {
    let line = line.trim();
    for mark in ["<stdout>:", "<stderr>:"] {
        if let Some(at) = line.find(mark)
            && line.starts_with('[')
        {
            return line[at + mark.len()..].trim();
        }
    }
    // srun -l: `12: text`.
    if let Some((number, rest)) = line.split_once(": ")
        && !number.is_empty()
        && number.chars().all(|c| c.is_ascii_digit())
    {
        return rest.trim();
    }
    line
}

/// Reads a log.
///
/// # Errors
/// When there are no result rows (with the first line that looks like a failure), or a row contradicts itself.
pub fn parse(text: &str) -> Result<Log, ImportError> {
    let mut log = Log {
        operation: None,
        ranks: None,
        hosts: Vec::new(),
        device: None,
        rows: Vec::new(),
        notes: Vec::new(),
    };
    let mut failure: Option<String> = None;
    for (index, raw) in text.lines().enumerate() {
        let line = without_prefix(raw);
        if let Some((_, operation)) = PROGRAMS.iter().find(|(program, _)| line.contains(program)) {
            log.operation.get_or_insert_with(|| (*operation).to_owned());
        }
        if let Some(comment) = line.strip_prefix('#') {
            header(&mut log, comment.trim(), index + 1)?;
            continue;
        }
        match row(line, index + 1)? {
            Some(Found::Row(row)) => log.rows.push(row),
            Some(Found::Empty) => {
                log.notes.push(format!("line {}: a size of zero bytes is left out", index + 1));
            }
            None => {
                let lower = line.to_ascii_lowercase();
                if failure.is_none() && ["error", "fail", "abort", "killed"].iter().any(|w| lower.contains(w))
                {
                    failure =
                        Some(format!("line {}: {}", index + 1, line.chars().take(120).collect::<String>()));
                }
            }
        }
    }
    if log.rows.is_empty() {
        let reason = failure.map_or_else(
            || "it has no result rows".to_owned(),
            |f| format!("it has no result rows; it reports a failure: {f}"),
        );
        return Err(ImportError::Kind { expected: "an nccl-tests log", reason });
    }
    if let Some(failure) = failure {
        log.notes.push(format!("the log also reports: {failure}"));
    }
    log.rows.sort_by_key(|r| r.bytes);
    Ok(log)
}

fn header(log: &mut Log, comment: &str, line: usize) -> Result<(), ImportError> {
    if let Some(rest) = comment.strip_prefix("Rank") {
        // `Rank  0 Group  0 Pid 1 on host device  0 [0x01] NVIDIA …`
        let words: Vec<&str> = rest.split_whitespace().collect();
        let number = words.first().and_then(|w| w.parse::<u32>().ok());
        let after = |word: &str| words.iter().position(|w| *w == word).and_then(|p| words.get(p + 1));
        if let (Some(number), Some(host)) = (number, after("on")) {
            log.ranks = Some(log.ranks.unwrap_or(0).max(number + 1));
            match log.hosts.iter_mut().find(|(h, _)| h == host) {
                Some((_, count)) => *count += 1,
                None => log.hosts.push(((*host).to_owned(), 1)),
            }
            if let Some((_, device)) = rest.split_once("] ") {
                log.device.get_or_insert_with(|| device.trim().to_owned());
            }
        }
    }
    if comment.starts_with("Out of bounds") && comment.contains("FAILED") {
        return Err(ImportError::Line { line, reason: "the test itself found wrong values".to_owned() });
    }
    Ok(())
}

enum Found {
    Row(Row),
    Empty,
}

/// A result row, or `None` for any other line.
fn row(line: &str, number: usize) -> Result<Option<Found>, ImportError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [size, count, dtype, rest @ ..] = &words[..] else { return Ok(None) };
    let (Ok(bytes), Ok(_)) = (size.parse::<u64>(), count.parse::<u64>()) else { return Ok(None) };
    if !dtype.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        || dtype.starts_with(|c: char| c.is_ascii_digit())
    {
        return Ok(None);
    }
    // Reduction and root are there or not, by operation and age; four columns per measurement follow.
    let skip = rest.len() % 4;
    let columns = &rest[skip.min(rest.len())..];
    if columns.len() < 4 {
        return Err(ImportError::Line { line: number, reason: format!("a cut-off result row: `{line}`") });
    }
    if bytes == 0 {
        return Ok(Some(Found::Empty));
    }
    let timing = |part: &[&str]| -> Result<Timing, ImportError> {
        let value = |text: &str| {
            text.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0).ok_or_else(|| ImportError::Line {
                line: number,
                reason: format!("`{text}` is not a number"),
            })
        };
        let timing = Timing { time_us: value(part[0])?, algbw: value(part[1])?, busbw: value(part[2])? };
        if part[3] != "N/A" && value(part[3])? > 0.0 {
            return Err(ImportError::Line { line: number, reason: format!("{} wrong values", part[3]) });
        }
        let expected = bytes as f64 / timing.time_us.max(1e-9) / 1e3;
        // Printed with two decimals, times with four digits.
        if (timing.algbw - expected).abs() > 0.02 * expected + 0.01 {
            let reason =
                format!("{bytes} B in {} us are {expected:.2} GB/s, not {}", timing.time_us, timing.algbw);
            return Err(ImportError::Line { line: number, reason });
        }
        Ok(timing)
    };
    let out_of_place = timing(&columns[..4])?;
    let in_place = if columns.len() >= 8 { Some(timing(&columns[4..8])?) } else { None };
    Ok(Some(Found::Row(Row { bytes, dtype: (*dtype).to_owned(), out_of_place, in_place })))
}

/// The log as a curve of a profile (out-of-place times, never falling with size).
///
/// # Errors
/// When the log does not say which operation or how many ranks it measured, or spans several hosts (that is a fabric's
/// business); `operation` and `ranks` fill in what the log does not say.
pub fn curve(log: &Log, operation: Option<&str>, ranks: Option<u32>) -> Result<CollectiveCurve, ImportError> {
    let missing = |what: &str| ImportError::Kind {
        expected: "a complete nccl-tests log",
        reason: format!("it does not say {what}; give it on the command line"),
    };
    let operation = log.operation.as_deref().or(operation).ok_or_else(|| missing("which operation ran"))?;
    let ranks = log.ranks.or(ranks).ok_or_else(|| missing("how many ranks ran"))?;
    if log.hosts.len() > 1 {
        return Err(ImportError::Kind {
            expected: "a log of one host",
            reason: format!("its ranks lie on {} hosts", log.hosts.len()),
        });
    }
    let mut points: BTreeMap<u64, f64> = BTreeMap::new();
    for row in &log.rows {
        let best = points.entry(row.bytes).or_insert(f64::INFINITY);
        *best = best.min(row.out_of_place.time_us);
    }
    let mut longest = 0.0_f64;
    let time_us = points
        .values()
        .map(|&t| {
            longest = longest.max(t);
            longest
        })
        .collect();
    Ok(CollectiveCurve {
        operation: operation.to_owned(),
        ranks,
        in_switch: false,
        bytes: points.keys().map(|&b| b as f64).collect(),
        time_us,
        fit: FitQuality { points: points.len() as u32, sigma: 0.05 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = "   536870912     134217728     float     sum      -1   2984.6  179.88  356.01      0   2979.7  180.18  356.60      0";

    #[test]
    fn rows_with_and_without_prefix() {
        for text in [ROW.to_owned(), format!("[1,0]<stdout>:{ROW}"), format!("3: {ROW}")] {
            let log = parse(&text).unwrap();
            assert_eq!((log.rows[0].bytes, log.rows[0].out_of_place.busbw), (536_870_912, 356.01));
            assert_eq!(log.rows[0].in_place.unwrap().time_us, 2979.7);
        }
    }

    #[test]
    fn broken_rows_are_refused_with_the_line() {
        let wrong = ROW.replace("356.01      0", "356.01      7");
        assert_eq!(parse(&wrong).unwrap_err().to_string(), "line 1: 7 wrong values");
        let lying = ROW.replace("179.88", "279.88");
        assert!(parse(&lying).unwrap_err().to_string().contains("GB/s, not 279.88"));
        assert!(
            parse("mpirun: command not found\nsrun: error: x")
                .unwrap_err()
                .to_string()
                .contains("no result rows")
        );
        assert!(parse("").is_err());
    }

    #[test]
    fn a_curve_needs_operation_and_ranks() {
        let log = parse(ROW).unwrap();
        assert!(curve(&log, None, Some(8)).is_err());
        assert!(curve(&log, Some("all-reduce"), None).is_err());
        assert_eq!(curve(&log, Some("all-reduce"), Some(8)).unwrap().time_us, [2984.6]);
    }
}
