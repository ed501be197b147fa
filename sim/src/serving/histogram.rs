//! Counts of times in buckets of at most 0.8 % width.

/// A histogram over picoseconds with 128 buckets an octave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

/// Bits of the mantissa that are kept.
const BITS: u32 = 7;

impl Histogram {
    /// Bucket of a value.
    pub fn bucket(value: u64) -> usize {
        let octave = 63 - (value | 1).leading_zeros();
        if octave <= BITS {
            return value as usize;
        }
        let shift = octave - BITS;
        (((u64::from(shift) + 1) << BITS) + ((value >> shift) - (1 << BITS))) as usize
    }

    /// Least value of a bucket.
    fn floor(bucket: usize) -> u64 {
        if bucket < (2 << BITS) {
            return bucket as u64;
        }
        let shift = (bucket >> BITS) - 1;
        (((bucket & ((1 << BITS) - 1)) + (1 << BITS)) as u64) << shift
    }

    /// Counts `weight` values.
    pub fn add(&mut self, bucket: usize, weight: u64) {
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += weight;
        self.total += weight;
    }

    /// Adds another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in other.counts.iter().enumerate().filter(|(_, c)| **c > 0) {
            self.add(bucket, *count);
        }
    }

    /// Values counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Mean in picoseconds, to the width of a bucket.
    pub fn mean(&self) -> f64 {
        let middle = |b: usize| (Self::floor(b) as f64 + Self::floor(b + 1) as f64) / 2.0;
        let sum: f64 = self.counts.iter().enumerate().map(|(b, c)| *c as f64 * middle(b)).sum();
        sum / self.total.max(1) as f64
    }

    /// A percentile in picoseconds: the middle of its bucket.
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        if self.total == 0 {
            return None;
        }
        let rank = ((percent / 100.0 * self.total as f64).ceil() as u64).clamp(1, self.total);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some((Self::floor(bucket) as f64 + Self::floor(bucket + 1) as f64) / 2.0);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_narrow_and_ordered() {
        let mut last = 0;
        for exponent in 0..50 {
            for step in 0..37u64 {
                let value = (1u64 << exponent) + step * (1u64 << exponent) / 37;
                let bucket = Histogram::bucket(value);
                assert!(bucket >= last);
                last = bucket;
                let (low, high) = (Histogram::floor(bucket), Histogram::floor(bucket + 1));
                assert!(low <= value && value < high, "{value}: {low} {high}");
                assert!((high - low) as f64 <= 1.0 + 0.008 * value as f64);
            }
        }
    }

    #[test]
    fn percentiles() {
        let mut h = Histogram::default();
        assert_eq!(h.percentile(50.0), None);
        h.add(Histogram::bucket(1_000_000), 90);
        h.add(Histogram::bucket(9_000_000), 10);
        assert!((h.percentile(50.0).unwrap() / 1e6 - 1.0).abs() < 0.01);
        assert!((h.percentile(95.0).unwrap() / 9e6 - 1.0).abs() < 0.01);
    }
}
