//! Memory-bound classes: a launch, and a rate that depends on the bytes of one kernel.
//!
//! `time = kernels · launch + bytes / rate(bytes per kernel)`. A core reads its nearest cache several times faster than
//! memory, so one rate for all sizes is off by factors; a rate per size, interpolated in logarithms, follows the caches
//! whatever their sizes are.

use super::{median, round};
use psim_hardware::profile::accelerator::{FitQuality, MemoryTable, WorkingSets};
use std::collections::BTreeMap;

/// Bytes of one kernel, kernels and seconds of a measured call.
#[derive(Debug, Clone, Copy)]
struct Sample {
    bytes: f64,
    kernels: f64,
    time: f64,
    /// Numbers of a row.
    width: f64,
}

/// Classes that go row by row and whose operators say how wide the rows are.
const ROWS: [&str; 3] = ["norm", "embedding", "permute"];

/// Bytes of a kernel up to which its launch shows: within the second-level cache of any processor.
const SMALL: f64 = 128.0 * 1024.0;

/// Half widths that are tried: rows that begin at once, up to rows of a few hundred numbers.
const HALF_WIDTHS: [f64; 9] = [0.0, 6.0, 12.0, 18.0, 27.0, 40.0, 60.0, 90.0, 135.0];

/// One table per class of `(class, [bytes, row width], kernels, seconds)`; `bandwidth` is that of the datasheet, bytes/s.
pub(super) fn tables(samples: &[(String, [f64; 2], u32, f64)], bandwidth: f64) -> Vec<MemoryTable> {
    let mut classes: BTreeMap<&str, Vec<Sample>> = BTreeMap::new();
    for (class, [bytes, width], kernels, time) in samples {
        let (kernels, width) = (f64::from(*kernels), *width);
        let sample = Sample { bytes: bytes / kernels, kernels, time: *time, width };
        classes.entry(class).or_default().push(sample);
    }
    classes.into_iter().map(|(class, samples)| table(class, &samples, bandwidth)).collect()
}

fn table(class: &str, samples: &[Sample], bandwidth: f64) -> MemoryTable {
    // Each point predicted from the others.
    let errors = |half_width: f64| -> Vec<f64> {
        (0..samples.len())
            .map(|i| {
                let mut rest = samples.to_vec();
                let left_out = rest.remove(i);
                let law = Law::fit(&rest, bandwidth, half_width);
                (left_out.time / law.seconds(&left_out, bandwidth)).ln().abs()
            })
            .collect()
    };
    // Only kernels whose callers know the rows.
    let tried = if ROWS.contains(&class) { &HALF_WIDTHS[..] } else { &HALF_WIDTHS[..1] };
    let score = |half_width: f64| errors(half_width).iter().map(|e| e.min(0.5)).sum::<f64>();
    let half_width = tried.iter().copied().min_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap_or(0.0);
    let (law, errors) = (Law::fit(samples, bandwidth, half_width), errors(half_width));
    let share = |set: &(f64, f64)| (set.1 * 1e6).round() * 1e-6;
    MemoryTable {
        class: class.to_owned(),
        launch_us: round(law.launch * 1e6),
        efficiency: law.sets.last().map_or(1.0, share).max(1e-6),
        half_bytes: 0.0,
        half_width,
        working_sets: Some(WorkingSets {
            bytes: law.sets.iter().map(|s| s.0).collect(),
            share: law.sets.iter().map(share).collect(),
        }),
        fit: FitQuality { points: samples.len() as u32, sigma: round(1.4826 * median(&errors)) },
    }
}

/// Launch in seconds, and (bytes, share of the bandwidth).
#[derive(Debug, Clone)]
struct Law {
    launch: f64,
    half_width: f64,
    sets: Vec<(f64, f64)>,
}

impl Law {
    fn fit(samples: &[Sample], bandwidth: f64, half_width: f64) -> Self {
        let launch = launch(samples);
        let mut sizes: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for s in samples {
            let moving = (s.time - launch * s.kernels).max(1e-3 * s.time) / (1.0 + half_width / s.width);
            sizes.entry(s.bytes as u64).or_default().push((s.bytes * s.kernels / (moving * bandwidth)).ln());
        }
        let mut sets: Vec<(f64, f64)> = Vec::new();
        for (bytes, shares) in sizes {
            let bytes = bytes as f64;
            let mut share = median(&shares).exp().min(1.0);
            // More bytes never take less time.
            if let Some((before, last)) = sets.last() {
                share = share.min(last * bytes / before);
            }
            sets.push((bytes, share));
        }
        Self { launch, half_width, sets }
    }

    /// As the cost model prices it.
    fn seconds(&self, s: &Sample, bandwidth: f64) -> f64 {
        let (Some(first), Some(last)) = (self.sets.first(), self.sets.last()) else { return s.time };
        let at = self.sets.partition_point(|set| set.0 <= s.bytes);
        let share = match (at.checked_sub(1).map(|i| self.sets[i]), self.sets.get(at)) {
            (Some(low), Some(high)) => {
                let along = (s.bytes / low.0).ln() / (high.0 / low.0).ln();
                low.1 * (high.1 / low.1).powf(along)
            }
            (None, _) => first.1,
            (_, None) => last.1,
        };
        let beginning = 1.0 + self.half_width / s.width;
        s.kernels * self.launch + s.bytes * s.kernels / (bandwidth * share) * beginning
    }
}

/// Seconds of a launch: least relative error of `a·kernels + b·bytes` over the small sizes, never most of the shortest.
fn launch(samples: &[Sample]) -> f64 {
    let (mut kk, mut kb, mut bb, mut k1, mut b1) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for s in samples.iter().filter(|s| s.bytes <= SMALL) {
        let (k, b) = (s.kernels / s.time, s.bytes * s.kernels / s.time);
        kk += k * k;
        kb += k * b;
        bb += b * b;
        k1 += k;
        b1 += b;
    }
    let determinant = kk * bb - kb * kb;
    let shortest = samples.iter().map(|s| s.time / s.kernels).fold(f64::INFINITY, f64::min);
    if determinant > 1e-12 * kk * bb {
        ((k1 * bb - b1 * kb) / determinant).clamp(0.0, 0.8 * shortest)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A core with 32 KiB at 100 GB/s, 1 MiB at 40 GB/s and memory at 8 GB/s, kernels of 0.2 µs.
    fn machine(bytes: f64) -> f64 {
        let rate = if bytes <= 32768.0 { 1e11 } else { 4e10 };
        2e-7 + bytes / if bytes <= 1048576.0 { rate } else { 8e9 }
    }

    #[test]
    fn the_rate_follows_the_caches() {
        let samples: Vec<(String, [f64; 2], u32, f64)> = (10..25)
            .map(|p| {
                let bytes = f64::from(1 << p);
                // Two kernels of half the bytes each.
                ("gelu".to_owned(), [bytes, 512.0], 2, 2.0 * machine(bytes / 2.0))
            })
            .collect();
        let tables = tables(&samples, 1.1e11);
        assert!(tables.len() == 1 && tables[0].fit.points == 15 && tables[0].fit.sigma < 0.2, "{tables:?}");
        let law = psim_cost_models::memory::MemoryLaw::new(&tables[0]);
        for (_, [bytes, _], kernels, time) in &samples {
            let priced = law.seconds(1.1e11, *bytes, f64::from(*kernels));
            assert!((priced / time - 1.0).abs() < 0.02, "{bytes}: {priced} for {time}");
        }
    }

    /// Rows that take as long to begin as 40 numbers take to move: the width is found, and half of the shapes say the rest.
    #[test]
    fn rows_that_take_time_to_begin_are_told_from_bytes() {
        let samples: Vec<(String, [f64; 2], u32, f64)> = (3..11)
            .flat_map(|rows| (7..12).map(move |width| (f64::from(1 << rows), f64::from(1 << width))))
            .map(|(rows, width)| {
                let bytes = 20.0 * rows * width;
                let time = 2e-7 + (machine(bytes) - 2e-7) * (1.0 + 40.0 / width);
                ("permute".to_owned(), [bytes, width], 1, time)
            })
            .collect();
        let table = &tables(&samples, 1.1e11)[0];
        assert!(table.half_width == 40.0 && table.fit.sigma < 0.05, "{table:?}");
        let blind = Law::fit(
            &samples
                .iter()
                .map(|(_, [bytes, width], _, time)| Sample {
                    bytes: *bytes,
                    kernels: 1.0,
                    time: *time,
                    width: *width,
                })
                .collect::<Vec<_>>(),
            1.1e11,
            0.0,
        );
        let narrow = Sample { bytes: 20.0 * 128.0 * 64.0, kernels: 1.0, time: 0.0, width: 128.0 };
        let law = psim_cost_models::memory::MemoryLaw::new(table);
        let right = 2e-7 + (machine(narrow.bytes) - 2e-7) * (1.0 + 40.0 / 128.0);
        assert!((law.seconds_of_rows(1.1e11, narrow.bytes, 1.0, 128.0) / right - 1.0).abs() < 0.03);
        assert!(blind.seconds(&narrow, 1.1e11) < 0.95 * right);
    }
}
