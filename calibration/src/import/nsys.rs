//! Nsight Systems exports (`nsys export --type sqlite`): kernels by name and kind, and where the time of a device went.

use super::ImportError;
use super::kineto::{KernelRun, Trace, kind, summarise};
use super::sqlite::Database;
use std::collections::BTreeMap;

/// Reads an export.
///
/// # Errors
/// When it is no SQLite file, is damaged, or has no GPU kernels.
pub fn parse(bytes: &[u8]) -> Result<Trace, ImportError> {
    let refuse =
        |reason: String| ImportError::Kind { expected: "an Nsight Systems export with GPU kernels", reason };
    let database = Database::open(bytes)?;
    let Some(kernels) = database.rows("CUPTI_ACTIVITY_KIND_KERNEL")? else {
        return Err(refuse(
            "it has no table CUPTI_ACTIVITY_KIND_KERNEL (profile with `--trace=cuda`)".to_owned(),
        ));
    };
    let column = |name: &str| {
        kernels.column(name).ok_or_else(|| refuse(format!("its kernels have no column `{name}`")))
    };
    let (start, end) = (column("start")?, column("end")?);
    let name = kernels.column("demangledName").or_else(|| kernels.column("shortName"));
    let name = name.ok_or_else(|| refuse("its kernels have no names".to_owned()))?;
    let device = kernels.column("deviceId");
    let strings: BTreeMap<i64, String> = match database.rows("StringIds")? {
        None => BTreeMap::new(),
        Some(rows) => {
            let (id, value) = (rows.column("id").unwrap_or(0), rows.column("value").unwrap_or(1));
            rows.rows
                .iter()
                .filter_map(|row| Some((row.get(id)?.integer()?, row.get(value)?.text()?.to_owned())))
                .collect()
        }
    };
    // Of several devices the first is read: times of different devices do not add up.
    let number = |row: &[super::sqlite::Value]| device.and_then(|d| row.get(d)?.integer()).unwrap_or(0);
    let first = kernels.rows.iter().map(|r| number(r)).min().unwrap_or(0);
    let mut runs = Vec::with_capacity(kernels.rows.len());
    for row in kernels.rows.iter().filter(|r| number(r) == first) {
        let at = |column: usize| row.get(column).and_then(super::sqlite::Value::number);
        let times = at(start).zip(at(end)).filter(|(s, e)| s.is_finite() && e >= s);
        let Some((begin, finish)) = times else {
            return Err(refuse("a kernel has no valid start and end".to_owned()));
        };
        let name = match row.get(name) {
            Some(super::sqlite::Value::Text(text)) => text.clone(),
            Some(value) => value
                .integer()
                .and_then(|id| strings.get(&id).cloned())
                .unwrap_or_else(|| "unnamed kernel".to_owned()),
            None => "unnamed kernel".to_owned(),
        };
        // Nanoseconds.
        runs.push(KernelRun { start_us: begin * 1e-3, duration_us: (finish - begin) * 1e-3, name });
    }
    if runs.is_empty() {
        return Err(refuse("its table of kernels is empty".to_owned()));
    }
    let mut trace = summarise(&runs);
    trace.device = database.rows("TARGET_INFO_GPU")?.and_then(|rows| {
        let column = rows.column("name")?;
        Some(rows.rows.first()?.get(column)?.text()?.to_owned())
    });
    trace.kernels.iter_mut().for_each(|k| k.kind = kind(&k.name));
    Ok(trace)
}
