//! Memory-bound operators: launch floor and a bandwidth that rises with the bytes per kernel.

use psim_hardware::profile::accelerator::MemoryTable;
use psim_models::operator::MemoryClass;

/// Number of memory classes.
pub(crate) const CLASSES: usize = 12;

/// Every class with the name that profiles use.
pub const CLASS_NAMES: [(MemoryClass, &str); CLASSES] = [
    (MemoryClass::Norm, "norm"),
    (MemoryClass::Activation, "activation"),
    (MemoryClass::Elementwise, "elementwise"),
    (MemoryClass::Rope, "rope"),
    (MemoryClass::Softmax, "softmax"),
    (MemoryClass::CrossEntropy, "cross-entropy"),
    (MemoryClass::Embedding, "embedding"),
    (MemoryClass::Optimizer, "optimizer"),
    (MemoryClass::Quantize, "quantize"),
    (MemoryClass::Permute, "permute"),
    (MemoryClass::Scan, "scan"),
    (MemoryClass::Gelu, "gelu"),
];

/// Bandwidth law of one class.
#[derive(Debug, Clone)]
pub struct MemoryLaw {
    launch: f64,
    efficiency: f64,
    half_bytes: f64,
    half_width: f64,
    /// Logarithms of bytes per kernel and of the share reached, ascending; empty where one rate holds for all.
    shares: Vec<(f64, f64)>,
    /// Error of the table.
    pub sigma: f64,
}

impl MemoryLaw {
    /// Prepares a table.
    pub fn new(table: &MemoryTable) -> Self {
        Self {
            launch: table.launch_us * 1e-6,
            efficiency: table.efficiency,
            half_bytes: table.half_bytes,
            half_width: table.half_width,
            shares: table.working_sets.as_ref().map_or_else(Vec::new, |sets| {
                let positive = |v: &f64| v.max(1e-12).ln();
                sets.bytes.iter().map(positive).zip(sets.share.iter().map(positive)).collect()
            }),
            sigma: table.fit.sigma,
        }
    }

    /// Share of the bandwidth that kernels of so many bytes reach, where it depends on them.
    fn share(&self, bytes: f64) -> Option<f64> {
        let (first, last) = (self.shares.first()?, self.shares.last()?);
        let x = bytes.max(1.0).ln();
        let at = self.shares.partition_point(|s| s.0 <= x);
        Some(match (at.checked_sub(1).and_then(|i| self.shares.get(i)), self.shares.get(at)) {
            (Some(low), Some(high)) => (low.1 + (high.1 - low.1) * (x - low.0) / (high.0 - low.0)).exp(),
            (None, _) => first.1.exp(),
            (_, None) => last.1.exp(),
        })
    }

    /// As [`MemoryLaw::seconds`] on rows of `width` numbers (0: rows do not matter); launches do not know the rows.
    pub fn seconds_of_rows(&self, bandwidth: f64, bytes: f64, kernels: f64, width: f64) -> f64 {
        let launches = kernels * self.launch;
        let beginning = if width > 0.0 { 1.0 + self.half_width / width } else { 1.0 };
        launches + (self.seconds(bandwidth, bytes, kernels) - launches) * beginning
    }

    /// Seconds to move `bytes` with `kernels` launches at `bandwidth` bytes/s: launches + (bytes + half_bytes·kernels) / rate;
    /// with the rate of the bytes of one kernel where it was measured by working set.
    pub fn seconds(&self, bandwidth: f64, bytes: f64, kernels: f64) -> f64 {
        if let Some(share) = self.share(bytes / kernels.max(1.0)) {
            return kernels * self.launch + bytes / (bandwidth * share);
        }
        kernels * self.launch + (bytes + kernels * self.half_bytes) / (bandwidth * self.efficiency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_hardware::profile::accelerator::{FitQuality, WorkingSets};

    #[test]
    fn rates_by_working_set_pass_through_their_points_and_never_fall_in_time() {
        let table = MemoryTable {
            class: "norm".to_owned(),
            launch_us: 1.0,
            efficiency: 0.5,
            half_bytes: 0.0,
            half_width: 0.0,
            working_sets: Some(WorkingSets { bytes: vec![1e3, 1e5, 1e7], share: vec![0.5, 1.0, 0.1] }),
            fit: FitQuality { points: 3, sigma: 0.1 },
        };
        let law = MemoryLaw::new(&table);
        for (bytes, share) in
            [(1e2, 0.5), (1e3, 0.5), (1e4, 0.5_f64.sqrt()), (1e5, 1.0), (1e7, 0.1), (1e9, 0.1)]
        {
            let expected = 2.0e-6 + 2.0 * bytes / (1e9 * share);
            assert!((law.seconds(1e9, 2.0 * bytes, 2.0) / expected - 1.0).abs() < 1e-9, "{bytes}");
        }
        let rows = MemoryLaw::new(&MemoryTable { half_width: 32.0, ..table });
        let moving = rows.seconds(1e9, 1e4, 2.0) - 2e-6;
        assert!((rows.seconds_of_rows(1e9, 1e4, 2.0, 64.0) / (2e-6 + 1.5 * moving) - 1.0).abs() < 1e-9);
        assert_eq!(rows.seconds_of_rows(1e9, 1e4, 2.0, 0.0), rows.seconds(1e9, 1e4, 2.0));
        let times: Vec<f64> = (0..80).map(|i| law.seconds(1e9, 10.0 * 1.3_f64.powi(i), 1.0)).collect();
        assert!(times.windows(2).all(|w| w[0] <= w[1]));
    }
}
