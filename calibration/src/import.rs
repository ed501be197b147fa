//! Importers: calibrate from what people already have.
//!
//! Built: nccl-tests logs ([`nccl`]), Kineto traces of PyTorch's profiler ([`kineto`]), Nsight Systems exports ([`nsys`]),
//! and a folder of CSV tables like those that the built-in profiles are fitted to ([`tables`]). [`profile`] turns them
//! into profiles. A file that does not hold what it should is refused with the reason, never read halfway.

pub mod kineto;
pub mod nccl;
pub mod nsys;
pub mod profile;
pub mod sqlite;
pub mod tables;

/// Why a file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The text or JSON is not of the expected kind.
    #[error("not {expected}: {reason}")]
    Kind {
        /// What was expected.
        expected: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// A line contradicts itself or reports a failure.
    #[error("line {line}: {reason}")]
    Line {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// The bytes, unpacked if they are gzip.
///
/// # Errors
/// When the gzip stream is broken.
pub fn unpack(bytes: &[u8]) -> Result<Vec<u8>, ImportError> {
    use std::io::Read;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes.to_vec());
    }
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(bytes)
        .read_to_end(&mut out)
        .map_err(|e| ImportError::Kind { expected: "a gzip file", reason: e.to_string() })?;
    Ok(out)
}
