//! What a processor's products of few rows cost when no cache holds their weights.
//!
//! Their tables are measured with weights that fit in the last cache. Here one product is run over more and more weights
//! in turn: what a byte takes longer than in the tables is a property of the memory behind the caches, and of how much of
//! a shared cache the neighbours leave.

use super::MeasureError;
use super::point::{Point, ROTATE, Record};
use psim_hardware::profile::machine::{Cache, Stream};
use psim_kernels::{Device, Gemm};
use std::time::Instant;

/// Rows of the product, and columns and reduction of its square weight (1 MiB of fp32).
const ROWS: usize = 4;
const SIDE: usize = 512;
/// Working sets where the system does not list its caches, or lists none that is shared.
const LAST_CACHE: u64 = 32 << 20;
/// Largest working set.
const MOST: u64 = 1 << 30;
/// Passes over the working set beside the warm-up, at least.
const PASSES: usize = 3;

/// From what the tables are measured with to four times the last cache; the ends only in a short budget (seconds).
pub fn working_sets(caches: &[Cache], budget: f64) -> Vec<u64> {
    let last = caches.last().map_or(LAST_CACHE, |c| c.bytes.max(2 * ROTATE));
    let far = (4 * last).min(MOST);
    if budget < 10.0 {
        return vec![ROTATE, far];
    }
    let mut sets = vec![ROTATE, last / 4, last / 2, last, 2 * last, far];
    sets.retain(|&b| (ROTATE..=far).contains(&b));
    sets.sort_unstable();
    sets.dedup();
    sets
}

/// Seconds of one product, mean of each pass over a working set of `bytes`.
///
/// # Errors
/// When the device fails.
pub fn product<D: Device>(device: &D, bytes: u64, allowance: f64) -> Result<Vec<f64>, MeasureError> {
    let begin = Instant::now();
    let values: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 97) as f32 * 0.01 - 0.5).collect();
    let count = (bytes / (4 * (SIDE * SIDE) as u64)).max(1) as usize;
    let weights = (0..count).map(|_| device.upload(&values)).collect::<psim_kernels::Result<Vec<_>>>()?;
    let (x, mut y) = (device.upload(&values[..ROWS * SIDE])?, device.upload(&values[..ROWS * SIDE])?);
    let mut pass = || {
        let mut all =
            || weights.iter().try_for_each(|w| device.gemm(&Gemm::new(ROWS, SIDE, SIDE), &x, w, &mut y));
        device.time(&mut all).map(|seconds| seconds / count as f64)
    };
    pass()?;
    let mut seconds = Vec::new();
    while seconds.len() < PASSES || (begin.elapsed().as_secs_f64() < allowance && seconds.len() < 5 * PASSES)
    {
        seconds.push(pass()?);
    }
    Ok(seconds)
}

/// What a byte of weights takes longer, by working set: never less than from a smaller one.
pub fn streams(records: &[Record]) -> Vec<Stream> {
    let mut measured: Vec<(u64, f64)> = records
        .iter()
        .filter_map(|r| match r.point {
            Point::Stream { bytes } if r.median().is_finite() => Some((bytes, r.median())),
            _ => None,
        })
        .collect();
    measured.sort_by_key(|m| m.0);
    let Some(&(_, near)) = measured.first() else { return Vec::new() };
    let mut most = 0.0_f64;
    measured
        .into_iter()
        .map(|(bytes, seconds)| {
            most = most.max((seconds - near) / (4 * SIDE * SIDE) as f64);
            Stream { bytes, picoseconds: (most * 1e14).round() * 1e-2 }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_sets_reach_beyond_the_last_cache() {
        let caches = [Cache { level: 2, bytes: 1 << 20 }, Cache { level: 3, bytes: 32 << 20 }];
        assert_eq!(working_sets(&caches, 20.0), [4, 8, 16, 32, 64, 128].map(|m| m << 20));
        assert_eq!(working_sets(&caches, 5.0), [4 << 20, 128 << 20]);
        assert_eq!(working_sets(&[], 5.0), [4 << 20, 128 << 20]);
        // A small last cache, and a huge one.
        assert_eq!(working_sets(&caches[..1], 20.0).first(), Some(&(4 << 20)));
        let huge = [Cache { level: 3, bytes: 1 << 30 }];
        assert!(working_sets(&huge, 20.0).iter().all(|&b| b <= MOST));
    }

    #[test]
    fn a_byte_never_gets_cheaper_with_more_of_them() {
        let record = |mib: u64, us: f64| Record {
            point: Point::Stream { bytes: mib << 20 },
            seconds: vec![us * 1e-6],
            spent: 0.1,
            load: None,
            state: None,
            reference: None,
        };
        let found = streams(&[record(64, 150.0), record(4, 50.0), record(16, 48.0), record(128, 145.0)]);
        let picoseconds: Vec<f64> = found.iter().map(|s| s.picoseconds).collect();
        assert_eq!(picoseconds[..2], [0.0, 0.0]);
        assert!((picoseconds[2] - 100e6 / 1048576.0).abs() < 0.01 && picoseconds[3] == picoseconds[2]);
        assert!(streams(&[]).is_empty());
    }

    #[test]
    fn a_working_set_is_measured() {
        let times = product(&psim_kernels::cpu::CpuDevice::new(), 2 << 20, 0.0).unwrap();
        assert!(times.len() == PASSES && times.iter().all(|&t| t > 0.0), "{times:?}");
    }
}
