//! `--workload` of serving: a file, or the name of a built-in workload; traces it names lie beside it.

use crate::Host;
use crate::failure::Failure;
use crate::files::{read_bytes, read_text};
use psim_hardware::source_error::MAX_FILE_BYTES;
use psim_models::serving::workload::parse_workload;
use psim_models::serving::{ServingWorkload, builtin};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest trace that is read, unpacked.
const MAX_TRACE_BYTES: usize = 512 << 20;

/// Text of a workload: the file of that name if there is one, else the built-in one.
fn text_of(host: &Host<'_>, path: &Path) -> Result<String, Failure> {
    if !host.path(path).exists() {
        let name = path.to_str().filter(|_| path.components().count() == 1).unwrap_or("");
        if let Some(text) = builtin::workload(name) {
            return Ok(text.to_owned());
        }
        let known: Vec<&str> = builtin::names().map(|(n, _)| n).collect();
        let hint = match builtin::suggestion(name) {
            Some(near) => format!("did you mean `{near}`? `psim show workloads` lists the built-in ones"),
            None => format!("check the path; built-in workloads: {}", known.join(", ")),
        };
        return Err(Failure::input(
            format!("there is no file `{}` and no built-in workload of that name", path.display()),
            hint,
        ));
    }
    read_text(host, path, "workload", MAX_FILE_BYTES)
}

/// Whether a workload describes requests (`[[tenant]]`) and not training.
pub(crate) fn is_serving(host: &Host<'_>, path: Option<&Path>) -> Result<bool, Failure> {
    let Some(path) = path else { return Ok(false) };
    let text = text_of(host, path)?;
    Ok(match toml::from_str::<toml::Table>(&text) {
        Ok(table) => table.contains_key("tenant") || table.contains_key("tenants"),
        // A file that does not parse is refused by whichever reader its words suggest.
        Err(_) => text.contains("tenant") || text.contains("arrival"),
    })
}

/// Reads a serving workload with the traces that it names.
pub(crate) fn load(host: &Host<'_>, path: &Path) -> Result<ServingWorkload, Failure> {
    let text = text_of(host, path)?;
    let shown = path.display().to_string();
    let beside = path.parent().map(Path::to_path_buf).unwrap_or_default();
    Ok(parse_workload(&shown, &text, &mut |name| trace_text(host, &beside, name))?)
}

/// Text of a trace: beside the workload, else built in; `.gz` is unpacked.
fn trace_text(host: &Host<'_>, beside: &Path, name: &str) -> Result<String, String> {
    let path: PathBuf = beside.join(name);
    if !host.path(&path).is_file() {
        if let Some(text) = builtin::data(name) {
            return Ok(text.to_owned());
        }
        return Err("there is no such file beside the workload, and none of that name is built in".to_owned());
    }
    let mut bytes = read_bytes(host, &path, MAX_TRACE_BYTES).map_err(|e| e.to_string())?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(bytes.as_slice())
            .take(MAX_TRACE_BYTES as u64 + 1)
            .read_to_end(&mut unpacked)
            .map_err(|e| format!("it is not a whole gzip file ({e})"))?;
        if unpacked.len() > MAX_TRACE_BYTES {
            return Err(format!("it is longer than {MAX_TRACE_BYTES} bytes unpacked"));
        }
        bytes = unpacked;
    }
    String::from_utf8(bytes).map_err(|e| format!("byte {} is not UTF-8 text", e.utf8_error().valid_up_to()))
}
