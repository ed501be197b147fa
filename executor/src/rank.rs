//! One rank: its device, its communicators, its parameters, and the tensor helpers that the layers are written in.

use crate::comm::{Comm, Tag, Transport};
use crate::error::Result;
use crate::fabric::{Fabric, Use};
use crate::mesh::{Group, Mesh};
use crate::network::Network;
use crate::parameters::{Cut, DenseIds, Id, LayerIds, NormIds, Shard, Store};
use psim_hardware::DType;
use psim_kernels::{Device, Gemm, Norm, Strided, Uniform};
use psim_models::layout::Layout;
use psim_models::operator::{CollectiveKind, Dimension};
use psim_models::{Plan, TrainingWorkload};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A weight gradient that waits for its weight pass.
pub(crate) struct Pending<D: Device> {
    pub(crate) shape: Gemm,
    pub(crate) x: Rc<D::Buffer>,
    pub(crate) dy: Rc<D::Buffer>,
    pub(crate) target: Id,
}

/// Communication between two marks of the device.
pub(crate) struct Span<M> {
    pub(crate) dimension: Dimension,
    pub(crate) from: M,
    pub(crate) to: M,
    /// Seconds blocked on peers, where they can be told from the rest: what stands in for peers that do not run.
    pub(crate) wait: Option<f64>,
    /// Bytes sent to other ranks.
    pub(crate) sent: u64,
}

/// Lane of the waits that stand in for collectives in the middle of the computation.
const LANE_IN_LINE: u32 = 0;
/// Lane of those for reductions that run beside the computation.
pub(crate) const LANE_BESIDE: u32 = 1;

/// Sizes of a micro-batch on this rank.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Sequences.
    pub(crate) batch: usize,
    /// Tokens of one sequence on this context-parallel rank.
    pub(crate) seq: usize,
    /// Tokens of the micro-batch on this context-parallel rank.
    pub(crate) tokens: usize,
    /// Tokens of this rank's sequence-parallel share.
    pub(crate) share: usize,
    pub(crate) hidden: usize,
}

/// Parameters of the first and last chunk.
pub(crate) struct EndIds {
    pub(crate) embedding: Option<Id>,
    pub(crate) positions: Option<Id>,
    pub(crate) final_norm: Option<NormIds>,
    pub(crate) head: Option<Id>,
    /// First vocabulary row of this rank's share.
    pub(crate) vocab_first: usize,
    pub(crate) vocab_rows: usize,
}

/// One rank of a running plan.
pub struct Rank<D: Device, T: Transport> {
    pub(crate) device: D,
    pub(crate) comm: Comm<T>,
    /// Tensors go over it where there is one.
    pub(crate) fabric: Option<Box<dyn Fabric<D>>>,
    pub(crate) mesh: Mesh,
    pub(crate) network: Rc<Network>,
    pub(crate) plan: Plan,
    pub(crate) workload: TrainingWorkload,
    /// Parameters and gradients of this rank.
    pub store: Store<D>,
    /// Layers of each local chunk, keyed by model chunk.
    pub(crate) chunks: BTreeMap<usize, Vec<Rc<LayerIds>>>,
    pub(crate) ends: EndIds,
    pub(crate) layout: Layout,
    pub(crate) sizes: Sizes,
    pub(crate) dtype: DType,
    /// Weight gradients are separate passes: queue them.
    pub(crate) deferring: bool,
    /// Keep the reduced gradients of a step until the next one.
    pub(crate) keep_gradients: bool,
    pub(crate) pending: Vec<Pending<D>>,
    pub(crate) positions: Rc<D::Index>,
    /// Positions of this rank's sequence-parallel share.
    pub(crate) share_positions: Rc<D::Index>,
    /// Communication of the step on the device's own clock.
    pub(crate) spans: RefCell<Vec<Span<D::Mark>>>,
}

/// Positions of this context-parallel rank's tokens: blocks `r` and `2·cp − 1 − r` of `2·cp` (balanced causal work).
pub(crate) fn local_positions(seq: usize, cp: usize, rank: usize) -> Vec<usize> {
    if cp == 1 {
        return (0..seq).collect();
    }
    let block = seq / (2 * cp);
    let early = rank * block..(rank + 1) * block;
    let late = (2 * cp - 1 - rank) * block..(2 * cp - rank) * block;
    early.chain(late).collect()
}

impl<D: Device, T: Transport> Rank<D, T> {
    /// Builds the rank's share of the model with start values from `seed`.
    ///
    /// # Errors
    /// When the plan does not fit the model or the device has no room.
    pub fn new(
        device: D,
        comm: Comm<T>,
        network: &Network,
        layout: &Layout,
        plan: &Plan,
        workload: &TrainingWorkload,
        dtype: DType,
        seed: u64,
    ) -> Result<Self> {
        let mesh = Mesh::new(plan, comm.rank())?;
        let mut store = Store::new(seed, dtype);
        let cut = Cut {
            tp: (mesh.tp_index(), mesh.tp.size()),
            ep: (mesh.ep.index, mesh.ep.size()),
            etp: (mesh.etp.index, mesh.etp.size()),
        };
        let per_rank = network.vocab.div_ceil(cut.tp.1);
        let vocab = (cut.tp.0 * per_rank).min(network.vocab)..((cut.tp.0 + 1) * per_rank).min(network.vocab);
        let table = Shard::rows([network.vocab, network.hidden], vocab.clone());
        let mut ends = EndIds {
            embedding: None,
            positions: None,
            final_norm: None,
            head: None,
            vocab_first: vocab.start,
            vocab_rows: vocab.len(),
        };
        let mut chunks = BTreeMap::new();
        let mut first_layer = 0;
        for (index, chunk) in layout.chunks.iter().enumerate() {
            let count = chunk.count() as usize;
            if layout.stage_of(index) == mesh.stage() {
                use crate::parameters::Role;
                let role = if network.tied { Role::Embedding } else { Role::Dense };
                if chunk.embedding {
                    let name = "embedding.weight".to_owned();
                    ends.embedding = Some(store.add(&device, name, table.clone(), role, index)?);
                    if let Some(rows) = network.learned_positions {
                        let whole = Shard::full(rows, network.hidden);
                        let name = "positions.weight".to_owned();
                        ends.positions = Some(store.add(&device, name, whole, Role::Replicated, index)?);
                    }
                }
                let mut layers = Vec::with_capacity(count);
                for layer in first_layer..first_layer + count {
                    layers.push(Rc::new(store.add_layer(&device, network, cut, layer, index)?));
                }
                if chunk.head {
                    if network.final_norm {
                        ends.final_norm = Some(store.add_norm(&device, network, "final_norm", index)?);
                    }
                    ends.head = Some(match (network.tied, ends.embedding) {
                        (true, Some(shared)) => shared,
                        (true, None) => {
                            store.add(&device, "embedding.weight".to_owned(), table.clone(), role, index)?
                        }
                        (false, _) => {
                            store.add(&device, "head.weight".to_owned(), table.clone(), role, index)?
                        }
                    });
                }
                chunks.insert(index, layers);
            }
            first_layer += count;
        }
        let batch = plan.micro_batch as usize;
        let seq = workload.seq_len as usize / plan.cp as usize;
        let tokens = batch * seq;
        let share = tokens / mesh.tp.size();
        let one = local_positions(workload.seq_len as usize, plan.cp as usize, mesh.cp_index());
        let all: Vec<u32> = (0..batch).flat_map(|_| one.iter().map(|&p| p as u32)).collect();
        let positions = Rc::new(device.upload_index(&all)?);
        let share_positions = Rc::new(device.upload_index(&all[mesh.tp_index() * share..][..share])?);
        Ok(Self {
            sizes: Sizes { batch, seq, tokens, share, hidden: network.hidden },
            comm,
            fabric: None,
            mesh,
            network: Rc::new(network.clone()),
            plan: plan.clone(),
            workload: workload.clone(),
            store,
            chunks,
            ends,
            layout: layout.clone(),
            dtype,
            deferring: false,
            keep_gradients: false,
            pending: Vec::new(),
            positions,
            share_positions,
            spans: RefCell::default(),
            device,
        })
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    pub(crate) fn alloc(&self, len: usize) -> Result<D::Buffer> {
        Ok(self.device.alloc(self.dtype, len)?)
    }

    pub(crate) fn zeros(&self, len: usize) -> Result<D::Buffer> {
        let mut buffer = self.alloc(len)?;
        self.device.fill(&mut buffer, 0.0)?;
        Ok(buffer)
    }

    pub(crate) fn clone_of(&self, source: &D::Buffer) -> Result<D::Buffer> {
        let len = self.device.len(source);
        let mut copy = self.alloc(len)?;
        self.device.copy(1, len, source, Strided::new(0, len), &mut copy, Strided::new(0, len))?;
        Ok(copy)
    }

    pub(crate) fn buffer(&self, values: &[f32]) -> Result<D::Buffer> {
        let mut buffer = self.alloc(values.len())?;
        self.device.write(&mut buffer, 0, values)?;
        Ok(buffer)
    }

    /// All-gathers rows over a group.
    pub(crate) fn gather(
        &self,
        dimension: Dimension,
        group: &Group,
        share: &Rc<D::Buffer>,
    ) -> Result<Rc<D::Buffer>> {
        if let Some(fabric) = self.over(group, Use::InLine) {
            let (n, len) = (group.size(), self.device.len(share));
            let mut whole = self.alloc(n * len)?;
            self.spanned(dimension, (n - 1) * len, || {
                fabric.all_gather(&self.device, group, Use::InLine, share, &mut whole)
            })?;
            return Ok(Rc::new(whole));
        }
        if group.size() == 1 {
            return Ok(Rc::clone(share));
        }
        if self.comm.is_alone() {
            let (n, len) = (group.size(), self.device.len(share));
            return self.pretend(dimension, CollectiveKind::AllGather, n * len, n, || {
                let mut whole = self.alloc(n * len)?;
                for i in 0..n {
                    let to = Strided::new(i * len, len);
                    self.device.copy(1, len, share, Strided::new(0, len), &mut whole, to)?;
                }
                Ok(Rc::new(whole))
            });
        }
        self.comm.staged(dimension, || {
            let parts = self.comm.all_gather(dimension, group, self.device.download(share)?)?;
            let mut whole = self.alloc(parts.iter().map(Vec::len).sum())?;
            let mut at = 0;
            for part in parts {
                self.device.write(&mut whole, at, &part)?;
                at += part.len();
            }
            Ok(Rc::new(whole))
        })
    }

    /// The fabric, if it connects this group.
    pub(crate) fn over(&self, group: &Group, purpose: Use) -> Option<&dyn Fabric<D>> {
        self.fabric.as_deref().filter(|f| f.connects(group, purpose))
    }

    /// Communication on the device's stream, `sent` elements of the compute format to other ranks.
    pub(crate) fn spanned<O>(
        &self,
        dimension: Dimension,
        sent: usize,
        work: impl FnOnce() -> Result<O>,
    ) -> Result<O> {
        let from = self.device.mark()?;
        let out = work()?;
        let to = self.device.mark()?;
        let sent = (self.dtype.size() * sent as f64) as u64;
        self.spans.borrow_mut().push(Span { dimension, from, to, wait: None, sent });
        Ok(out)
    }

    /// In place of a collective of `elements` in the compute format: does `work` (making up the result) while its predicted
    /// duration passes on the device.
    pub(crate) fn pretend<R>(
        &self,
        dimension: Dimension,
        kind: CollectiveKind,
        elements: usize,
        ranks: usize,
        work: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        let bytes = (self.dtype.size() * elements as f64) as u64;
        let seconds = self.comm.price(dimension, kind, bytes, ranks);
        let from = self.device.mark()?;
        let end = self.device.pause_beside(LANE_IN_LINE, seconds)?;
        let made = work()?;
        self.device.join(&end)?;
        let to = self.device.mark()?;
        self.spans.borrow_mut().push(Span { dimension, from, to, wait: Some(seconds), sent: bytes });
        Ok(made)
    }

    /// A buffer as if it had come from a rank that does not run: small values without a pattern.
    pub(crate) fn made_up(&self, dtype: DType, len: usize) -> Result<D::Buffer> {
        let mut buffer = self.device.alloc(dtype, len)?;
        let to = Strided::new(0, len);
        let shape = Uniform { key: 1, first: 0, pitch: 0, rows: 1, width: len, to, scale: 0.5 };
        self.device.uniform(&shape, &mut buffer)?;
        Ok(buffer)
    }

    /// A message between stages: sends this buffer.
    pub(crate) fn send_stage(&self, to: usize, tag: Tag, data: D::Buffer) -> Result<()> {
        if self.comm.is_alone() {
            // The sender goes on computing; the receiver waits.
            return Ok(());
        }
        if let Some(fabric) = &self.fabric {
            let len = self.device.len(&data);
            return self.spanned(Dimension::Pp, len, || fabric.send(&self.device, to, tag, data));
        }
        self.comm
            .staged(Dimension::Pp, || self.comm.send(Dimension::Pp, to, tag, self.device.download(&data)?))
    }

    /// A message between stages: the share of a micro-batch's activations or of their gradient.
    pub(crate) fn receive_stage(&self, from: usize, tag: Tag) -> Result<D::Buffer> {
        let len = self.sizes.share * self.sizes.hidden;
        if self.comm.is_alone() {
            return self
                .pretend(Dimension::Pp, CollectiveKind::SendRecv, len, 2, || self.made_up(self.dtype, len));
        }
        if let Some(fabric) = &self.fabric {
            let make = || self.alloc(len);
            return self.spanned(Dimension::Pp, 0, || fabric.receive(&self.device, from, tag, &make));
        }
        self.comm.staged(Dimension::Pp, || self.buffer(&self.comm.receive(Dimension::Pp, from, tag)?))
    }

    /// All-gathers the sequence-parallel shares over tp.
    pub(crate) fn gather_tp(&self, share: &Rc<D::Buffer>) -> Result<Rc<D::Buffer>> {
        self.gather(Dimension::Tp, &self.mesh.tp, share)
    }

    /// Sums over a group and keeps this rank's rows.
    pub(crate) fn scatter(
        &self,
        dimension: Dimension,
        group: &Group,
        partial: D::Buffer,
    ) -> Result<D::Buffer> {
        if let Some(fabric) = self.over(group, Use::InLine) {
            let len = self.device.len(&partial) / group.size();
            let mut own = self.alloc(len)?;
            self.spanned(dimension, (group.size() - 1) * len, || {
                fabric.reduce_scatter(&self.device, group, Use::InLine, &partial, &mut own)
            })?;
            return Ok(own);
        }
        if group.size() == 1 {
            return Ok(partial);
        }
        if self.comm.is_alone() {
            let (n, all) = (group.size(), self.device.len(&partial));
            let len = all / n;
            return self.pretend(dimension, CollectiveKind::ReduceScatter, all, n, || {
                let mut own = self.alloc(len)?;
                let from = Strided::new(group.index * len, len);
                self.device.copy(1, len, &partial, from, &mut own, Strided::new(0, len))?;
                Ok(own)
            });
        }
        self.comm.staged(dimension, || {
            let sum = self.comm.reduce_scatter(dimension, group, self.device.download(&partial)?)?;
            self.buffer(&sum)
        })
    }

    /// Sums over tp and keeps this rank's sequence-parallel share.
    pub(crate) fn scatter_tp(&self, partial: D::Buffer) -> Result<D::Buffer> {
        self.scatter(Dimension::Tp, &self.mesh.tp, partial)
    }

    fn norm_shape(&self, rows: usize) -> Norm {
        Norm { rows, width: self.sizes.hidden, rms: self.network.rms, epsilon: EPSILON }
    }

    pub(crate) fn norm_forward(&self, ids: NormIds, x: &D::Buffer) -> Result<(Rc<D::Buffer>, D::Buffer)> {
        let rows = self.sizes.share;
        let mut y = self.alloc(rows * self.sizes.hidden)?;
        let mut stats = self.device.alloc(DType::Fp32, 2 * rows)?;
        let bias = ids.bias.map(|id| &self.store.values[id]);
        let weight = &self.store.values[ids.weight];
        self.device.norm_forward(&self.norm_shape(rows), x, weight, bias, &mut y, &mut stats)?;
        Ok((Rc::new(y), stats))
    }

    pub(crate) fn norm_backward(
        &mut self,
        ids: NormIds,
        x: &D::Buffer,
        stats: &D::Buffer,
        dy: &D::Buffer,
    ) -> Result<D::Buffer> {
        let shape = self.norm_shape(self.sizes.share);
        let mut dx = self.alloc(shape.rows * shape.width)?;
        let weight = &self.store.values[ids.weight];
        let gradients = &mut self.store.gradients;
        match ids.bias {
            Some(bias) => {
                // Two gradients of one store at once: weight comes before bias.
                let (head, tail) = gradients.split_at_mut(bias);
                let (dweight, dbias) = (&mut head[ids.weight], &mut tail[0]);
                self.device.norm_backward(&shape, x, weight, stats, dy, &mut dx, dweight, Some(dbias))?;
            }
            None => {
                let dweight = &mut gradients[ids.weight];
                self.device.norm_backward(&shape, x, weight, stats, dy, &mut dx, dweight, None)?;
            }
        }
        Ok(dx)
    }

    /// `x·W` for a weight stored as inputs × outputs.
    pub(crate) fn linear(&self, weight: Id, rows: usize, x: &D::Buffer) -> Result<D::Buffer> {
        let [k, n] = self.store.infos[weight].shard.shape();
        let mut y = self.alloc(rows * n)?;
        self.device.gemm(&Gemm::new(rows, n, k), x, &self.store.values[weight], &mut y)?;
        Ok(y)
    }

    /// Gradient of the input of [`Rank::linear`].
    pub(crate) fn linear_backward(&self, weight: Id, rows: usize, dy: &D::Buffer) -> Result<D::Buffer> {
        let [k, n] = self.store.infos[weight].shard.shape();
        let mut dx = self.alloc(rows * k)?;
        self.device.gemm(&Gemm::new(rows, k, n).transposed_b(), dy, &self.store.values[weight], &mut dx)?;
        Ok(dx)
    }

    /// Gradient of the weight of [`Rank::linear`], now or in the weight pass.
    pub(crate) fn weight_gradient(
        &mut self,
        weight: Id,
        rows: usize,
        x: &Rc<D::Buffer>,
        dy: &Rc<D::Buffer>,
    ) -> Result<()> {
        let [k, n] = self.store.infos[weight].shard.shape();
        let shape = Gemm::new(k, n, rows).transposed_a().accumulating();
        self.add_weight_gradient(Pending { shape, x: Rc::clone(x), dy: Rc::clone(dy), target: weight })
    }

    pub(crate) fn add_weight_gradient(&mut self, pending: Pending<D>) -> Result<()> {
        if self.deferring {
            self.pending.push(pending);
            return Ok(());
        }
        let target = &mut self.store.gradients[pending.target];
        Ok(self.device.gemm(&pending.shape, &pending.x, &pending.dy, target)?)
    }

    pub(crate) fn bias_forward(&self, bias: Option<Id>, rows: usize, x: &mut D::Buffer) -> Result<()> {
        if let Some(bias) = bias {
            let width = self.store.infos[bias].shard.shape()[1];
            self.device.bias_forward(rows, width, &self.store.values[bias], x)?;
        }
        Ok(())
    }

    pub(crate) fn bias_backward(&mut self, bias: Option<Id>, rows: usize, dy: &D::Buffer) -> Result<()> {
        if let Some(bias) = bias {
            let width = self.store.infos[bias].shard.shape()[1];
            self.device.bias_backward(rows, width, dy, &mut self.store.gradients[bias])?;
        }
        Ok(())
    }
}

/// Added to the variance in every normalisation.
pub const EPSILON: f32 = 1e-5;

/// What a dense feed-forward network keeps for its backward pass.
pub(crate) struct DenseSaved<D: Device> {
    pub(crate) before: D::Buffer,
    pub(crate) after: Rc<D::Buffer>,
}

impl<D: Device, T: Transport> Rank<D, T> {
    /// Partial output (to be summed over tp) for all tokens of the tensor-parallel group.
    pub(crate) fn dense_forward(&self, ids: &DenseIds, x: &D::Buffer) -> Result<(D::Buffer, DenseSaved<D>)> {
        let (rows, width) = (self.sizes.tokens, ids.spec.hidden / self.mesh.tp.size());
        let mut before = self.linear(ids.up, rows, x)?;
        self.bias_forward(ids.up_bias, rows, &mut before)?;
        let mut after = self.alloc(rows * width)?;
        self.device.activation_forward(activation(ids.spec.gated), rows, width, &before, &mut after)?;
        let partial = self.linear(ids.down, rows, &after)?;
        Ok((partial, DenseSaved { before, after: Rc::new(after) }))
    }

    /// Partial gradient of the input, from the gathered gradient of the output.
    pub(crate) fn dense_backward(
        &mut self,
        ids: &DenseIds,
        saved: &DenseSaved<D>,
        x: &Rc<D::Buffer>,
        dy: &Rc<D::Buffer>,
    ) -> Result<D::Buffer> {
        let (rows, width) = (self.sizes.tokens, ids.spec.hidden / self.mesh.tp.size());
        let dafter = self.linear_backward(ids.down, rows, dy)?;
        self.weight_gradient(ids.down, rows, &saved.after, dy)?;
        let kind = activation(ids.spec.gated);
        let mut dbefore = self.alloc(rows * kind.input_width(width))?;
        self.device.activation_backward(kind, rows, width, &saved.before, &dafter, &mut dbefore)?;
        self.bias_backward(ids.up_bias, rows, &dbefore)?;
        let dbefore = Rc::new(dbefore);
        self.weight_gradient(ids.up, rows, x, &dbefore)?;
        self.linear_backward(ids.up, rows, &dbefore)
    }
}

/// The activation of a feed-forward network.
pub(crate) fn activation(gated: bool) -> psim_kernels::Activation {
    if gated { psim_kernels::Activation::SwiGlu } else { psim_kernels::Activation::Gelu }
}
