//! The CPU backend: fp32 operators on one core, vectorised for what the processor has.
//!
//! Loops are plain Rust over slices; `pulp` compiles each body for AVX-512, AVX2 or the baseline and picks at run
//! time. Matrix products go to the `gemm` crate. One `CpuDevice` is one rank: it computes on the calling thread.

mod attention;
mod clock;
mod elementwise;
mod loss;
mod math;
mod matmul;
mod memory;
mod micro;
mod norm;
mod operators;
mod rows;

pub use clock::{thread_seconds, uncounted};

use crate::device::{DeviceError, Result};
use half::bf16;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes held by the buffers of one device, and freed fp32 storage kept for the next buffer of the same length: fresh
/// pages from the system cost more than most operators on them.
#[derive(Debug, Default)]
struct Ledger {
    live: AtomicU64,
    peak: AtomicU64,
    free: Mutex<BTreeMap<usize, Vec<Vec<f32>>>>,
}

impl Ledger {
    fn take(&self, bytes: u64) {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }

    fn free(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<Vec<f32>>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Storage with undefined contents.
    fn storage(&self, len: usize) -> Vec<f32> {
        self.free().get_mut(&len).and_then(Vec::pop).unwrap_or_else(|| vec![0.0; len])
    }
}

#[derive(Debug)]
enum Data {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// A buffer in host memory.
#[derive(Debug)]
pub struct CpuBuffer {
    data: Data,
    ledger: Arc<Ledger>,
}

impl CpuBuffer {
    fn bytes(&self) -> u64 {
        match &self.data {
            Data::F32(v) => 4 * v.len() as u64,
            Data::Bf16(v) => 2 * v.len() as u64,
        }
    }
    /// The elements of an fp32 buffer.
    fn f32(&self, operator: &str) -> Result<&[f32]> {
        match &self.data {
            Data::F32(v) => Ok(v),
            Data::Bf16(_) => Err(unsupported(operator)),
        }
    }
    fn f32_mut(&mut self, operator: &str) -> Result<&mut [f32]> {
        match &mut self.data {
            Data::F32(v) => Ok(v),
            Data::Bf16(_) => Err(unsupported(operator)),
        }
    }
    fn len(&self) -> usize {
        match &self.data {
            Data::F32(v) => v.len(),
            Data::Bf16(v) => v.len(),
        }
    }
}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        self.ledger.live.fetch_sub(self.bytes(), Ordering::Relaxed);
        if let Data::F32(values) = &mut self.data {
            let values = std::mem::take(values);
            self.ledger.free().entry(values.len()).or_default().push(values);
        }
    }
}

fn unsupported(operator: &str) -> DeviceError {
    DeviceError::Unsupported {
        device: "the CPU backend".to_owned(),
        what: format!("{operator} on bf16 (it computes in fp32 and only converts bf16)"),
    }
}

/// One rank on the CPU.
#[derive(Debug, Clone)]
pub struct CpuDevice {
    ledger: Arc<Ledger>,
    poison: bool,
}

impl Default for CpuDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl CpuDevice {
    /// A device with its own memory count. From the first one on the process keeps the memory that it frees.
    pub fn new() -> Self {
        memory::keep();
        Self { ledger: Arc::default(), poison: false }
    }

    /// A device that fills every new buffer with NaN, so that a forgotten write is noticed.
    pub fn poisoning() -> Self {
        Self { poison: true, ..Self::new() }
    }

    fn wrap(&self, data: Data) -> CpuBuffer {
        let buffer = CpuBuffer { data, ledger: Arc::clone(&self.ledger) };
        self.ledger.take(buffer.bytes());
        buffer
    }
}

/// The processor's name, from `/proc/cpuinfo` where there is one.
pub fn processor_name() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
