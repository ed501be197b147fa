//! One training step: the passes of this rank's stage in the order that the simulator was given.

use crate::comm::{Account, Tag, Transport};
use crate::ends::HeadSaved;
use crate::error::Result;
use crate::fabric::{messages, neighbours};
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
use std::ops::Range;
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

/// What is read before something that is timed.
struct Meter<M> {
    from: M,
    processor: f64,
    communication: f64,
    waited: f64,
    spans: usize,
}

/// What is read behind it: differences of the host's clocks, marks of the device's.
struct Reading<M> {
    from: M,
    to: M,
    processor: f64,
    communication: f64,
    waited: f64,
    spans: Range<usize>,
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
        let stage = self.mesh.stage();
        let passes = order.stage(stage);
        let mut record = StepRecord::default();
        let mut kept: BTreeMap<(u32, u32), Saved<D>> = BTreeMap::new();
        let mut deferred: BTreeMap<(u32, u32), Vec<Pending<D>>> = BTreeMap::new();
        self.deferring = order.split_backward;
        self.forget_gradients(buckets)?;
        self.spans.borrow_mut().clear();
        let finishing = if order.split_backward { PassKind::Weight } else { PassKind::Backward };
        let mut left: BTreeMap<u32, usize> = BTreeMap::new();
        for pass in passes.iter().filter(|p| p.kind == finishing) {
            *left.entry(model_chunk(spec, stage as u32, u32::from(pass.chunk))).or_default() += 1;
        }
        if let Some(fabric) = &self.fabric {
            let from = neighbours(spec).into_iter().filter(|n| n.1 == stage).map(|n| n.0);
            fabric.expect(from.map(|n| (self.mesh.on_stage(n), messages(spec, order, n, stage))).collect());
        }
        let mut timed = Vec::with_capacity(passes.len());
        self.device.synchronize()?;
        let begin = Instant::now();
        let start = self.device.mark()?;
        for &pass in passes {
            let chunk = model_chunk(spec, stage as u32, u32::from(pass.chunk));
            let key = (pass.micro_batch, chunk);
            let meter = self.meter()?;
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
                        let last = finishing == PassKind::Backward && left.get(&chunk) == Some(&1);
                        self.backward(program, buckets, chunk, pass.micro_batch, saved, last)?;
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
            timed.push((pass, self.read_meter(meter)?));
        }
        let meter = self.meter()?;
        self.update(buckets, adam)?;
        if let Some(fabric) = &self.fabric {
            fabric.finish(&self.device)?;
        }
        let optimizer = self.read_meter(meter)?;
        self.device.synchronize()?;
        record.total = begin.elapsed().as_secs_f64();
        for (pass, reading) in timed {
            let times = self.resolve(&reading, &start)?;
            record.passes.push(PassTime { pass, ..times });
        }
        let last = self.resolve(&optimizer, &start)?;
        record.optimizer = last.end - last.start;
        record.optimizer_processor = last.processor;
        record.optimizer_communication = last.communication;
        self.account()?;
        Ok(record)
    }

    /// Starts to time a pass: marks of the device, which goes on without waiting for the host.
    fn meter(&self) -> Result<Meter<D::Mark>> {
        Ok(Meter {
            from: self.device.mark()?,
            processor: thread_seconds(),
            communication: self.comm.total(),
            waited: self.comm.waited(Dimension::Pp),
            spans: self.spans.borrow().len(),
        })
    }

    fn read_meter(&self, meter: Meter<D::Mark>) -> Result<Reading<D::Mark>> {
        Ok(Reading {
            to: self.device.mark()?,
            processor: thread_seconds() - meter.processor,
            communication: self.comm.total() - meter.communication,
            waited: self.comm.waited(Dimension::Pp) - meter.waited,
            spans: meter.spans..self.spans.borrow().len(),
            from: meter.from,
        })
    }

    /// Seconds of what was timed, once the device is done.
    fn resolve(&self, reading: &Reading<D::Mark>, start: &D::Mark) -> Result<PassTime> {
        let (mut communication, mut pipeline_wait) = (reading.communication, reading.waited);
        for span in &self.spans.borrow()[reading.spans.clone()] {
            let seconds = self.device.between(&span.from, &span.to)?;
            communication += seconds;
            if span.dimension == Dimension::Pp {
                pipeline_wait += span.wait.unwrap_or(seconds);
            }
        }
        Ok(PassTime {
            pass: Pass { kind: PassKind::Forward, micro_batch: 0, chunk: 0 },
            start: self.device.between(start, &reading.from)?,
            end: self.device.between(start, &reading.to)?,
            communication,
            pipeline_wait,
            processor: reading.processor,
        })
    }

    /// Adds the communication on the device's clock to the accounts.
    fn account(&self) -> Result<()> {
        for span in &*self.spans.borrow() {
            let total = self.device.between(&span.from, &span.to)?;
            let wait = span.wait.unwrap_or(total);
            self.comm.add(span.dimension, Account { wait, total, sent: span.sent, calls: 1 });
        }
        Ok(())
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
            self.send_stage(to, Tag::Forward(chunk + 1, micro_batch), x)?;
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
        last: bool,
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
            if last {
                self.post_layer(buckets, ids.index)?;
            }
        }
        match saved.ids {
            Some(ids) => self.embed_backward(&ids, dx)?,
            None => {
                let to = self.peer(&program.spec, chunk - 1);
                self.send_stage(to, Tag::Backward(chunk - 1, micro_batch), dx)?;
            }
        }
        if whole {
            self.scatter_gradients(buckets, ends[0])?;
        }
        Ok(())
    }
}
