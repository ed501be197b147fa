//! Attention on CUDA: tensor-core kernels for 16-bit formats, plain ones for fp32, split decode over pages.

use super::runtime::{Arg, Format, Kernel, Runtime};
use super::state::{BLOCK, CudaBuffer, CudaDevice, CudaIndex, block_args, kernel, n};
use crate::device::{Attention, Device, PagedAttention, Result, lengths};
use psim_hardware::DType;

/// Query heads that one block of the decode kernel serves (`HEADS_AT_ONCE` of `paged.cu`).
const DECODE_HEADS: usize = 8;
/// Context tokens below which splitting a sequence further gains nothing.
const DECODE_TOKENS: usize = 256;

/// Bytes of dynamic shared memory of the tensor-core kernels (`FORWARD_SHARED`, `BACKWARD_SHARED` of `flash.cu`).
fn flash_shared(dim: usize, forward: bool) -> u32 {
    let row = 2 * dim;
    (if forward { (128 + 4 * 64) * row } else { 6 * 64 * row + 4 * 64 * 4 }) as u32
}

impl<R: Runtime> CudaDevice<R> {
    /// The tensor-core kernels take 16-bit formats; their maximum is taken before scaling, so the scale is positive.
    fn on_tensor_cores(format: Format, shape: &Attention) -> bool {
        format != Format::Fp32 && shape.scale > 0.0
    }

    pub(super) fn forward(
        &self,
        shape: &Attention,
        [q, k, v]: [&CudaBuffer<R::Memory>; 3],
        out: &CudaBuffer<R::Memory>,
        lse: &CudaBuffer<R::Memory>,
    ) -> Result<()> {
        lengths::attention(shape, [q.len, k.len, v.len, out.len, lse.len])?;
        let name = "attention";
        let dim = self.head_dim(shape.head_dim)?;
        self.fp32(name, &[lse])?;
        let format = self.same(name, &[q, k, v, out])?;
        let mut args = vec![self.p(q), self.p(k), self.p(v), self.p(out), self.p(lse)];
        args.extend(block_args(shape));
        args.extend([Arg::Int(i64::from(shape.merge)), Arg::Float(shape.scale)]);
        let (name, rows, shared) = if Self::on_tensor_cores(format, shape) {
            (kernel!("flash_forward"), 128, flash_shared(dim, true))
        } else {
            (kernel!("attention_forward"), 32, 0)
        };
        let grid = (shape.seq_q.div_ceil(rows) as u32, shape.heads as u32, shape.batch as u32);
        self.run_shaped(Kernel { format, dim, name }, grid, (128, 1, 1), shared, &args)
    }

    pub(super) fn backward(
        &self,
        shape: &Attention,
        [q, k, v, out, lse]: [&CudaBuffer<R::Memory>; 5],
        dout: &CudaBuffer<R::Memory>,
        [dq, dk, dv]: [&CudaBuffer<R::Memory>; 3],
    ) -> Result<()> {
        let inputs = [q, k, v, out, lse].map(|b| b.len);
        lengths::attention_backward(shape, inputs, dout.len, [dq.len, dk.len, dv.len])?;
        let name = "attention backward";
        let dim = self.head_dim(shape.head_dim)?;
        self.fp32(name, &[lse])?;
        let format = self.same(name, &[q, k, v, out, dout, dq, dk, dv])?;
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
        let key = Kernel { format, dim, name: kernel!("attention_delta") };
        self.run_shaped(key, self.grid(rows * 32), BLOCK, 0, &args)?;

        let flash = Self::on_tensor_cores(format, shape);
        let (queries, keys) = if flash {
            (kernel!("flash_backward_q"), kernel!("flash_backward_kv"))
        } else {
            (kernel!("attention_backward_q"), kernel!("attention_backward_kv"))
        };
        let (tile, shared) = if flash { (64, flash_shared(dim, false)) } else { (32, 0) };
        let inputs = [self.p(q), self.p(k), self.p(v), self.p(lse), self.p(&delta), self.p(dout)];
        let args = |gradients: &[Arg]| {
            let mut args = inputs.to_vec();
            args.extend(gradients);
            args.extend(block_args(shape));
            args.push(Arg::Float(shape.scale));
            args
        };
        let batch = shape.batch as u32;
        let grid = (shape.seq_q.div_ceil(tile) as u32, shape.heads as u32, batch);
        let key = Kernel { format, dim, name: queries };
        self.run_shaped(key, grid, (128, 1, 1), shared, &args(&[self.p(dq)]))?;
        let grid = (shape.seq_kv.div_ceil(tile) as u32, shape.kv_heads as u32, batch);
        let key = Kernel { format, dim, name: keys };
        self.run_shaped(key, grid, (128, 1, 1), shared, &args(&[self.p(dk), self.p(dv)]))
    }

    pub(super) fn paged(
        &self,
        shape: &PagedAttention,
        [q, k_cache, v_cache]: [&CudaBuffer<R::Memory>; 3],
        block_table: &CudaIndex<R::Memory>,
        lengths: &CudaIndex<R::Memory>,
        out: &CudaBuffer<R::Memory>,
    ) -> Result<()> {
        let own = [q.len, k_cache.len, v_cache.len, out.len];
        lengths::paged_attention(shape, own, &block_table.host, &lengths.host)?;
        let name = "paged attention";
        let dim = self.head_dim(shape.head_dim)?;
        let rows = shape.batch * shape.heads;
        let format = self.same(name, &[q, k_cache, v_cache, out])?;
        if rows == 0 || shape.kv_heads == 0 {
            return Ok(());
        }
        // Enough blocks to fill the device twice, none shorter than is worth a block.
        let groups = shape.kv_heads * (shape.heads / shape.kv_heads).div_ceil(DECODE_HEADS);
        let longest = lengths.host.iter().take(shape.batch).copied().max().unwrap_or(0) as usize;
        let wanted = (2 * self.runtime.units() as usize).div_ceil(groups * shape.batch);
        let splits = wanted.min(longest.div_ceil(DECODE_TOKENS)).max(1);
        let partial = self.alloc(DType::Fp32, rows * splits * dim)?;
        let bounds = self.alloc(DType::Fp32, rows * splits * 2)?;
        let args = [
            self.p(q),
            self.p(k_cache),
            self.p(v_cache),
            self.i(block_table),
            self.i(lengths),
            self.p(&partial),
            self.p(&bounds),
            n(shape.heads),
            n(shape.kv_heads),
            n(shape.page),
            n(shape.max_pages),
            Arg::Float(shape.scale),
        ];
        let key = Kernel { format, dim, name: kernel!("paged_attention_split") };
        let grid = (splits as u32, groups as u32, shape.batch as u32);
        self.run_shaped(key, grid, (128, 1, 1), 0, &args)?;
        let key = Kernel { format, dim, name: kernel!("paged_attention_combine") };
        let args = [self.p(&partial), self.p(&bounds), self.p(out), n(splits)];
        self.run_shaped(key, (rows as u32, 1, 1), (dim as u32, 1, 1), 0, &args)
    }
}
