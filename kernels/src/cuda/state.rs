//! Buffers in device memory, the ledger that counts them, and what every operator needs to launch a kernel.

use super::driver::Driver;
use super::runtime::{Arg, Format, Kernel, Lane, Launch, Runtime};
use crate::device::{Attention, DeviceError, MemoryUse, Result, need};
use half::{bf16, f16};
use psim_hardware::DType;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names a kernel (a plain string; the macro lets a test find all of them).
macro_rules! kernel {
    ($name:literal) => {
        $name
    };
}
pub(super) use kernel;

/// Head widths that the attention kernels are compiled for.
pub(super) const HEAD_DIMS: [usize; 3] = [32, 64, 128];
/// Threads of a block of the elementwise kernels.
pub(super) const BLOCK: (u32, u32, u32) = (256, 1, 1);

/// Bytes held by buffers.
#[derive(Debug, Default)]
struct Ledger {
    live: AtomicU64,
    peak: AtomicU64,
}

/// A buffer in device memory.
pub struct CudaBuffer<M> {
    memory: M,
    pub(super) format: Format,
    pub(super) len: usize,
    ledger: Arc<Ledger>,
}

impl<M> Drop for CudaBuffer<M> {
    fn drop(&mut self) {
        self.ledger.live.fetch_sub((self.len * self.format.bytes()) as u64, Ordering::Relaxed);
    }
}

impl<M> CudaBuffer<M> {
    /// Format of the elements.
    pub fn format(&self) -> Format {
        self.format
    }
    /// The format as an argument of kernels that take any.
    pub(super) fn code(&self) -> Arg {
        Arg::Int(self.format.code())
    }
}

/// Indices in device memory, with their host copy for length checks.
pub struct CudaIndex<M> {
    memory: M,
    pub(super) host: Vec<u32>,
}

/// One CUDA device, on NVIDIA's driver or on a stand-in for it.
pub struct CudaDevice<R: Runtime = Driver> {
    pub(super) runtime: R,
    name: String,
    ledger: Arc<Ledger>,
}

/// Integers as kernel arguments.
pub(super) fn n(value: usize) -> Arg {
    Arg::Int(value as i64)
}

/// The arguments that describe an attention block.
pub(super) fn block_args(shape: &Attention) -> [Arg; 10] {
    [
        n(shape.heads),
        n(shape.kv_heads),
        n(shape.seq_q),
        n(shape.seq_kv),
        n(shape.q_first),
        n(shape.q_pitch),
        n(shape.kv_first),
        n(shape.kv_pitch),
        Arg::Int(i64::from(shape.causal.is_some())),
        Arg::Int(shape.causal.unwrap_or(0) as i64),
    ]
}

/// Nearest E4M3 number, ties to even, saturating at 448 (Micikevicius et al. 2022, table 1).
fn to_e4m3(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 128 } else { 0 };
    let magnitude = f64::from(value.abs());
    if value.is_nan() {
        return sign | 127;
    }
    if magnitude >= 448.0 {
        return sign | 126;
    }
    let exponent = if magnitude > 0.0 { magnitude.log2().floor().max(-6.0) as i32 } else { -6 };
    // Units of the last place; a carry moves on into the exponent by itself.
    let units = (magnitude * 2.0_f64.powi(3 - exponent)).round_ties_even() as i32;
    sign | (((exponent + 6) << 3) + units) as u8
}

/// Value of an E4M3 number.
fn from_e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from((bits >> 3) & 15), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 127) {
        (_, 127) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
    };
    if bits & 128 == 0 { magnitude } else { -magnitude }
}

fn encode(format: Format, values: &[f32]) -> Vec<u8> {
    match format {
        Format::Fp32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Format::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Format::Fp16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Format::Fp8 => values.iter().map(|v| to_e4m3(*v)).collect(),
    }
}

fn decode(format: Format, bytes: &[u8], out: &mut [f32]) {
    let chunks = out.iter_mut().zip(bytes.chunks_exact(format.bytes()));
    for (o, b) in chunks {
        *o = match (format, b) {
            (Format::Fp32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Format::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (Format::Fp16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Format::Fp8, &[a]) => from_e4m3(a),
            _ => f32::NAN,
        };
    }
}

impl<R: Runtime> CudaDevice<R> {
    /// A device on this runtime.
    pub fn on(runtime: R) -> Self {
        let name = runtime.name();
        Self { runtime, name, ledger: Arc::default() }
    }

    /// The runtime, for libraries that work on its streams.
    pub fn runtime(&self) -> &R {
        &self.runtime
    }
    /// Where a buffer's element lies.
    pub fn element_address(&self, buffer: &CudaBuffer<R::Memory>, element: usize) -> u64 {
        self.address(buffer) + (element * buffer.format.bytes()) as u64
    }

    pub(super) fn title(&self) -> String {
        self.name.clone()
    }
    pub(super) fn address(&self, buffer: &CudaBuffer<R::Memory>) -> u64 {
        self.runtime.address(&buffer.memory)
    }
    /// A buffer as an argument.
    pub(super) fn p(&self, buffer: &CudaBuffer<R::Memory>) -> Arg {
        Arg::Pointer(self.address(buffer))
    }
    /// Indices as an argument.
    pub(super) fn i(&self, index: &CudaIndex<R::Memory>) -> Arg {
        Arg::Pointer(self.runtime.address(&index.memory))
    }

    /// Grid for a grid-stride loop over `n` elements.
    pub(super) fn grid(&self, n: usize) -> (u32, u32, u32) {
        (n.div_ceil(256).min(self.runtime.units() as usize * 16) as u32, 1, 1)
    }
    /// Grid for rows of `width`: columns by blocks of 256, rows by the second dimension.
    pub(super) fn grid_rows(&self, rows: usize, width: usize) -> (u32, u32, u32) {
        if width == 0 {
            return (0, 1, 1);
        }
        // Few rows need many blocks each to fill the device.
        let most = (self.runtime.units() as usize * 16 / rows.max(1)).max(64);
        let columns = width.div_ceil(256).min(most);
        (columns as u32, rows.min(65_535) as u32, 1)
    }

    /// Launches a kernel that is not attention, 256 threads a block.
    pub(super) fn run(
        &self,
        format: Format,
        name: &'static str,
        grid: (u32, u32, u32),
        args: &[Arg],
    ) -> Result<()> {
        self.run_shaped(Kernel { format, dim: 0, name }, grid, BLOCK, 0, args)
    }
    pub(super) fn run_shaped(
        &self,
        kernel: Kernel,
        grid: (u32, u32, u32),
        block: (u32, u32, u32),
        shared: u32,
        args: &[Arg],
    ) -> Result<()> {
        self.runtime.launch(Lane::Main, kernel, Launch { grid, block, shared }, args)
    }

    /// The one format of all these buffers, which a kernel can compute in.
    pub(super) fn same(&self, operator: &'static str, buffers: &[&CudaBuffer<R::Memory>]) -> Result<Format> {
        let format = buffers.first().map_or(Format::Fp32, |b| b.format);
        if buffers.iter().any(|b| b.format != format) {
            return Err(self.unsupported(format!("{operator} with operands of different formats")));
        }
        if format == Format::Fp8 {
            return Err(
                self.unsupported(format!("{operator} in fp8 (matrix products, copies and casts only)"))
            );
        }
        Ok(format)
    }
    pub(super) fn fp32(&self, operator: &'static str, buffers: &[&CudaBuffer<R::Memory>]) -> Result<()> {
        if buffers.iter().any(|b| b.format != Format::Fp32) {
            return Err(self
                .unsupported(format!("{operator} with statistics or parameter gradients other than fp32")));
        }
        Ok(())
    }
    pub(super) fn unsupported(&self, what: String) -> DeviceError {
        DeviceError::Unsupported { device: self.name.clone(), what }
    }
    pub(super) fn head_dim(&self, dim: usize) -> Result<usize> {
        if HEAD_DIMS.contains(&dim) {
            Ok(dim)
        } else {
            Err(self.unsupported(format!("head width {dim} (it has {HEAD_DIMS:?})")))
        }
    }

    pub(super) fn memory_use(&self) -> MemoryUse {
        MemoryUse {
            live: self.ledger.live.load(Ordering::Relaxed),
            peak: self.ledger.peak.load(Ordering::Relaxed),
        }
    }
    pub(super) fn start_new_peak(&self) {
        self.ledger.peak.store(self.ledger.live.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    pub(super) fn allocate(&self, dtype: DType, len: usize) -> Result<CudaBuffer<R::Memory>> {
        let Some(format) = Format::of(dtype) else {
            return Err(self.unsupported(format!("{dtype} buffers")));
        };
        let size = len * format.bytes();
        let memory = self.runtime.allocate(size)?;
        let live = self.ledger.live.fetch_add(size as u64, Ordering::Relaxed) + size as u64;
        self.ledger.peak.fetch_max(live, Ordering::Relaxed);
        Ok(CudaBuffer { memory, format, len, ledger: Arc::clone(&self.ledger) })
    }
    pub(super) fn put(
        &self,
        buffer: &mut CudaBuffer<R::Memory>,
        offset: usize,
        values: &[f32],
    ) -> Result<()> {
        need("write", "target", offset + values.len(), buffer.len)?;
        if values.is_empty() {
            return Ok(());
        }
        let bytes = encode(buffer.format, values);
        self.runtime.to_device(&bytes, &mut buffer.memory, offset * buffer.format.bytes())
    }
    pub(super) fn get(&self, buffer: &CudaBuffer<R::Memory>, offset: usize, out: &mut [f32]) -> Result<()> {
        need("read", "source", offset + out.len(), buffer.len)?;
        if out.is_empty() {
            return Ok(());
        }
        let width = buffer.format.bytes();
        let mut bytes = vec![0; out.len() * width];
        self.runtime.to_host(&buffer.memory, offset * width, &mut bytes)?;
        decode(buffer.format, &bytes, out);
        Ok(())
    }
    pub(super) fn put_index(&self, values: &[u32]) -> Result<CudaIndex<R::Memory>> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut memory = self.runtime.allocate(bytes.len())?;
        if !bytes.is_empty() {
            self.runtime.to_device(&bytes, &mut memory, 0)?;
        }
        Ok(CudaIndex { memory, host: values.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code of E4M3 survives the round trip; halves go to even; beyond 448 saturates.
    #[test]
    fn e4m3_round_trips() {
        for bits in 0..=255_u8 {
            let value = from_e4m3(bits);
            if value.is_nan() {
                assert_eq!(bits & 127, 127);
                assert!(from_e4m3(to_e4m3(value)).is_nan());
            } else {
                assert_eq!(to_e4m3(value), bits, "{value}");
            }
        }
        assert_eq!(from_e4m3(to_e4m3(1.0625)), 1.0);
        assert_eq!(from_e4m3(to_e4m3(1.1875)), 1.25);
        assert_eq!(from_e4m3(to_e4m3(1e9)), 448.0);
        assert_eq!(from_e4m3(to_e4m3(447.0)), 448.0);
        assert_eq!(from_e4m3(to_e4m3(-0.001)), -0.001_953_125);
    }
}
