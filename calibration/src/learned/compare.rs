//! Law and interpolation against forests on shapes that neither has seen.

use super::forest::{Forest, Growth};
use super::kriging::Kriging;
use crate::fit::gemm::{self, Sample};
use crate::fit::{held_out, quantile};
use crate::measure::fit::GemmTrial;
use crate::measure::{MeasureError, Record};
use crate::tables::kernels::GemmRow;
use psim_cost_models::gemm::Rates;
use psim_hardware::profile::accelerator::ResidualModel;
use psim_hardware::{DType, catalogue};
use std::collections::BTreeMap;

/// Relative errors of one predictor.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Errors {
    /// Mean of |predicted / measured − 1|.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
}

impl Errors {
    fn new(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        let errors: Vec<f64> =
            pairs.map(|(predicted, measured)| (predicted / measured - 1.0).abs()).collect();
        Self {
            mean: errors.iter().sum::<f64>() / errors.len().max(1) as f64,
            median: quantile(&errors, 0.5),
            p90: quantile(&errors, 0.9),
        }
    }
}

/// One table: points learned from and left out, and the errors on the latter.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Machine and quantity.
    pub table: String,
    /// Points learned from.
    pub known: usize,
    /// Points left out.
    pub held: usize,
    /// Law and interpolation, as profiles use them.
    pub interpolation: Errors,
    /// Kriging of what the law leaves over.
    pub kriging: Errors,
    /// A forest of the logarithm of the quantity.
    pub forest: Errors,
    /// A forest of what the law leaves over.
    pub forest_on_law: Errors,
}

impl Comparison {
    /// What is smooth and best: interpolation or kriging.
    fn smooth(&self) -> Errors {
        if self.kriging.mean < self.interpolation.mean { self.kriging } else { self.interpolation }
    }

    /// A forest's mean and median are both better by a tenth at least than what is smooth: less is not worth its steps.
    pub fn forest_wins(&self) -> bool {
        let smooth = self.smooth();
        let wins = |f: &Errors| f.mean < 0.9 * smooth.mean && f.median < 0.9 * smooth.median;
        wins(&self.forest) || wins(&self.forest_on_law)
    }
}

/// What a forest sees of a product: sizes, work, traffic, tiles, all as logarithms.
fn features(m: f64, n: f64, k: f64) -> [f64; 7] {
    let bytes = m * k + n * k + m * n;
    let tiles = (m / 128.0).ceil() * (n / 128.0).ceil();
    [m, n, k, m * n * k, bytes, m * n * k / bytes, tiles].map(f64::log2)
}

/// Times of 16-bit products of one accelerator; one shape in five (of the weights: all row counts of it) is left out.
fn times(gpu: &str, rows: &[&GemmRow]) -> Option<Comparison> {
    let part = catalogue::accelerator(gpu).ok()?;
    let dtype = DType::Bf16;
    let rates = Rates {
        peak: part.peak(dtype).or(part.peak(DType::Fp16))?.0,
        bandwidth: part.memory_bandwidth.0,
        units: f64::from(part.sm_count.unwrap_or(128)),
    };
    let samples: Vec<Sample> = rows
        .iter()
        .map(|r| Sample {
            m: r.m,
            n: r.n,
            k: r.k,
            seconds: r.time_us * 1e-6,
            weight: gemm::importance(r.m, r.n, r.k),
        })
        .collect();
    let (held, known): (Vec<Sample>, Vec<Sample>) = samples.iter().partition(|s| held_out(&[s.n, s.k]));
    if held.len() < 20 || known.len() < 80 {
        return None;
    }
    let trial = gemm::Trial::new(&known, rates, dtype);
    let plain: Vec<_> = known.iter().map(|s| (features(s.m, s.n, s.k), s.seconds.ln())).collect();
    let over: Vec<_> =
        known.iter().map(|s| (features(s.m, s.n, s.k), (s.seconds / trial.law_seconds(s)).ln())).collect();
    let (plain, over) = (Forest::grow(&plain, Growth::usual(7)), Forest::grow(&over, Growth::usual(7)));
    let at = |s: &Sample| [s.m, s.n, s.k].map(f64::log2);
    let rest: Vec<_> = known.iter().map(|s| (at(s), (s.seconds / trial.law_seconds(s)).ln())).collect();
    let kriging = Kriging::fit(&rest);
    let errors = |predict: &dyn Fn(&Sample) -> f64| Errors::new(held.iter().map(|s| (predict(s), s.seconds)));
    Some(Comparison {
        table: format!("{gpu} time of 16-bit products"),
        known: known.len(),
        held: held.len(),
        interpolation: errors(&|s| trial.seconds(s)),
        kriging: errors(&|s| trial.law_seconds(s) * kriging.at(at(s)).exp()),
        forest: errors(&|s| plain.at(&features(s.m, s.n, s.k)).exp()),
        forest_on_law: errors(&|s| trial.law_seconds(s) * over.at(&features(s.m, s.n, s.k)).exp()),
    })
}

/// Mean of known logarithms by inverse squared distance in doublings.
fn nearest(known: &[([f64; 3], f64)], at: [f64; 3]) -> f64 {
    let (mut sum, mut weight) = (0.0, 0.0);
    for (point, value) in known {
        let distance: f64 = point.iter().zip(at).map(|(a, b)| (a / b).log2().powi(2)).sum();
        let w = (distance + 1e-3).powi(-2);
        sum += w * value;
        weight += w;
    }
    if weight > 0.0 { sum / weight } else { 0.0 }
}

/// Power of products of one accelerator and format; there is no law of it, so that both forests are the same.
fn power(table: String, rows: &[&GemmRow]) -> Option<Comparison> {
    let samples: Vec<([f64; 3], f64)> =
        rows.iter().filter_map(|r| Some(([r.m, r.n, r.k], r.power_w.filter(|p| *p > 0.0)?))).collect();
    let (held, known): (Vec<_>, Vec<_>) = samples.into_iter().partition(|(s, _)| held_out(&[s[1], s[2]]));
    if held.len() < 20 || known.len() < 80 {
        return None;
    }
    let logs: Vec<_> = known.iter().map(|(s, p)| (*s, p.ln())).collect();
    let forest = Forest::grow(
        &known.iter().map(|([m, n, k], p)| (features(*m, *n, *k), p.ln())).collect::<Vec<_>>(),
        Growth::usual(7),
    );
    let errors = |predict: &dyn Fn([f64; 3]) -> f64| Errors::new(held.iter().map(|(s, p)| (predict(*s), *p)));
    let kriged = Kriging::fit(&logs.iter().map(|(s, p)| (s.map(f64::log2), *p)).collect::<Vec<_>>());
    let grown = errors(&|[m, n, k]| forest.at(&features(m, n, k)).exp());
    Some(Comparison {
        table,
        known: known.len(),
        held: held.len(),
        interpolation: errors(&|s| nearest(&logs, s).exp()),
        kriging: errors(&|s| kriged.at(s.map(f64::log2)).exp()),
        forest: grown,
        forest_on_law: grown,
    })
}

/// Every accelerator with enough rows: times of 16-bit products, and power where it was sampled.
pub fn measured_tables(rows: &[GemmRow]) -> Vec<Comparison> {
    let mut machines: BTreeMap<&str, Vec<&GemmRow>> = BTreeMap::new();
    let mut sampled: BTreeMap<(&str, &str), Vec<&GemmRow>> = BTreeMap::new();
    for row in rows {
        if matches!(row.dtype.as_str(), "bf16" | "fp16") {
            machines.entry(&row.gpu).or_default().push(row);
        }
        if row.power_w.is_some() {
            sampled.entry((&row.gpu, &row.dtype)).or_default().push(row);
        }
    }
    let times = machines.into_iter().filter_map(|(gpu, rows)| {
        // One library per comparison: two of them on the same shape are no error of a predictor.
        let mut sources: BTreeMap<(&str, &str), Vec<&GemmRow>> = BTreeMap::new();
        rows.into_iter().for_each(|r| sources.entry((&r.source, &r.kernel)).or_default().push(r));
        let largest = sources.into_values().max_by_key(Vec::len)?;
        times(gpu, &largest)
    });
    let power = sampled
        .into_iter()
        .filter_map(|((gpu, dtype), rows)| power(format!("{gpu} power of {dtype} products"), &rows));
    times.chain(power).collect()
}

/// A shape and its seconds.
type Timed = ([f64; 3], f64);

/// Products of a calibration of a processor, every point left out once in five groups.
///
/// # Errors
/// When the samples hold no products.
pub fn calibration(records: &[Record]) -> Result<Comparison, MeasureError> {
    const GROUPS: usize = 5;
    let all = crate::measure::fit::gemm_shapes(records);
    if all.len() < 2 * GROUPS {
        return Err(MeasureError::Empty("matrix products"));
    }
    let mut pairs: [Vec<(f64, f64)>; 4] = Default::default();
    for group in 0..GROUPS {
        let part = |held: bool| -> Vec<Timed> {
            all.iter().enumerate().filter(|(i, _)| (i % GROUPS == group) == held).map(|(_, s)| *s).collect()
        };
        let (known, held) = (part(false), part(true));
        let trial = GemmTrial::new(&known, ResidualModel::Interpolation);
        let kriging = GemmTrial::new(&known, ResidualModel::Kriging);
        let grow = |target: &dyn Fn(&Timed) -> f64| {
            let rows: Vec<_> = known.iter().map(|s| (features(s.0[0], s.0[1], s.0[2]), target(s))).collect();
            Forest::grow(&rows, Growth::usual(7))
        };
        let plain = grow(&|s| s.1.ln());
        let over = grow(&|s| (s.1 / trial.law_seconds(s.0)).ln());
        for (shape, time) in held {
            let at = features(shape[0], shape[1], shape[2]);
            pairs[0].push((trial.seconds(shape), time));
            pairs[1].push((plain.at(&at).exp(), time));
            pairs[3].push((kriging.seconds(shape), time));
            pairs[2].push((trial.law_seconds(shape) * over.at(&at).exp(), time));
        }
    }
    let [interpolation, forest, forest_on_law, kriging] = pairs.map(|p| Errors::new(p.into_iter()));
    let table = "this calibration, time of products".to_owned();
    Ok(Comparison {
        table,
        known: all.len() - all.len() / GROUPS,
        held: all.len(),
        interpolation,
        kriging,
        forest,
        forest_on_law,
    })
}

/// A table for people, and the verdict.
pub fn text(comparisons: &[Comparison]) -> String {
    let percent = |e: &Errors| format!("{:5.1} {:5.1} {:5.1}", e.mean * 1e2, e.median * 1e2, e.p90 * 1e2);
    let mut out = format!(
        "{:<44} {:>6} {:>6}   {:<17}   {:<17}   {:<17}   {:<17}\n{:<44} {:>6} {:>6}   {:<17}   {:<17}   {:<17}   {:<17}\n",
        "error % on shapes left out",
        "known",
        "held",
        "interpolation",
        "kriging",
        "forest",
        "forest on the law",
        "",
        "",
        "",
        " mean   med   p90",
        " mean   med   p90",
        " mean   med   p90",
        " mean   med   p90"
    );
    for c in comparisons {
        let mark = if c.forest_wins() { "  forest wins" } else { "" };
        out.push_str(&format!(
            "{:<44} {:>6} {:>6}   {:<17}   {:<17}   {:<17}   {:<17}{mark}\n",
            c.table,
            c.known,
            c.held,
            percent(&c.interpolation),
            percent(&c.kriging),
            percent(&c.forest),
            percent(&c.forest_on_law)
        ));
    }
    let won = comparisons.iter().filter(|c| c.forest_wins()).count();
    out.push_str(&format!(
        "a forest wins (mean and median a tenth better than what is smooth) in {won} of {} tables\n",
        comparisons.len()
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles of 128 over 132 units.
    fn machine(m: f64, n: f64, k: f64) -> f64 {
        let tiles = (m / 128.0).ceil() * (n / 128.0).ceil();
        3.0 + (tiles / 132.0).max(1.0) * 2.0 * 128.0 * 128.0 * k / 5e6
    }

    #[test]
    fn both_predict_shapes_that_they_have_not_seen() {
        let mut rows = Vec::new();
        for m in (0..8).map(|p| f64::from(128 << p)) {
            for n in (1..10).map(|i| f64::from(512 * i)) {
                for k in [512.0, 1024.0, 2048.0, 4096.0] {
                    rows.push(GemmRow {
                        gpu: "H100-SXM-80GB".to_owned(),
                        dtype: "bf16".to_owned(),
                        m,
                        n,
                        k,
                        time_us: machine(m, n, k),
                        power_w: Some(200.0 + 100.0 * (m * n * k).log2() / 40.0),
                        kernel: "x".to_owned(),
                        source: "made up".to_owned(),
                    });
                }
            }
        }
        let compared = measured_tables(&rows);
        assert_eq!(compared.len(), 2, "{compared:?}");
        for c in &compared {
            assert!(c.known + c.held == rows.len() && c.held > 20, "{c:?}");
            assert!(c.interpolation.median < 0.2 && c.forest.median < 0.3, "{c:?}");
        }
        assert!(compared[1].interpolation.mean < 0.02 && compared[1].forest.mean < 0.02, "{compared:?}");
        assert!(text(&compared).contains("of 2 tables"));
    }
}
