//! Micro-benchmarks below the operators: what a load, a launch and a copy to the host cost.

use crate::device::{Device, Result};

/// State of a device beside a measurement.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Telemetry {
    /// Driver version.
    pub driver: String,
    /// Clock of the multiprocessors, MHz.
    pub sm_mhz: u32,
    /// Clock of the memory, MHz.
    pub memory_mhz: u32,
    /// Power drawn, W.
    pub power_w: f64,
    /// Power limit, W.
    pub power_limit_w: f64,
    /// Temperature, °C.
    pub celsius: u32,
    /// Why the clocks are below their maximum (`SW_POWER_CAP`, `HW_THERMAL_SLOWDOWN` …); idle is not listed.
    pub throttled: Vec<String>,
}

/// A device that can measure itself below the level of operators.
pub trait Micro: Device {
    /// Seconds of one load that depends on the one before, over a random cycle through `bytes` bytes of memory
    /// (pointer chase: the footprint decides which cache answers).
    fn load_latency(&self, bytes: usize, hops: usize) -> Result<f64>;
    /// Seconds of one load from the memory that the threads of a block share; `None` where there is no such memory.
    fn shared_latency(&self, hops: usize) -> Result<Option<f64>>;
    /// Seconds per kernel of `count` empty kernels in a row, launched one by one, or replayed as one graph; `None` where
    /// the device cannot.
    fn launch_cost(&self, count: usize, graph: bool) -> Result<Option<f64>>;
    /// Seconds to copy `bytes` bytes between host (page-locked where that exists) and device; `None` where they are one.
    fn host_copy(&self, bytes: usize, to_device: bool) -> Result<Option<f64>>;
    /// Bytes of the last cache before the memory, where the device says.
    fn last_cache(&self) -> Option<u64>;
    /// Clocks, power and throttle reasons now, where the machine tells.
    fn telemetry(&self) -> Option<Telemetry>;
}

/// A random cycle through `entries` indices (Sattolo's algorithm): `next[i]` is where to go from `i`.
pub(crate) fn cycle(entries: usize, seed: u64) -> Vec<u32> {
    use rand::{RngExt, SeedableRng};
    let mut random = rand_pcg::Pcg64::seed_from_u64(seed);
    let mut next: Vec<u32> = (0..entries as u32).collect();
    for i in (1..entries).rev() {
        let j = random.random_range(0..i);
        next.swap(i, j);
    }
    next
}

/// Entries are one cache line apart, so that every hop is a new line.
pub(crate) const LINE: usize = 128;

/// A cycle over lines of [`LINE`] bytes: element `line · 32` holds the element number of the next line.
pub(crate) fn lines(bytes: usize, seed: u64) -> Vec<u32> {
    let words = LINE / 4;
    let next = cycle((bytes / LINE).max(2), seed);
    let mut table = vec![0; next.len() * words];
    for (line, to) in next.iter().enumerate() {
        table[line * words] = to * words as u32;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuDevice;

    /// One cycle through everything: no short loop that would fit a smaller cache.
    #[test]
    fn the_chase_visits_every_line() {
        for entries in [2, 3, 1000] {
            let next = cycle(entries, 7);
            let (mut at, mut hops) = (0, 0);
            loop {
                at = next[at] as usize;
                hops += 1;
                if at == 0 {
                    break;
                }
            }
            assert_eq!(hops, entries);
        }
    }

    /// Far memory takes longer than near memory, on any machine.
    #[test]
    fn latency_grows_with_the_footprint() {
        let device = CpuDevice::new();
        let best = |bytes| {
            (0..3).map(|_| device.load_latency(bytes, 200_000).unwrap()).fold(f64::INFINITY, f64::min)
        };
        let (near, far) = (best(16 << 10), best(64 << 20));
        assert!(near > 0.0 && far > 1.5 * near, "16 KiB: {near:.2e} s, 64 MiB: {far:.2e} s");
    }
}
