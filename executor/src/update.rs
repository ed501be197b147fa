//! Gradient reduction, sharded states and the optimizer step, bucket by bucket.
//!
//! ZeRO (Rajbhandari et al. 2020, section 5). Nothing sharded or stage 1: a bucket is posted as soon as its chunk's last
//! gradient exists, so its parts are on their way while earlier layers still compute; sums and Adam follow at the end of
//! the step. Stage 2: a bucket is a layer, its gradient exists only around the layer's backward pass, is posted after
//! every micro-batch, and the owned part adds up. Stage 3: the layer's parameters too exist only around its passes; they
//! are gathered from the owned parts before and dropped behind.

use crate::comm::{Tag, Transport, part};
use crate::error::Result;
use crate::mesh::Group;
use crate::parameters::{Id, Role};
use crate::rank::Rank;
use psim_hardware::DType;
use psim_kernels::{Adam, Device, Strided};
use psim_models::operator::{CollectiveKind, Dimension};
use psim_models::plan::Sharding;
use std::ops::Range;

/// What a bucket belongs to: whose passes complete its gradient and use its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A model chunk; its last backward pass completes the gradient.
    Chunk(usize),
    /// A layer, where gradients are sharded.
    Layer(usize),
    /// Embedding or output side of a chunk, where gradients are sharded.
    Ends(usize),
    /// The embedding table: complete when the step is, because both ends of the model may hold it.
    Table,
}

/// Parameters that are reduced and updated together.
pub(crate) struct Bucket<D: Device> {
    ids: Vec<Id>,
    len: usize,
    expert: bool,
    unit: Unit,
    /// Elements this rank updates.
    owned: Range<usize>,
    moments: [D::Buffer; 2],
    /// fp32 copy of the owned parameters where the compute format is narrower, or where only the owned part is kept.
    master: Option<D::Buffer>,
    /// Posted, and not yet received.
    posted: bool,
    /// Sum of the owned gradients that have been received.
    total: Option<D::Buffer>,
}

/// A piece of a reduced gradient (or of the parameters) that this rank owns.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Piece {
    /// Parameter.
    pub name: String,
    /// Shape of the whole tensor.
    pub whole: [usize; 2],
    /// Position of every value in the whole tensor.
    pub positions: Vec<usize>,
    /// Values.
    pub values: Vec<f32>,
}

impl<D: Device, T: Transport> Rank<D, T> {
    fn shards_gradients(&self) -> bool {
        matches!(self.plan.sharding, Sharding::Gradients | Sharding::Parameters)
    }

    fn shards_parameters(&self) -> bool {
        self.plan.sharding == Sharding::Parameters
    }

    fn unit_of(&self, id: Id) -> Unit {
        let info = &self.store.infos[id];
        match (info.role, info.layer) {
            (Role::Embedding, _) => Unit::Table,
            (_, Some(layer)) if self.shards_gradients() => Unit::Layer(layer),
            (_, None) if self.shards_gradients() => Unit::Ends(info.chunk),
            _ => Unit::Chunk(info.chunk),
        }
    }

    fn param_len(&self, id: Id) -> usize {
        let [rows, columns] = self.store.infos[id].shard.shape();
        rows * columns
    }

    /// Groups parameters into buckets of about `limit` elements; sharded parameters leave the device.
    pub(crate) fn buckets(&mut self, limit: usize) -> Result<Vec<Bucket<D>>> {
        let mut groups: Vec<(Unit, bool, Vec<Id>, usize)> = Vec::new();
        for (id, info) in self.store.infos.iter().enumerate() {
            let (unit, expert, len) = (self.unit_of(id), info.role == Role::Expert, self.param_len(id));
            match groups.iter_mut().rev().find(|g| g.0 == unit && g.1 == expert && g.3 < limit) {
                Some(group) => {
                    group.2.push(id);
                    group.3 += len;
                }
                None => groups.push((unit, expert, vec![id], len)),
            }
        }
        let mut buckets = Vec::with_capacity(groups.len());
        for (unit, expert, ids, len) in groups {
            let group = self.replica_group(expert);
            let owned = if self.plan.sharding == Sharding::None {
                0..len
            } else {
                part(len, group.size(), group.index)..part(len, group.size(), group.index + 1)
            };
            let zeros = || -> Result<D::Buffer> {
                let mut buffer = self.device.alloc(DType::Fp32, owned.len())?;
                self.device.fill(&mut buffer, 0.0)?;
                Ok(buffer)
            };
            let moments = [zeros()?, zeros()?];
            let master = if self.dtype != DType::Fp32 || self.shards_parameters() {
                Some(self.owned_part(&self.flatten(&ids, len, &self.store.values)?, &owned)?)
            } else {
                None
            };
            // Sharded gradients add up over the micro-batches.
            let total = if self.shards_gradients() { Some(zeros()?) } else { None };
            buckets.push(Bucket { ids, len, expert, unit, owned, moments, master, posted: false, total });
        }
        for bucket in &buckets {
            if self.shards_parameters() {
                self.drop_parameters(bucket)?;
            }
            if self.shards_gradients() && bucket.unit != Unit::Table {
                self.drop_gradients(bucket)?;
            }
        }
        Ok(buckets)
    }

    fn replica_group(&self, expert: bool) -> &Group {
        if expert { &self.mesh.expert_replicas } else { &self.mesh.replicas }
    }

    /// The two ranks that share a tied embedding, when first and last chunk lie on different stages.
    fn embedding_peers(&self) -> Option<Group> {
        let last = self.layout.stage_of(self.layout.chunks.len().saturating_sub(1));
        let first = self.layout.stage_of(0);
        let stage = self.mesh.stage();
        if !self.network.tied || first == last || (stage != first && stage != last) {
            return None;
        }
        let ranks = vec![self.mesh.on_stage(first), self.mesh.on_stage(last)];
        Some(Group { index: usize::from(stage == last), ranks })
    }

    /// Tensors one behind another, in fp32.
    fn flatten(&self, ids: &[Id], len: usize, tensors: &[D::Buffer]) -> Result<D::Buffer> {
        let mut flat = self.device.alloc(DType::Fp32, len)?;
        let mut at = 0;
        for &id in ids {
            let len = self.param_len(id);
            let to = Strided::new(at, len);
            self.device.copy(1, len, &tensors[id], Strided::new(0, len), &mut flat, to)?;
            at += len;
        }
        Ok(flat)
    }

    fn owned_part(&self, flat: &D::Buffer, owned: &Range<usize>) -> Result<D::Buffer> {
        let len = owned.len();
        let mut part = self.device.alloc(DType::Fp32, len)?;
        let from = Strided::new(owned.start, len);
        self.device.copy(1, len, flat, from, &mut part, Strided::new(0, len))?;
        Ok(part)
    }

    /// The overlap of parameters and `range` of their bucket: (parameter, offset in it, offset in the range, length).
    fn overlaps(&self, ids: &[Id], range: &Range<usize>) -> Vec<(Id, usize, usize, usize)> {
        let mut at = 0;
        let mut overlaps = Vec::with_capacity(ids.len());
        for &id in ids {
            let end = at + self.param_len(id);
            let held = at.max(range.start)..end.min(range.end);
            if !held.is_empty() {
                overlaps.push((id, held.start - at, held.start - range.start, held.len()));
            }
            at = end;
        }
        overlaps
    }

    /// Writes values for `range` of a bucket into its parameters, on the device.
    fn put_parameters(&mut self, ids: &[Id], range: &Range<usize>, values: &D::Buffer) -> Result<()> {
        for (id, to, from, len) in self.overlaps(ids, range) {
            let (from, to) = (Strided::new(from, len), Strided::new(to, len));
            self.device.copy(1, len, values, from, &mut self.store.values[id], to)?;
        }
        Ok(())
    }

    fn drop_parameters(&mut self, bucket: &Bucket<D>) -> Result<()> {
        for &id in &bucket.ids {
            self.store.values[id] = self.device.alloc(self.dtype, 0)?;
        }
        Ok(())
    }

    fn drop_gradients(&mut self, bucket: &Bucket<D>) -> Result<()> {
        for &id in &bucket.ids {
            self.store.gradients[id] = self.device.alloc(DType::Fp32, 0)?;
        }
        Ok(())
    }

    /// Puts the whole parameters of a bucket on the device from the parts that its ranks own.
    fn gather_parameters(&mut self, index: usize, bucket: &Bucket<D>, owned: &D::Buffer) -> Result<()> {
        let group = self.replica_group(bucket.expert).clone();
        let dimension = if bucket.expert { Dimension::Ep } else { Dimension::Dp };
        if group.size() == 1 {
            return self.put_parameters(&bucket.ids, &bucket.owned, owned);
        }
        if self.comm.is_alone() {
            self.pretend(dimension, CollectiveKind::AllGather, bucket.len, group.size(), || Ok(()))?;
            return self.put_parameters(&bucket.ids, &bucket.owned, owned);
        }
        let Self { comm, device, store, .. } = self;
        comm.staged(dimension, || {
            let tag = Tag::Shard(index as u32);
            let flat = comm.all_gather_tagged(dimension, tag, &group, device.download(owned)?)?.concat();
            let mut at = 0;
            for &id in &bucket.ids {
                let len = device.len(&store.values[id]);
                device.write(&mut store.values[id], 0, &flat[at..at + len])?;
                at += len;
            }
            Ok(())
        })
    }

    /// Before a unit's pass: its sharded parameters come to the device.
    pub(crate) fn fetch(&mut self, buckets: &[Bucket<D>], unit: Unit) -> Result<()> {
        if !self.shards_parameters() {
            return Ok(());
        }
        for (index, bucket) in buckets.iter().enumerate().filter(|(_, b)| b.unit == unit) {
            for &id in &bucket.ids {
                self.store.values[id] = if self.comm.is_alone() {
                    self.made_up(self.dtype, self.param_len(id))?
                } else {
                    self.alloc(self.param_len(id))?
                };
            }
            if let Some(owned) = &bucket.master {
                self.gather_parameters(index, bucket, owned)?;
            }
        }
        Ok(())
    }

    /// Behind a unit's pass: its sharded parameters leave the device.
    pub(crate) fn release(&mut self, buckets: &[Bucket<D>], unit: Unit) -> Result<()> {
        if self.shards_parameters() {
            for bucket in buckets.iter().filter(|b| b.unit == unit) {
                self.drop_parameters(bucket)?;
            }
        }
        Ok(())
    }

    /// Before a backward or weight pass: sharded gradients need room.
    pub(crate) fn hold_gradients(&mut self, buckets: &[Bucket<D>], unit: Unit) -> Result<()> {
        if !self.shards_gradients() {
            return Ok(());
        }
        for bucket in buckets.iter().filter(|b| b.unit == unit) {
            for &id in &bucket.ids {
                let len = self.param_len(id);
                if self.device.len(&self.store.gradients[id]) < len {
                    let mut gradient = self.device.alloc(DType::Fp32, len)?;
                    self.device.fill(&mut gradient, 0.0)?;
                    self.store.gradients[id] = gradient;
                }
            }
        }
        Ok(())
    }

    /// Behind a backward or weight pass: sharded gradients go to their owners.
    pub(crate) fn scatter_gradients(&mut self, buckets: &mut [Bucket<D>], unit: Unit) -> Result<()> {
        if !self.shards_gradients() {
            return Ok(());
        }
        self.post(buckets, unit)?;
        for bucket in buckets.iter().filter(|b| b.unit == unit) {
            self.drop_gradients(bucket)?;
        }
        Ok(())
    }

    /// Posts the buckets of a unit; what they posted before is received first.
    pub(crate) fn post(&mut self, buckets: &mut [Bucket<D>], unit: Unit) -> Result<()> {
        for (index, bucket) in buckets.iter_mut().enumerate().filter(|(_, b)| b.unit == unit) {
            self.settle(index, bucket)?;
            let mut flat = self.flatten(&bucket.ids, bucket.len, &self.store.gradients)?;
            self.complete_replicated(bucket, &mut flat)?;
            if unit == Unit::Table
                && let Some(peers) = self.embedding_peers()
            {
                if self.comm.is_alone() {
                    self.pretend(Dimension::Pp, CollectiveKind::AllReduce, bucket.len, 2, || Ok(()))?;
                } else {
                    self.comm.staged(Dimension::Pp, || {
                        let sum =
                            self.comm.all_reduce(Dimension::Pp, &peers, self.device.download(&flat)?)?;
                        Ok(self.device.write(&mut flat, 0, &sum)?)
                    })?;
                }
            }
            let group = self.replica_group(bucket.expert);
            let dimension = if bucket.expert { Dimension::Ep } else { Dimension::Dp };
            let tag = Tag::Bucket(index as u32);
            if group.size() == 1 {
                self.add_total(bucket, flat)?;
            } else if self.comm.is_alone() {
                let (bytes, ranks) = (4 * bucket.len as u64, group.size());
                let kind = match self.plan.sharding {
                    Sharding::None => CollectiveKind::AllReduce,
                    _ => CollectiveKind::ReduceScatter,
                };
                self.device.synchronize()?;
                self.comm.pretend_posted(dimension, kind, tag, bytes, ranks);
                bucket.posted = true;
            } else {
                self.comm.staged(dimension, || {
                    self.comm.post_parts(dimension, tag, group, &self.device.download(&flat)?)
                })?;
                bucket.posted = true;
            }
        }
        Ok(())
    }

    /// Gradients that every tensor-parallel rank has of its own tokens only: adds them up.
    fn complete_replicated(&self, bucket: &Bucket<D>, flat: &mut D::Buffer) -> Result<()> {
        let mut partial = Vec::new();
        let mut at = 0;
        for &id in &bucket.ids {
            let len = self.param_len(id);
            if self.store.infos[id].role == Role::Replicated {
                partial.push((at, len));
            }
            at += len;
        }
        if self.mesh.tp.size() == 1 || partial.is_empty() {
            return Ok(());
        }
        self.comm.staged(Dimension::Tp, || {
            let mut packed = vec![0.0; partial.iter().map(|p| p.1).sum()];
            let mut from = 0;
            for &(at, len) in &partial {
                self.device.read(flat, at, &mut packed[from..from + len])?;
                from += len;
            }
            let summed = self.comm.all_reduce(Dimension::Tp, &self.mesh.tp, packed)?;
            let mut from = 0;
            for &(at, len) in &partial {
                self.device.write(flat, at, &summed[from..from + len])?;
                from += len;
            }
            Ok(())
        })
    }

    fn add_total(&self, bucket: &mut Bucket<D>, sum: D::Buffer) -> Result<()> {
        match &mut bucket.total {
            // What the last step left for a reader has been read.
            Some(total) if self.shards_gradients() => self.device.add(&sum, total)?,
            total => *total = Some(sum),
        }
        Ok(())
    }

    /// Receives what a bucket has posted.
    fn settle(&self, index: usize, bucket: &mut Bucket<D>) -> Result<()> {
        if !std::mem::take(&mut bucket.posted) {
            return Ok(());
        }
        let tag = Tag::Bucket(index as u32);
        let dimension = if bucket.expert { Dimension::Ep } else { Dimension::Dp };
        let group = self.replica_group(bucket.expert);
        let sum = if self.comm.is_alone() {
            self.device.synchronize()?;
            self.comm.staged(dimension, || {
                self.comm.pretend_settled(dimension, tag)?;
                self.made_up(DType::Fp32, bucket.owned.len())
            })?
        } else {
            self.comm.staged(dimension, || {
                let mut sum = self.comm.sum_parts(dimension, tag, group)?;
                if self.plan.sharding == Sharding::None {
                    sum = self.comm.all_gather_tagged(dimension, tag, group, sum)?.concat();
                }
                Ok(self.device.upload(&sum)?)
            })?
        };
        self.add_total(bucket, sum)
    }

    /// Completes the reductions, updates the parameters and clears the gradients.
    pub(crate) fn update(&mut self, buckets: &mut [Bucket<D>], adam: &Adam) -> Result<()> {
        self.post(buckets, Unit::Table)?;
        for (index, bucket) in buckets.iter_mut().enumerate() {
            self.settle(index, bucket)?;
            let Some(mut gradient) = bucket.total.take() else { continue };
            let mut working = match bucket.master.take() {
                Some(master) => master,
                None => {
                    let mut own = self.device.alloc(DType::Fp32, bucket.owned.len())?;
                    for (id, from, to, len) in self.overlaps(&bucket.ids, &bucket.owned) {
                        let (from, to) = (Strided::new(from, len), Strided::new(to, len));
                        self.device.copy(1, len, &self.store.values[id], from, &mut own, to)?;
                    }
                    own
                }
            };
            let [m, v] = &mut bucket.moments;
            self.device.adam(adam, 0..bucket.owned.len(), &gradient, [m, v], &mut working)?;
            match self.plan.sharding {
                Sharding::Parameters => {}
                Sharding::None => self.put_parameters(&bucket.ids, &bucket.owned, &working)?,
                Sharding::Optimizer | Sharding::Gradients => {
                    self.gather_parameters(index, bucket, &working)?;
                }
            }
            if self.dtype != DType::Fp32 || self.shards_parameters() {
                bucket.master = Some(working);
            }
            if self.shards_gradients() && !self.keep_gradients {
                self.device.fill(&mut gradient, 0.0)?;
            }
            if self.shards_gradients() || self.keep_gradients {
                bucket.total = Some(gradient);
            }
            for &id in &bucket.ids {
                self.device.fill(&mut self.store.gradients[id], 0.0)?;
            }
        }
        Ok(())
    }

    /// Before a step: forgets the gradients that were kept for a reader.
    pub(crate) fn forget_gradients(&self, buckets: &mut [Bucket<D>]) -> Result<()> {
        for bucket in buckets {
            match &mut bucket.total {
                Some(total) if self.shards_gradients() => self.device.fill(total, 0.0)?,
                total => *total = None,
            }
        }
        Ok(())
    }

    /// The reduced gradients of the last step that this rank owns.
    pub(crate) fn pieces(&self, buckets: &[Bucket<D>]) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for bucket in buckets {
            let Some(total) = &bucket.total else { continue };
            let values = self.device.download(total)?;
            for (id, in_parameter, in_owned, len) in self.overlaps(&bucket.ids, &bucket.owned) {
                let info = &self.store.infos[id];
                pieces.push(Piece {
                    name: info.name.clone(),
                    whole: info.shard.whole,
                    positions: info.shard.positions().skip(in_parameter).take(len).collect(),
                    values: values[in_owned..in_owned + len].to_vec(),
                });
            }
        }
        Ok(pieces)
    }
}
