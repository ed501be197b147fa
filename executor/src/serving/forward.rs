//! The forward pass of a batch of tokens over the paged cache, heads and widths split over tp.

use super::{Batch, ServeSettings};
use crate::attention::ROPE_BASE;
use crate::comm::{Comm, Transport};
use crate::error::Result;
use crate::mesh::Group;
use crate::network::Network;
use crate::parameters::{Cut, Id, LayerIds, NormIds, Role, Shard, Store};
use crate::rank::{EPSILON, activation};
use psim_hardware::DType;
use psim_kernels::{Attention, Device, Gemm, Norm, PagedAttention, Rope, Strided};
use psim_models::operator::Dimension;
use std::cell::RefCell;
use std::ops::Range;

/// Rows of the batch that belong together: tokens of one sequence, in order.
fn parts(batch: &Batch) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rows = batch.tokens.len();
        if start == rows {
            return None;
        }
        let table = |row: usize| &batch.tables[row * batch.columns..][..batch.columns];
        let mut end = start + 1;
        // The next position of the same pages; no two sequences share a page.
        while end < rows && batch.positions[end] == batch.positions[end - 1] + 1 && table(end) == table(start)
        {
            end += 1;
        }
        let part = start..end;
        start = end;
        Some(part)
    })
}

/// One rank of a serving engine.
pub(super) struct Engine<'a, D: Device, T: Transport> {
    device: D,
    pub(super) comm: Comm<T>,
    network: &'a Network,
    settings: &'a ServeSettings,
    /// Format of parameters, activations and cache.
    dtype: DType,
    store: Store<D>,
    layers: Vec<LayerIds>,
    embedding: Id,
    positions: Option<Id>,
    final_norm: Option<NormIds>,
    head: Id,
    vocab_first: usize,
    vocab_rows: usize,
    /// Keys and values per layer: `[page][token][kv head][width]`.
    cache: RefCell<Vec<[D::Buffer; 2]>>,
}

impl<'a, D: Device, T: Transport> Engine<'a, D, T> {
    /// This rank's share of the model, and an empty cache.
    pub(super) fn new(
        device: D,
        comm: Comm<T>,
        network: &'a Network,
        settings: &'a ServeSettings,
        dtype: DType,
    ) -> Result<Self> {
        let (rank, tp) = (comm.rank(), settings.tp);
        let mut store = Store::without_gradients(settings.seed, dtype);
        let cut = Cut { tp: (rank, tp), ep: (0, 1), etp: (0, 1) };
        let per_rank = network.vocab.div_ceil(tp);
        let vocab = (rank * per_rank).min(network.vocab)..((rank + 1) * per_rank).min(network.vocab);
        let table = Shard::rows([network.vocab, network.hidden], vocab.clone());
        let embedding = store.add(&device, "embedding.weight".to_owned(), table.clone(), Role::Dense, 0)?;
        let positions = match network.learned_positions {
            Some(rows) => {
                let whole = Shard::full(rows, network.hidden);
                Some(store.add(&device, "positions.weight".to_owned(), whole, Role::Replicated, 0)?)
            }
            None => None,
        };
        let layers = (0..network.layers.len())
            .map(|layer| store.add_layer(&device, network, cut, layer, 0))
            .collect::<Result<Vec<_>>>()?;
        let final_norm = match network.final_norm {
            true => Some(store.add_norm(&device, network, "final_norm", 0)?),
            false => None,
        };
        let head = match network.tied {
            true => embedding,
            false => store.add(&device, "head.weight".to_owned(), table, Role::Dense, 0)?,
        };
        let rows = settings.pages * settings.page;
        let cache = network
            .layers
            .iter()
            .map(|layer| {
                let len = rows * layer.kv_heads / tp * layer.head_dim;
                Ok([device.alloc(dtype, len)?, device.alloc(dtype, len)?])
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            device,
            comm,
            network,
            settings,
            dtype,
            store,
            layers,
            embedding,
            positions,
            final_norm,
            head,
            vocab_first: vocab.start,
            vocab_rows: vocab.len(),
            cache: RefCell::new(cache),
        })
    }

    fn alloc(&self, len: usize) -> Result<D::Buffer> {
        Ok(self.device.alloc(self.dtype, len)?)
    }

    /// Sums partial results over the group, in place.
    fn reduce(&self, group: &Group, partial: &mut D::Buffer) -> Result<()> {
        if group.size() == 1 {
            return Ok(());
        }
        let sum = self.comm.all_reduce(Dimension::Tp, group, self.device.download(partial)?)?;
        Ok(self.device.write(partial, 0, &sum)?)
    }

    fn linear(&self, weight: Id, rows: usize, x: &D::Buffer) -> Result<D::Buffer> {
        let [k, n] = self.store.infos[weight].shard.shape();
        let mut y = self.alloc(rows * n)?;
        self.device.gemm(&Gemm::new(rows, n, k), x, &self.store.values[weight], &mut y)?;
        Ok(y)
    }

    fn bias(&self, bias: Option<Id>, rows: usize, x: &mut D::Buffer) -> Result<()> {
        if let Some(bias) = bias {
            let width = self.store.infos[bias].shard.shape()[1];
            self.device.bias_forward(rows, width, &self.store.values[bias], x)?;
        }
        Ok(())
    }

    fn norm(&self, ids: NormIds, rows: usize, x: &D::Buffer) -> Result<D::Buffer> {
        let shape = Norm { rows, width: self.network.hidden, rms: self.network.rms, epsilon: EPSILON };
        let mut y = self.alloc(rows * self.network.hidden)?;
        let mut stats = self.device.alloc(DType::Fp32, 2 * rows)?;
        let bias = ids.bias.map(|id| &self.store.values[id]);
        self.device.norm_forward(&shape, x, &self.store.values[ids.weight], bias, &mut y, &mut stats)?;
        Ok(y)
    }

    /// Scores over the vocabulary for every sample of the batch (on rank 0; the others return nothing of use).
    pub(super) fn step(&self, batch: &Batch, group: &Group) -> Result<Vec<Vec<f32>>> {
        let (rows, hidden) = (batch.tokens.len(), self.network.hidden);
        let ids = self.device.upload_index(&batch.tokens)?;
        let positions = self.device.upload_index(&batch.positions)?;
        let tables = self.device.upload_index(&batch.tables)?;
        let lengths = self.device.upload_index(&batch.lengths)?;
        let mut x = self.alloc(rows * hidden)?;
        let table = &self.store.values[self.embedding];
        let (first, held) = (self.vocab_first, self.vocab_rows);
        self.device.embedding_forward(rows, hidden, first, held, &ids, table, &mut x)?;
        self.reduce(group, &mut x)?;
        if let (Some(table), Some(all)) = (self.positions, self.network.learned_positions) {
            let mut added = self.alloc(rows * hidden)?;
            let table = &self.store.values[table];
            self.device.embedding_forward(rows, hidden, 0, all, &positions, table, &mut added)?;
            self.device.add(&added, &mut x)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let out = self.attention(index, layer, batch, [&positions, &tables, &lengths], &x)?;
            let mut out = self.linear(layer.out, rows, &out)?;
            self.reduce(group, &mut out)?;
            self.bias(layer.out_bias, rows, &mut out)?;
            self.device.add(&out, &mut x)?;
            if let Some(dense) = &layer.dense {
                let normed = self.norm(layer.ffn_norm, rows, &x)?;
                let mut before = self.linear(dense.up, rows, &normed)?;
                self.bias(dense.up_bias, rows, &mut before)?;
                let width = dense.spec.hidden / group.size();
                let mut after = self.alloc(rows * width)?;
                self.device.activation_forward(
                    activation(dense.spec.gated),
                    rows,
                    width,
                    &before,
                    &mut after,
                )?;
                let mut out = self.linear(dense.down, rows, &after)?;
                self.reduce(group, &mut out)?;
                self.bias(dense.down_bias, rows, &mut out)?;
                self.device.add(&out, &mut x)?;
            }
        }
        self.scores(batch, group, &x)
    }

    /// Attention of every token over its sequence's cache, in which its own keys and values are put first.
    fn attention(
        &self,
        index: usize,
        layer: &LayerIds,
        batch: &Batch,
        [positions, tables, lengths]: [&D::Index; 3],
        x: &D::Buffer,
    ) -> Result<D::Buffer> {
        let rows = batch.tokens.len();
        let tp = self.settings.tp;
        let (heads, kv_heads, dim) =
            (layer.layer.heads / tp, layer.layer.kv_heads / tp, layer.layer.head_dim);
        let normed = self.norm(layer.attention_norm, rows, x)?;
        let mut packed = self.linear(layer.qkv, rows, &normed)?;
        self.bias(layer.qkv_bias, rows, &mut packed)?;
        let stride = (heads + 2 * kv_heads) * dim;
        let take = |offset: usize, count: usize, rotate: bool| -> Result<D::Buffer> {
            let (width, from) = (count * dim, Strided::new(offset * dim, stride));
            let mut out = self.alloc(rows * width)?;
            let to = Strided::new(0, width);
            if rotate {
                let rope =
                    Rope { tokens: rows, heads: count, head_dim: dim, base: ROPE_BASE, inverse: false };
                self.device.rope(&rope, positions, &packed, from, &mut out, to)?;
            } else {
                self.device.copy(rows, width, &packed, from, &mut out, to)?;
            }
            Ok(out)
        };
        let q = take(0, heads, self.network.rope)?;
        let k = take(heads, kv_heads, self.network.rope)?;
        let v = take(heads + kv_heads, kv_heads, false)?;
        let mut cache = self.cache.borrow_mut();
        let [keys, values] = &mut cache[index];
        let width = kv_heads * dim;
        let mut row = 0;
        while row < rows {
            // Neighbouring slots are copied at once.
            let mut count = 1;
            while row + count < rows && batch.slots[row + count] == batch.slots[row] + count as u32 {
                count += 1;
            }
            let from = Strided::new(row * width, width);
            let to = Strided::new(batch.slots[row] as usize * width, width);
            self.device.copy(count, width, &k, from, keys, to)?;
            self.device.copy(count, width, &v, from, values, to)?;
            row += count;
        }
        let mut out = self.alloc(rows * heads * dim)?;
        let scale = 1.0 / (dim as f32).sqrt();
        if self.device.head_dims().is_empty() {
            // One kernel for everything: a processor gains nothing from taking a prompt as a whole.
            let (page, max_pages) = (self.settings.page, batch.columns);
            let shape =
                PagedAttention { batch: rows, heads, kv_heads, head_dim: dim, page, max_pages, scale };
            self.device.paged_attention(&shape, &q, keys, values, tables, lengths, &mut out)?;
            return Ok(out);
        }
        let mut lse = self.device.alloc(DType::Fp32, rows * heads)?;
        for part in parts(batch) {
            if part.len() > 1 {
                self.prompt(batch, part, [&q, keys, values], &mut out, &mut lse, (heads, kv_heads, dim))?;
            }
        }
        self.decode(batch, [&q, keys, values], &mut out, (heads, kv_heads, dim))?;
        Ok(out)
    }

    /// Attention of a piece of a prompt over all of its sequence so far, on the kernels that take blocks of queries.
    fn prompt(
        &self,
        batch: &Batch,
        part: Range<usize>,
        [q, keys, values]: [&D::Buffer; 3],
        out: &mut D::Buffer,
        lse: &mut D::Buffer,
        (heads, kv_heads, head_dim): (usize, usize, usize),
    ) -> Result<()> {
        let width = kv_heads * head_dim;
        let context = batch.lengths[part.end - 1] as usize;
        let index = self.device.upload_index(&batch.places(part.start, context, self.settings.page))?;
        let (mut k, mut v) = (self.alloc(context * width)?, self.alloc(context * width)?);
        self.device.gather_rows(context, width, &index, keys, &mut k)?;
        self.device.gather_rows(context, width, &index, values, &mut v)?;
        let shape = Attention {
            seq_q: part.len(),
            q_first: part.start,
            q_pitch: 0,
            seq_kv: context,
            kv_pitch: 0,
            causal: Some((context - part.len()) as isize),
            ..Attention::causal(1, context, heads, kv_heads, head_dim)
        };
        Ok(self.device.attention_forward(&shape, q, &k, &v, out, lse)?)
    }

    /// Attention of the tokens that come alone over the pages of their sequences.
    fn decode(
        &self,
        batch: &Batch,
        [q, keys, values]: [&D::Buffer; 3],
        out: &mut D::Buffer,
        (heads, kv_heads, head_dim): (usize, usize, usize),
    ) -> Result<()> {
        let alone: Vec<usize> = parts(batch).filter(|p| p.len() == 1).map(|p| p.start).collect();
        if alone.is_empty() {
            return Ok(());
        }
        let width = heads * head_dim;
        let rows: Vec<u32> = alone.iter().map(|&row| row as u32).collect();
        let lengths: Vec<u32> = alone.iter().map(|&row| batch.lengths[row]).collect();
        let tables: Vec<u32> = alone
            .iter()
            .flat_map(|&row| batch.tables[row * batch.columns..][..batch.columns].to_vec())
            .collect();
        let (lengths, tables) = (self.device.upload_index(&lengths)?, self.device.upload_index(&tables)?);
        let shape = PagedAttention {
            batch: alone.len(),
            heads,
            kv_heads,
            head_dim,
            page: self.settings.page,
            max_pages: batch.columns,
            scale: 1.0 / (head_dim as f32).sqrt(),
        };
        let mut own = self.alloc(alone.len() * width)?;
        self.device.gather_rows(alone.len(), width, &self.device.upload_index(&rows)?, q, &mut own)?;
        let mut attended = self.alloc(alone.len() * width)?;
        self.device.paged_attention(&shape, &own, keys, values, &tables, &lengths, &mut attended)?;
        // Back to their rows, neighbours at once.
        let mut first = 0;
        while first < alone.len() {
            let mut count = 1;
            while first + count < alone.len() && alone[first + count] == alone[first] + count {
                count += 1;
            }
            let from = Strided::new(first * width, width);
            let to = Strided::new(alone[first] * width, width);
            self.device.copy(count, width, &attended, from, out, to)?;
            first += count;
        }
        Ok(())
    }

    fn scores(&self, batch: &Batch, group: &Group, x: &D::Buffer) -> Result<Vec<Vec<f32>>> {
        let (count, hidden) = (batch.samples.len(), self.network.hidden);
        if count == 0 {
            return Ok(Vec::new());
        }
        let sampled: Vec<u32> = batch.samples.iter().map(|s| s.0).collect();
        let mut last = self.alloc(count * hidden)?;
        self.device.gather_rows(count, hidden, &self.device.upload_index(&sampled)?, x, &mut last)?;
        let normed = match self.final_norm {
            Some(ids) => self.norm(ids, count, &last)?,
            None => last,
        };
        let mut scores = self.device.alloc(DType::Fp32, count * self.vocab_rows)?;
        let shape = Gemm::new(count, self.vocab_rows, hidden).transposed_b();
        self.device.gemm(&shape, &normed, &self.store.values[self.head], &mut scores)?;
        let parts = self.comm.all_gather(Dimension::Tp, group, self.device.download(&scores)?)?;
        Ok((0..count)
            .map(|row| {
                parts
                    .iter()
                    .flat_map(|part| {
                        let width = part.len() / count;
                        part[row * width..(row + 1) * width].iter().copied()
                    })
                    .collect()
            })
            .collect())
    }
}
