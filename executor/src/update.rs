//! Gradient reduction and the optimizer step, bucket by bucket.
//!
//! A bucket is posted as soon as its chunk's last gradient exists: its parts are on their way while earlier layers still
//! compute; sums and Adam follow at the end of the step. With a sharded optimizer (ZeRO-1, Rajbhandari et al. 2020)
//! every replica updates its part and gathers the rest; without, gradients are gathered and every replica updates all.

use crate::comm::{Tag, Transport, part};
use crate::error::Result;
use crate::mesh::Group;
use crate::parameters::{Id, Role};
use crate::rank::Rank;
use psim_hardware::DType;
use psim_kernels::{Adam, Device};
use psim_models::operator::Dimension;
use psim_models::plan::Sharding;
use std::ops::Range;

/// Parameters that are reduced and updated together.
pub(crate) struct Bucket<D: Device> {
    ids: Vec<Id>,
    len: usize,
    expert: bool,
    /// Model chunk whose last backward pass completes it; `None`: only the end of the step does.
    chunk: Option<usize>,
    /// Elements this rank updates.
    owned: Range<usize>,
    moments: [D::Buffer; 2],
    /// fp32 copy of the owned parameters where the compute format is narrower.
    master: Option<D::Buffer>,
    posted: bool,
    /// The reduced gradient of the owned elements, after the step.
    reduced: Vec<f32>,
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
    /// Groups parameters into buckets of about `limit` elements.
    pub(crate) fn buckets(&self, limit: usize) -> Result<Vec<Bucket<D>>> {
        let tied_apart = self.embedding_peers().is_some();
        let mut groups: Vec<(Option<usize>, bool, Vec<Id>, usize)> = Vec::new();
        for (id, info) in self.store.infos.iter().enumerate() {
            // A shared table's gradient is complete only when both ends are done.
            let chunk = (info.role != Role::Embedding || !tied_apart).then_some(info.chunk);
            let chunk = if info.role == Role::Embedding { None } else { chunk };
            let expert = info.role == Role::Expert;
            let [rows, columns] = info.shard.shape();
            let open = groups.iter_mut().rev().find(|g| g.0 == chunk && g.1 == expert && g.3 < limit);
            match open {
                Some(group) => {
                    group.2.push(id);
                    group.3 += rows * columns;
                }
                None => groups.push((chunk, expert, vec![id], rows * columns)),
            }
        }
        groups
            .into_iter()
            .map(|(chunk, expert, ids, len)| {
                let group = self.replica_group(expert);
                let owned = if self.plan.sharding == Sharding::None {
                    0..len
                } else {
                    part(len, group.size(), group.index)..part(len, group.size(), group.index + 1)
                };
                let zeros = vec![0.0; owned.len()];
                let mut bucket = Bucket {
                    ids,
                    len,
                    expert,
                    chunk,
                    moments: [self.device.upload(&zeros)?, self.device.upload(&zeros)?],
                    master: None,
                    owned,
                    posted: false,
                    reduced: Vec::new(),
                };
                if self.dtype != DType::Fp32 {
                    let flat = self.flat_parameters(&bucket)?;
                    bucket.master = Some(self.device.upload(&flat[bucket.owned.clone()])?);
                }
                Ok(bucket)
            })
            .collect()
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

    fn flat_parameters(&self, bucket: &Bucket<D>) -> Result<Vec<f32>> {
        let mut flat = Vec::with_capacity(bucket.len);
        for &id in &bucket.ids {
            flat.extend(self.device.download(&self.store.values[id])?);
        }
        Ok(flat)
    }

    /// Posts the buckets that a chunk's last backward pass completed.
    pub(crate) fn post_chunk(&mut self, buckets: &mut [Bucket<D>], chunk: Option<usize>) -> Result<()> {
        for (index, bucket) in buckets.iter_mut().enumerate().filter(|(_, b)| b.chunk == chunk && !b.posted) {
            let mut flat = Vec::with_capacity(bucket.len);
            let mut partial = Vec::new();
            for &id in &bucket.ids {
                let start = flat.len();
                flat.extend(self.device.download(&self.store.gradients[id])?);
                if self.store.infos[id].role == Role::Replicated {
                    partial.push(start..flat.len());
                }
            }
            if self.mesh.tp.size() > 1 && !partial.is_empty() {
                let packed = partial.iter().flat_map(|r| flat[r.clone()].to_vec()).collect();
                let summed = self.comm.all_reduce(Dimension::Tp, &self.mesh.tp, packed)?;
                let mut at = 0;
                for range in partial {
                    let len = range.len();
                    flat[range].copy_from_slice(&summed[at..at + len]);
                    at += len;
                }
            }
            if chunk.is_none()
                && let Some(peers) = self.embedding_peers()
            {
                flat = self.comm.all_reduce(Dimension::Pp, &peers, flat)?;
            }
            let group = self.replica_group(bucket.expert);
            let dimension = if bucket.expert { Dimension::Ep } else { Dimension::Dp };
            if group.size() > 1 {
                self.comm.post_parts(dimension, Tag::Bucket(index as u32), group, &flat)?;
            } else {
                bucket.reduced = flat;
            }
            bucket.posted = true;
        }
        Ok(())
    }

    /// Completes the reductions, updates the parameters and clears the gradients.
    pub(crate) fn update(&mut self, buckets: &mut [Bucket<D>], adam: &Adam) -> Result<()> {
        self.post_chunk(buckets, None)?;
        for (index, bucket) in buckets.iter_mut().enumerate() {
            let tag = Tag::Bucket(index as u32);
            let dimension = if bucket.expert { Dimension::Ep } else { Dimension::Dp };
            let group = self.replica_group(bucket.expert).clone();
            if group.size() > 1 {
                bucket.reduced = self.comm.sum_parts(dimension, tag, &group)?;
                if self.plan.sharding == Sharding::None {
                    let mine = std::mem::take(&mut bucket.reduced);
                    bucket.reduced = self.comm.all_gather_tagged(dimension, tag, &group, mine)?.concat();
                }
            }
            let gradient = self.device.upload(&bucket.reduced)?;
            let flat = self.flat_parameters(bucket)?;
            let mut working = match bucket.master.take() {
                Some(master) => master,
                None => self.device.upload(&flat[bucket.owned.clone()])?,
            };
            let [m, v] = &mut bucket.moments;
            self.device.adam(adam, 0..bucket.owned.len(), &gradient, [m, v], &mut working)?;
            let mut flat = self.device.download(&working)?;
            if self.dtype != DType::Fp32 {
                bucket.master = Some(working);
            }
            if group.size() > 1 && self.plan.sharding != Sharding::None {
                flat = self.comm.all_gather_tagged(dimension, tag, &group, flat)?.concat();
            }
            let mut at = 0;
            for &id in &bucket.ids {
                let len = self.device.len(&self.store.values[id]);
                self.device.write(&mut self.store.values[id], 0, &flat[at..at + len])?;
                self.device.fill(&mut self.store.gradients[id], 0.0)?;
                at += len;
            }
            bucket.posted = false;
        }
        Ok(())
    }

    /// The reduced gradients of the last step that this rank owns.
    pub(crate) fn pieces(&self, buckets: &[Bucket<D>]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for bucket in buckets {
            let mut at = 0;
            for &id in &bucket.ids {
                let info = &self.store.infos[id];
                let [rows, columns] = info.shard.shape();
                let held = at.max(bucket.owned.start)..(at + rows * columns).min(bucket.owned.end);
                if !held.is_empty() {
                    let from = held.start - bucket.owned.start;
                    pieces.push(Piece {
                        name: info.name.clone(),
                        whole: info.shard.whole,
                        positions: info.shard.positions().skip(held.start - at).take(held.len()).collect(),
                        values: bucket.reduced[from..from + held.len()].to_vec(),
                    });
                }
                at += rows * columns;
            }
        }
        pieces
    }
}
