//! Fits the laws of serving kernels and thins all-reduce curves from the measured tables.
//!
//! Command: `fit-serving MEASURED OUT` writes `OUT/kernels/*.toml`, the files embedded by `psim-cost-models`. The result
//! depends on the tables only: same input, same bytes.

pub mod kernels;
mod residual;
pub mod simplex;
mod table;

use psim_cost_models::serving::tables::ServingTables;
use std::path::Path;

/// Why fitting stopped.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// A table cannot be read.
    #[error("{file}: {cause}")]
    Table {
        /// File.
        file: String,
        /// What went wrong.
        cause: String,
    },
    /// The result cannot be written.
    #[error("{0}")]
    Write(String),
}

/// Median absolute error of one fitted law, for the report.
#[derive(Debug, Clone, PartialEq)]
pub struct FitLine {
    /// Accelerator, kernel, library and format.
    pub what: String,
    /// Rows.
    pub rows: usize,
    /// Median absolute error, percent.
    pub median: f64,
    /// 90th percentile of the absolute error, percent.
    pub p90: f64,
}

/// Fits everything in a folder of measured tables.
///
/// # Errors
/// Tables that are missing or malformed.
pub fn fit(measured: &Path) -> Result<(Vec<ServingTables>, Vec<FitLine>), FitError> {
    let attention = table::attention(&measured.join("attention.csv.gz"))?;
    let experts = table::experts(&measured.join("moe.csv.gz"))?;
    let products = table::products(&measured.join("gemm.csv.gz"))?;
    let reduces = table::reduces(&measured.join("collectives.csv"))?;
    let mut lines = Vec::new();
    let mut file = Vec::new();
    for accelerator in psim_hardware::catalogue::accelerators() {
        let name = accelerator.name.as_str();
        let mut out = ServingTables { accelerator: name.to_owned(), ..ServingTables::default() };
        out.decode = kernels::decode(accelerator, &attention, &mut lines);
        out.prompt = kernels::prompt(accelerator, &attention, &mut lines);
        out.moe = kernels::moe(accelerator, &experts, &mut lines);
        out.weight_only = kernels::weight_only(accelerator, &products, &mut lines);
        out.all_reduce = kernels::all_reduce(name, &reduces);
        let empty = ServingTables { accelerator: name.to_owned(), ..ServingTables::default() };
        if out != empty {
            file.push(out);
        }
    }
    Ok((file, lines))
}
