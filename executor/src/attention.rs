//! The attention half of a layer under tensor, sequence and context parallelism.
//!
//! Context parallelism: every rank holds an early and a late block of each sequence, so causal work is balanced. Keys
//! and values travel around the ring (Liu et al. 2023) or are gathered first (Llama 3); partial results merge
//! through their log-sum-exp. In the backward pass the gradients of keys and values travel with their block and are home
//! after a full turn.

use crate::comm::{Tag, Transport};
use crate::error::Result;
use crate::fabric::{Fabric, Use};
use crate::parameters::LayerIds;
use crate::rank::Rank;
use psim_hardware::DType;
use psim_kernels::{Attention, Device, Rope, Strided};
use psim_models::operator::{CollectiveKind, Dimension};
use psim_models::plan::ContextParallel;
use std::rc::Rc;

/// Base of the rotary angles.
pub const ROPE_BASE: f32 = 10_000.0;

/// Queries, keys, values (rotated), kept for the backward pass.
pub(crate) struct Projected<D: Device> {
    q: D::Buffer,
    k: Rc<D::Buffer>,
    v: Rc<D::Buffer>,
}

/// Output of the attention core.
pub(crate) struct Core<D: Device> {
    pub(crate) out: Rc<D::Buffer>,
    lse: D::Buffer,
}

/// Keys, values and (in the backward pass) their gradients of one context-parallel rank's tokens.
struct Block<D: Device> {
    k: Rc<D::Buffer>,
    v: Rc<D::Buffer>,
    gradients: Option<(D::Buffer, D::Buffer)>,
}

impl<D: Device, T: Transport> Rank<D, T> {
    /// Heads of this rank: (query, key-value, width).
    fn local_heads(&self, ids: &LayerIds) -> (usize, usize, usize) {
        let tp = self.mesh.tp.size();
        (ids.layer.heads / tp, ids.layer.kv_heads / tp, ids.layer.head_dim)
    }

    /// Query, key and value projections of all tokens of the tensor-parallel group.
    pub(crate) fn project(&self, ids: &LayerIds, x: &D::Buffer) -> Result<Projected<D>> {
        let rows = self.sizes.tokens;
        let mut packed = self.linear(ids.qkv, rows, x)?;
        self.bias_forward(ids.qkv_bias, rows, &mut packed)?;
        let (heads, kv_heads, dim) = self.local_heads(ids);
        let stride = (heads + 2 * kv_heads) * dim;
        let take = |offset: usize, count: usize, rotate: bool| -> Result<D::Buffer> {
            let (width, from) = (count * dim, Strided::new(offset * dim, stride));
            let mut out = self.alloc(rows * width)?;
            let to = Strided::new(0, width);
            if rotate {
                self.device.rope(
                    &self.rope(count, dim, false),
                    &self.positions,
                    &packed,
                    from,
                    &mut out,
                    to,
                )?;
            } else {
                self.device.copy(rows, width, &packed, from, &mut out, to)?;
            }
            Ok(out)
        };
        let q = take(0, heads, self.network.rope)?;
        let k = Rc::new(take(heads, kv_heads, self.network.rope)?);
        let v = Rc::new(take(heads + kv_heads, kv_heads, false)?);
        Ok(Projected { q, k, v })
    }

    fn rope(&self, heads: usize, head_dim: usize, inverse: bool) -> Rope {
        Rope { tokens: self.sizes.tokens, heads, head_dim, base: ROPE_BASE, inverse }
    }

    /// Block shapes of one ring step: this rank's query blocks against the key blocks of rank `source`.
    fn pairs(&self, ids: &LayerIds, source: usize) -> Vec<Attention> {
        let (heads, kv_heads, dim) = self.local_heads(ids);
        let (seq, cp, mine) = (self.sizes.seq, self.mesh.cp.size(), self.mesh.cp_index());
        let whole = Attention::causal(self.sizes.batch, seq, heads, kv_heads, dim);
        if cp == 1 {
            return vec![whole];
        }
        let half = seq / 2;
        let blocks = |rank: usize| [rank, 2 * cp - 1 - rank];
        let mut pairs = Vec::new();
        for (qi, q_block) in blocks(mine).into_iter().enumerate() {
            for (ki, k_block) in blocks(source).into_iter().enumerate() {
                if k_block <= q_block {
                    pairs.push(Attention {
                        seq_q: half,
                        seq_kv: half,
                        q_first: qi * half,
                        kv_first: ki * half,
                        causal: (k_block == q_block).then_some(0),
                        ..whole
                    });
                }
            }
        }
        pairs
    }

    /// Attention of this rank's queries over the keys of the whole context-parallel group.
    pub(crate) fn attend(&self, ids: &LayerIds, projected: &Projected<D>) -> Result<Core<D>> {
        let (heads, _, dim) = self.local_heads(ids);
        let tokens = self.sizes.tokens;
        let mut out = self.alloc(tokens * heads * dim)?;
        let mut lse = self.device.alloc(DType::Fp32, tokens * heads)?;
        // Query blocks that already hold a partial result.
        let mut started = [false; 2];
        self.around(&projected.k, &projected.v, false, |rank, source, block| {
            for mut pair in rank.pairs(ids, source) {
                let which = usize::from(pair.q_first > 0);
                pair.merge = std::mem::replace(&mut started[which], true);
                rank.device.attention_forward(&pair, &projected.q, &block.k, &block.v, &mut out, &mut lse)?;
            }
            Ok(())
        })?;
        Ok(Core { out: Rc::new(out), lse })
    }

    /// Gradient of the packed projections.
    fn attend_backward(
        &self,
        ids: &LayerIds,
        projected: &Projected<D>,
        core: &Core<D>,
        dout: &D::Buffer,
    ) -> Result<D::Buffer> {
        let (heads, kv_heads, dim) = self.local_heads(ids);
        let rows = self.sizes.tokens;
        let mut dq = self.zeros(rows * heads * dim)?;
        let home = self.around(&projected.k, &projected.v, true, |rank, source, block| {
            let Some((dk, dv)) = &mut block.gradients else { return Ok(()) };
            for pair in rank.pairs(ids, source) {
                let inputs = [&projected.q, &block.k, &block.v, &*core.out, &core.lse];
                rank.device.attention_backward(&pair, inputs, dout, &mut dq, dk, dv)?;
            }
            Ok(())
        })?;
        let stride = (heads + 2 * kv_heads) * dim;
        let mut packed = self.alloc(rows * stride)?;
        let mut put = |source: &D::Buffer, offset: usize, count: usize, rotate: bool| -> Result<()> {
            let (from, to) = (Strided::new(0, count * dim), Strided::new(offset * dim, stride));
            if rotate {
                let shape = self.rope(count, dim, true);
                self.device.rope(&shape, &self.positions, source, from, &mut packed, to)?;
            } else {
                self.device.copy(rows, count * dim, source, from, &mut packed, to)?;
            }
            Ok(())
        };
        put(&dq, 0, heads, self.network.rope)?;
        if let Some((dk, dv)) = home {
            put(&dk, heads, kv_heads, self.network.rope)?;
            put(&dv, heads + kv_heads, kv_heads, false)?;
        }
        Ok(packed)
    }

    /// Calls `work` with the keys and values of every context-parallel rank. With `gradients`, every block carries
    /// gradients that `work` adds to, and those of this rank's own block are returned, complete.
    fn around(
        &self,
        k: &Rc<D::Buffer>,
        v: &Rc<D::Buffer>,
        gradients: bool,
        mut work: impl FnMut(&Self, usize, &mut Block<D>) -> Result<()>,
    ) -> Result<Option<(D::Buffer, D::Buffer)>> {
        let (cp, mine) = (self.mesh.cp.size(), self.mesh.cp_index());
        let len = self.device.len(k);
        let fresh = || -> Result<_> { Ok((self.zeros(len)?, self.zeros(len)?)) };
        if cp > 1 && self.plan.cp_kind == ContextParallel::AllGather {
            return self.around_gathered(k, v, gradients, work);
        }
        let mut block =
            Block { k: Rc::clone(k), v: Rc::clone(v), gradients: gradients.then(fresh).transpose()? };
        let next = self.mesh.cp.ranks[(mine + 1) % cp];
        let previous = self.mesh.cp.ranks[(mine + cp - 1) % cp];
        let tag = Tag::Collective(Dimension::Cp);
        if let Some(fabric) = self.over(&self.mesh.cp, Use::Beside) {
            self.around_fabric(fabric, &mut block, work)?;
            return Ok(block.gradients);
        }
        for step in 0..cp {
            work(self, (mine + cp - step) % cp, &mut block)?;
            let last = step + 1 == cp;
            if cp == 1 || (last && !gradients) {
                break;
            }
            if self.comm.is_alone() {
                // The next block is as this one.
                let parts = if last { 0 } else { 2 } + if gradients { 2 } else { 0 };
                self.pretend(Dimension::Cp, CollectiveKind::SendRecv, parts * len, 2, || {
                    if !last {
                        block.k = Rc::new(self.clone_of(&block.k)?);
                        block.v = Rc::new(self.clone_of(&block.v)?);
                    }
                    Ok(())
                })?;
                continue;
            }
            // After the last step only the gradients still have to go home.
            self.comm.staged(Dimension::Cp, || {
                let mut letter = Vec::new();
                if !last {
                    letter.extend(self.device.download(&block.k)?);
                    letter.extend(self.device.download(&block.v)?);
                }
                if let Some((dk, dv)) = &block.gradients {
                    letter.extend(self.device.download(dk)?);
                    letter.extend(self.device.download(dv)?);
                }
                self.comm.send(Dimension::Cp, next, tag, letter)?;
                let letter = self.comm.receive(Dimension::Cp, previous, tag)?;
                let mut parts = letter.chunks_exact(len);
                if !last {
                    block.k = Rc::new(self.buffer(parts.next().unwrap_or_default())?);
                    block.v = Rc::new(self.buffer(parts.next().unwrap_or_default())?);
                }
                if let Some((dk, dv)) = &mut block.gradients {
                    self.device.write(dk, 0, parts.next().unwrap_or_default())?;
                    self.device.write(dv, 0, parts.next().unwrap_or_default())?;
                }
                Ok(())
            })?;
        }
        Ok(block.gradients)
    }

    /// The ring of [`Rank::around`] between devices: keys and values travel on while the block is worked on, gradients
    /// behind the work on them.
    fn around_fabric(
        &self,
        fabric: &dyn Fabric<D>,
        block: &mut Block<D>,
        mut work: impl FnMut(&Self, usize, &mut Block<D>) -> Result<()>,
    ) -> Result<()> {
        let (cp, mine, group) = (self.mesh.cp.size(), self.mesh.cp_index(), &self.mesh.cp);
        let len = self.device.len(&block.k);
        for step in 0..cp {
            let last = step + 1 == cp;
            let mut coming = None;
            if !last {
                let (mut k, mut v) = (self.alloc(len)?, self.alloc(len)?);
                let pairs = vec![(&*block.k, &mut k), (&*block.v, &mut v)];
                let done = fabric.shift(&self.device, group, Use::Beside, pairs)?;
                coming = Some((k, v, done));
            }
            work(self, (mine + cp - step) % cp, block)?;
            if let Some((dk, dv)) = &mut block.gradients {
                let (mut next_k, mut next_v) = (self.alloc(len)?, self.alloc(len)?);
                self.spanned(Dimension::Cp, 2 * len, || {
                    let pairs = vec![(&*dk, &mut next_k), (&*dv, &mut next_v)];
                    fabric.shift(&self.device, group, Use::InLine, pairs)
                })?;
                (*dk, *dv) = (next_k, next_v);
            }
            if let Some((k, v, done)) = coming {
                self.spanned(Dimension::Cp, 2 * len, || Ok(self.device.join(&done)?))?;
                (block.k, block.v) = (Rc::new(k), Rc::new(v));
            }
        }
        Ok(())
    }

    /// As [`Rank::around`], with keys and values gathered first and gradients reduced at the end.
    fn around_gathered(
        &self,
        k: &Rc<D::Buffer>,
        v: &Rc<D::Buffer>,
        gradients: bool,
        mut work: impl FnMut(&Self, usize, &mut Block<D>) -> Result<()>,
    ) -> Result<Option<(D::Buffer, D::Buffer)>> {
        let len = self.device.len(k);
        if let Some(fabric) = self.over(&self.mesh.cp, Use::InLine) {
            return self.around_gathered_fabric(fabric, k, v, gradients, work);
        }
        let blocks = self.comm.staged(Dimension::Cp, || {
            let mut both = self.device.download(k)?;
            both.extend(self.device.download(v)?);
            self.comm.all_gather(Dimension::Cp, &self.mesh.cp, both)
        })?;
        let mut partial = Vec::new();
        for (source, block) in blocks.iter().enumerate() {
            let gradients = if gradients { Some((self.zeros(len)?, self.zeros(len)?)) } else { None };
            let (k, v) = (Rc::new(self.buffer(&block[..len])?), Rc::new(self.buffer(&block[len..])?));
            let mut block = Block { k, v, gradients };
            work(self, source, &mut block)?;
            if let Some((dk, dv)) = &block.gradients {
                partial.extend(self.device.download(dk)?);
                partial.extend(self.device.download(dv)?);
            }
        }
        if !gradients {
            return Ok(None);
        }
        let sum = self.comm.reduce_scatter(Dimension::Cp, &self.mesh.cp, partial)?;
        Ok(Some((self.buffer(&sum[..len])?, self.buffer(&sum[len..])?)))
    }

    fn around_gathered_fabric(
        &self,
        fabric: &dyn Fabric<D>,
        k: &D::Buffer,
        v: &D::Buffer,
        gradients: bool,
        mut work: impl FnMut(&Self, usize, &mut Block<D>) -> Result<()>,
    ) -> Result<Option<(D::Buffer, D::Buffer)>> {
        let (cp, group, len) = (self.mesh.cp.size(), &self.mesh.cp, self.device.len(k));
        let (mut all_k, mut all_v) = (self.alloc(cp * len)?, self.alloc(cp * len)?);
        self.spanned(Dimension::Cp, 2 * (cp - 1) * len, || {
            fabric.all_gather(&self.device, group, Use::InLine, k, &mut all_k)?;
            fabric.all_gather(&self.device, group, Use::InLine, v, &mut all_v)
        })?;
        let piece = |all: &D::Buffer, source: usize| -> Result<Rc<D::Buffer>> {
            let mut out = self.alloc(len)?;
            let from = Strided::new(source * len, len);
            self.device.copy(1, len, all, from, &mut out, Strided::new(0, len))?;
            Ok(Rc::new(out))
        };
        let mut sums = if gradients { Some((self.alloc(cp * len)?, self.alloc(cp * len)?)) } else { None };
        for source in 0..cp {
            let gradients = if gradients { Some((self.zeros(len)?, self.zeros(len)?)) } else { None };
            let mut block = Block { k: piece(&all_k, source)?, v: piece(&all_v, source)?, gradients };
            work(self, source, &mut block)?;
            if let (Some((dk, dv)), Some((all_dk, all_dv))) = (&block.gradients, &mut sums) {
                let (from, to) = (Strided::new(0, len), Strided::new(source * len, len));
                self.device.copy(1, len, dk, from, all_dk, to)?;
                self.device.copy(1, len, dv, from, all_dv, to)?;
            }
        }
        let Some((all_dk, all_dv)) = sums else { return Ok(None) };
        let (mut dk, mut dv) = (self.alloc(len)?, self.alloc(len)?);
        self.spanned(Dimension::Cp, 2 * (cp - 1) * len, || {
            fabric.reduce_scatter(&self.device, group, Use::InLine, &all_dk, &mut dk)?;
            fabric.reduce_scatter(&self.device, group, Use::InLine, &all_dv, &mut dv)
        })?;
        Ok(Some((dk, dv)))
    }

    /// Output projection, summed over tp to this rank's share.
    pub(crate) fn attention_out(&self, ids: &LayerIds, core: &Core<D>) -> Result<D::Buffer> {
        let partial = self.linear(ids.out, self.sizes.tokens, &core.out)?;
        let mut share = self.scatter_tp(partial)?;
        self.bias_forward(ids.out_bias, self.sizes.share, &mut share)?;
        Ok(share)
    }

    /// Gradient of the normalised input share, from the gradient of the half layer's output share.
    pub(crate) fn attention_backward(
        &mut self,
        ids: &LayerIds,
        normed: &Rc<D::Buffer>,
        projected: &Projected<D>,
        core: &Core<D>,
        dy: &Rc<D::Buffer>,
    ) -> Result<D::Buffer> {
        let rows = self.sizes.tokens;
        self.bias_backward(ids.out_bias, self.sizes.share, dy)?;
        let dy = self.gather_tp(dy)?;
        let dcore = self.linear_backward(ids.out, rows, &dy)?;
        self.weight_gradient(ids.out, rows, &core.out, &dy)?;
        let dpacked = Rc::new(self.attend_backward(ids, projected, core, &dcore)?);
        self.bias_backward(ids.qkv_bias, rows, &dpacked)?;
        let x = self.gather_tp(normed)?;
        self.weight_gradient(ids.qkv, rows, &x, &dpacked)?;
        let partial = self.linear_backward(ids.qkv, rows, &dpacked)?;
        self.scatter_tp(partial)
    }
}
