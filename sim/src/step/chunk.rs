//! Times of one micro-batch in one model chunk, with just-in-time parameter gathering (FSDP / ZeRO-3).

use super::pass::slowed;
use super::{KindTimes, LayerTimes, Pass};
use psim_hardware::profile::StackProfile;
use psim_models::layout::Chunk;
use psim_models::plan::{Plan, Recompute};

/// Passes of one micro-batch in one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct ChunkTimes {
    pub(super) forward: Pass,
    /// Both gradients and recomputation; in split schedules the input gradient and recomputation.
    pub(super) backward: Pass,
    /// Weight gradients of split schedules.
    pub(super) weight: Pass,
}

impl ChunkTimes {
    /// All passes of one micro-batch.
    pub(super) fn total(&self) -> Pass {
        self.forward.plus(&self.backward, 1.0).plus(&self.weight, 1.0)
    }
}

/// What is run again, unless recomputation is taken out.
pub(super) fn recompute_of(plan: &Plan, stack: &StackProfile) -> Recompute {
    if stack.without.recompute { Recompute::None } else { plan.recompute }
}

/// Gathering of parameters and scattering of gradients around each layer of a kind, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Gathering {
    pub(super) gather: f64,
    pub(super) scatter: f64,
}

/// Gathering per kind of layer; `None` when parameters stay on the rank.
#[derive(Debug, Clone)]
pub(super) struct Gatherings {
    pub(super) layers: Vec<Gathering>,
    pub(super) encoder: Gathering,
    pub(super) embedding: Gathering,
    pub(super) head: Gathering,
    /// Parameters are gathered again for the backward pass.
    pub(super) again: bool,
}

/// Runs `count` equal layers beside their communication: pipelined one layer ahead with prefetch, else in turn.
fn beside(pass: &Pass, communication: f64, count: f64, stack: &StackProfile) -> Pass {
    let mut out = pass.plus(&Pass::default(), 0.0);
    let each = pass.time;
    let (duration, exposed, slowed) = if stack.overlap.fsdp_prefetch == 0 {
        (each + communication, communication, 0.0)
    } else {
        let slowed = slowed(stack.efficiency.contention, each, communication);
        let duration = f64::max(each + slowed, communication);
        (duration, duration - each - slowed, slowed)
    };
    out.parts.dp += exposed;
    out.parts.contention += slowed;
    out.busy[2] += communication;
    out.time = duration;
    if stack.overlap.fsdp_prefetch == 0 {
        out.floor += communication;
    }
    Pass::default().plus(&out, count)
}

pub(super) fn chunk_times(
    chunk: &Chunk,
    layers: &LayerTimes,
    plan: &Plan,
    stack: &StackProfile,
    gatherings: Option<&Gatherings>,
    split: bool,
) -> ChunkTimes {
    let mut out = ChunkTimes::default();
    let recompute = recompute_of(plan, stack);
    let mut full = match recompute {
        Recompute::Full => u32::MAX,
        Recompute::Layers(n) => n,
        _ => 0,
    };
    // Communication of parameters and gradients over the whole pass: a bound of its own where it runs beside.
    let mut shared = (0.0, 0.0);
    let mut add = |times: &KindTimes, count: u32, recomputed: u32, gathering: Option<(Gathering, bool)>| {
        let (n, r) = (f64::from(count), f64::from(recomputed));
        let mut backward = if split { times.input } else { times.backward };
        if recompute == Recompute::Selective {
            backward = backward.plus(&times.selective.as_recompute(), 1.0);
        }
        if count > 0 {
            backward = backward.plus(&times.forward.as_recompute(), r / n);
        }
        match gathering {
            Some((g, again)) => {
                let gather_again = if again { g.gather } else { 0.0 };
                shared.0 += n * g.gather;
                shared.1 += n * (gather_again + g.scatter);
                out.forward = out.forward.plus(&beside(&times.forward, g.gather, n, stack), 1.0);
                out.backward = out.backward.plus(&beside(&backward, gather_again + g.scatter, n, stack), 1.0);
            }
            None => {
                out.forward = out.forward.plus(&times.forward, n);
                out.backward = out.backward.plus(&backward, n);
            }
        }
        if split {
            out.weight = out.weight.plus(&times.weight, n);
        }
    };
    let mut ends = None;
    // Split over the stages, every stage does an equal part of the vocabulary's work.
    let part = plan.vocabulary_parallel.then(|| 1.0 / f64::from(plan.chunks().max(1)));
    if let Some(part) = part {
        add(&layers.embedding.scaled(part), 1, 0, None);
        add(&layers.head.scaled(part), 1, 0, None);
    }
    if chunk.embedding && part.is_none() {
        add(&layers.embedding, 1, 0, gatherings.map(|g| (g.embedding, false)));
    }
    for (i, &(kind, count)) in chunk.layers.iter().enumerate() {
        let recomputed = full.min(count);
        full -= recomputed;
        let gathering = gatherings.map(|g| {
            let of = match kind {
                psim_models::layout::LayerKind::Encoder => g.encoder,
                psim_models::layout::LayerKind::Decoder(k) => {
                    g.layers.get(usize::from(k)).copied().unwrap_or_default()
                }
            };
            (of, g.again)
        });
        add(layers.of(kind), count, recomputed, gathering);
        if i == 0 {
            ends = gathering.map(|g| g.0);
        }
    }
    if chunk.head && part.is_none() {
        add(&layers.head, 1, 0, gatherings.map(|g| (g.head, false)));
    }
    if let Some(g) = ends.filter(|_| stack.overlap.fsdp_prefetch > 0) {
        // The first gather of a pass has nothing to hide behind; nor has the last scatter.
        out.forward.parts.dp += g.gather;
        out.forward.time += g.gather;
        out.backward.parts.dp += g.scatter;
        out.backward.time += g.scatter;
    }
    for (pass, shared) in [(&mut out.forward, shared.0), (&mut out.backward, shared.1)] {
        let host = stack.host.per_micro_batch.0 / 2.0;
        pass.parts.launch += host;
        pass.time += host;
        pass.floor = f64::max(pass.floor, shared) + host;
    }
    out
}
