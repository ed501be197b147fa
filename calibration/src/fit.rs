//! Fits accelerator, fabric and power profiles to measured tables.
//!
//! Every fit returns a profile part and a [`Summary`] with its error in-sample and on held-out shapes (one in five, by
//! a hash of the shape, so that the same shapes are held out in every run).

pub mod assemble;
pub mod attention;
pub mod collectives;
pub mod fabric;
pub mod gemm;
pub mod grouped;
pub mod law;
pub mod memory;
pub mod minimise;
pub mod relatives;
pub mod report;
pub mod surface;

/// Error of one fitted table.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Accelerator or fabric.
    pub machine: String,
    /// Table.
    pub table: String,
    /// Points.
    pub points: usize,
    /// Median of |ln(measured / predicted)|, all points in the fit.
    pub median: f64,
    /// 90th percentile of the same.
    pub p90: f64,
    /// Median on shapes left out of the fit.
    pub held_median: f64,
    /// 90th percentile on shapes left out of the fit.
    pub held_p90: f64,
    /// Median on the left-out shapes of the region that training uses.
    pub core_median: f64,
    /// 90th percentile there.
    pub core_p90: f64,
    /// Parameters of the law, for the reader.
    pub law: String,
}

/// Rounds to `digits` decimals.
pub fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// The value below which `share` of the sorted copy lies; 0 for nothing.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = share * (sorted.len() - 1) as f64;
    let low = at.floor() as usize;
    let high = at.ceil() as usize;
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

/// Median of a slice.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Whether a shape belongs to the held-out fifth: FNV-1a of its numbers.
pub fn held_out(shape: &[f64]) -> bool {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for value in shape {
        for byte in (*value as u64).to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    (hash >> 17).is_multiple_of(5)
}

/// Robust standard deviation of centred errors: 1.4826 × median of the absolute values.
pub fn sigma(absolute: &[f64]) -> f64 {
    1.4826 * median(absolute)
}
