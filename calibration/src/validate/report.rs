//! The result of a validation: JSON for programs, a table for people.

use super::contradictions::{self, Contradiction};
use super::score::{RowResult, Status, Summary, summarise};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Version of the JSON keys.
pub const SCHEMA: u32 = 1;

/// All rows and their scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Rows in the order of the file.
    pub rows: Vec<RowResult>,
    /// Score of all rows that are not weak.
    pub all: Summary,
    /// The same per source.
    pub sources: BTreeMap<String, Summary>,
    /// Score of the weak rows (ratios only: their absolute errors say little).
    pub weak: Summary,
}

impl Report {
    /// Scores predicted rows.
    pub fn new(rows: Vec<RowResult>) -> Self {
        let strong = || rows.iter().filter(|r| !r.weak);
        let all = summarise(strong());
        let mut names: Vec<&str> = strong().map(|r| r.source.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let sources = names
            .iter()
            .map(|name| ((*name).to_owned(), summarise(strong().filter(|r| r.source == *name))))
            .collect();
        let weak = summarise(rows.iter().filter(|r| r.weak));
        Self { rows, all, sources, weak }
    }

    /// Figures of one source that exclude each other.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        contradictions::find(&self.rows)
    }

    /// The documented JSON: `{schema, units, rows, summary: {all, sources, weak}}`.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().flat_map(row_json).collect();
        let sources: Map<String, Value> =
            self.sources.iter().map(|(name, s)| (name.clone(), json!(s))).collect();
        json!({
            "schema": SCHEMA,
            "units": "metrics in the row's own units and convention; errors, bias, regret, interval coverage and width in percent; peak_mem_gb in GiB",
            "rows": rows,
            "summary": { "all": self.all, "sources": sources, "weak": self.weak },
        })
    }

    /// A table per source and in all.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let head = "source               rows  covered  median    p90    bias    tau  regret max  fits oom wrong  mem med  in 80 %  width";
        let _ = writeln!(out, "{head}\n{}", "-".repeat(head.chars().count()));
        for (name, summary) in &self.sources {
            let _ = writeln!(out, "{}", line(name, summary));
        }
        let _ = writeln!(out, "{}", line("all", &self.all));
        if self.weak.rows > 0 {
            let _ = writeln!(out, "{}", line("weak rows", &self.weak));
        }
        let percent = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.2} %"));
        let _ = writeln!(
            out,
            "\nmacro median (mean over sources of the source's median): {}   coverage: {}",
            percent(self.all.macro_median_ape),
            percent((self.all.rows > 0).then(|| 100.0 * self.all.covered as f64 / self.all.rows as f64)),
        );
        out
    }

    /// Rows that were not predicted, with the reason.
    pub fn refused(&self) -> impl Iterator<Item = (&RowResult, &str)> {
        self.rows.iter().filter_map(|r| match &r.status {
            Status::Predicted => None,
            Status::Unsupported(why) | Status::Incomplete(why) => Some((r, why.as_str())),
        })
    }
}

fn line(name: &str, s: &Summary) -> String {
    let percent = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.1}"));
    let tau = s.ranking.kendall_tau.map_or("-".to_owned(), |v| format!("{v:.2}"));
    format!(
        "{name:<20} {:>4} {:>8} {:>7} {:>6} {:>7} {tau:>6} {:>7} {:>4} {:>4} {:>3} {:>5} {:>8} {:>8} {:>6}",
        s.rows,
        s.covered,
        percent(s.median_ape),
        percent(s.p90_ape),
        percent(s.bias),
        percent(s.ranking.mean_regret),
        percent(s.ranking.max_regret),
        s.memory.fits_right,
        s.memory.oom_right,
        s.memory.wrong,
        percent(s.memory.median_ape),
        percent(s.interval.coverage),
        percent(s.interval.mean_width),
    )
}

fn row_json(row: &RowResult) -> Vec<Value> {
    let (status, reason) = match &row.status {
        Status::Predicted => ("predicted", None),
        Status::Unsupported(why) => ("unsupported", Some(why)),
        Status::Incomplete(why) => ("incomplete", Some(why)),
    };
    let base = |metric: &str| {
        let mut map = Map::new();
        map.insert("id".to_owned(), json!(row.id));
        map.insert("source".to_owned(), json!(row.source));
        map.insert("metric".to_owned(), json!(metric));
        map.insert("status".to_owned(), json!(status));
        map.insert("weak".to_owned(), json!(row.weak));
        if let Some(reason) = reason {
            map.insert("reason".to_owned(), json!(reason));
        }
        map
    };
    let mut lines = Vec::new();
    for entry in &row.entries {
        let mut map = base(entry.metric);
        map.insert("measured".to_owned(), json!(entry.measured));
        let [value, low, high] = entry.predicted.map_or([None; 3], |p| p.map(Some));
        map.insert("predicted".to_owned(), json!(value));
        map.insert("low".to_owned(), json!(low));
        map.insert("high".to_owned(), json!(high));
        map.insert("ape".to_owned(), json!(entry.ape()));
        lines.push(Value::Object(map));
    }
    let mut map = base("fits");
    map.insert("measured".to_owned(), json!(row.ran));
    map.insert("predicted".to_owned(), json!(row.fits));
    for key in ["low", "high", "ape"] {
        map.insert(key.to_owned(), Value::Null);
    }
    map.insert("stack".to_owned(), json!(row.stack));
    map.insert("notes".to_owned(), json!(row.notes));
    lines.push(Value::Object(map));
    lines
}
