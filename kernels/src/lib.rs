//! Device kernels of psim behind one contract.
//!
//! [`Device`] is what a micro-benchmark or the executor asks of a machine: buffers, a timer and the operators of a
//! transformer training step. Two backends implement it: [`cpu::CpuDevice`] (always there) and the CUDA one in
//! [`cuda`], which is compiled into the same binary, loads NVIDIA's libraries at run time and says clearly when it
//! cannot. [`conformance`] holds one suite that both must pass: every operator against a float64 reference, with fresh
//! random inputs and outputs poisoned with NaN first.
//!
//! ```
//! use psim_kernels::{Device, Gemm, cpu::CpuDevice};
//! let device = CpuDevice::new();
//! let a = device.upload(&[1.0, 2.0, 3.0, 4.0])?;
//! let b = device.upload(&[1.0, 0.0, 0.0, 1.0])?;
//! let mut c = device.alloc(psim_hardware::DType::Fp32, 4)?;
//! device.gemm(&Gemm::new(2, 2, 2), &a, &b, &mut c)?;
//! assert_eq!(device.download(&c)?, [1.0, 2.0, 3.0, 4.0]);
//! # Ok::<(), psim_kernels::DeviceError>(())
//! ```

pub mod conformance;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod micro;
pub mod random;
pub mod reference;

pub use micro::{Micro, Telemetry};

pub use device::{
    Activation, Adam, Attention, CrossEntropy, Device, DeviceError, Gemm, MemoryUse, Norm, PagedAttention,
    Result, Rope, Strided, Uniform,
};
