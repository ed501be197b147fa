//! [`Micro`] on CUDA.

use super::runtime::{Format, Kernel, Lane, Launch, Runtime};
use super::state::{CudaDevice, kernel, n};
use crate::device::{Device, Result};
use crate::micro::{Micro, Telemetry, lines};

impl<R: Runtime> CudaDevice<R> {
    fn one_block(&self, name: &'static str, threads: u32, args: &[super::runtime::Arg]) -> Result<()> {
        let kernel = Kernel { format: Format::Fp32, dim: 0, name };
        let launch = Launch { grid: (1, 1, 1), block: (threads, 1, 1), shared: 0 };
        self.runtime.launch(Lane::Main, kernel, launch, args)
    }
}

impl<R: Runtime> Micro for CudaDevice<R> {
    fn load_latency(&self, bytes: usize, hops: usize) -> Result<f64> {
        let table = self.put_index(&lines(bytes, 1))?;
        let out = self.put_index(&[0])?;
        let walk =
            |hops: usize| self.one_block(kernel!("chase"), 1, &[self.i(&table), self.i(&out), n(hops)]);
        let hops = hops.max(1);
        // One whole lap, or as much of one as is to be timed, warms what fits.
        walk((table.host.len() / 32).min(hops))?;
        self.synchronize()?;
        Ok(self.time(&mut || walk(hops))? / hops as f64)
    }
    fn shared_latency(&self, hops: usize) -> Result<Option<f64>> {
        let out = self.put_index(&[0])?;
        let hops = hops.max(1);
        let walk = || self.one_block(kernel!("chase_shared"), 32, &[self.i(&out), n(hops)]);
        walk()?;
        self.synchronize()?;
        Ok(Some(self.time(&mut || walk())? / hops as f64))
    }
    fn launch_cost(&self, count: usize, graph: bool) -> Result<Option<f64>> {
        let count = count.max(1);
        let launch = |count: usize| (0..count).try_for_each(|_| self.one_block(kernel!("nothing"), 32, &[]));
        launch(2)?;
        self.synchronize()?;
        let seconds = if graph {
            self.runtime.time_graph(&mut || launch(count))?
        } else {
            Some(self.time(&mut || launch(count))?)
        };
        Ok(seconds.map(|s| s / count as f64))
    }
    fn host_copy(&self, bytes: usize, to_device: bool) -> Result<Option<f64>> {
        self.runtime.host_copy(bytes, to_device)
    }
    fn last_cache(&self) -> Option<u64> {
        self.runtime.last_cache()
    }
    fn telemetry(&self) -> Option<Telemetry> {
        self.runtime.telemetry()
    }
}
