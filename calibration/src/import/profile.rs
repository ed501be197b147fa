//! From imported measurements to a profile: measured collectives replace what is built in, measured matrix products
//! correct it.
//!
//! Products in a trace are the shapes of one job. They shift the whole table of their format by the median of
//! ln(measured / predicted), and its error becomes their scatter around that: what the job says about the machine,
//! nothing about shapes it did not run.

use super::ImportError;
use crate::measure::point::median;
use psim_cost_models::ProfileLibrary;
use psim_cost_models::gemm::{GemmModel, Rates};
use psim_hardware::profile::AcceleratorProfile;
use psim_hardware::profile::accelerator::{CollectiveCurve, FitQuality, GemmTable, ResidualGrid};
use psim_hardware::{Accelerator, DType, Scaling};
use psim_models::operator::GemmRole;
use serde::Serialize;
use std::collections::BTreeMap;

/// A measured matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GemmSample {
    /// Format.
    pub dtype: DType,
    /// Rows.
    pub m: f64,
    /// Columns.
    pub n: f64,
    /// Reduction length.
    pub k: f64,
    /// Products in the call.
    pub batch: f64,
    /// Seconds of the call.
    pub seconds: f64,
}

/// A measured collective.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CollectiveSample {
    /// Profile name (`all-reduce`).
    pub operation: String,
    /// Ranks.
    pub ranks: u32,
    /// nccl-tests size.
    pub bytes: u64,
    /// Seconds, waiting for late ranks included.
    pub seconds: f64,
}

/// A profile made from imported data.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Profile.
    pub profile: AcceleratorProfile,
    /// What was learned, line by line.
    pub changes: Vec<String>,
}

/// Fewest products that say something about a format.
const FEWEST: usize = 3;
/// Products below this many flops are mostly launch.
const SMALLEST: f64 = 1e8;

/// Curves of collectives: the fastest of equal calls, because the others also waited for late ranks; never falling.
pub fn curves(samples: &[CollectiveSample]) -> Vec<CollectiveCurve> {
    let mut groups: BTreeMap<(String, u32), BTreeMap<u64, f64>> = BTreeMap::new();
    for s in samples {
        let best = groups.entry((s.operation.clone(), s.ranks)).or_default();
        let best = best.entry(s.bytes).or_insert(f64::INFINITY);
        *best = best.min(s.seconds);
    }
    groups
        .into_iter()
        .map(|((operation, ranks), points)| {
            let mut longest = 0.0_f64;
            let time_us = points
                .values()
                .map(|&t| {
                    longest = longest.max(t * 1e6);
                    longest
                })
                .collect();
            CollectiveCurve {
                operation,
                ranks,
                in_switch: false,
                bytes: points.keys().map(|&b| b as f64).collect(),
                time_us,
                fit: FitQuality { points: points.len() as u32, sigma: 0.1 },
            }
        })
        .collect()
}

/// The profile of an accelerator with what was measured in it.
///
/// # Errors
/// When nothing of the data says anything about the profile.
pub fn correct(
    accelerator: &Accelerator,
    gemms: &[GemmSample],
    collectives: Vec<CollectiveCurve>,
    source: &str,
) -> Result<Imported, ImportError> {
    let found = ProfileLibrary::built_in().accelerator(accelerator);
    let mut profile = (*found.profile).clone();
    profile.accelerator.clone_from(&accelerator.name);
    profile.source = format!("{source}, over the built-in profile ({})", profile.source);
    let mut changes = Vec::new();
    let mut by_format: BTreeMap<DType, Vec<&GemmSample>> = BTreeMap::new();
    for sample in gemms.iter().filter(|s| 2.0 * s.m * s.n * s.k * s.batch >= SMALLEST) {
        by_format.entry(sample.dtype).or_default().push(sample);
    }
    let units = profile.units.or(accelerator.sm_count).map_or(1.0, f64::from);
    for (dtype, samples) in by_format {
        let table = profile.gemm.iter_mut().find(|t| t.dtype == dtype && t.scaling == Scaling::None);
        let (Some(table), Some(peak)) = (table, accelerator.peak(dtype)) else {
            changes
                .push(format!("{} products in {dtype} are not used: no table of that format", samples.len()));
            continue;
        };
        if samples.len() < FEWEST {
            changes.push(format!("{} products in {dtype} are too few to learn from", samples.len()));
            continue;
        }
        let rates = Rates { peak: peak.0, bandwidth: accelerator.memory_bandwidth.0, units };
        changes.push(shift(table, rates, &samples));
    }
    for curve in collectives {
        let same = |c: &CollectiveCurve| {
            c.operation == curve.operation && c.ranks == curve.ranks && c.in_switch == curve.in_switch
        };
        changes.push(format!("{} over {} ranks: {} sizes", curve.operation, curve.ranks, curve.bytes.len()));
        profile.collectives.retain(|c| !same(c));
        profile.collectives.push(curve);
    }
    if changes.iter().all(|c| c.contains("not used") || c.contains("too few")) {
        let reason = if changes.is_empty() {
            "no matrix product with its shape (profile with record_shapes=True), no collective with its size"
                .to_owned()
        } else {
            changes.join("; ")
        };
        return Err(ImportError::Kind { expected: "measurements that a profile can hold", reason });
    }
    Ok(Imported { profile, changes })
}

/// Shifts a table by what the products say; returns what was learned.
fn shift(table: &mut GemmTable, rates: Rates, samples: &[&GemmSample]) -> String {
    let model = GemmModel::new(table);
    let errors: Vec<f64> = samples
        .iter()
        .map(|s| {
            let bytes = table.dtype.size() * s.batch * (s.m * s.k + s.n * s.k + s.m * s.n);
            let (predicted, _) = model.seconds(rates, [s.m, s.n, s.k], s.batch, bytes, GemmRole::Forward);
            (s.seconds / predicted).ln()
        })
        .collect();
    let middle = median(&errors);
    let scatter: Vec<f64> = errors.iter().map(|e| (e - middle).abs()).collect();
    let centinats = (middle * 100.0).round().clamp(-300.0, 300.0) as i16;
    match &mut table.residual {
        Some(grid) => grid.centinats.iter_mut().for_each(|c| *c = c.saturating_add(centinats)),
        None => {
            table.residual = Some(ResidualGrid { axes: vec![vec![4096.0]; 3], centinats: vec![centinats] });
        }
    }
    table.fit = FitQuality { points: samples.len() as u32, sigma: (1.4826 * median(&scatter)).max(0.01) };
    format!(
        "{} products in {}: {:+.1} % against the built-in table, scatter {:.1} %",
        samples.len(),
        table.dtype,
        (middle.exp() - 1.0) * 100.0,
        table.fit.sigma * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_hardware::catalogue;

    #[test]
    fn a_slower_machine_is_learned() {
        let part = catalogue::accelerator("h100").unwrap();
        let library = ProfileLibrary::built_in();
        let found = library.accelerator(part);
        let table = found.profile.gemm.iter().find(|t| t.dtype == DType::Bf16).unwrap();
        let units = found.profile.units.or(part.sm_count).map_or(1.0, f64::from);
        let rates =
            Rates { peak: part.peak(DType::Bf16).unwrap().0, bandwidth: part.memory_bandwidth.0, units };
        let measured = |table: &GemmTable, m: f64| {
            let bytes = 2.0 * (m * 4096.0 + 4096.0 * 4096.0 + m * 4096.0);
            GemmModel::new(table).seconds(rates, [m, 4096.0, 4096.0], 1.0, bytes, GemmRole::Forward).0
        };
        let samples: Vec<GemmSample> = [512.0, 1024.0, 4096.0, 8192.0]
            .into_iter()
            .map(|m| GemmSample {
                dtype: DType::Bf16,
                m,
                n: 4096.0,
                k: 4096.0,
                batch: 1.0,
                seconds: 1.2 * measured(table, m),
            })
            .collect();
        let imported = correct(part, &samples, Vec::new(), "a test").unwrap();
        let after = imported.profile.gemm.iter().find(|t| t.dtype == DType::Bf16).unwrap();
        for s in &samples {
            let error = measured(after, s.m) / s.seconds;
            assert!((error - 1.0).abs() < 0.02, "{error}");
        }
        assert!(correct(part, &samples[..2], Vec::new(), "a test").is_err());
    }

    #[test]
    fn late_ranks_do_not_count() {
        let sample = |bytes, seconds| CollectiveSample {
            operation: "all-reduce".to_owned(),
            ranks: 8,
            bytes,
            seconds,
        };
        let curves = curves(&[sample(1024, 5e-5), sample(1024, 1e-5), sample(4096, 9e-6)]);
        assert_eq!(curves.len(), 1);
        assert_eq!(curves[0].time_us.len(), 2);
        assert!((curves[0].time_us[0] - 10.0).abs() < 1e-9 && curves[0].time_us[1] >= curves[0].time_us[0]);
    }
}
