//! When the layers do not divide, or embedding and output layer weigh on the ends: the layers per stage that make the
//! slowest stage fastest.

use crate::partition::dynamic::DynamicProgram;
use crate::partition::{LayerLoad, Partitioner, Problem, StageLimit};
use psim_hardware::profile::StackProfile;
use psim_hardware::{Bytes, Seconds, Time};
use psim_models::Model;
use psim_models::layout::{LayerKind, block_of};
use psim_models::memory::{in_flight, layer_activations};
use psim_models::plan::{Plan, Recompute, Sharding};
use psim_sim::step::{KindTimes, StageCosts};

/// A stage must become faster by this share to be worth an uneven plan.
const WORTHWHILE: f64 = 0.01;

/// Layers per stage, where they beat the even split; one chunk per stage only. The memory terms are the large linear
/// ones; the ledger decides afterwards.
pub(super) fn uneven_layers(
    model: &Model,
    stack: &StackProfile,
    capacity: Bytes,
    costs: &StageCosts,
    plan: &Plan,
) -> Option<Vec<u32>> {
    if plan.pp < 2 || plan.vpp != 1 || matches!(plan.recompute, Recompute::Layers(_)) {
        return None;
    }
    let times = costs.layers();
    let picoseconds = |k: &KindTimes| {
        let again = match plan.recompute {
            Recompute::Full => k.forward.time,
            Recompute::Selective => k.selective.time,
            _ => 0.0,
        };
        Time::from(Seconds(k.forward.time + k.backward.time + again)).0
    };
    let once = |k: &KindTimes| Time::from(Seconds(k.forward.time + k.backward.time)).0;
    let kinds: Vec<LayerKind> = model
        .encoder
        .iter()
        .flat_map(|e| std::iter::repeat_n(LayerKind::Encoder, e.layers as usize))
        .chain(model.pattern.iter().map(|&k| LayerKind::Decoder(k)))
        .collect();
    let stages = plan.pp as usize;
    let (embedding, head) = (once(&times.embedding), once(&times.head));
    let total: u64 = kinds.iter().map(|&k| picoseconds(times.of(k))).sum::<u64>() + embedding + head;
    let even = even_counts(kinds.len() as u32, plan.pp)?;
    let slowest_even = slowest(&even, &kinds, |k| picoseconds(times.of(k)), embedding, head);
    let ideal = total as f64 / stages as f64;
    if slowest_even as f64 <= ideal * (1.0 + WORTHWHILE) {
        return None;
    }
    let shape = costs.shape();
    let (tp, experts) = (shape.tp as f64, (shape.ep * shape.etp) as f64);
    let states = &stack.states;
    let base = shape.base.size();
    let shared = |on: bool, ranks: u32| if on { f64::from(ranks.max(1)) } else { 1.0 };
    let replicas = plan.dp * plan.cp;
    let per_parameter = |ranks: u32| {
        base / shared(plan.sharding == Sharding::Parameters, ranks)
            + states.gradient / shared(plan.sharding >= Sharding::Gradients, ranks)
            + (states.master + states.moments) / shared(plan.sharding != Sharding::None, ranks)
    };
    let (dense_bytes, expert_bytes) = (per_parameter(replicas), per_parameter(plan.edp()));
    let load = |kind: LayerKind| {
        let block = block_of(model, kind)?;
        let p = block.parameters(model.hidden, model.norm);
        let split = p.dense_split();
        let dense = split.sharded as f64 / tp + split.replicated as f64;
        let kept = layer_activations(block, model, shape);
        let held = match plan.recompute {
            Recompute::Full => kept.input,
            Recompute::Selective => kept.kept - kept.core,
            _ => kept.kept,
        };
        Some(LayerLoad {
            time: picoseconds(times.of(kind)),
            state_bytes: (dense * dense_bytes + p.experts as f64 / experts * expert_bytes) as u64,
            activation_bytes: (held * (1.0 + stack.memory.fragmentation)) as u64,
        })
    };
    let layers: Option<Vec<LayerLoad>> = kinds.iter().map(|&k| load(k)).collect();
    let ends = |parameters: u64| (parameters as f64 / tp * dense_bytes) as u64;
    let stage = |s: usize| StageLimit {
        extra_time: if s == 0 { embedding } else { 0 } + if s + 1 == stages { head } else { 0 },
        extra_bytes: stack.memory.context.0
            + if s == 0 { ends(model.embedding_parameters()) } else { 0 }
            + if s + 1 == stages { ends(model.head_parameters()) } else { 0 },
        in_flight: in_flight(plan, s as u32).first().copied().unwrap_or(1).into(),
        capacity: capacity.0,
    };
    let problem = Problem { layers: layers?, stages: (0..stages).map(stage).collect() };
    let found = DynamicProgram.partition(&problem).ok()?;
    let better = (found.slowest as f64) < slowest_even as f64 * (1.0 - WORTHWHILE);
    (better && found.counts != even).then_some(found.counts)
}

fn even_counts(layers: u32, stages: u32) -> Option<Vec<u32>> {
    let (each, extra) = (layers.checked_div(stages)?, layers.checked_rem(stages)?);
    Some((0..stages).map(|s| each + u32::from(s < extra)).collect())
}

fn slowest(
    counts: &[u32],
    kinds: &[LayerKind],
    time: impl Fn(LayerKind) -> u64,
    embedding: u64,
    head: u64,
) -> u64 {
    let mut rest = kinds;
    let mut out = 0;
    for (s, &count) in counts.iter().enumerate() {
        let (own, later) = rest.split_at((count as usize).min(rest.len()));
        rest = later;
        let ends = if s == 0 { embedding } else { 0 } + if s + 1 == counts.len() { head } else { 0 };
        out = out.max(own.iter().map(|&k| time(k)).sum::<u64>() + ends);
    }
    out
}
