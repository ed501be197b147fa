//! What the operators ask of CUDA: memory, launches, matrix products, a clock.
//!
//! One implementation is the driver ([`super::Driver`]); the tests have another that runs the same kernel sources on the
//! CPU, so that kernels and the host code that calls them are checked on machines without a GPU.

use crate::device::Result;
use crate::micro::Telemetry;
use psim_hardware::DType;

/// An argument of a kernel: the sources take 64-bit integers, floats and pointers only.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// Device address.
    Pointer(u64),
    /// Whole number.
    Int(i64),
    /// Single-precision number.
    Float(f32),
}

/// Which kernel, compiled how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel {
    /// Format of `elem`: fp32, bf16 or fp16.
    pub format: Format,
    /// Head width of an attention kernel, else 0.
    pub dim: usize,
    /// Name in the sources.
    pub name: &'static str,
}

/// Stored formats that the kernels know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// IEEE 32-bit float.
    Fp32,
    /// bfloat16.
    Bf16,
    /// IEEE 16-bit float.
    Fp16,
    /// 8-bit float E4M3: matrix products, copies and casts only.
    Fp8,
}

impl Format {
    /// The kernels' format of a data type, if they know it.
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::Fp32 => Some(Self::Fp32),
            DType::Bf16 => Some(Self::Bf16),
            DType::Fp16 => Some(Self::Fp16),
            DType::Fp8 => Some(Self::Fp8),
            _ => None,
        }
    }
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 | Self::Fp16 => 2,
            Self::Fp8 => 1,
        }
    }
    /// The number by which kernels that take any format know it.
    pub fn code(self) -> i64 {
        self as i64
    }
}

/// Blocks, threads and shared memory of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Blocks.
    pub grid: (u32, u32, u32),
    /// Threads of a block.
    pub block: (u32, u32, u32),
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// A row-major operand: address, format, elements from row to row, and whether it is stored transposed.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// Device address.
    pub address: u64,
    /// Format.
    pub format: Format,
    /// Elements from one stored row to the next.
    pub stride: usize,
    /// Stored transposed.
    pub transposed: bool,
}

/// C (m × n) = A (m × k) · B (k × n), fp32 accumulation; adds to C with `accumulate`.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Reduction length.
    pub k: usize,
    /// A, B, C.
    pub operands: [Operand; 3],
    /// Add to C.
    pub accumulate: bool,
}

/// A stream: work on one runs in order, beside that of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Where operators run, and whose order allocations follow.
    Main,
    /// Another one.
    Side(u32),
}

/// Memory, launches, matrix products and a clock; in order on the main stream unless a lane is named.
pub trait Runtime {
    /// An allocation.
    type Memory: Send + Sync;
    /// A point in the work of a lane.
    type Event;

    /// What it is.
    fn name(&self) -> String;
    /// Multiprocessors.
    fn units(&self) -> u32;
    /// At least `bytes` bytes, aligned to 256.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory>;
    /// Where an allocation lies.
    fn address(&self, memory: &Self::Memory) -> u64;
    /// Copies from the host and waits.
    fn to_device(&self, bytes: &[u8], memory: &mut Self::Memory, offset: usize) -> Result<()>;
    /// Copies to the host and waits.
    fn to_host(&self, memory: &Self::Memory, offset: usize, bytes: &mut [u8]) -> Result<()>;
    /// Copies inside the device; ranges do not overlap.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// Waits for all work.
    fn synchronize(&self) -> Result<()>;
    /// The point at which the work issued to a lane so far is done.
    fn record(&self, lane: Lane) -> Result<Self::Event>;
    /// Later work of a lane waits for the point.
    fn wait(&self, lane: Lane, event: &Self::Event) -> Result<()>;
    /// The point is reached.
    fn reached(&self, event: &Self::Event) -> Result<bool>;
    /// Seconds between two points; waits until both are reached.
    fn between(&self, from: &Self::Event, to: &Self::Event) -> Result<f64>;
    /// The stream of a lane, as NVIDIA's libraries take it.
    fn stream(&self, lane: Lane) -> Result<u64>;
    /// Bytes of the device that this process holds, and of the device in all; `None` where nobody says.
    fn device_bytes(&self) -> Option<[u64; 2]> {
        None
    }
    /// Makes the device the calling thread's own, as libraries that take no handle expect.
    fn bind(&self) -> Result<()> {
        Ok(())
    }
    /// Seconds that the work takes on the device.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;
    /// Seconds that the work takes when it is captured once and replayed as a graph; `None` where there are no graphs.
    fn time_graph(&self, _work: &mut dyn FnMut() -> Result<()>) -> Result<Option<f64>> {
        Ok(None)
    }
    /// Seconds to copy between page-locked host memory and the device; `None` where they are one.
    fn host_copy(&self, _bytes: usize, _to_device: bool) -> Result<Option<f64>> {
        Ok(None)
    }
    /// Bytes of the second-level cache.
    fn last_cache(&self) -> Option<u64> {
        None
    }
    /// Clocks and power now.
    fn telemetry(&self) -> Option<Telemetry> {
        None
    }
    /// Launches a kernel on a lane with the arguments that its source declares, in order.
    fn launch(&self, lane: Lane, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<()>;
    /// A matrix product; dimensions are not zero.
    fn multiply(&self, product: &Product) -> Result<()>;
}
