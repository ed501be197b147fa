//! The CUDA backend: one binary that uses NVIDIA's libraries where they are and says so where they are not.
//!
//! [`probe`] is the only door: cudarc panics on the first use of a missing library, so nothing here touches it before
//! the probe has found driver, NVRTC and cuBLASLt. Matrix products run in cuBLASLt (fp32 accumulation); everything else
//! is CUDA C++ of this crate (`kernels/cuda/*.cu`), compiled at run time for the device at hand. Attention in 16-bit
//! formats runs on the tensor cores (`mma.sync`, so from Ampere on).
//!
//! No GPU was at hand when this was written. What was checked without one: NVRTC compiles every kernel for three
//! architectures, and the whole conformance suite passes with the same sources and the same host code on a CPU that
//! emulates blocks, warps and the tensor-core instructions (`tests/emulated.rs`). `kernels/cuda/check-on-gpu.sh` runs
//! the suite, with timings, on a GPU.
#![expect(unsafe_code, reason = "driver calls and kernel launches are unsafe by nature")]

mod attention;
mod collectives;
mod driver;
mod failed;
mod matmul;
mod micro;
pub mod nccl;
mod operators;
pub mod runtime;
pub mod sources;
mod state;
mod telemetry;

pub use collectives::Message;
pub use driver::Driver;
pub use state::{CudaBuffer, CudaDevice, CudaIndex};

use crate::device::{DeviceError, Result};
use std::fmt;

/// What of NVIDIA's software is on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Probe {
    /// Driver library (`libcuda`).
    pub driver: bool,
    /// Run-time compiler.
    pub nvrtc: bool,
    /// Matrix products.
    pub cublas: bool,
    /// Collectives between devices.
    pub nccl: bool,
    /// Devices, by name; empty when the driver finds none or refuses.
    pub devices: Vec<String>,
    /// What the driver said when it refused.
    pub refusal: Option<String>,
}

impl Probe {
    /// Devices can be opened.
    pub fn usable(&self) -> bool {
        self.driver && self.nvrtc && self.cublas && !self.devices.is_empty()
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.usable() {
            return write!(f, "CUDA devices: {}", self.devices.join(", "));
        }
        let missing: Vec<&str> = [
            (self.driver, "the driver (libcuda.so)"),
            (self.nvrtc, "the run-time compiler (libnvrtc.so)"),
            (self.cublas, "cuBLASLt (libcublasLt.so)"),
        ]
        .into_iter()
        .filter_map(|(there, name)| (!there).then_some(name))
        .collect();
        if missing.is_empty() {
            write!(f, "CUDA is installed but no device can be used")?;
            if let Some(refusal) = &self.refusal {
                write!(f, ": {refusal}")?;
            }
            return Ok(());
        }
        write!(
            f,
            "CUDA cannot be used: {} not found\nhint: put the folder with CUDA's libraries on LD_LIBRARY_PATH, or use `--device cpu`",
            missing.join(", ")
        )
    }
}

/// Looks for the libraries and, if the driver is there, for devices. Never panics.
pub fn probe() -> Probe {
    // SAFETY: these only try to open a library by name.
    let (driver, nvrtc, cublas, nccl) = unsafe {
        (
            cudarc::driver::sys::is_culib_present(),
            cudarc::nvrtc::sys::is_culib_present(),
            cudarc::cublaslt::sys::is_culib_present(),
            cudarc::nccl::sys::is_culib_present(),
        )
    };
    let mut probe = Probe { driver, nvrtc, cublas, nccl, ..Probe::default() };
    if driver {
        match devices() {
            Ok(devices) => probe.devices = devices,
            Err(error) => probe.refusal = Some(error),
        }
    }
    probe
}

fn devices() -> std::result::Result<Vec<String>, String> {
    use cudarc::driver::result;
    let text = |e: cudarc::driver::DriverError| e.to_string();
    result::init().map_err(text)?;
    let count = result::device::get_count().map_err(text)?;
    (0..count).map(|i| result::device::get(i).and_then(result::device::get_name).map_err(text)).collect()
}

/// Opens a device after probing.
///
/// # Errors
/// [`DeviceError::Unavailable`] with what is missing; a compile error of the kernels is a driver error with its log.
pub fn open(index: usize) -> Result<CudaDevice> {
    let found = probe();
    if !found.usable() {
        return Err(DeviceError::Unavailable(found.to_string()));
    }
    if index >= found.devices.len() {
        return Err(DeviceError::Unavailable(format!(
            "cuda:{index} does not exist; this machine has {} device(s): {}",
            found.devices.len(),
            found.devices.join(", ")
        )));
    }
    Ok(CudaDevice::on(Driver::new(index)?))
}

#[cfg(test)]
mod tests {
    /// The door itself works everywhere: on a machine without CUDA it says what is missing and what to do.
    #[test]
    fn probing_never_panics_and_explains() {
        let probe = super::probe();
        let text = probe.to_string();
        if probe.usable() {
            assert!(text.starts_with("CUDA devices"));
        } else {
            assert!(text.contains("CUDA"), "{text}");
            let error = super::open(0).err().map(|e| e.to_string());
            assert_eq!(error, Some(text));
        }
    }
}
