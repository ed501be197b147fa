//! [`Micro`] on the CPU: loads only; there is nothing to launch and nothing to copy across.

use super::CpuDevice;
use crate::device::Result;
use crate::micro::{Micro, Telemetry, lines};
use std::time::Instant;

impl Micro for CpuDevice {
    fn load_latency(&self, bytes: usize, hops: usize) -> Result<f64> {
        let table = lines(bytes, 1);
        let walk = |hops: usize| {
            let mut at = 0;
            for _ in 0..hops {
                at = table[at as usize];
            }
            std::hint::black_box(at)
        };
        // One whole lap warms what fits.
        walk(table.len() / 32);
        let start = Instant::now();
        walk(hops.max(1));
        Ok(start.elapsed().as_secs_f64() / hops.max(1) as f64)
    }
    fn shared_latency(&self, _hops: usize) -> Result<Option<f64>> {
        Ok(None)
    }
    fn launch_cost(&self, _count: usize, _graph: bool) -> Result<Option<f64>> {
        Ok(None)
    }
    fn host_copy(&self, _bytes: usize, _to_device: bool) -> Result<Option<f64>> {
        Ok(None)
    }
    fn last_cache(&self) -> Option<u64> {
        None
    }
    fn telemetry(&self) -> Option<Telemetry> {
        None
    }
}
