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
mod micro;
mod norm;
mod rows;

pub use clock::thread_seconds;

use crate::device::{
    Activation, Adam, Attention, CrossEntropy, Device, DeviceError, Gemm, MemoryUse, Norm, PagedAttention,
    Result, Rope, Strided, need,
};
use half::bf16;
use psim_hardware::DType;
use std::collections::BTreeMap;
use std::ops::Range;
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
#[derive(Debug, Default, Clone)]
pub struct CpuDevice {
    ledger: Arc<Ledger>,
    poison: bool,
}

impl CpuDevice {
    /// A device with its own memory count.
    pub fn new() -> Self {
        Self::default()
    }

    /// A device that fills every new buffer with NaN, so that a forgotten write is noticed.
    pub fn poisoning() -> Self {
        Self { poison: true, ..Self::default() }
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

/// Checks and borrows: `input!(operator, "name", buffer, needed)`.
macro_rules! input {
    ($operator:expr, $what:expr, $buffer:expr, $needed:expr) => {{
        let slice = $buffer.f32($operator)?;
        need($operator, $what, $needed, slice.len())?;
        slice
    }};
}
macro_rules! output {
    ($operator:expr, $what:expr, $buffer:expr, $needed:expr) => {{
        let slice = $buffer.f32_mut($operator)?;
        need($operator, $what, $needed, slice.len())?;
        slice
    }};
}

impl Device for CpuDevice {
    type Buffer = CpuBuffer;
    type Index = Vec<u32>;

    fn name(&self) -> String {
        format!("cpu: {}", processor_name())
    }
    fn formats(&self) -> &'static [DType] {
        &[DType::Fp32]
    }
    fn head_dims(&self) -> &'static [usize] {
        &[]
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
    fn alloc(&self, dtype: DType, len: usize) -> Result<CpuBuffer> {
        match dtype {
            DType::Fp32 => {
                let mut values = self.ledger.storage(len);
                if self.poison {
                    values.fill(f32::NAN);
                }
                Ok(self.wrap(Data::F32(values)))
            }
            DType::Bf16 => {
                Ok(self.wrap(Data::Bf16(vec![if self.poison { bf16::NAN } else { bf16::ZERO }; len])))
            }
            other => Err(DeviceError::Unsupported { device: self.name(), what: format!("{other} buffers") }),
        }
    }
    fn upload(&self, values: &[f32]) -> Result<CpuBuffer> {
        let mut storage = self.ledger.storage(values.len());
        storage.copy_from_slice(values);
        Ok(self.wrap(Data::F32(storage)))
    }
    fn upload_index(&self, values: &[u32]) -> Result<Vec<u32>> {
        Ok(values.to_vec())
    }
    fn read(&self, buffer: &CpuBuffer, offset: usize, out: &mut [f32]) -> Result<()> {
        need("read", "source", offset + out.len(), buffer.len())?;
        let range = offset..offset + out.len();
        match &buffer.data {
            Data::F32(v) => out.copy_from_slice(&v[range]),
            Data::Bf16(v) => out.iter_mut().zip(&v[range]).for_each(|(o, x)| *o = x.to_f32()),
        }
        Ok(())
    }
    fn write(&self, buffer: &mut CpuBuffer, offset: usize, values: &[f32]) -> Result<()> {
        need("write", "target", offset + values.len(), buffer.len())?;
        let range = offset..offset + values.len();
        match &mut buffer.data {
            Data::F32(v) => v[range].copy_from_slice(values),
            Data::Bf16(v) => v[range].iter_mut().zip(values).for_each(|(o, x)| *o = bf16::from_f32(*x)),
        }
        Ok(())
    }
    fn len(&self, buffer: &CpuBuffer) -> usize {
        buffer.len()
    }
    fn dtype(&self, buffer: &CpuBuffer) -> DType {
        match buffer.data {
            Data::F32(_) => DType::Fp32,
            Data::Bf16(_) => DType::Bf16,
        }
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        // Processor time: another program on this core does not make an operator slower.
        let start = thread_seconds();
        work()?;
        Ok(thread_seconds() - start)
    }

    fn fill(&self, buffer: &mut CpuBuffer, value: f32) -> Result<()> {
        match &mut buffer.data {
            Data::F32(v) => v.fill(value),
            Data::Bf16(v) => v.fill(bf16::from_f32(value)),
        }
        Ok(())
    }
    fn copy(
        &self,
        rows: usize,
        width: usize,
        source: &CpuBuffer,
        from: Strided,
        target: &mut CpuBuffer,
        to: Strided,
    ) -> Result<()> {
        need("copy", "source", from.extent(rows, width), source.len())?;
        need("copy", "target", to.extent(rows, width), target.len())?;
        for row in 0..rows {
            let (s, t) = (from.offset + row * from.stride, to.offset + row * to.stride);
            match (&source.data, &mut target.data) {
                (Data::F32(x), Data::F32(y)) => y[t..t + width].copy_from_slice(&x[s..s + width]),
                (Data::Bf16(x), Data::Bf16(y)) => y[t..t + width].copy_from_slice(&x[s..s + width]),
                (Data::F32(x), Data::Bf16(y)) => {
                    y[t..t + width]
                        .iter_mut()
                        .zip(&x[s..s + width])
                        .for_each(|(y, x)| *y = bf16::from_f32(*x));
                }
                (Data::Bf16(x), Data::F32(y)) => {
                    y[t..t + width].iter_mut().zip(&x[s..s + width]).for_each(|(y, x)| *y = x.to_f32());
                }
            }
        }
        Ok(())
    }
    fn add(&self, source: &CpuBuffer, target: &mut CpuBuffer) -> Result<()> {
        elementwise::add(source.f32("add")?, target.f32_mut("add")?);
        Ok(())
    }
    fn scale(&self, factor: f32, buffer: &mut CpuBuffer) -> Result<()> {
        elementwise::scale(factor, buffer.f32_mut("scale")?);
        Ok(())
    }
    fn gemm(&self, shape: &Gemm, a: &CpuBuffer, b: &CpuBuffer, c: &mut CpuBuffer) -> Result<()> {
        let extents = shape.extents();
        let a = input!("gemm", "a", a, extents[0]);
        let b = input!("gemm", "b", b, extents[1]);
        matmul::gemm(shape, a, b, output!("gemm", "c", c, extents[2]));
        Ok(())
    }
    fn bias_forward(&self, rows: usize, width: usize, bias: &CpuBuffer, x: &mut CpuBuffer) -> Result<()> {
        let bias = input!("bias", "bias", bias, width);
        elementwise::bias_forward(width, bias, &mut output!("bias", "x", x, rows * width)[..rows * width]);
        Ok(())
    }
    fn bias_backward(&self, rows: usize, width: usize, dy: &CpuBuffer, dbias: &mut CpuBuffer) -> Result<()> {
        let dy = &input!("bias backward", "dy", dy, rows * width)[..rows * width];
        elementwise::bias_backward(width, dy, output!("bias backward", "dbias", dbias, width));
        Ok(())
    }
    fn norm_forward(
        &self,
        shape: &Norm,
        x: &CpuBuffer,
        weight: &CpuBuffer,
        bias: Option<&CpuBuffer>,
        y: &mut CpuBuffer,
        stats: &mut CpuBuffer,
    ) -> Result<()> {
        let (name, total) = ("norm", shape.rows * shape.width);
        let x = input!(name, "x", x, total);
        let weight = input!(name, "weight", weight, shape.width);
        let bias = match bias {
            Some(bias) => Some(input!(name, "bias", bias, shape.width)),
            None => None,
        };
        let y = output!(name, "y", y, total);
        norm::forward(shape, x, weight, bias, y, output!(name, "stats", stats, 2 * shape.rows));
        Ok(())
    }
    fn norm_backward(
        &self,
        shape: &Norm,
        x: &CpuBuffer,
        weight: &CpuBuffer,
        stats: &CpuBuffer,
        dy: &CpuBuffer,
        dx: &mut CpuBuffer,
        dweight: &mut CpuBuffer,
        dbias: Option<&mut CpuBuffer>,
    ) -> Result<()> {
        let (name, total) = ("norm backward", shape.rows * shape.width);
        let x = input!(name, "x", x, total);
        let weight = input!(name, "weight", weight, shape.width);
        let stats = input!(name, "stats", stats, 2 * shape.rows);
        let dy = input!(name, "dy", dy, total);
        let dx = output!(name, "dx", dx, total);
        let dweight = output!(name, "dweight", dweight, shape.width);
        let dbias = match dbias {
            Some(dbias) => Some(output!(name, "dbias", dbias, shape.width)),
            None => None,
        };
        norm::backward(shape, x, weight, stats, dy, dx, dweight, dbias);
        Ok(())
    }
    fn rope(
        &self,
        shape: &Rope,
        positions: &Vec<u32>,
        source: &CpuBuffer,
        from: Strided,
        target: &mut CpuBuffer,
        to: Strided,
    ) -> Result<()> {
        let width = shape.heads * shape.head_dim;
        need("rope", "positions", shape.tokens, positions.len())?;
        let source = input!("rope", "source", source, from.extent(shape.tokens, width));
        let target = output!("rope", "target", target, to.extent(shape.tokens, width));
        elementwise::rope(shape, positions, source, from, target, to);
        Ok(())
    }
    fn activation_forward(
        &self,
        kind: Activation,
        rows: usize,
        width: usize,
        x: &CpuBuffer,
        y: &mut CpuBuffer,
    ) -> Result<()> {
        let x = input!("activation", "x", x, rows * kind.input_width(width));
        elementwise::activation_forward(kind, rows, width, x, output!("activation", "y", y, rows * width));
        Ok(())
    }
    fn activation_backward(
        &self,
        kind: Activation,
        rows: usize,
        width: usize,
        x: &CpuBuffer,
        dy: &CpuBuffer,
        dx: &mut CpuBuffer,
    ) -> Result<()> {
        let (name, total) = ("activation backward", rows * kind.input_width(width));
        let x = input!(name, "x", x, total);
        let dy = input!(name, "dy", dy, rows * width);
        elementwise::activation_backward(kind, rows, width, x, dy, output!(name, "dx", dx, total));
        Ok(())
    }
    fn embedding_forward(
        &self,
        rows: usize,
        width: usize,
        first: usize,
        rows_of_table: usize,
        ids: &Vec<u32>,
        table: &CpuBuffer,
        out: &mut CpuBuffer,
    ) -> Result<()> {
        need("embedding", "ids", rows, ids.len())?;
        let table = input!("embedding", "table", table, rows_of_table * width);
        let out = output!("embedding", "out", out, rows * width);
        rows::embedding_forward(width, first, rows_of_table, &ids[..rows], table, out);
        Ok(())
    }
    fn embedding_backward(
        &self,
        rows: usize,
        width: usize,
        first: usize,
        rows_of_table: usize,
        ids: &Vec<u32>,
        dy: &CpuBuffer,
        dtable: &mut CpuBuffer,
    ) -> Result<()> {
        let name = "embedding backward";
        need(name, "ids", rows, ids.len())?;
        let dy = input!(name, "dy", dy, rows * width);
        let dtable = output!(name, "dtable", dtable, rows_of_table * width);
        rows::embedding_backward(width, first, rows_of_table, &ids[..rows], dy, dtable);
        Ok(())
    }
    fn cross_entropy_stats(
        &self,
        shape: &CrossEntropy,
        logits: &CpuBuffer,
        targets: &Vec<u32>,
        stats: &mut CpuBuffer,
    ) -> Result<()> {
        need("cross entropy", "targets", shape.rows, targets.len())?;
        let logits = input!("cross entropy", "logits", logits, shape.rows * shape.vocab);
        loss::stats(shape, logits, targets, output!("cross entropy", "stats", stats, 3 * shape.rows));
        Ok(())
    }
    fn cross_entropy_backward(
        &self,
        shape: &CrossEntropy,
        factor: f32,
        targets: &Vec<u32>,
        stats: &CpuBuffer,
        logits: &mut CpuBuffer,
    ) -> Result<()> {
        let name = "cross entropy backward";
        need(name, "targets", shape.rows, targets.len())?;
        let stats = input!(name, "stats", stats, 3 * shape.rows);
        loss::backward(
            shape,
            factor,
            targets,
            stats,
            output!(name, "logits", logits, shape.rows * shape.vocab),
        );
        Ok(())
    }
    fn attention_forward(
        &self,
        shape: &Attention,
        q: &CpuBuffer,
        k: &CpuBuffer,
        v: &CpuBuffer,
        out: &mut CpuBuffer,
        lse: &mut CpuBuffer,
    ) -> Result<()> {
        let name = "attention";
        let (q_row, kv_row) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let q = input!(name, "q", q, shape.q_tokens() * q_row);
        let k = input!(name, "k", k, shape.kv_tokens() * kv_row);
        let v = input!(name, "v", v, shape.kv_tokens() * kv_row);
        let out = output!(name, "out", out, shape.q_tokens() * q_row);
        attention::forward(shape, q, k, v, out, output!(name, "lse", lse, shape.q_tokens() * shape.heads));
        Ok(())
    }
    fn attention_backward(
        &self,
        shape: &Attention,
        [q, k, v, out, lse]: [&CpuBuffer; 5],
        dout: &CpuBuffer,
        dq: &mut CpuBuffer,
        dk: &mut CpuBuffer,
        dv: &mut CpuBuffer,
    ) -> Result<()> {
        let name = "attention backward";
        let (q_len, kv_len) = (
            shape.q_tokens() * shape.heads * shape.head_dim,
            shape.kv_tokens() * shape.kv_heads * shape.head_dim,
        );
        let q = input!(name, "q", q, q_len);
        let k = input!(name, "k", k, kv_len);
        let v = input!(name, "v", v, kv_len);
        let out = input!(name, "out", out, q_len);
        let lse = input!(name, "lse", lse, shape.q_tokens() * shape.heads);
        let dout = input!(name, "dout", dout, q_len);
        let dq = output!(name, "dq", dq, q_len);
        let dk = output!(name, "dk", dk, kv_len);
        let dv = output!(name, "dv", dv, kv_len);
        attention::backward(shape, [q, k, v, out, lse, dout], dq, dk, dv);
        Ok(())
    }
    fn paged_attention(
        &self,
        shape: &PagedAttention,
        q: &CpuBuffer,
        k_cache: &CpuBuffer,
        v_cache: &CpuBuffer,
        block_table: &Vec<u32>,
        lengths: &Vec<u32>,
        out: &mut CpuBuffer,
    ) -> Result<()> {
        let name = "paged attention";
        let total = shape.batch * shape.heads * shape.head_dim;
        need(name, "lengths", shape.batch, lengths.len())?;
        need(name, "block table", shape.batch * shape.max_pages, block_table.len())?;
        let page = shape.page * shape.kv_heads * shape.head_dim;
        let mut pages = 0;
        for (sequence, &length) in lengths.iter().take(shape.batch).enumerate() {
            let used = (length as usize).div_ceil(shape.page.max(1));
            need(name, "block table row", used, shape.max_pages)?;
            let row = &block_table[sequence * shape.max_pages..][..used];
            pages = pages.max(row.iter().map(|&p| p as usize + 1).max().unwrap_or(0));
        }
        let q = input!(name, "q", q, total);
        let k_cache = input!(name, "k cache", k_cache, pages * page);
        let v_cache = input!(name, "v cache", v_cache, pages * page);
        attention::paged(shape, q, k_cache, v_cache, block_table, lengths, output!(name, "out", out, total));
        Ok(())
    }
    fn gather_rows(
        &self,
        count: usize,
        width: usize,
        rows: &Vec<u32>,
        source: &CpuBuffer,
        target: &mut CpuBuffer,
    ) -> Result<()> {
        let source = input!("gather", "source", source, rows_needed("gather", rows, count)? * width);
        let target = output!("gather", "target", target, count * width);
        rows::gather(width, &rows[..count], source, target);
        Ok(())
    }
    fn scatter_add_rows(
        &self,
        count: usize,
        width: usize,
        rows: &Vec<u32>,
        weights: Option<&CpuBuffer>,
        source: &CpuBuffer,
        target: &mut CpuBuffer,
    ) -> Result<()> {
        let target = output!("scatter", "target", target, rows_needed("scatter", rows, count)? * width);
        let weights = match weights {
            Some(weights) => Some(input!("scatter", "weights", weights, count)),
            None => None,
        };
        let source = input!("scatter", "source", source, count * width);
        rows::scatter_add(width, &rows[..count], weights, source, target);
        Ok(())
    }
    fn scatter_add_rows_backward(
        &self,
        count: usize,
        width: usize,
        rows: &Vec<u32>,
        weights: &CpuBuffer,
        source: &CpuBuffer,
        dtarget: &CpuBuffer,
        dsource: &mut CpuBuffer,
        dweights: &mut CpuBuffer,
    ) -> Result<()> {
        let name = "scatter backward";
        let dtarget = input!(name, "dtarget", dtarget, rows_needed(name, rows, count)? * width);
        let weights = input!(name, "weights", weights, count);
        let source = input!(name, "source", source, count * width);
        let dsource = output!(name, "dsource", dsource, count * width);
        let dweights = output!(name, "dweights", dweights, count);
        rows::scatter_add_backward(width, &rows[..count], weights, source, dtarget, dsource, dweights);
        Ok(())
    }
    fn adam(
        &self,
        settings: &Adam,
        range: Range<usize>,
        gradient: &CpuBuffer,
        [m, v]: [&mut CpuBuffer; 2],
        parameters: &mut CpuBuffer,
    ) -> Result<()> {
        let len = range.len();
        let gradient = input!("adam", "gradient", gradient, len);
        let m = output!("adam", "first moment", m, len);
        let v = output!("adam", "second moment", v, len);
        let parameters = output!("adam", "parameters", parameters, range.end);
        elementwise::adam(settings, &gradient[..len], &mut m[..len], &mut v[..len], &mut parameters[range]);
        Ok(())
    }
}

/// Rows that the largest index asks for.
fn rows_needed(operator: &'static str, rows: &[u32], count: usize) -> Result<usize> {
    need(operator, "rows", count, rows.len())?;
    Ok(rows[..count].iter().map(|&r| r as usize + 1).max().unwrap_or(0))
}
