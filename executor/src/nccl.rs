//! Ranks as processes with a GPU each: tensors over NCCL, reports and the identities of groups over TCP or MPI.

use crate::comm::{Comm, Mpi, Process, Tcp, Wire};
use crate::error::Result;
use crate::fabric::Nccl;
use crate::launch::enough;
use crate::launch::{Launch, Launcher};
use crate::run::{Job, Run, Settings};
use psim_kernels::cuda::CudaDevice;
use psim_kernels::cuda::nccl::Library;
use std::sync::Arc;

/// Runs this process's rank; the run comes out at rank 0.
pub(crate) fn run(
    job: &Job,
    settings: &Settings,
    world: usize,
    device: impl FnOnce(Option<&Launch>) -> Result<CudaDevice>,
) -> Result<Option<Run>> {
    let library = Library::load()?;
    let found = Launch::from_environment()?;
    let launch = found.clone().unwrap_or_else(Launch::alone);
    enough(launch.world, world)?;
    let device = device(found.as_ref())?;
    let by_mpi = matches!(launch.launcher, Launcher::OpenMpi | Launcher::Pmi);
    if by_mpi && launch.master.is_none() && world > 1 {
        // Nobody says where rank 0 is, but the launcher's own library knows.
        return over(job, settings, &library, device, Mpi::join()?);
    }
    over(job, settings, &library, device, Tcp::meet(&launch)?)
}

fn over<W: Wire>(
    job: &Job,
    settings: &Settings,
    library: &Arc<Library>,
    device: CudaDevice,
    wire: W,
) -> Result<Option<Run>> {
    let process = Process::new(wire);
    let fabric = Nccl::connect(library, &device, &Comm::new(&process), job);
    let fabric = fabric.inspect_err(|error| process.stop(&error.to_string()))?;
    job.run_process_with(settings, device, &process, Some(Box::new(fabric)))
}
