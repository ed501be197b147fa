//! Passes of a model chunk at operator level (L2): the layers one after another on the streams of one rank.
//!
//! What L1 flushes at the end of every layer flows on here: collectives left running meet the next layer's compute, the
//! host runs ahead until it has to read back, gathering of parameters prefetches across layers, and what runs at the
//! same time shares multiprocessors, memory bandwidth and links. Runs of equal layers are folded: after [`FOLD`] layers
//! each further one adds the same (tested against all layers in full).

use super::chunk::{ChunkTimes, Gathering, Gatherings, recompute_of};
use super::device::{Causes, Device, contention};
use super::work::Work;
use super::{Parts, Pass};
use crate::stream::{StreamError, TaskClass, TaskGraph, TaskId};
use psim_cost_models::CostModel;
use psim_hardware::profile::StackProfile;
use psim_models::Model;
use psim_models::layout::{Chunk, LayerKind};
use psim_models::lowering::{
    LayerProgram, Shape, lower_block, lower_embedding, lower_head, lower_mtp_projection,
};
use psim_models::operator::Phase;
use psim_models::plan::{Plan, Recompute};

/// Layers of a run that are simulated; the rest repeats the last one.
const FOLD: u32 = 5;

/// Works of one kind of layer.
#[derive(Debug, Clone, Default)]
pub(super) struct KindWorks {
    forward: Work,
    backward: Work,
    input: Work,
    weight: Work,
    selective: Work,
}

/// Works of all kinds of layers under one shape.
#[derive(Debug, Clone)]
pub(super) struct LayerWorks {
    kinds: Vec<KindWorks>,
    encoder: KindWorks,
    embedding: KindWorks,
    /// Output layer, then per multi-token-prediction layer its projection and output layer again.
    head: KindWorks,
    projection: Option<KindWorks>,
    mtp_layers: u32,
    mtp_kind: usize,
}

/// A layer of a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Unit {
    pub(super) place: Place,
    /// The backward pass begins with the forward pass again.
    recomputed: bool,
    gathering: Option<(Gathering, bool)>,
    scale: f64,
}

/// Which layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Place {
    Embedding,
    Layer(LayerKind),
    Head,
}

/// Which pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Backward,
    Weight,
}

impl Unit {
    /// The layer on a part that takes `pace` times as long.
    pub(super) fn scaled(self, pace: f64) -> Self {
        Self { scale: self.scale * pace, ..self }
    }
}

impl LayerWorks {
    /// Lays every kind of layer. `split` lays the two halves of the backward pass apart.
    pub(super) fn new(
        model: &Model,
        shape: &Shape,
        cost: &CostModel,
        stack: &StackProfile,
        peak: f64,
        split: bool,
    ) -> Self {
        let works = |program: &LayerProgram| {
            let lay = |list, phase: Option<Phase>| {
                Work::new(list, cost, stack, peak, |o| phase.is_none_or(|p| o.phase == p))
            };
            let half = |phase| if split { lay(&program.backward, Some(phase)) } else { Work::default() };
            KindWorks {
                forward: lay(&program.forward, None),
                backward: if split { Work::default() } else { lay(&program.backward, None) },
                input: half(Phase::InputGradient),
                weight: half(Phase::WeightGradient),
                selective: lay(&program.selective, None),
            }
        };
        let encoder = model.encoder.as_ref().map_or_else(KindWorks::default, |e| {
            works(&lower_block(&e.block, model, &shape.encoder(e.tokens_per_decoder_token)))
        });
        let mtp_kind =
            model.mtp_kind.or_else(|| model.pattern.last().copied()).map_or(usize::MAX, usize::from);
        let mtp = model.mtp_layers > 0 && mtp_kind < model.kinds.len();
        Self {
            kinds: model.kinds.iter().map(|b| works(&lower_block(b, model, shape))).collect(),
            encoder,
            embedding: works(&lower_embedding(model, shape)),
            head: works(&lower_head(model, shape)),
            projection: mtp.then(|| works(&lower_mtp_projection(model, shape))),
            mtp_layers: if mtp { model.mtp_layers } else { 0 },
            mtp_kind,
        }
    }

    /// The kinds that a place runs, in forward order.
    fn at(&self, place: Place) -> Vec<&KindWorks> {
        match place {
            Place::Embedding => vec![&self.embedding],
            Place::Layer(LayerKind::Encoder) => vec![&self.encoder],
            Place::Layer(LayerKind::Decoder(k)) => {
                vec![self.kinds.get(usize::from(k)).unwrap_or(&self.encoder)]
            }
            Place::Head => {
                let mut list = vec![&self.head];
                for _ in 0..self.mtp_layers {
                    list.extend(&self.projection);
                    list.extend(self.kinds.get(self.mtp_kind));
                    list.push(&self.head);
                }
                list
            }
        }
    }

    /// Works of a unit in one direction, in execution order; true: as recomputation.
    fn list(
        &self,
        unit: &Unit,
        direction: Direction,
        recompute: Recompute,
        split: bool,
    ) -> Vec<(&Work, bool)> {
        let kinds = self.at(unit.place);
        let mut out = Vec::with_capacity(3 * kinds.len());
        match direction {
            Direction::Forward => out.extend(kinds.iter().map(|k| (&k.forward, false))),
            Direction::Weight => out.extend(kinds.iter().rev().map(|k| (&k.weight, false))),
            Direction::Backward => {
                for kind in kinds.iter().rev() {
                    if unit.recomputed {
                        out.push((&kind.forward, true));
                    }
                    if recompute == Recompute::Selective {
                        out.push((&kind.selective, true));
                    }
                    out.push((if split { &kind.input } else { &kind.backward }, false));
                }
            }
        }
        out.retain(|(work, _)| !work.pieces.is_empty());
        out
    }
}

/// Layers of a chunk in forward order.
pub(super) fn units(
    chunk: &Chunk,
    plan: &Plan,
    stack: &StackProfile,
    gatherings: Option<&Gatherings>,
) -> Vec<Unit> {
    let mut full = match recompute_of(plan, stack) {
        Recompute::Full => u32::MAX,
        Recompute::Layers(n) => n,
        _ => 0,
    };
    let unit = |place, scale, gathering: Option<Gathering>, again| Unit {
        place,
        recomputed: false,
        gathering: gathering.map(|g| (g, again)),
        scale,
    };
    let mut out = Vec::with_capacity(chunk.count() as usize + 2);
    let part = plan.vocabulary_parallel.then(|| 1.0 / f64::from(plan.chunks().max(1)));
    if chunk.embedding || part.is_some() {
        let gathering = if part.is_some() { None } else { gatherings.map(|g| g.embedding) };
        out.push(unit(Place::Embedding, part.unwrap_or(1.0), gathering, false));
    }
    for &(kind, count) in &chunk.layers {
        let gathering = gatherings.map(|g| match kind {
            LayerKind::Encoder => g.encoder,
            LayerKind::Decoder(k) => g.layers.get(usize::from(k)).copied().unwrap_or_default(),
        });
        let again = gatherings.is_some_and(|g| g.again);
        for _ in 0..count {
            let recomputed = full > 0;
            full = full.saturating_sub(1);
            out.push(Unit { recomputed, ..unit(Place::Layer(kind), 1.0, gathering, again) });
        }
    }
    if chunk.head || part.is_some() {
        let gathering = if part.is_some() { None } else { gatherings.map(|g| g.head) };
        out.push(unit(Place::Head, part.unwrap_or(1.0), gathering, false));
    }
    out
}

/// Places and simulates passes under one plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passes<'a> {
    pub(super) works: &'a LayerWorks,
    pub(super) plan: &'a Plan,
    pub(super) stack: &'a StackProfile,
    /// Weight gradients are passes of their own.
    pub(super) split: bool,
    /// Tier of parameter gathering and gradient scattering.
    pub(super) shard_class: TaskClass,
    /// Neighbouring stages are in different scale-up domains.
    pub(super) sends_leave_domain: bool,
}

impl Passes<'_> {
    /// Places one layer; its last task, if it has any.
    pub(super) fn place(
        &self,
        graph: &mut TaskGraph,
        causes: &mut Causes,
        device: &mut Device,
        unit: &Unit,
        direction: Direction,
    ) -> Option<TaskId> {
        let mut last = None;
        for (work, again) in self.works.list(unit, direction, recompute_of(self.plan, self.stack), self.split)
        {
            last = device.work(graph, causes, work, unit.scale, again).or(last);
        }
        last
    }

    /// One pass over layers in execution order, every one simulated.
    fn run(&self, units: &[Unit], direction: Direction) -> Result<Pass, StreamError> {
        if let Some(parts) = self.quiet(units, direction) {
            return Ok(Pass { time: parts.total(), parts, ..Pass::default() });
        }
        let mut graph = TaskGraph::new();
        let mut causes = Causes::new();
        let mut device = Device::new(&mut graph, 0);
        let prefetch = self.stack.overlap.fsdp_prefetch as usize;
        let mut ends: Vec<TaskId> = Vec::new();
        let mut gathers: Vec<Option<TaskId>> = vec![None; units.len()];
        let mut gathered = 0;
        for (i, unit) in units.iter().enumerate() {
            // Gathers run at most `prefetch` layers ahead of compute.
            while gathered < units.len() && gathered <= i + prefetch {
                let seconds = self.gather_seconds(&units[gathered], direction);
                if seconds > 0.0 {
                    let behind = gathered.checked_sub(prefetch + 1).and_then(|j| ends.get(j)).copied();
                    gathers[gathered] =
                        Some(device.share(&mut graph, &mut causes, seconds, self.shard_class, behind));
                }
                gathered += 1;
            }
            if gathers[i].is_some() {
                device.mark(&mut graph, &mut causes, [gathers[i], None]);
            }
            self.place(&mut graph, &mut causes, &mut device, unit, direction);
            let end = device.mark(&mut graph, &mut causes, [None; 2]);
            ends.push(end);
            if let (Some((gathering, _)), true) = (unit.gathering, direction != Direction::Forward)
                && gathering.scatter > 0.0
                && (direction == Direction::Weight || !self.split)
            {
                let scatter =
                    device.share(&mut graph, &mut causes, gathering.scatter, self.shard_class, Some(end));
                if prefetch == 0 {
                    device.mark(&mut graph, &mut causes, [Some(scatter), None]);
                }
            }
        }
        device.join(&mut graph, &mut causes, true);
        let times = graph.run(&contention(self.stack, self.sends_leave_domain))?;
        let parts = device.parts(&graph, &causes, &times);
        Ok(Pass { time: parts.total(), parts, ..Pass::default() })
    }

    /// Time by cause where only the compute stream works and never waits.
    fn quiet(&self, units: &[Unit], direction: Direction) -> Option<Parts> {
        let mut out = Parts::default();
        for unit in units {
            if unit.gathering.is_some() {
                return None;
            }
            for (work, again) in
                self.works.list(unit, direction, recompute_of(self.plan, self.stack), self.split)
            {
                let parts = work.quiet()?;
                out = out.plus(&if again { parts.as_recompute() } else { parts }, unit.scale);
            }
        }
        Some(out)
    }

    fn gather_seconds(&self, unit: &Unit, direction: Direction) -> f64 {
        match (unit.gathering, direction) {
            (Some((g, _)), Direction::Forward) | (Some((g, true)), Direction::Backward) => g.gather,
            _ => 0.0,
        }
    }

    /// One pass over a chunk's layers, runs of equal layers folded.
    fn folded(&self, units: &[Unit], direction: Direction) -> Result<Pass, StreamError> {
        let mut short: Vec<Unit> = Vec::with_capacity(units.len());
        let mut more: Vec<(Unit, u32)> = Vec::new();
        let mut run = 0;
        for (i, unit) in units.iter().enumerate() {
            run = if i > 0 && units[i - 1] == *unit { run + 1 } else { 1 };
            if run <= FOLD {
                short.push(*unit);
            } else if run == FOLD + 1 {
                more.push((*unit, 1));
            } else if let Some(last) = more.last_mut() {
                last.1 += 1;
            }
        }
        let mut out = self.run(&short, direction)?;
        for (unit, count) in more {
            let list = [unit; FOLD as usize];
            let (long, one_less) = (self.run(&list, direction)?, self.run(&list[1..], direction)?);
            out = out.plus(&long, f64::from(count)).plus(&one_less, -f64::from(count));
        }
        Ok(out)
    }

    /// Passes of one micro-batch in a chunk; what does not depend on the schedule comes from `priced`.
    pub(super) fn chunk_times(
        &self,
        units: &[Unit],
        priced: &ChunkTimes,
        fold: bool,
    ) -> Result<ChunkTimes, StreamError> {
        let pass = |units: &[Unit], direction| {
            if fold { self.folded(units, direction) } else { self.run(units, direction) }
        };
        let backwards: Vec<Unit> = units.iter().rev().copied().collect();
        let mut out = ChunkTimes {
            forward: pass(units, Direction::Forward)?,
            backward: pass(&backwards, Direction::Backward)?,
            weight: if self.split { pass(&backwards, Direction::Weight)? } else { Pass::default() },
        };
        let host = self.stack.host.per_micro_batch.0 / 2.0;
        for pass in [&mut out.forward, &mut out.backward] {
            pass.parts.launch += host;
            pass.time += host;
        }
        let join =
            |simulated: Pass, priced: &Pass| Pass { time: simulated.time, parts: simulated.parts, ..*priced };
        Ok(ChunkTimes {
            forward: join(out.forward, &priced.forward),
            backward: join(out.backward, &priced.backward),
            weight: join(out.weight, &priced.weight),
        })
    }
}
