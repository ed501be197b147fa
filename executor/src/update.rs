//! Gradient reduction, sharded states and the optimizer step, bucket by bucket.
//!
//! ZeRO (Rajbhandari et al. 2020, section 5). Nothing sharded or stage 1: a bucket is posted as soon as its last
//! gradient exists, so its parts are on their way while earlier layers still compute; sums and Adam follow at the end of
//! the step. Stage 2: a bucket is a layer, its gradient exists only around the layer's backward pass, is posted after
//! every micro-batch, and the owned part adds up. Stage 3: the layer's parameters too exist only around its passes; they
//! are gathered from the owned parts before and dropped behind.

use crate::comm::{Tag, Transport, part};
use crate::error::Result;
use crate::fabric::Use;
use crate::mesh::Group;
use crate::parameters::{Id, Role};
use crate::rank::{LANE_BESIDE, Rank, Span};
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

/// A reduction between devices: what is sent (none where it is summed in place), the sum, the end.
type Flight<D> = (Option<<D as Device>::Buffer>, <D as Device>::Buffer, <D as Device>::Mark);

/// Parameters that are reduced and updated together.
pub(crate) struct Bucket<D: Device> {
    ids: Vec<Id>,
    len: usize,
    expert: bool,
    unit: Unit,
    /// The layer whose backward pass completes the gradient, where it is complete before its chunk's last pass is.
    completed_by: Option<usize>,
    /// Elements this rank updates.
    owned: Range<usize>,
    moments: [D::Buffer; 2],
    /// fp32 copy of the owned parameters where the compute format is narrower, or where only the owned part is kept.
    master: Option<D::Buffer>,
    /// Posted, and not yet received.
    posted: bool,
    /// End of the wait that stands in for what was posted.
    stand_in: Option<D::Mark>,
    /// What is on its way between devices: the buffer being read, the sum being written, and its end.
    flight: Option<Flight<D>>,
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
            // Gradients come from the last layer to the first; what lies before the layers comes last of all.
            let completed_by = match unit {
                Unit::Chunk(_) => ids.first().and_then(|&id| self.store.infos[id].layer),
                _ => None,
            };
            buckets.push(Bucket {
                completed_by,
                ids,
                len,
                expert,
                unit,
                owned,
                moments,
                master,
                posted: false,
                stand_in: None,
                flight: None,
                total,
            });
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

    /// Tensors one behind another, in fp32.
    fn flatten(&self, ids: &[Id], len: usize, tensors: &[D::Buffer]) -> Result<D::Buffer> {
        // Longer than its contents where a collective wants equal parts.
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
        if let Some(fabric) = self.over(&group, Use::Beside) {
            // In the compute format, every part as long as the first.
            let (parts, each) = (group.size(), bucket.len.div_ceil(group.size()));
            let (mut own, mut whole) = (self.alloc(each)?, self.alloc(each * parts)?);
            let len = bucket.owned.len();
            self.device.copy(1, len, owned, Strided::new(0, len), &mut own, Strided::new(0, len))?;
            self.spanned(dimension, (parts - 1) * each, || {
                fabric.all_gather(&self.device, &group, Use::Beside, &own, &mut whole)
            })?;
            return self.put_parameters(&bucket.ids, &(0..bucket.len), &whole);
        }
        if group.size() == 1 {
            return self.put_parameters(&bucket.ids, &bucket.owned, owned);
        }
        if self.comm.is_alone() {
            let made =
                self.pretend(dimension, CollectiveKind::AllGather, bucket.len, group.size(), || {
                    if !self.shards_parameters() {
                        return Ok(Vec::new());
                    }
                    // The parts of the others.
                    bucket.ids.iter().map(|&id| self.made_up(self.dtype, self.param_len(id))).collect()
                })?;
            for (&id, made) in bucket.ids.iter().zip(made) {
                self.store.values[id] = made;
            }
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
            // Without peers the parts that they would send are made up whole.
            if !self.comm.is_alone() || self.replica_group(bucket.expert).size() == 1 {
                for &id in &bucket.ids {
                    self.store.values[id] = self.alloc(self.param_len(id))?;
                }
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
                    self.store.gradients[id] = self.zero_gradient(len)?;
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
        self.post_where(buckets, |bucket| {
            // Its layer has posted it already.
            let done = matches!(unit, Unit::Chunk(_)) && (bucket.posted || bucket.total.is_some());
            bucket.unit == unit && !done
        })
    }

    /// Posts the buckets that the last backward pass of a layer completes, so that they travel beside the layers before it.
    pub(crate) fn post_layer(&mut self, buckets: &mut [Bucket<D>], layer: usize) -> Result<()> {
        self.post_where(buckets, |bucket| bucket.completed_by == Some(layer))
    }

    fn post_where(&mut self, buckets: &mut [Bucket<D>], which: impl Fn(&Bucket<D>) -> bool) -> Result<()> {
        for (index, bucket) in buckets.iter_mut().enumerate() {
            if !which(bucket) {
                continue;
            }
            self.settle(index, bucket)?;
            let group = self.replica_group(bucket.expert);
            let parts = group.size();
            let padded = match self.over(group, Use::Beside) {
                Some(_) if self.plan.sharding != Sharding::None => bucket.len.div_ceil(parts) * parts,
                _ => bucket.len,
            };
            let mut flat = self.flatten(&bucket.ids, padded, &self.store.gradients)?;
            if self.gradients_stay(bucket.unit) {
                // The sum takes their place.
                self.drop_gradients(bucket)?;
            }
            let group = self.replica_group(bucket.expert);
            self.complete_replicated(bucket, &mut flat)?;
            if bucket.unit == Unit::Table
                && let Some(peers) = self.mesh.embedding_peers(&self.network, &self.layout)
            {
                if let Some(fabric) = self.over(&peers, Use::InLine) {
                    self.spanned(Dimension::Pp, 2 * bucket.len, || {
                        fabric.all_reduce(&self.device, &peers, Use::InLine, &mut flat)
                    })?;
                } else if self.comm.is_alone() {
                    self.pretend(Dimension::Pp, CollectiveKind::AllReduce, bucket.len, 2, || Ok(()))?;
                } else {
                    self.comm.staged(Dimension::Pp, || {
                        let sum =
                            self.comm.all_reduce(Dimension::Pp, &peers, self.device.download(&flat)?)?;
                        Ok(self.device.write(&mut flat, 0, &sum)?)
                    })?;
                }
            }
            let dimension = if bucket.expert { Dimension::Ep } else { Dimension::Dp };
            let tag = Tag::Bucket(index as u32);
            if let Some(fabric) = self.over(group, Use::Beside) {
                bucket.flight = Some(if self.plan.sharding == Sharding::None {
                    let done = fabric.all_reduce(&self.device, group, Use::Beside, &mut flat)?;
                    (None, flat, done)
                } else {
                    let mut own = self.device.alloc(DType::Fp32, padded / parts)?;
                    let done = fabric.reduce_scatter(&self.device, group, Use::Beside, &flat, &mut own)?;
                    (Some(flat), own, done)
                });
                bucket.posted = true;
            } else if group.size() == 1 {
                self.add_total(bucket, flat)?;
            } else if self.comm.is_alone() {
                let (bytes, ranks) = (4 * bucket.len as u64, group.size());
                let kind = match self.plan.sharding {
                    Sharding::None => CollectiveKind::AllReduce,
                    _ => CollectiveKind::ReduceScatter,
                };
                let seconds = self.comm.price(dimension, kind, bytes, ranks);
                bucket.stand_in = Some(self.device.pause_beside(LANE_BESIDE, seconds)?);
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
        if partial.is_empty() {
            return Ok(());
        }
        if let Some(fabric) = self.over(&self.mesh.tp, Use::InLine) {
            let len = partial.iter().map(|p| p.1).sum();
            let mut packed = self.device.alloc(DType::Fp32, len)?;
            let mut from = 0;
            for &(at, len) in &partial {
                let (at, to) = (Strided::new(at, len), Strided::new(from, len));
                self.device.copy(1, len, flat, at, &mut packed, to)?;
                from += len;
            }
            self.spanned(Dimension::Tp, 2 * len, || {
                fabric.all_reduce(&self.device, &self.mesh.tp, Use::InLine, &mut packed)
            })?;
            let mut from = 0;
            for &(at, len) in &partial {
                let (at, to) = (Strided::new(from, len), Strided::new(at, len));
                self.device.copy(1, len, &packed, at, flat, to)?;
                from += len;
            }
            return Ok(());
        }
        if self.mesh.tp.size() == 1 {
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
        let sum = if let Some((sent, sum, done)) = bucket.flight.take() {
            self.spanned(dimension, 2 * bucket.len, || Ok(self.device.join(&done)?))?;
            // It was read until here.
            drop(sent);
            sum
        } else if self.comm.is_alone() {
            let from = self.device.mark()?;
            let made = self.made_up(DType::Fp32, bucket.owned.len())?;
            if let Some(end) = bucket.stand_in.take() {
                self.device.join(&end)?;
            }
            let to = self.device.mark()?;
            let sent = 4 * bucket.len as u64;
            self.spans.borrow_mut().push(Span { dimension, from, to, wait: None, sent });
            made
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
            } else {
                drop(gradient);
            }
            if self.gradients_stay(bucket.unit) {
                for &id in &bucket.ids {
                    self.store.gradients[id] = self.zero_gradient(self.param_len(id))?;
                }
            }
        }
        Ok(())
    }

    /// Gradients that exist all the time between the first backward pass and the reduction.
    fn gradients_stay(&self, unit: Unit) -> bool {
        !self.shards_gradients() || unit == Unit::Table
    }

    fn zero_gradient(&self, len: usize) -> Result<D::Buffer> {
        let mut gradient = self.device.alloc(DType::Fp32, len)?;
        self.device.fill(&mut gradient, 0.0)?;
        Ok(gradient)
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
