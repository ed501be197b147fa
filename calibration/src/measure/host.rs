//! Measurements of the processor itself: clocks under load, threads computing at once, its caches.

use super::MeasureError;
use psim_hardware::profile::machine::Cache;
use psim_kernels::cpu::CpuDevice;
use psim_kernels::{Device, Gemm};
use std::sync::Barrier;
use std::time::Instant;

/// Repeats of a run of threads.
const REPEATS: usize = 5;

/// A matrix product on a device of its own, ready to run again and again.
pub(super) fn product(
    size: usize,
) -> Result<impl FnMut() -> Result<f64, MeasureError> + 'static, MeasureError> {
    let device = CpuDevice::new();
    let values: Vec<f32> = (0..size * size).map(|i| (i % 97) as f32 * 0.01 - 0.5).collect();
    let (a, b, mut c) = (device.upload(&values)?, device.upload(&values)?, device.upload(&values)?);
    Ok(move || Ok(device.time(&mut || device.gemm(&Gemm::new(size, size, size), &a, &b, &mut c))?))
}

/// Processor seconds of a matrix product in each of twenty slices of `milliseconds` of uninterrupted work.
///
/// # Errors
/// When the device fails.
pub fn sustained(milliseconds: u64) -> Result<Vec<f64>, MeasureError> {
    const SLICES: u64 = 20;
    let mut work = product(256)?;
    let slice = milliseconds as f64 * 1e-3 / SLICES as f64;
    (0..SLICES)
        .map(|_| {
            let (mut times, begin) = (Vec::new(), Instant::now());
            while times.is_empty() || begin.elapsed().as_secs_f64() < slice {
                times.push(work()?);
            }
            Ok(super::point::median(&times))
        })
        .collect()
}

/// Processor seconds of a matrix product per thread when `threads` compute at once, mean over threads, per repeat.
///
/// # Errors
/// When a device fails.
pub fn together(threads: u32) -> Result<Vec<f64>, MeasureError> {
    let barrier = Barrier::new(threads as usize);
    let run = || -> Result<Vec<f64>, MeasureError> {
        let mut work = product(192)?;
        work()?;
        (0..REPEATS)
            .map(|_| {
                barrier.wait();
                let times: Vec<f64> = (0..24).map(|_| work()).collect::<Result<_, _>>()?;
                Ok(times.iter().sum::<f64>() / times.len() as f64)
            })
            .collect()
    };
    let all: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        handles
            .into_iter()
            .map(|h| {
                h.join().unwrap_or_else(|_| Err(MeasureError::Collective("a thread panicked".to_owned())))
            })
            .collect::<Result<_, _>>()
    })?;
    Ok((0..REPEATS).map(|i| all.iter().map(|t| t[i]).sum::<f64>() / f64::from(threads)).collect())
}

/// Data and unified caches of the first core, nearest first; empty where the system does not list them.
pub fn caches() -> Vec<Cache> {
    let read = |index: usize, name: &str| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}"))
            .ok()
            .map(|text| text.trim().to_owned())
    };
    let mut found: Vec<Cache> = (0..8)
        .filter_map(|index| {
            if read(index, "type")? == "Instruction" {
                return None;
            }
            let size = read(index, "size")?;
            let (number, factor) = match size.strip_suffix('K') {
                Some(kib) => (kib, 1 << 10),
                None => {
                    (size.strip_suffix('M').unwrap_or(&size), if size.ends_with('M') { 1 << 20 } else { 1 })
                }
            };
            Some(Cache {
                level: read(index, "level")?.parse().ok()?,
                bytes: number.parse::<u64>().ok()? * factor,
            })
        })
        .collect();
    found.sort_by_key(|c| (c.level, c.bytes));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn threads_and_slices_are_all_there() {
        let times = together(2).unwrap();
        assert!(times.len() == REPEATS && times.iter().all(|t| *t > 0.0), "{times:?}");
        assert_eq!(sustained(20).unwrap().len(), 20);
    }
}
