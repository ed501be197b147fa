//! Request traces as published: CSV and JSON-lines layouts.
//!
//! Lines that start with `#` are remarks. Requests may be in any order; a length of 0 (a failed answer in BurstGPT) counts
//! as 1.
//!
//! | layout | columns |
//! |---|---|
//! | psim | `arrival_s, input_tokens, output_tokens` (more columns are ignored; `prefix_blocks_512` names the prompt's blocks of 512 tokens, `0 14-27`) |
//! | Azure | `TIMESTAMP, ContextTokens, GeneratedTokens` |
//! | BurstGPT | `Timestamp, Model, Request tokens, Response tokens` |
//! | Vidur | `arrived_at, num_prefill_tokens, num_decode_tokens` (without `arrived_at`: lengths only) |
//! | APEX | JSON lines `StartTimeOffset` (ns), `ContextTokens`, `GeneratedTokens` |
//! | Mooncake | JSON lines `timestamp` (ms), `input_length`, `output_length`, `hash_ids` |

use super::shared::SharedPrefixes;
use super::traffic::Request;
use psim_hardware::{Seconds, Time};

/// Tokens of one Mooncake prefix block.
const BLOCK: u32 = 512;

/// A trace, by arrival.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trace {
    /// Requests; without arrival times all arrive at zero.
    pub requests: Vec<Request>,
    /// The file has arrival times.
    pub timed: bool,
    /// Which leading blocks requests share.
    pub prefixes: SharedPrefixes,
}

/// Why a trace cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {message}")]
pub struct TraceError {
    /// File as named by the user.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// Reads a trace; the layout follows from the header or the first object. Times start at the first arrival.
///
/// # Errors
/// A layout that is not known, a missing column, a value that is not a number, an empty file.
pub fn parse_trace(file: &str, text: &str) -> Result<Trace, TraceError> {
    let text = text.trim_start_matches('\u{feff}');
    let fail = |line: usize, message: String| TraceError { file: file.to_owned(), line, message };
    let mut rows: Vec<Row> = Vec::new();
    let said = |l: &str| !l.trim().is_empty() && !l.starts_with('#');
    let mut lines = text.lines().enumerate().filter(|(_, l)| said(l));
    let Some((top, first)) = lines.next() else { return Err(fail(1, "the trace is empty".to_owned())) };
    let timed;
    if first.trim_start().starts_with('{') {
        let mut times = 0;
        for (index, line) in text.lines().enumerate().filter(|(_, l)| said(l)) {
            let (has_time, row) = json_row(line).map_err(|m| fail(index + 1, m))?;
            times += usize::from(has_time);
            rows.push(row);
            if times > 0 && times < rows.len() {
                let message = "neither StartTimeOffset nor timestamp is given, and other requests have one";
                return Err(fail(if has_time { top + 1 } else { index + 1 }, message.to_owned()));
            }
        }
        timed = times > 0;
    } else {
        let columns = Columns::find(first).map_err(|m| fail(top + 1, m))?;
        timed = columns.arrival.is_some();
        for (index, line) in lines {
            rows.push(columns.row(line).map_err(|m| fail(index + 1, m))?);
        }
    }
    if rows.is_empty() {
        return Err(fail(1, "the trace has a header and no requests".to_owned()));
    }
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let start = rows[0].0;
    // Only whole blocks are shared.
    let whole = |row: &mut Row| {
        row.3.truncate((row.1 / BLOCK) as usize);
        std::mem::take(&mut row.3)
    };
    let paths: Vec<Vec<u64>> = rows.iter_mut().map(whole).collect();
    let (prefixes, groups) = SharedPrefixes::of_blocks(&paths, BLOCK);
    let requests = rows.into_iter().zip(groups).zip(&paths);
    let requests = requests.map(|(((time, input, output, _), group), path)| Request {
        arrival: Time::from(Seconds(time - start)),
        input: input.max(1),
        output: output.max(1),
        prefix: path.len() as u32 * BLOCK,
        prefix_group: group,
        ..Request::default()
    });
    Ok(Trace { requests: requests.collect(), timed, prefixes })
}

/// Time in seconds, prompt, answer, identities of the prompt's blocks.
type Row = (f64, u32, u32, Vec<u64>);

struct Columns {
    arrival: Option<usize>,
    input: usize,
    output: usize,
    blocks: Option<usize>,
    /// Seconds per unit of the arrival column; `None`: a date and time.
    unit: Option<f64>,
}

impl Columns {
    fn find(header: &str) -> Result<Self, String> {
        let names: Vec<String> = header.split(',').map(|n| n.trim().to_lowercase()).collect();
        let at = |wanted: &[&str]| names.iter().position(|n| wanted.contains(&n.as_str()));
        let input =
            at(&["input_tokens", "contexttokens", "num_prefill_tokens", "request tokens", "input_length"]);
        let output = at(&[
            "output_tokens",
            "generatedtokens",
            "num_decode_tokens",
            "response tokens",
            "output_length",
        ]);
        let (Some(input), Some(output)) = (input, output) else {
            return Err(format!(
                "the header `{}` is of no known trace layout; columns needed: arrival_s, input_tokens, output_tokens{}",
                header.chars().take(120).collect::<String>(),
                if header.contains([';', '\t']) { ", with commas between them" } else { "" },
            ));
        };
        let seconds = at(&["arrival_s", "arrived_at"]);
        let stamp = at(&["timestamp"]);
        let burst = names.iter().any(|n| n == "request tokens");
        let (arrival, unit) = match (seconds, stamp) {
            (Some(i), _) => (Some(i), Some(1.0)),
            (None, Some(i)) if burst => (Some(i), Some(1.0)),
            (None, Some(i)) => (Some(i), None),
            (None, None) => (None, Some(1.0)),
        };
        Ok(Self { arrival, input, output, blocks: at(&["prefix_blocks_512"]), unit })
    }

    fn row(&self, line: &str) -> Result<Row, String> {
        let cells: Vec<&str> = line.split(',').map(|c| c.trim().trim_matches('"')).collect();
        let cell = |i: usize| cells.get(i).copied().ok_or_else(|| format!("column {} is missing", i + 1));
        let tokens = |i: usize| -> Result<u32, String> {
            let text = cell(i)?;
            let value: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of tokens"))?;
            if (0.0..=f64::from(1 << 24)).contains(&value) {
                Ok(value as u32)
            } else {
                Err(format!("{text} tokens is out of range"))
            }
        };
        let time = match (self.arrival, self.unit) {
            (None, _) => 0.0,
            (Some(i), Some(unit)) => {
                let text = cell(i)?;
                unit * text.parse::<f64>().map_err(|_| format!("`{text}` is not a time in seconds"))?
            }
            (Some(i), None) => date_seconds(cell(i)?)?,
        };
        if !time.is_finite() {
            return Err("the arrival time is not finite".to_owned());
        }
        let blocks = match self.blocks.and_then(|i| cells.get(i)) {
            Some(text) => block_list(text)?,
            None => Vec::new(),
        };
        Ok((time, tokens(self.input)?, tokens(self.output)?, blocks))
    }
}

/// Most blocks of a prompt: those of the longest one that can be read.
const MOST_BLOCKS: u64 = (1 << 24) / BLOCK as u64;

/// Identities of blocks as `0 14-27`: numbers and ranges, both ends included.
fn block_list(text: &str) -> Result<Vec<u64>, String> {
    let mut out = Vec::new();
    for part in text.split([' ', ';']).filter(|part| !part.is_empty()) {
        let number =
            |t: &str| t.parse::<u64>().map_err(|_| format!("`{part}` is no block or range of blocks"));
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if last < first || last - first >= MOST_BLOCKS || out.len() as u64 > MOST_BLOCKS {
            return Err(format!("`{part}` is no range of at most {MOST_BLOCKS} blocks"));
        }
        out.extend(first..=last);
    }
    Ok(out)
}

/// Seconds since 1970 of `2023-11-16 18:15:46.6805900` (Azure), or a plain number.
fn date_seconds(text: &str) -> Result<f64, String> {
    if let Ok(number) = text.parse::<f64>() {
        return Ok(number);
    }
    let bad = || format!("`{text}` is not a date like 2023-11-16 18:15:46.68");
    let (date, clock) = text.split_once([' ', 'T']).ok_or_else(bad)?;
    let whole = |t: &str| t.parse::<i64>().map_err(|_| bad());
    let mut parts = date.splitn(3, '-');
    let mut next = || whole(parts.next().unwrap_or(""));
    let (year, month, day) = (next()?, next()?, next()?);
    let clock = clock.trim_end_matches('Z');
    let clock = clock.split('+').next().unwrap_or(clock);
    let mut parts = clock.splitn(3, ':');
    let (hour, minute) = (whole(parts.next().unwrap_or(""))?, whole(parts.next().unwrap_or(""))?);
    let second: f64 = parts.next().unwrap_or("").parse().map_err(|_| bad())?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) {
        return Err(bad());
    }
    // Days from civil date (Howard Hinnant's algorithm).
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y - era * 400;
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Ok(days as f64 * 86_400.0 + hour as f64 * 3600.0 + minute as f64 * 60.0 + second)
}

/// Whether a time is given, and the row.
fn json_row(line: &str) -> Result<(bool, Row), String> {
    let value: serde_json::Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
    let number = |names: [&str; 2]| names.iter().find_map(|n| value.get(*n)?.as_f64());
    let input =
        number(["ContextTokens", "input_length"]).ok_or("neither ContextTokens nor input_length is given")?;
    let output = number(["GeneratedTokens", "output_length"])
        .ok_or("neither GeneratedTokens nor output_length is given")?;
    let time = match (value.get("StartTimeOffset"), value.get("timestamp")) {
        (Some(ns), _) => Some(ns.as_f64().ok_or("StartTimeOffset is not a number")? * 1e-9),
        (None, Some(ms)) => Some(ms.as_f64().ok_or("timestamp is not a number")? * 1e-3),
        _ => None,
    };
    if !(0.0..=16_777_216.0).contains(&input) || !(0.0..=16_777_216.0).contains(&output) {
        return Err("a length is out of range".to_owned());
    }
    let blocks = match value.get("hash_ids") {
        None => Vec::new(),
        Some(ids) => {
            let list = ids.as_array().ok_or("hash_ids is not a list")?;
            let whole = |id: &serde_json::Value| id.as_u64().ok_or("a hash id is not a whole number");
            list.iter().map(whole).collect::<Result<_, _>>()?
        }
    };
    Ok((time.is_some(), (time.unwrap_or(0.0), input as u32, output as u32, blocks)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(text: &str) -> Vec<(u64, u32, u32)> {
        let trace = parse_trace("t", text).unwrap();
        trace.requests.iter().map(|r| (r.arrival.0 / 1_000_000_000, r.input, r.output)).collect()
    }

    #[test]
    fn every_layout_reads() {
        let expected = vec![(0, 10, 3), (1500, 20, 4)];
        for text in [
            "arrival_s,input_tokens,output_tokens\n2,10,3\n3.5,20,4\n",
            "arrived_at,num_prefill_tokens,num_decode_tokens\n3.5,20,4\n2,10,3\n",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.50,10,3\n2023-11-16 18:15:48.00,20,4\n",
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,m,10,3,13,x\n6.5,m,20,4,24,x\n",
            "{\"StartTimeOffset\":0,\"ContextTokens\":10,\"GeneratedTokens\":3}\n{\"StartTimeOffset\":1500000000,\"ContextTokens\":20,\"GeneratedTokens\":4}\n",
            "{\"timestamp\":100,\"input_length\":10,\"output_length\":3,\"hash_ids\":[4]}\n{\"timestamp\":1600,\"input_length\":20,\"output_length\":4,\"hash_ids\":[4,5]}\n",
        ] {
            assert_eq!(summary(text), expected, "{text}");
        }
    }

    #[test]
    fn requests_share_all_leading_blocks() {
        let json = "{\"timestamp\":0,\"input_length\":1600,\"output_length\":6,\"hash_ids\":[0,1,2,3]}\n\
                    {\"timestamp\":9,\"input_length\":2100,\"output_length\":8,\"hash_ids\":[0,1,2,3,4]}\n\
                    {\"timestamp\":18,\"input_length\":700,\"output_length\":3,\"hash_ids\":[0,9]}\n\
                    {\"timestamp\":19,\"input_length\":500,\"output_length\":3,\"hash_ids\":[0]}\n";
        let csv = "arrival_s,input_tokens,output_tokens,prefix_blocks_512\n0,1600,6,0-3\n0.009,2100,8,0-4\n\
                   0.018,700,3,0 9\n0.019,500,3,0\n";
        for text in [json, csv] {
            let trace = parse_trace("t", text).unwrap();
            // Of whole blocks: three, four, one, none.
            let prefixes: Vec<u32> = trace.requests.iter().map(|r| r.prefix).collect();
            assert_eq!(prefixes, [1536, 2048, 512, 0], "{text}");
            let ends = |i: usize| -> Vec<u32> {
                trace.prefixes.upwards(trace.requests[i].prefix_group).map(|(_, end)| end).collect()
            };
            assert_eq!(
                (ends(0), ends(1), ends(2), ends(3)),
                (vec![1536, 512], vec![2048, 1536, 512], vec![512], vec![])
            );
        }
        for bad in ["3-1", "x", "0-99999999", "1-2-3"] {
            let text = format!("arrival_s,input_tokens,output_tokens,prefix_blocks_512\n0,1600,6,{bad}\n");
            assert_eq!(parse_trace("t", &text).unwrap_err().line, 2, "{bad}");
        }
    }

    #[test]
    fn lines_without_a_time_are_lengths_and_not_a_burst() {
        let line = "{\"input_length\":10,\"output_length\":3}\n";
        let timed = "{\"timestamp\":5,\"input_length\":10,\"output_length\":3}\n";
        assert!(!parse_trace("t", &line.repeat(2)).unwrap().timed);
        assert!(parse_trace("t", &timed.repeat(2)).unwrap().timed);
        assert_eq!(parse_trace("t", &format!("{timed}{line}")).unwrap_err().line, 2);
        assert_eq!(parse_trace("t", &format!("{line}{timed}")).unwrap_err().line, 1);
    }

    #[test]
    fn a_byte_order_mark_and_carriage_returns_do_no_harm() {
        for text in [
            "{\"timestamp\":0,\"input_length\":10,\"output_length\":3}\n",
            "arrival_s,input_tokens,output_tokens\n0,10,3\n",
        ] {
            let odd = format!("\u{feff}{}", text.replace('\n', "\r\n"));
            assert_eq!(summary(&odd), [(0, 10, 3)], "{text}");
        }
    }

    #[test]
    fn dates_cross_midnight_and_months() {
        let day = date_seconds("2024-03-01 00:00:00").unwrap() - date_seconds("2024-02-28 00:00:00").unwrap();
        assert_eq!(day, 2.0 * 86_400.0);
    }

    #[test]
    fn faults_name_the_line() {
        for (text, line) in [
            ("", 1),
            ("a,b\n1,2\n", 1),
            ("arrival_s,input_tokens,output_tokens\n1,2,3\n1,x,3\n", 3),
            ("arrival_s,input_tokens,output_tokens\n1,2\n", 2),
            ("{\"timestamp\":1}\n", 1),
        ] {
            assert_eq!(parse_trace("t", text).unwrap_err().line, line, "{text}");
        }
    }
}
