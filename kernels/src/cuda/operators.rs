//! [`Device`] on CUDA: lengths are checked, then each operator is one or two launches on the device's stream.

use super::launch::{Arg, Kernels, failed};
use crate::device::{
    Activation, Adam, Attention, CrossEntropy, Device, DeviceError, Gemm, MemoryUse, Norm, PagedAttention,
    Result, Rope, Strided, need,
};
use cudarc::cublas::{CudaBlas, result::gemm_ex, sys as blas};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, sys};
use half::bf16;
use psim_hardware::DType;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes held by buffers.
#[derive(Debug, Default)]
struct Ledger {
    live: AtomicU64,
    peak: AtomicU64,
}

/// A buffer in device memory.
pub struct CudaBuffer {
    bytes: CudaSlice<u8>,
    dtype: DType,
    len: usize,
    ledger: Arc<Ledger>,
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        self.ledger.live.fetch_sub((self.len * width_of(self.dtype)) as u64, Ordering::Relaxed);
    }
}

impl CudaBuffer {
    fn half(&self) -> bool {
        self.dtype == DType::Bf16
    }
    fn flag(&self) -> Arg {
        Arg::Int(i64::from(self.half()))
    }
}

/// Indices in device memory, with the largest one for length checks.
pub struct CudaIndex {
    values: CudaSlice<u32>,
    len: usize,
    largest: u32,
    host: Vec<u32>,
}

/// One CUDA device.
pub struct CudaDevice {
    name: String,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    blas: CudaBlas,
    kernels: Kernels,
    ledger: Arc<Ledger>,
    units: u32,
}

fn width_of(dtype: DType) -> usize {
    if dtype == DType::Bf16 { 2 } else { 4 }
}

/// Names a kernel (a plain string; the macro lets a test find all of them).
macro_rules! kernel {
    ($name:literal) => {
        $name
    };
}

const BLOCK: (u32, u32, u32) = (256, 1, 1);

impl CudaDevice {
    pub(super) fn new(index: usize) -> Result<Self> {
        let context = CudaContext::new(index).map_err(failed("opening the device"))?;
        let stream = context.default_stream();
        let blas = CudaBlas::new(Arc::clone(&stream)).map_err(failed("cuBLAS"))?;
        let name = context.name().map_err(failed("device name"))?;
        let units = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(failed("device attribute"))?;
        let kernels = Kernels::new(Arc::clone(&context))?;
        let name = format!("cuda:{index} {name}");
        Ok(Self { name, stream, context, blas, kernels, ledger: Arc::default(), units: units.max(1) as u32 })
    }

    fn pointer(&self, buffer: &CudaBuffer) -> u64 {
        let (pointer, guard) = buffer.bytes.device_ptr(&self.stream);
        drop(guard);
        pointer
    }
    fn p(&self, buffer: &CudaBuffer) -> Arg {
        Arg::Pointer(self.pointer(buffer))
    }
    fn i(&self, index: &CudaIndex) -> Arg {
        let (pointer, guard) = index.values.device_ptr(&self.stream);
        drop(guard);
        Arg::Pointer(pointer)
    }

    /// Grid for a grid-stride loop over `n` elements.
    fn grid(&self, n: usize) -> (u32, u32, u32) {
        (n.div_ceil(256).min(self.units as usize * 16) as u32, 1, 1)
    }

    fn run(&self, half: bool, name: &'static str, grid: (u32, u32, u32), args: &[Arg]) -> Result<()> {
        self.kernels.launch(&self.stream, (half, 0, name), grid, BLOCK, args)
    }

    /// Formats of all must agree.
    fn same(&self, operator: &'static str, buffers: &[&CudaBuffer]) -> Result<bool> {
        let half = buffers.first().is_some_and(|b| b.half());
        if buffers.iter().any(|b| b.half() != half) {
            return Err(self.unsupported(format!("{operator} with operands of different formats")));
        }
        Ok(half)
    }
    fn fp32(&self, operator: &'static str, buffers: &[&CudaBuffer]) -> Result<()> {
        if buffers.iter().any(|b| b.half()) {
            return Err(self.unsupported(format!("{operator} with bf16 statistics or parameter gradients")));
        }
        Ok(())
    }
    fn unsupported(&self, what: String) -> DeviceError {
        DeviceError::Unsupported { device: self.name.clone(), what }
    }

    fn head_dim(&self, dim: usize) -> Result<usize> {
        if self.head_dims().contains(&dim) {
            Ok(dim)
        } else {
            Err(self.unsupported(format!("head width {dim} (it has {:?})", self.head_dims())))
        }
    }

    fn rows_needed(operator: &'static str, rows: &CudaIndex, count: usize) -> Result<usize> {
        need(operator, "rows", count, rows.len)?;
        Ok(if count == 0 { 0 } else { rows.largest as usize + 1 })
    }
}

/// Integers as kernel arguments.
fn n(value: usize) -> Arg {
    Arg::Int(value as i64)
}

/// The arguments that describe an attention block.
fn block_args(shape: &Attention) -> [Arg; 10] {
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

impl Device for CudaDevice {
    type Buffer = CudaBuffer;
    type Index = CudaIndex;

    fn name(&self) -> String {
        self.name.clone()
    }
    fn formats(&self) -> &'static [DType] {
        &[DType::Fp32, DType::Bf16]
    }
    fn head_dims(&self) -> &'static [usize] {
        &[32, 64, 128]
    }
    fn memory(&self) -> MemoryUse {
        MemoryUse {
            live: self.ledger.live.load(Ordering::Relaxed),
            peak: self.ledger.peak.load(Ordering::Relaxed),
        }
    }
    fn reset_peak(&self) {
        self.ledger.peak.store(self.ledger.live.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    fn alloc(&self, dtype: DType, len: usize) -> Result<CudaBuffer> {
        if !matches!(dtype, DType::Fp32 | DType::Bf16) {
            return Err(self.unsupported(format!("{dtype} buffers")));
        }
        let size = len * width_of(dtype);
        // An empty allocation has no address.
        // SAFETY: bytes have no invalid values; contents are undefined by contract.
        let bytes = unsafe { self.stream.alloc::<u8>(size.max(16)) }.map_err(failed("allocation"))?;
        let live = self.ledger.live.fetch_add(size as u64, Ordering::Relaxed) + size as u64;
        self.ledger.peak.fetch_max(live, Ordering::Relaxed);
        Ok(CudaBuffer { bytes, dtype, len, ledger: Arc::clone(&self.ledger) })
    }
    fn upload(&self, values: &[f32]) -> Result<CudaBuffer> {
        let mut buffer = self.alloc(DType::Fp32, values.len())?;
        self.write(&mut buffer, 0, values)?;
        Ok(buffer)
    }
    fn upload_index(&self, values: &[u32]) -> Result<CudaIndex> {
        let padded = if values.is_empty() { vec![0] } else { values.to_vec() };
        let device = self.stream.clone_htod(&padded).map_err(failed("upload"))?;
        let largest = values.iter().copied().max().unwrap_or(0);
        Ok(CudaIndex { values: device, len: values.len(), largest, host: values.to_vec() })
    }
    fn read(&self, buffer: &CudaBuffer, offset: usize, out: &mut [f32]) -> Result<()> {
        need("read", "source", offset + out.len(), buffer.len)?;
        if out.is_empty() {
            return Ok(());
        }
        let width = width_of(buffer.dtype);
        let view = buffer.bytes.slice(offset * width..(offset + out.len()) * width);
        let host = self.stream.clone_dtoh(&view).map_err(failed("download"))?;
        self.synchronize()?;
        if buffer.half() {
            for (o, b) in out.iter_mut().zip(host.chunks_exact(2)) {
                *o = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        } else {
            for (o, b) in out.iter_mut().zip(host.chunks_exact(4)) {
                *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        Ok(())
    }
    fn write(&self, buffer: &mut CudaBuffer, offset: usize, values: &[f32]) -> Result<()> {
        need("write", "target", offset + values.len(), buffer.len)?;
        if values.is_empty() {
            return Ok(());
        }
        let host: Vec<u8> = if buffer.half() {
            values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
        } else {
            values.iter().flat_map(|v| v.to_le_bytes()).collect()
        };
        let width = width_of(buffer.dtype);
        let mut view = buffer.bytes.slice_mut(offset * width..(offset + values.len()) * width);
        self.stream.memcpy_htod(&host, &mut view).map_err(failed("upload"))?;
        // The host vector goes away: the copy must be done.
        self.synchronize()
    }
    fn len(&self, buffer: &CudaBuffer) -> usize {
        buffer.len
    }
    fn dtype(&self, buffer: &CudaBuffer) -> DType {
        buffer.dtype
    }
    fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed("synchronize"))
    }
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let event = || {
            let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            self.context.new_event(flags).map_err(failed("event"))
        };
        let (start, end) = (event()?, event()?);
        start.record(&self.stream).map_err(failed("event"))?;
        work()?;
        end.record(&self.stream).map_err(failed("event"))?;
        Ok(f64::from(start.elapsed_ms(&end).map_err(failed("event"))?) * 1e-3)
    }

    fn fill(&self, buffer: &mut CudaBuffer, value: f32) -> Result<()> {
        let args = [self.p(buffer), buffer.flag(), n(buffer.len), Arg::Float(value)];
        self.run(false, kernel!("fill"), self.grid(buffer.len), &args)
    }
    fn copy(
        &self,
        rows: usize,
        width: usize,
        source: &CudaBuffer,
        from: Strided,
        target: &mut CudaBuffer,
        to: Strided,
    ) -> Result<()> {
        need("copy", "source", from.extent(rows, width), source.len)?;
        need("copy", "target", to.extent(rows, width), target.len)?;
        let args = [
            self.p(source),
            source.flag(),
            n(from.offset),
            n(from.stride),
            self.p(target),
            target.flag(),
            n(to.offset),
            n(to.stride),
            n(rows),
            n(width),
        ];
        self.run(false, kernel!("copy_block"), self.grid(rows * width), &args)
    }
    fn add(&self, source: &CudaBuffer, target: &mut CudaBuffer) -> Result<()> {
        let len = source.len.min(target.len);
        let args = [self.p(source), source.flag(), self.p(target), target.flag(), n(len)];
        self.run(false, kernel!("add"), self.grid(len), &args)
    }
    fn scale(&self, factor: f32, buffer: &mut CudaBuffer) -> Result<()> {
        let args = [self.p(buffer), buffer.flag(), n(buffer.len), Arg::Float(factor)];
        self.run(false, kernel!("scale"), self.grid(buffer.len), &args)
    }
    fn gemm(&self, shape: &Gemm, a: &CudaBuffer, b: &CudaBuffer, c: &mut CudaBuffer) -> Result<()> {
        let extents = shape.extents();
        need("gemm", "a", extents[0], a.len)?;
        need("gemm", "b", extents[1], b.len)?;
        need("gemm", "c", extents[2], c.len)?;
        let half = self.same("gemm", &[a, b])?;
        if !half && c.half() {
            return Err(self.unsupported("fp32 products written as bf16".to_owned()));
        }
        if shape.m == 0 || shape.n == 0 {
            return Ok(());
        }
        let kind = |b: &CudaBuffer| {
            if b.half() { blas::cudaDataType::CUDA_R_16BF } else { blas::cudaDataType::CUDA_R_32F }
        };
        let operation = |transposed: bool| {
            if transposed {
                blas::cublasOperation_t::CUBLAS_OP_T
            } else {
                blas::cublasOperation_t::CUBLAS_OP_N
            }
        };
        let at = |buffer: &CudaBuffer, offset: usize| {
            self.pointer(buffer) + (offset * width_of(buffer.dtype)) as u64
        };
        let (alpha, beta) = (1.0_f32, if shape.accumulate { 1.0_f32 } else { 0.0 });
        let size = |value: usize| -> Result<i32> {
            i32::try_from(value).map_err(|_| self.unsupported(format!("a matrix dimension of {value}")))
        };
        // cuBLAS is column-major: row-major C = A·B is column-major Cᵀ = Bᵀ·Aᵀ.
        // SAFETY: pointers and leading dimensions were checked against the buffers above; alpha and beta outlive the call.
        unsafe {
            gemm_ex(
                *self.blas.handle(),
                operation(shape.transpose_b),
                operation(shape.transpose_a),
                size(shape.n)?,
                size(shape.m)?,
                size(shape.k)?,
                (&raw const alpha).cast::<c_void>(),
                at(b, shape.offset[1]) as *const c_void,
                kind(b),
                size(shape.stride[1].max(1))?,
                at(a, shape.offset[0]) as *const c_void,
                kind(a),
                size(shape.stride[0].max(1))?,
                (&raw const beta).cast::<c_void>(),
                at(c, shape.offset[2]) as *mut c_void,
                kind(c),
                size(shape.stride[2].max(1))?,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| DeviceError::Driver { call: "cublasGemmEx", message: format!("{error:?}") })
    }
    fn bias_forward(&self, rows: usize, width: usize, bias: &CudaBuffer, x: &mut CudaBuffer) -> Result<()> {
        need("bias", "bias", width, bias.len)?;
        need("bias", "x", rows * width, x.len)?;
        let half = self.same("bias", &[bias, x])?;
        let args = [self.p(bias), self.p(x), n(rows), n(width)];
        self.run(half, kernel!("bias_forward"), self.grid(rows * width), &args)
    }
    fn bias_backward(
        &self,
        rows: usize,
        width: usize,
        dy: &CudaBuffer,
        dbias: &mut CudaBuffer,
    ) -> Result<()> {
        need("bias backward", "dy", rows * width, dy.len)?;
        need("bias backward", "dbias", width, dbias.len)?;
        self.fp32("bias backward", &[dbias])?;
        let args = [self.p(dy), self.p(dbias), n(rows), n(width)];
        let key = (dy.half(), 0, kernel!("bias_backward"));
        self.kernels.launch(&self.stream, key, (width.div_ceil(32) as u32, 1, 1), (32, 8, 1), &args)
    }
    fn norm_forward(
        &self,
        shape: &Norm,
        x: &CudaBuffer,
        weight: &CudaBuffer,
        bias: Option<&CudaBuffer>,
        y: &mut CudaBuffer,
        stats: &mut CudaBuffer,
    ) -> Result<()> {
        let (name, total) = ("norm", shape.rows * shape.width);
        need(name, "x", total, x.len)?;
        need(name, "y", total, y.len)?;
        need(name, "weight", shape.width, weight.len)?;
        need(name, "bias", shape.width, bias.map_or(shape.width, |b| b.len))?;
        need(name, "stats", 2 * shape.rows, stats.len)?;
        self.fp32(name, &[stats])?;
        let half = self.same(name, &[x, weight, y, bias.unwrap_or(weight)])?;
        let args = [
            self.p(x),
            self.p(weight),
            self.p(bias.unwrap_or(weight)),
            self.p(y),
            self.p(stats),
            n(shape.width),
            Arg::Int(i64::from(shape.rms)),
            Arg::Int(i64::from(bias.is_some())),
            Arg::Float(shape.epsilon),
        ];
        self.run(half, kernel!("norm_forward"), (shape.rows as u32, 1, 1), &args)
    }
    fn norm_backward(
        &self,
        shape: &Norm,
        x: &CudaBuffer,
        weight: &CudaBuffer,
        stats: &CudaBuffer,
        dy: &CudaBuffer,
        dx: &mut CudaBuffer,
        dweight: &mut CudaBuffer,
        dbias: Option<&mut CudaBuffer>,
    ) -> Result<()> {
        let (name, total) = ("norm backward", shape.rows * shape.width);
        for (what, buffer) in [("x", x), ("dy", dy), ("dx", &*dx)] {
            need(name, what, total, buffer.len)?;
        }
        need(name, "weight", shape.width, weight.len)?;
        need(name, "dweight", shape.width, dweight.len)?;
        need(name, "dbias", shape.width, dbias.as_ref().map_or(shape.width, |b| b.len))?;
        need(name, "stats", 2 * shape.rows, stats.len)?;
        self.fp32(name, &[stats, dweight])?;
        let half = self.same(name, &[x, weight, dy, dx])?;
        let rms = Arg::Int(i64::from(shape.rms));
        let args = [self.p(x), self.p(weight), self.p(stats), self.p(dy), self.p(dx), n(shape.width), rms];
        self.run(half, kernel!("norm_backward_input"), (shape.rows as u32, 1, 1), &args)?;
        let has_bias = Arg::Int(i64::from(dbias.is_some()));
        let dbias_pointer = dbias.map_or_else(|| self.p(dweight), |b| self.p(b));
        let args = [
            self.p(x),
            self.p(stats),
            self.p(dy),
            self.p(dweight),
            dbias_pointer,
            n(shape.rows),
            n(shape.width),
            has_bias,
        ];
        let key = (half, 0, kernel!("norm_backward_weight"));
        self.kernels.launch(&self.stream, key, (shape.width.div_ceil(32) as u32, 1, 1), (32, 8, 1), &args)
    }
    fn rope(
        &self,
        shape: &Rope,
        positions: &CudaIndex,
        source: &CudaBuffer,
        from: Strided,
        target: &mut CudaBuffer,
        to: Strided,
    ) -> Result<()> {
        let width = shape.heads * shape.head_dim;
        need("rope", "positions", shape.tokens, positions.len)?;
        need("rope", "source", from.extent(shape.tokens, width), source.len)?;
        need("rope", "target", to.extent(shape.tokens, width), target.len)?;
        let half = self.same("rope", &[source, target])?;
        let args = [
            self.i(positions),
            self.p(source),
            n(from.offset),
            n(from.stride),
            self.p(target),
            n(to.offset),
            n(to.stride),
            n(shape.tokens),
            n(shape.heads),
            n(shape.head_dim),
            Arg::Float(shape.base),
            Arg::Float(if shape.inverse { -1.0 } else { 1.0 }),
        ];
        self.run(half, kernel!("rope"), self.grid(shape.tokens * shape.head_dim / 2), &args)
    }
    fn activation_forward(
        &self,
        kind: Activation,
        rows: usize,
        width: usize,
        x: &CudaBuffer,
        y: &mut CudaBuffer,
    ) -> Result<()> {
        need("activation", "x", rows * kind.input_width(width), x.len)?;
        need("activation", "y", rows * width, y.len)?;
        let half = self.same("activation", &[x, y])?;
        let grid = self.grid(rows * width);
        match kind {
            Activation::Gelu => {
                self.run(half, kernel!("gelu_forward"), grid, &[self.p(x), self.p(y), n(rows * width)])
            }
            Activation::SwiGlu => {
                self.run(half, kernel!("swiglu_forward"), grid, &[self.p(x), self.p(y), n(rows), n(width)])
            }
        }
    }
    fn activation_backward(
        &self,
        kind: Activation,
        rows: usize,
        width: usize,
        x: &CudaBuffer,
        dy: &CudaBuffer,
        dx: &mut CudaBuffer,
    ) -> Result<()> {
        let name = "activation backward";
        need(name, "x", rows * kind.input_width(width), x.len)?;
        need(name, "dy", rows * width, dy.len)?;
        need(name, "dx", rows * kind.input_width(width), dx.len)?;
        let half = self.same(name, &[x, dy, dx])?;
        let grid = self.grid(rows * width);
        let (x, dy, dx) = (self.p(x), self.p(dy), self.p(dx));
        match kind {
            Activation::Gelu => self.run(half, kernel!("gelu_backward"), grid, &[x, dy, dx, n(rows * width)]),
            Activation::SwiGlu => {
                self.run(half, kernel!("swiglu_backward"), grid, &[x, dy, dx, n(rows), n(width)])
            }
        }
    }
    fn embedding_forward(
        &self,
        rows: usize,
        width: usize,
        first: usize,
        rows_of_table: usize,
        ids: &CudaIndex,
        table: &CudaBuffer,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        need("embedding", "ids", rows, ids.len)?;
        need("embedding", "table", rows_of_table * width, table.len)?;
        need("embedding", "out", rows * width, out.len)?;
        let half = self.same("embedding", &[table, out])?;
        let args = [self.i(ids), self.p(table), self.p(out), n(rows), n(width), n(first), n(rows_of_table)];
        self.run(half, kernel!("embedding_forward"), self.grid(rows * width), &args)
    }
    fn embedding_backward(
        &self,
        rows: usize,
        width: usize,
        first: usize,
        rows_of_table: usize,
        ids: &CudaIndex,
        dy: &CudaBuffer,
        dtable: &mut CudaBuffer,
    ) -> Result<()> {
        let name = "embedding backward";
        need(name, "ids", rows, ids.len)?;
        need(name, "dy", rows * width, dy.len)?;
        need(name, "dtable", rows_of_table * width, dtable.len)?;
        self.fp32(name, &[dtable])?;
        let args = [self.i(ids), self.p(dy), self.p(dtable), n(rows), n(width), n(first), n(rows_of_table)];
        self.run(dy.half(), kernel!("embedding_backward"), self.grid(rows * width), &args)
    }
    fn cross_entropy_stats(
        &self,
        shape: &CrossEntropy,
        logits: &CudaBuffer,
        targets: &CudaIndex,
        stats: &mut CudaBuffer,
    ) -> Result<()> {
        let name = "cross entropy";
        need(name, "targets", shape.rows, targets.len)?;
        need(name, "logits", shape.rows * shape.vocab, logits.len)?;
        need(name, "stats", 3 * shape.rows, stats.len)?;
        self.fp32(name, &[stats])?;
        let args = [self.p(logits), self.i(targets), self.p(stats), n(shape.vocab), n(shape.first)];
        self.run(logits.half(), kernel!("cross_entropy_stats"), (shape.rows as u32, 1, 1), &args)
    }
    fn cross_entropy_backward(
        &self,
        shape: &CrossEntropy,
        factor: f32,
        targets: &CudaIndex,
        stats: &CudaBuffer,
        logits: &mut CudaBuffer,
    ) -> Result<()> {
        let (name, total) = ("cross entropy backward", shape.rows * shape.vocab);
        need(name, "targets", shape.rows, targets.len)?;
        need(name, "stats", 3 * shape.rows, stats.len)?;
        need(name, "logits", total, logits.len)?;
        self.fp32(name, &[stats])?;
        let args = [
            self.i(targets),
            self.p(stats),
            self.p(logits),
            n(shape.rows),
            n(shape.vocab),
            n(shape.first),
            Arg::Float(factor),
        ];
        self.run(logits.half(), kernel!("cross_entropy_backward"), self.grid(total), &args)
    }
    fn attention_forward(
        &self,
        shape: &Attention,
        q: &CudaBuffer,
        k: &CudaBuffer,
        v: &CudaBuffer,
        out: &mut CudaBuffer,
        lse: &mut CudaBuffer,
    ) -> Result<()> {
        let name = "attention";
        let dim = self.head_dim(shape.head_dim)?;
        let (q_len, kv_len) =
            (shape.q_tokens() * shape.heads * dim, shape.kv_tokens() * shape.kv_heads * dim);
        for (what, buffer, len) in
            [("q", q, q_len), ("k", k, kv_len), ("v", v, kv_len), ("out", &*out, q_len)]
        {
            need(name, what, len, buffer.len)?;
        }
        need(name, "lse", shape.q_tokens() * shape.heads, lse.len)?;
        self.fp32(name, &[lse])?;
        let half = self.same(name, &[q, k, v, out])?;
        let mut args = vec![self.p(q), self.p(k), self.p(v), self.p(out), self.p(lse)];
        args.extend(block_args(shape));
        args.extend([Arg::Int(i64::from(shape.merge)), Arg::Float(shape.scale)]);
        let grid = (shape.seq_q.div_ceil(32) as u32, shape.heads as u32, shape.batch as u32);
        let key = (half, dim, kernel!("attention_forward"));
        self.kernels.launch(&self.stream, key, grid, (128, 1, 1), &args)
    }
    fn attention_backward(
        &self,
        shape: &Attention,
        [q, k, v, out, lse]: [&CudaBuffer; 5],
        dout: &CudaBuffer,
        dq: &mut CudaBuffer,
        dk: &mut CudaBuffer,
        dv: &mut CudaBuffer,
    ) -> Result<()> {
        let name = "attention backward";
        let dim = self.head_dim(shape.head_dim)?;
        let (q_len, kv_len) =
            (shape.q_tokens() * shape.heads * dim, shape.kv_tokens() * shape.kv_heads * dim);
        for (what, buffer, len) in [
            ("q", q, q_len),
            ("out", out, q_len),
            ("dout", dout, q_len),
            ("dq", &*dq, q_len),
            ("k", k, kv_len),
            ("v", v, kv_len),
            ("dk", &*dk, kv_len),
            ("dv", &*dv, kv_len),
        ] {
            need(name, what, len, buffer.len)?;
        }
        need(name, "lse", shape.q_tokens() * shape.heads, lse.len)?;
        self.fp32(name, &[lse])?;
        let half = self.same(name, &[q, k, v, out, dout, dq, dk, dv])?;
        let rows = shape.batch * shape.heads * shape.seq_q;
        let delta = self.alloc(DType::Fp32, rows)?;
        let args = [
            self.p(out),
            self.p(dout),
            self.p(&delta),
            n(shape.batch),
            n(shape.heads),
            n(shape.seq_q),
            n(shape.q_first),
            n(shape.q_pitch),
        ];
        let key = (half, dim, kernel!("attention_delta"));
        self.kernels.launch(&self.stream, key, self.grid(rows), BLOCK, &args)?;
        let inputs = [self.p(q), self.p(k), self.p(v), self.p(lse), self.p(&delta), self.p(dout)];
        let mut args = inputs.to_vec();
        args.push(self.p(dq));
        args.extend(block_args(shape));
        args.push(Arg::Float(shape.scale));
        let grid = (shape.seq_q.div_ceil(32) as u32, shape.heads as u32, shape.batch as u32);
        let key = (half, dim, kernel!("attention_backward_q"));
        self.kernels.launch(&self.stream, key, grid, (128, 1, 1), &args)?;
        let mut args = inputs.to_vec();
        args.extend([self.p(dk), self.p(dv)]);
        args.extend(block_args(shape));
        args.push(Arg::Float(shape.scale));
        let grid = (shape.seq_kv.div_ceil(32) as u32, shape.kv_heads as u32, shape.batch as u32);
        let key = (half, dim, kernel!("attention_backward_kv"));
        self.kernels.launch(&self.stream, key, grid, (128, 1, 1), &args)
    }
    fn paged_attention(
        &self,
        shape: &PagedAttention,
        q: &CudaBuffer,
        k_cache: &CudaBuffer,
        v_cache: &CudaBuffer,
        block_table: &CudaIndex,
        lengths: &CudaIndex,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        let name = "paged attention";
        let dim = self.head_dim(shape.head_dim)?;
        let total = shape.batch * shape.heads * dim;
        need(name, "q", total, q.len)?;
        need(name, "out", total, out.len)?;
        need(name, "lengths", shape.batch, lengths.len)?;
        need(name, "block table", shape.batch * shape.max_pages, block_table.len)?;
        for &length in lengths.host.iter().take(shape.batch) {
            need(name, "block table row", (length as usize).div_ceil(shape.page.max(1)), shape.max_pages)?;
        }
        let cache = (block_table.largest as usize + 1) * shape.page * shape.kv_heads * dim;
        need(name, "k cache", cache, k_cache.len)?;
        need(name, "v cache", cache, v_cache.len)?;
        let half = self.same(name, &[q, k_cache, v_cache, out])?;
        let args = [
            self.p(q),
            self.p(k_cache),
            self.p(v_cache),
            self.i(block_table),
            self.i(lengths),
            self.p(out),
            n(shape.heads),
            n(shape.kv_heads),
            n(shape.page),
            n(shape.max_pages),
            Arg::Float(shape.scale),
        ];
        let key = (half, dim, kernel!("paged_attention"));
        self.kernels.launch(
            &self.stream,
            key,
            (shape.heads as u32, shape.batch as u32, 1),
            (128, 1, 1),
            &args,
        )
    }
    fn gather_rows(
        &self,
        count: usize,
        width: usize,
        rows: &CudaIndex,
        source: &CudaBuffer,
        target: &mut CudaBuffer,
    ) -> Result<()> {
        need("gather", "source", Self::rows_needed("gather", rows, count)? * width, source.len)?;
        need("gather", "target", count * width, target.len)?;
        let half = self.same("gather", &[source, target])?;
        let args = [self.i(rows), self.p(source), self.p(target), n(count), n(width)];
        self.run(half, kernel!("gather_rows"), self.grid(count * width), &args)
    }
    fn scatter_add_rows(
        &self,
        count: usize,
        width: usize,
        rows: &CudaIndex,
        weights: Option<&CudaBuffer>,
        source: &CudaBuffer,
        target: &mut CudaBuffer,
    ) -> Result<()> {
        need("scatter", "target", Self::rows_needed("scatter", rows, count)? * width, target.len)?;
        need("scatter", "source", count * width, source.len)?;
        need("scatter", "weights", count, weights.map_or(count, |w| w.len))?;
        self.fp32("scatter", &[target, weights.unwrap_or(target)])?;
        let args = [
            self.i(rows),
            self.p(weights.unwrap_or(source)),
            Arg::Int(i64::from(weights.is_some())),
            self.p(source),
            self.p(target),
            n(count),
            n(width),
        ];
        self.run(source.half(), kernel!("scatter_add_rows"), self.grid(count * width), &args)
    }
    fn scatter_add_rows_backward(
        &self,
        count: usize,
        width: usize,
        rows: &CudaIndex,
        weights: &CudaBuffer,
        source: &CudaBuffer,
        dtarget: &CudaBuffer,
        dsource: &mut CudaBuffer,
        dweights: &mut CudaBuffer,
    ) -> Result<()> {
        let name = "scatter backward";
        need(name, "dtarget", Self::rows_needed(name, rows, count)? * width, dtarget.len)?;
        need(name, "weights", count, weights.len)?;
        need(name, "source", count * width, source.len)?;
        need(name, "dsource", count * width, dsource.len)?;
        need(name, "dweights", count, dweights.len)?;
        self.fp32(name, &[weights, dweights])?;
        let half = self.same(name, &[source, dtarget, dsource])?;
        let args = [
            self.i(rows),
            self.p(weights),
            self.p(source),
            self.p(dtarget),
            self.p(dsource),
            self.p(dweights),
            n(width),
        ];
        self.run(half, kernel!("scatter_add_rows_backward"), (count as u32, 1, 1), &args)
    }
    fn adam(
        &self,
        settings: &Adam,
        range: Range<usize>,
        gradient: &CudaBuffer,
        [m, v]: [&mut CudaBuffer; 2],
        parameters: &mut CudaBuffer,
    ) -> Result<()> {
        let len = range.len();
        need("adam", "gradient", len, gradient.len)?;
        need("adam", "first moment", len, m.len)?;
        need("adam", "second moment", len, v.len)?;
        need("adam", "parameters", range.end, parameters.len)?;
        self.fp32("adam", &[gradient, m, v, parameters])?;
        let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powi(settings.step as i32))) as f32;
        let args = [
            self.p(gradient),
            self.p(m),
            self.p(v),
            self.p(parameters),
            n(range.start),
            n(len),
            Arg::Float(settings.rate),
            Arg::Float(settings.beta1),
            Arg::Float(settings.beta2),
            Arg::Float(settings.epsilon),
            Arg::Float(settings.weight_decay),
            Arg::Float(correction(settings.beta1)),
            Arg::Float(correction(settings.beta2)),
        ];
        self.run(false, kernel!("adam"), self.grid(len), &args)
    }
}
