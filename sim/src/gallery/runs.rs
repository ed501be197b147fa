//! What a scenario of runs measures: one figure, a ratio of two, or the order of several.
//!
//! ```toml
//! measure = "ratio"            # or "value": the first run's figure alone, or "order"
//! metric = "requests_per_s"    # what the kind of run offers
//! [base]                       # what all runs share
//! [[run]]                      # the technique
//! [[run]]                      # what it is compared with
//! ```

use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Measure {
    /// First run over second.
    Ratio,
    /// First run.
    Value,
    /// Share of neighbouring runs of which the first has the higher figure: 1 where the order is right.
    Order,
}

/// Reads the runs of a file, takes the figure of each and compares them.
///
/// # Errors
/// What is wrong with the file, or why a run is impossible.
pub(super) fn compare<R: DeserializeOwned>(
    file: &toml::Table,
    figure: impl Fn(&R, &str) -> Result<f64, String>,
) -> Result<f64, String> {
    let get = |key: &str| file.get(key).cloned().ok_or_else(|| format!("`{key}` is missing"));
    let measure: Measure = get("measure")?.try_into().map_err(|e| format!("measure: {e}"))?;
    let metric: String = get("metric")?.try_into().map_err(|e| format!("metric: {e}"))?;
    let base = match file.get("base") {
        Some(toml::Value::Table(t)) => t.clone(),
        _ => toml::Table::new(),
    };
    let runs: Vec<toml::Table> = get("run")?.try_into().map_err(|e| format!("run: {e}"))?;
    let wanted = match measure {
        Measure::Ratio => 2,
        Measure::Value => 1,
        Measure::Order => runs.len().max(2),
    };
    if runs.len() != wanted {
        return Err(format!("{} [[run]] tables where {wanted} are needed", runs.len()));
    }
    let mut figures = Vec::new();
    for (index, own) in runs.into_iter().enumerate() {
        let mut table = base.clone();
        merge(&mut table, own);
        let run: R = table.try_into().map_err(|e| format!("run {}: {e}", index + 1))?;
        figures.push(figure(&run, &metric).map_err(|e| format!("run {}: {e}", index + 1))?);
    }
    if measure == Measure::Order {
        let right = figures.windows(2).filter(|pair| pair[0] > pair[1]).count();
        return Ok(right as f64 / (figures.len() - 1) as f64);
    }
    Ok(match figures[..] {
        [a, b] => a / b,
        _ => figures[0],
    })
}

/// Entries of `own` replace those of `table`; tables are merged.
fn merge(table: &mut toml::Table, own: toml::Table) {
    for (key, value) in own {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(shared)), toml::Value::Table(inner)) => merge(shared, inner),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}
