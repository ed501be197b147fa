//! [`Device`] on CUDA: lengths are checked, then each operator is one or two launches on the device's stream.

use super::runtime::{Arg, Format, Kernel, Lane, Launch, Operand, Product, Runtime};
use super::state::{CudaBuffer, CudaDevice, CudaIndex, HEAD_DIMS, kernel, n};
use crate::device::{
    Activation, Adam, Attention, CrossEntropy, Device, Gemm, MemoryUse, Norm, PagedAttention, Result, Rope,
    Strided, Uniform, lengths, need,
};
use psim_hardware::DType;
use std::ops::Range;

impl<R: Runtime> Device for CudaDevice<R> {
    type Buffer = CudaBuffer<R::Memory>;
    type Index = CudaIndex<R::Memory>;
    type Mark = R::Event;

    fn name(&self) -> String {
        self.title()
    }
    fn formats(&self) -> &'static [DType] {
        // The last one is what a calibration measures first.
        &[DType::Fp32, DType::Fp16, DType::Bf16]
    }
    fn head_dims(&self) -> &'static [usize] {
        &HEAD_DIMS
    }
    fn memory(&self) -> MemoryUse {
        self.memory_use()
    }
    fn taken(&self) -> Option<u64> {
        self.runtime.device_bytes().map(|[taken, _]| taken)
    }
    fn reset_peak(&self) {
        self.start_new_peak();
    }
    fn alloc(&self, dtype: DType, len: usize) -> Result<Self::Buffer> {
        self.allocate(dtype, len)
    }
    fn upload(&self, values: &[f32]) -> Result<Self::Buffer> {
        let mut buffer = self.allocate(DType::Fp32, values.len())?;
        self.put(&mut buffer, 0, values)?;
        Ok(buffer)
    }
    fn upload_index(&self, values: &[u32]) -> Result<Self::Index> {
        self.put_index(values)
    }
    fn read(&self, buffer: &Self::Buffer, offset: usize, out: &mut [f32]) -> Result<()> {
        self.get(buffer, offset, out)
    }
    fn write(&self, buffer: &mut Self::Buffer, offset: usize, values: &[f32]) -> Result<()> {
        self.put(buffer, offset, values)
    }
    fn len(&self, buffer: &Self::Buffer) -> usize {
        buffer.len
    }
    fn dtype(&self, buffer: &Self::Buffer) -> DType {
        match buffer.format {
            Format::Fp32 => DType::Fp32,
            Format::Bf16 => DType::Bf16,
            Format::Fp16 => DType::Fp16,
            Format::Fp8 => DType::Fp8,
        }
    }
    fn synchronize(&self) -> Result<()> {
        self.runtime.synchronize()
    }
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.runtime.time(work)
    }

    fn mark(&self) -> Result<R::Event> {
        self.runtime.record(Lane::Main)
    }
    fn between(&self, from: &R::Event, to: &R::Event) -> Result<f64> {
        self.runtime.between(from, to)
    }
    fn reached(&self, mark: &R::Event) -> Result<bool> {
        self.runtime.reached(mark)
    }
    fn join(&self, mark: &R::Event) -> Result<()> {
        self.runtime.wait(Lane::Main, mark)
    }
    fn pause_beside(&self, lane: u32, seconds: f64) -> Result<R::Event> {
        let lane = Lane::Side(lane);
        self.runtime.wait(lane, &self.runtime.record(Lane::Main)?)?;
        // One thread that watches the device's own clock.
        let kernel = Kernel { format: Format::Fp32, dim: 0, name: kernel!("wait_nanoseconds") };
        let launch = Launch { grid: (1, 1, 1), block: (1, 1, 1), shared: 0 };
        let nanoseconds = Arg::Int((seconds.clamp(0.0, 1e6) * 1e9) as i64);
        self.runtime.launch(lane, kernel, launch, &[nanoseconds])?;
        self.runtime.record(lane)
    }

    fn uniform(&self, shape: &Uniform, target: &mut Self::Buffer) -> Result<()> {
        need("uniform", "target", shape.to.extent(shape.rows, shape.width), target.len)?;
        let args = [
            self.p(target),
            target.code(),
            n(shape.to.offset),
            n(shape.to.stride),
            n(shape.rows),
            n(shape.width),
            Arg::Int(shape.key as i64),
            n(shape.first),
            n(shape.pitch),
            Arg::Float(shape.scale),
        ];
        self.run(Format::Fp32, kernel!("uniform_block"), self.grid_rows(shape.rows, shape.width), &args)
    }
    fn fill(&self, buffer: &mut Self::Buffer, value: f32) -> Result<()> {
        let args = [self.p(buffer), buffer.code(), n(buffer.len), Arg::Float(value)];
        self.run(Format::Fp32, kernel!("fill"), self.grid(buffer.len), &args)
    }
    fn copy(
        &self,
        rows: usize,
        width: usize,
        source: &Self::Buffer,
        from: Strided,
        target: &mut Self::Buffer,
        to: Strided,
    ) -> Result<()> {
        lengths::copy(rows, width, [from, to], [source.len, target.len])?;
        if rows == 0 || width == 0 {
            return Ok(());
        }
        let dense = |block: Strided| rows <= 1 || block.stride == width;
        if source.format == target.format && dense(from) && dense(to) {
            let size = source.format.bytes();
            let from = self.address(source) + (from.offset * size) as u64;
            let to = self.address(target) + (to.offset * size) as u64;
            return self.runtime.copy(from, to, rows * width * size);
        }
        let args = [
            self.p(source),
            source.code(),
            n(from.offset),
            n(from.stride),
            self.p(target),
            target.code(),
            n(to.offset),
            n(to.stride),
            n(rows),
            n(width),
        ];
        self.run(Format::Fp32, kernel!("copy_block"), self.grid_rows(rows, width), &args)
    }
    fn add(&self, source: &Self::Buffer, target: &mut Self::Buffer) -> Result<()> {
        let len = source.len.min(target.len);
        let args = [self.p(source), source.code(), self.p(target), target.code(), n(len)];
        self.run(Format::Fp32, kernel!("add"), self.grid(len), &args)
    }
    fn scale(&self, factor: f32, buffer: &mut Self::Buffer) -> Result<()> {
        let args = [self.p(buffer), buffer.code(), n(buffer.len), Arg::Float(factor)];
        self.run(Format::Fp32, kernel!("scale"), self.grid(buffer.len), &args)
    }
    fn gemm(&self, shape: &Gemm, a: &Self::Buffer, b: &Self::Buffer, c: &mut Self::Buffer) -> Result<()> {
        lengths::gemm(shape, [a.len, b.len, c.len])?;
        if a.format != b.format || c.format == Format::Fp8 {
            return Err(self.unsupported("products of different formats, or written as fp8".to_owned()));
        }
        if a.format == Format::Fp32 && c.format != Format::Fp32 {
            return Err(self.unsupported("fp32 products written in a shorter format".to_owned()));
        }
        if shape.m == 0 || shape.n == 0 {
            return Ok(());
        }
        let operand = |buffer: &Self::Buffer, which: usize, transposed: bool| Operand {
            address: self.address(buffer) + (shape.offset[which] * buffer.format.bytes()) as u64,
            format: buffer.format,
            stride: shape.stride[which],
            transposed,
        };
        self.runtime.multiply(&Product {
            m: shape.m,
            n: shape.n,
            k: shape.k,
            operands: [
                operand(a, 0, shape.transpose_a),
                operand(b, 1, shape.transpose_b),
                operand(c, 2, false),
            ],
            accumulate: shape.accumulate,
        })
    }
    fn bias_forward(
        &self,
        rows: usize,
        width: usize,
        bias: &Self::Buffer,
        x: &mut Self::Buffer,
    ) -> Result<()> {
        lengths::bias("bias", rows, width, [x.len, bias.len])?;
        let format = self.same("bias", &[bias, x])?;
        let args = [self.p(bias), self.p(x), n(rows), n(width)];
        self.run(format, kernel!("bias_forward"), self.grid_rows(rows, width), &args)
    }
    fn bias_backward(
        &self,
        rows: usize,
        width: usize,
        dy: &Self::Buffer,
        dbias: &mut Self::Buffer,
    ) -> Result<()> {
        lengths::bias("bias backward", rows, width, [dy.len, dbias.len])?;
        self.fp32("bias backward", &[dbias])?;
        let args = [self.p(dy), self.p(dbias), n(rows), n(width)];
        let key =
            Kernel { format: self.same("bias backward", &[dy])?, dim: 0, name: kernel!("bias_backward") };
        self.run_shaped(key, (width.div_ceil(32) as u32, 1, 1), (32, 8, 1), 0, &args)
    }
    fn norm_forward(
        &self,
        shape: &Norm,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        bias: Option<&Self::Buffer>,
        y: &mut Self::Buffer,
        stats: &mut Self::Buffer,
    ) -> Result<()> {
        lengths::norm(shape, [x.len, weight.len, y.len, stats.len], bias.map(|b| b.len))?;
        let name = "norm";
        self.fp32(name, &[stats])?;
        let format = self.same(name, &[x, weight, y, bias.unwrap_or(weight)])?;
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
        self.run(format, kernel!("norm_forward"), (shape.rows as u32, 1, 1), &args)
    }
    fn norm_backward(
        &self,
        shape: &Norm,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        stats: &Self::Buffer,
        dy: &Self::Buffer,
        dx: &mut Self::Buffer,
        dweight: &mut Self::Buffer,
        dbias: Option<&mut Self::Buffer>,
    ) -> Result<()> {
        let own = [x.len, weight.len, stats.len, dy.len, dx.len, dweight.len];
        lengths::norm_backward(shape, own, dbias.as_ref().map(|b| b.len))?;
        let name = "norm backward";
        self.fp32(name, &[stats, dweight])?;
        let format = self.same(name, &[x, weight, dy, dx])?;
        let rms = Arg::Int(i64::from(shape.rms));
        let args = [self.p(x), self.p(weight), self.p(stats), self.p(dy), self.p(dx), n(shape.width), rms];
        self.run(format, kernel!("norm_backward_input"), (shape.rows as u32, 1, 1), &args)?;
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
        let key = Kernel { format, dim: 0, name: kernel!("norm_backward_weight") };
        self.run_shaped(key, (shape.width.div_ceil(32) as u32, 1, 1), (32, 8, 1), 0, &args)
    }
    fn rope(
        &self,
        shape: &Rope,
        positions: &Self::Index,
        source: &Self::Buffer,
        from: Strided,
        target: &mut Self::Buffer,
        to: Strided,
    ) -> Result<()> {
        lengths::rope(shape, [from, to], [positions.host.len(), source.len, target.len])?;
        let format = self.same("rope", &[source, target])?;
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
        self.run(format, kernel!("rope"), self.grid(shape.tokens * shape.head_dim / 2), &args)
    }
    fn activation_forward(
        &self,
        kind: Activation,
        rows: usize,
        width: usize,
        x: &Self::Buffer,
        y: &mut Self::Buffer,
    ) -> Result<()> {
        lengths::activation(kind, rows, width, [x.len, y.len])?;
        let format = self.same("activation", &[x, y])?;
        let (grid, rows_grid) = (self.grid(rows * width), self.grid_rows(rows, width));
        match kind {
            Activation::Gelu => {
                self.run(format, kernel!("gelu_forward"), grid, &[self.p(x), self.p(y), n(rows * width)])
            }
            Activation::SwiGlu => self.run(
                format,
                kernel!("swiglu_forward"),
                rows_grid,
                &[self.p(x), self.p(y), n(rows), n(width)],
            ),
        }
    }
    fn activation_backward(
        &self,
        kind: Activation,
        rows: usize,
        width: usize,
        x: &Self::Buffer,
        dy: &Self::Buffer,
        dx: &mut Self::Buffer,
    ) -> Result<()> {
        lengths::activation_backward(kind, rows, width, [x.len, dy.len, dx.len])?;
        let name = "activation backward";
        let format = self.same(name, &[x, dy, dx])?;
        let (grid, rows_grid) = (self.grid(rows * width), self.grid_rows(rows, width));
        let (x, dy, dx) = (self.p(x), self.p(dy), self.p(dx));
        match kind {
            Activation::Gelu => {
                self.run(format, kernel!("gelu_backward"), grid, &[x, dy, dx, n(rows * width)])
            }
            Activation::SwiGlu => {
                self.run(format, kernel!("swiglu_backward"), rows_grid, &[x, dy, dx, n(rows), n(width)])
            }
        }
    }
    fn embedding_forward(
        &self,
        rows: usize,
        width: usize,
        first: usize,
        rows_of_table: usize,
        ids: &Self::Index,
        table: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        let sizes = [rows, width, rows_of_table];
        lengths::embedding("embedding", sizes, [ids.host.len(), table.len, out.len])?;
        let format = self.same("embedding", &[table, out])?;
        let args = [self.i(ids), self.p(table), self.p(out), n(rows), n(width), n(first), n(rows_of_table)];
        self.run(format, kernel!("embedding_forward"), self.grid_rows(rows, width), &args)
    }
    fn embedding_backward(
        &self,
        rows: usize,
        width: usize,
        first: usize,
        rows_of_table: usize,
        ids: &Self::Index,
        dy: &Self::Buffer,
        dtable: &mut Self::Buffer,
    ) -> Result<()> {
        let sizes = [rows, width, rows_of_table];
        lengths::embedding("embedding backward", sizes, [ids.host.len(), dtable.len, dy.len])?;
        let name = "embedding backward";
        self.fp32(name, &[dtable])?;
        let args = [self.i(ids), self.p(dy), self.p(dtable), n(rows), n(width), n(first), n(rows_of_table)];
        self.run(
            self.same("operator", &[dy])?,
            kernel!("embedding_backward"),
            self.grid_rows(rows, width),
            &args,
        )
    }
    fn cross_entropy_stats(
        &self,
        shape: &CrossEntropy,
        logits: &Self::Buffer,
        targets: &Self::Index,
        stats: &mut Self::Buffer,
    ) -> Result<()> {
        lengths::cross_entropy("cross entropy", shape, [logits.len, targets.host.len(), stats.len])?;
        let name = "cross entropy";
        self.fp32(name, &[stats])?;
        let args = [self.p(logits), self.i(targets), self.p(stats), n(shape.vocab), n(shape.first)];
        self.run(
            self.same("operator", &[logits])?,
            kernel!("cross_entropy_stats"),
            (shape.rows as u32, 1, 1),
            &args,
        )
    }
    fn cross_entropy_backward(
        &self,
        shape: &CrossEntropy,
        factor: f32,
        targets: &Self::Index,
        stats: &Self::Buffer,
        logits: &mut Self::Buffer,
    ) -> Result<()> {
        let own = [logits.len, targets.host.len(), stats.len];
        lengths::cross_entropy("cross entropy backward", shape, own)?;
        let name = "cross entropy backward";
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
        self.run(
            self.same("operator", &[logits])?,
            kernel!("cross_entropy_backward"),
            self.grid_rows(shape.rows, shape.vocab),
            &args,
        )
    }
    fn attention_forward(
        &self,
        shape: &Attention,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        out: &mut Self::Buffer,
        lse: &mut Self::Buffer,
    ) -> Result<()> {
        self.forward(shape, [q, k, v], out, lse)
    }
    fn attention_backward(
        &self,
        shape: &Attention,
        inputs: [&Self::Buffer; 5],
        dout: &Self::Buffer,
        dq: &mut Self::Buffer,
        dk: &mut Self::Buffer,
        dv: &mut Self::Buffer,
    ) -> Result<()> {
        self.backward(shape, inputs, dout, [dq, dk, dv])
    }
    fn paged_attention(
        &self,
        shape: &PagedAttention,
        q: &Self::Buffer,
        k_cache: &Self::Buffer,
        v_cache: &Self::Buffer,
        block_table: &Self::Index,
        lengths: &Self::Index,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.paged(shape, [q, k_cache, v_cache], block_table, lengths, out)
    }
    fn gather_rows(
        &self,
        count: usize,
        width: usize,
        rows: &Self::Index,
        source: &Self::Buffer,
        target: &mut Self::Buffer,
    ) -> Result<()> {
        lengths::gather(count, width, &rows.host, [source.len, target.len])?;
        let format = self.same("gather", &[source, target])?;
        let args = [self.i(rows), self.p(source), self.p(target), n(count), n(width)];
        self.run(format, kernel!("gather_rows"), self.grid_rows(count, width), &args)
    }
    fn scatter_add_rows(
        &self,
        count: usize,
        width: usize,
        rows: &Self::Index,
        weights: Option<&Self::Buffer>,
        source: &Self::Buffer,
        target: &mut Self::Buffer,
    ) -> Result<()> {
        let own = [source.len, target.len];
        lengths::scatter(count, width, &rows.host, own, weights.map(|w| w.len))?;
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
        self.run(
            self.same("operator", &[source])?,
            kernel!("scatter_add_rows"),
            self.grid_rows(count, width),
            &args,
        )
    }
    fn scatter_add_rows_backward(
        &self,
        count: usize,
        width: usize,
        rows: &Self::Index,
        weights: &Self::Buffer,
        source: &Self::Buffer,
        dtarget: &Self::Buffer,
        dsource: &mut Self::Buffer,
        dweights: &mut Self::Buffer,
    ) -> Result<()> {
        let own = [weights.len, source.len, dtarget.len, dsource.len, dweights.len];
        lengths::scatter_backward(count, width, &rows.host, own)?;
        let name = "scatter backward";
        self.fp32(name, &[weights, dweights])?;
        let format = self.same(name, &[source, dtarget, dsource])?;
        let args = [
            self.i(rows),
            self.p(weights),
            self.p(source),
            self.p(dtarget),
            self.p(dsource),
            self.p(dweights),
            n(width),
        ];
        self.run(format, kernel!("scatter_add_rows_backward"), (count as u32, 1, 1), &args)
    }
    fn adam(
        &self,
        settings: &Adam,
        range: Range<usize>,
        gradient: &Self::Buffer,
        [m, v]: [&mut Self::Buffer; 2],
        parameters: &mut Self::Buffer,
    ) -> Result<()> {
        lengths::adam(&range, [gradient.len, m.len, v.len, parameters.len])?;
        let len = range.len();
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
        self.run(Format::Fp32, kernel!("adam"), self.grid(len), &args)
    }
}
