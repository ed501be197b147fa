//! [`Device`] on the CPU: lengths are checked, then each operator is a loop of the modules beside.

use super::{
    CpuBuffer, CpuDevice, Data, attention, elementwise, loss, matmul, norm, processor_name, rows,
    thread_seconds,
};
use crate::device::{
    Activation, Adam, Attention, CrossEntropy, Device, DeviceError, Gemm, MemoryUse, Norm, PagedAttention,
    Result, Rope, Strided, lengths, need,
};
use half::bf16;
use psim_hardware::DType;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Waits shorter than this are spun: a sleeping thread wakes up too late.
const SPIN: Duration = Duration::from_micros(200);

/// Borrows the elements of an fp32 buffer: `input!(operator, buffer)`.
macro_rules! input {
    ($operator:expr, $buffer:expr) => {
        $buffer.f32($operator)?
    };
}
macro_rules! output {
    ($operator:expr, $buffer:expr) => {
        $buffer.f32_mut($operator)?
    };
}

impl Device for CpuDevice {
    type Buffer = CpuBuffer;
    type Index = Vec<u32>;
    type Mark = Instant;

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

    fn mark(&self) -> Result<Instant> {
        Ok(Instant::now())
    }
    fn between(&self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok(to.saturating_duration_since(*from).as_secs_f64())
    }
    fn reached(&self, mark: &Instant) -> Result<bool> {
        Ok(Instant::now() >= *mark)
    }
    fn join(&self, mark: &Instant) -> Result<()> {
        loop {
            let left = mark.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if left > SPIN {
                std::thread::sleep(left - SPIN / 2);
            } else {
                std::hint::spin_loop();
            }
        }
    }
    fn pause_beside(&self, _: u32, seconds: f64) -> Result<Instant> {
        Ok(Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 1e6)))
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
        lengths::copy(rows, width, [from, to], [source.len(), target.len()])?;
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
        lengths::gemm(shape, [a.len(), b.len(), c.len()])?;
        let a = input!("gemm", a);
        let b = input!("gemm", b);
        matmul::gemm(shape, a, b, output!("gemm", c));
        Ok(())
    }
    fn bias_forward(&self, rows: usize, width: usize, bias: &CpuBuffer, x: &mut CpuBuffer) -> Result<()> {
        lengths::bias("bias", rows, width, [x.len(), bias.len()])?;
        let bias = input!("bias", bias);
        elementwise::bias_forward(width, bias, &mut output!("bias", x)[..rows * width]);
        Ok(())
    }
    fn bias_backward(&self, rows: usize, width: usize, dy: &CpuBuffer, dbias: &mut CpuBuffer) -> Result<()> {
        lengths::bias("bias backward", rows, width, [dy.len(), dbias.len()])?;
        let dy = &input!("bias backward", dy)[..rows * width];
        elementwise::bias_backward(width, dy, output!("bias backward", dbias));
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
        lengths::norm(shape, [x.len(), weight.len(), y.len(), stats.len()], bias.map(CpuBuffer::len))?;
        let name = "norm";
        let x = input!(name, x);
        let weight = input!(name, weight);
        let bias = match bias {
            Some(bias) => Some(input!(name, bias)),
            None => None,
        };
        let y = output!(name, y);
        norm::forward(shape, x, weight, bias, y, output!(name, stats));
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
        let own = [x.len(), weight.len(), stats.len(), dy.len(), dx.len(), dweight.len()];
        lengths::norm_backward(shape, own, dbias.as_ref().map(|b| b.len()))?;
        let name = "norm backward";
        let x = input!(name, x);
        let weight = input!(name, weight);
        let stats = input!(name, stats);
        let dy = input!(name, dy);
        let dx = output!(name, dx);
        let dweight = output!(name, dweight);
        let dbias = match dbias {
            Some(dbias) => Some(output!(name, dbias)),
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
        lengths::rope(shape, [from, to], [positions.len(), source.len(), target.len()])?;
        let source = input!("rope", source);
        let target = output!("rope", target);
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
        lengths::activation(kind, rows, width, [x.len(), y.len()])?;
        let x = input!("activation", x);
        elementwise::activation_forward(kind, rows, width, x, output!("activation", y));
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
        lengths::activation_backward(kind, rows, width, [x.len(), dy.len(), dx.len()])?;
        let name = "activation backward";
        let x = input!(name, x);
        let dy = input!(name, dy);
        elementwise::activation_backward(kind, rows, width, x, dy, output!(name, dx));
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
        let sizes = [rows, width, rows_of_table];
        lengths::embedding("embedding", sizes, [ids.len(), table.len(), out.len()])?;
        let table = input!("embedding", table);
        let out = output!("embedding", out);
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
        let sizes = [rows, width, rows_of_table];
        lengths::embedding("embedding backward", sizes, [ids.len(), dtable.len(), dy.len()])?;
        let name = "embedding backward";
        let dy = input!(name, dy);
        let dtable = output!(name, dtable);
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
        lengths::cross_entropy("cross entropy", shape, [logits.len(), targets.len(), stats.len()])?;
        let logits = input!("cross entropy", logits);
        loss::stats(shape, logits, targets, output!("cross entropy", stats));
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
        let own = [logits.len(), targets.len(), stats.len()];
        lengths::cross_entropy("cross entropy backward", shape, own)?;
        let name = "cross entropy backward";
        let stats = input!(name, stats);
        loss::backward(shape, factor, targets, stats, output!(name, logits));
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
        lengths::attention(shape, [q.len(), k.len(), v.len(), out.len(), lse.len()])?;
        let name = "attention";
        let q = input!(name, q);
        let k = input!(name, k);
        let v = input!(name, v);
        let out = output!(name, out);
        attention::forward(shape, q, k, v, out, output!(name, lse));
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
        let inputs = [q, k, v, out, lse].map(CpuBuffer::len);
        lengths::attention_backward(shape, inputs, dout.len(), [dq.len(), dk.len(), dv.len()])?;
        let name = "attention backward";
        let q = input!(name, q);
        let k = input!(name, k);
        let v = input!(name, v);
        let out = input!(name, out);
        let lse = input!(name, lse);
        let dout = input!(name, dout);
        let dq = output!(name, dq);
        let dk = output!(name, dk);
        let dv = output!(name, dv);
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
        let own = [q.len(), k_cache.len(), v_cache.len(), out.len()];
        lengths::paged_attention(shape, own, block_table, lengths)?;
        let name = "paged attention";
        let q = input!(name, q);
        let k_cache = input!(name, k_cache);
        let v_cache = input!(name, v_cache);
        attention::paged(shape, q, k_cache, v_cache, block_table, lengths, output!(name, out));
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
        lengths::gather(count, width, rows, [source.len(), target.len()])?;
        let source = input!("gather", source);
        let target = output!("gather", target);
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
        let own = [source.len(), target.len()];
        lengths::scatter(count, width, rows, own, weights.map(CpuBuffer::len))?;
        let target = output!("scatter", target);
        let weights = match weights {
            Some(weights) => Some(input!("scatter", weights)),
            None => None,
        };
        let source = input!("scatter", source);
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
        let own = [weights.len(), source.len(), dtarget.len(), dsource.len(), dweights.len()];
        lengths::scatter_backward(count, width, rows, own)?;
        let name = "scatter backward";
        let dtarget = input!(name, dtarget);
        let weights = input!(name, weights);
        let source = input!(name, source);
        let dsource = output!(name, dsource);
        let dweights = output!(name, dweights);
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
        lengths::adam(&range, [gradient.len(), m.len(), v.len(), parameters.len()])?;
        let len = range.len();
        let gradient = input!("adam", gradient);
        let m = output!("adam", m);
        let v = output!("adam", v);
        let parameters = output!("adam", parameters);
        elementwise::adam(settings, &gradient[..len], &mut m[..len], &mut v[..len], &mut parameters[range]);
        Ok(())
    }
}
