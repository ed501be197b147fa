//! Reading the measured tables (CSV, some gzipped) into typed rows.

pub mod datasheet;
pub mod kernels;
pub mod network;

use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// Why a table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file is missing or unreadable.
    #[error(
        "cannot read {path}: {source}\nhint: give the folder that holds gemm.csv.gz, collectives.csv and so on"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A row does not have the expected columns or types.
    #[error("{path}: {source}")]
    Row {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: csv::Error,
    },
}

/// Reads every row of `folder/name` (`.gz` files are unpacked).
pub fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Vec<T>, TableError> {
    let path = folder.join(name);
    let file = File::open(&path).map_err(|source| TableError::Open { path: path.clone(), source })?;
    let plain: Box<dyn Read> = if name.ends_with(".gz") {
        Box::new(flate2::read::GzDecoder::new(BufReader::new(file)))
    } else {
        Box::new(BufReader::new(file))
    };
    csv::Reader::from_reader(plain)
        .into_deserialize()
        .collect::<Result<Vec<T>, _>>()
        .map_err(|source| TableError::Row { path, source })
}
