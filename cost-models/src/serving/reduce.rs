//! All-reduce curves: measured times by message size, per kernel library and rank count.

use serde::{Deserialize, Serialize};

/// Measured times of one library on one accelerator with one rank count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReduceCurve {
    /// `trtllm`, `vllm`, `sglang` or `nccl`.
    pub library: String,
    /// Ranks.
    pub ranks: u32,
    /// Message sizes, bytes, rising.
    pub bytes: Vec<f64>,
    /// Times, microseconds.
    pub us: Vec<f64>,
}

impl ReduceCurve {
    /// Seconds for a message: interpolated in logarithms, constant below the smallest and at the last rate above the
    /// largest size.
    pub fn seconds(&self, bytes: f64) -> f64 {
        let (Some(first), Some(last)) = (self.bytes.first(), self.bytes.last()) else { return 0.0 };
        if bytes <= *first {
            return self.us[0] * 1e-6;
        }
        if bytes >= *last {
            return self.us[self.us.len() - 1] * 1e-6 * bytes / last;
        }
        let above = self.bytes.partition_point(|b| *b <= bytes).clamp(1, self.bytes.len() - 1);
        let (b0, b1) = (self.bytes[above - 1], self.bytes[above]);
        let (t0, t1) = (self.us[above - 1], self.us[above]);
        let share = (bytes / b0).ln() / (b1 / b0).ln();
        1e-6 * t0 * (t1 / t0).powf(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_pass_through_their_points() {
        let curve = ReduceCurve {
            library: "x".to_owned(),
            ranks: 8,
            bytes: vec![1e3, 1e4, 1e6],
            us: vec![5.0, 6.0, 60.0],
        };
        for (b, t) in [(10.0, 5.0), (1e3, 5.0), (1e4, 6.0), (1e6, 60.0), (2e6, 120.0)] {
            assert!((curve.seconds(b) * 1e6 / t - 1.0).abs() < 1e-9, "{b}");
        }
        assert!(curve.seconds(1e5) > curve.seconds(1e4));
    }
}
