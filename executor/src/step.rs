//! One training step: the passes of this rank's stage in the order that the simulator was given.

use crate::comm::{Tag, Transport};
use crate::ends::HeadSaved;
use crate::error::Result;
use crate::layer::LayerSaved;
use crate::rank::{Pending, Rank};
use crate::update::{Bucket, Unit};
use psim_kernels::cpu::thread_seconds;
use psim_kernels::{Adam, Device};
use psim_models::operator::Dimension;
use psim_sim::pipeline::PipelineSpec;
use psim_sim::schedule::{Pass, PassKind, model_chunk, stage_of_chunk};
use psim_sim::step::StepProgram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;

/// One pass as it ran.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PassTime {
    /// Which pass.
    pub pass: Pass,
    /// Seconds from the start of the step.
    pub start: f64,
    /// Seconds from the start of the step.
    pub end: f64,
    /// Seconds of it in communication.
    pub communication: f64,
    /// Seconds of it waiting for another stage.
    pub pipeline_wait: f64,
    /// Processor seconds of the rank's thread in it (only what the host does, where the device is another one).
    pub processor: f64,
}

/// A step on one rank.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StepRecord {
    /// Sum of token losses on this rank (zero away from the output layer and from tp index 0).
    pub loss_sum: f64,
    /// Passes in order.
    pub passes: Vec<PassTime>,
    /// Seconds of the optimizer step, communication included.
    pub optimizer: f64,
    /// Seconds of communication in the optimizer step.
    pub optimizer_communication: f64,
    /// Processor seconds of the rank's thread in the optimizer step.
    pub optimizer_processor: f64,
    /// Seconds of the step.
    pub total: f64,
}

/// What a forward pass leaves for its backward pass.
struct Saved<D: Device> {
    ids: Option<D::Index>,
    layers: Vec<LayerSaved<D>>,
    head: Option<HeadSaved<D>>,
}

impl<D: Device, T: Transport> Rank<D, T> {
    /// Runs one step.
    pub(crate) fn step(
        &mut self,
        program: &StepProgram,
        buckets: &mut [Bucket<D>],
        adam: &Adam,
        seed: u64,
    ) -> Result<StepRecord> {
        let StepProgram { spec, order } = program;
        let begin = Instant::now();
        let stage = self.mesh.stage();
        let passes = order.stage(stage);
        let mut record = StepRecord::default();
        let mut kept: BTreeMap<(u32, u32), Saved<D>> = BTreeMap::new();
        let mut deferred: BTreeMap<(u32, u32), Vec<Pending<D>>> = BTreeMap::new();
        self.deferring = order.split_backward;
        self.forget_gradients(buckets)?;
        let finishing = if order.split_backward { PassKind::Weight } else { PassKind::Backward };
        let mut left: BTreeMap<u32, usize> = BTreeMap::new();
        for pass in passes.iter().filter(|p| p.kind == finishing) {
            *left.entry(model_chunk(spec, stage as u32, u32::from(pass.chunk))).or_default() += 1;
        }
        for &pass in passes {
            let chunk = model_chunk(spec, stage as u32, u32::from(pass.chunk));
            let key = (pass.micro_batch, chunk);
            let start = begin.elapsed().as_secs_f64();
            let processor = thread_seconds();
            let communication = self.comm.total();
            let waited = self.comm.waited(Dimension::Pp);
            match pass.kind {
                PassKind::Forward => {
                    let saved = self.forward(
                        program,
                        buckets,
                        chunk,
                        pass.micro_batch,
                        [u64::from(adam.step), seed],
                        &mut record,
                    )?;
                    kept.insert(key, saved);
                }
                PassKind::Backward => {
                    if let Some(saved) = kept.remove(&key) {
                        self.backward(program, buckets, chunk, pass.micro_batch, saved)?;
                    }
                    if self.deferring {
                        deferred.insert(key, std::mem::take(&mut self.pending));
                    }
                }
                PassKind::Weight => {
                    self.deferring = false;
                    for unit in self.units(chunk as usize) {
                        self.hold_gradients(buckets, unit)?;
                    }
                    for pending in deferred.remove(&key).unwrap_or_default() {
                        self.add_weight_gradient(pending)?;
                    }
                    for unit in self.units(chunk as usize) {
                        self.scatter_gradients(buckets, unit)?;
                    }
                    self.deferring = true;
                }
            }
            if pass.kind == finishing
                && let Some(count) = left.get_mut(&chunk)
            {
                *count -= 1;
                if *count == 0 {
                    self.post(buckets, Unit::Chunk(chunk as usize))?;
                }
            }
            self.device.synchronize()?;
            let end = begin.elapsed().as_secs_f64();
            let communication = self.comm.total() - communication;
            let pipeline_wait = self.comm.waited(Dimension::Pp) - waited;
            let processor = thread_seconds() - processor;
            record.passes.push(PassTime { pass, start, end, communication, pipeline_wait, processor });
        }
        let start = begin.elapsed().as_secs_f64();
        let processor = thread_seconds();
        let communication = self.comm.total();
        self.update(buckets, adam)?;
        self.device.synchronize()?;
        record.total = begin.elapsed().as_secs_f64();
        record.optimizer = record.total - start;
        record.optimizer_processor = thread_seconds() - processor;
        record.optimizer_communication = self.comm.total() - communication;
        Ok(record)
    }

    fn peer(&self, spec: &PipelineSpec, chunk: u32) -> usize {
        self.mesh.on_stage(stage_of_chunk(spec, chunk) as usize)
    }

    /// Units whose gradients a chunk's passes make, where gradients are sharded.
    fn units(&self, chunk: usize) -> Vec<Unit> {
        let layers = self.chunks.get(&chunk).map_or(&[][..], Vec::as_slice);
        layers.iter().map(|l| Unit::Layer(l.index)).chain([Unit::Ends(chunk)]).collect()
    }

    fn forward(
        &mut self,
        program: &StepProgram,
        buckets: &[Bucket<D>],
        chunk: u32,
        micro_batch: u32,
        [step, seed]: [u64; 2],
        record: &mut StepRecord,
    ) -> Result<Saved<D>> {
        let mut saved = Saved { ids: None, layers: Vec::new(), head: None };
        let ends = [Unit::Ends(chunk as usize), Unit::Table];
        let mut x = if self.layout.chunks[chunk as usize].embedding {
            ends.iter().try_for_each(|&unit| self.fetch(buckets, unit))?;
            let (x, ids) = self.embed(seed, step, micro_batch as usize)?;
            ends.iter().try_for_each(|&unit| self.release(buckets, unit))?;
            saved.ids = Some(ids);
            x
        } else {
            let from = self.peer(&program.spec, chunk - 1);
            self.receive_stage(from, Tag::Forward(chunk, micro_batch))?
        };
        let layers = self.chunks.get(&(chunk as usize)).cloned().unwrap_or_default();
        for (index, ids) in layers.iter().enumerate() {
            let unit = Unit::Layer(ids.index);
            self.fetch(buckets, unit)?;
            let (output, layer) = self.layer_forward(ids, index, x)?;
            self.release(buckets, unit)?;
            saved.layers.push(layer);
            x = output;
        }
        if self.layout.chunks[chunk as usize].head {
            ends.iter().try_for_each(|&unit| self.fetch(buckets, unit))?;
            let (loss, head) = self.head_forward(seed, step, micro_batch as usize, x)?;
            ends.iter().try_for_each(|&unit| self.release(buckets, unit))?;
            if self.mesh.tp_index() == 0 {
                record.loss_sum += loss;
            }
            saved.head = Some(head);
        } else {
            let to = self.peer(&program.spec, chunk + 1);
            self.send_stage(to, Tag::Forward(chunk + 1, micro_batch), &x)?;
        }
        Ok(saved)
    }

    fn backward(
        &mut self,
        program: &StepProgram,
        buckets: &mut [Bucket<D>],
        chunk: u32,
        micro_batch: u32,
        saved: Saved<D>,
    ) -> Result<()> {
        // Separate weight passes scatter the gradients.
        let whole = !program.order.split_backward;
        let ends = [Unit::Ends(chunk as usize), Unit::Table];
        self.hold_gradients(buckets, ends[0])?;
        let mut dx = match saved.head {
            Some(head) => {
                ends.iter().try_for_each(|&unit| self.fetch(buckets, unit))?;
                let dx = self.head_backward(head)?;
                ends.iter().try_for_each(|&unit| self.release(buckets, unit))?;
                dx
            }
            None => {
                let from = self.peer(&program.spec, chunk + 1);
                self.receive_stage(from, Tag::Backward(chunk, micro_batch))?
            }
        };
        let layers = self.chunks.get(&(chunk as usize)).cloned().unwrap_or_default();
        for (ids, layer) in layers.iter().zip(saved.layers).rev() {
            let unit = Unit::Layer(ids.index);
            self.fetch(buckets, unit)?;
            self.hold_gradients(buckets, unit)?;
            dx = self.layer_backward(ids, layer, dx)?;
            self.release(buckets, unit)?;
            if whole {
                self.scatter_gradients(buckets, unit)?;
            }
        }
        match saved.ids {
            Some(ids) => self.embed_backward(&ids, dx)?,
            None => {
                let to = self.peer(&program.spec, chunk - 1);
                self.send_stage(to, Tag::Backward(chunk - 1, micro_batch), &dx)?;
            }
        }
        if whole {
            self.scatter_gradients(buckets, ends[0])?;
        }
        Ok(())
    }
}
