//! Pipeline schedules: the order in which each stage runs its passes.

mod greedy;
mod interleaved;
mod zero_bubble;

use crate::passes::{ChunkCost, PipelineCosts, PipelineError, PipelineSpec};
use psim_hardware::Time;
use psim_models::plan::Schedule;
use serde::{Deserialize, Serialize};

/// Most passes that one pipeline may have; beyond it, a mistake in the input is likelier than a plan.
pub const PASS_LIMIT: u64 = 1 << 26;

/// What a pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum PassKind {
    /// Forward.
    Forward = 0,
    /// Whole backward, or only the gradient of the input where weight passes are separate.
    Backward = 1,
    /// Gradient of the weights.
    Weight = 2,
}

/// One pass of one micro-batch through one chunk of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pass {
    /// Micro-batch.
    pub micro_batch: u32,
    /// Chunk, counted within the stage.
    pub chunk: u16,
    /// What is computed.
    pub kind: PassKind,
}

/// Order of the passes of every stage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    /// Passes of all stages, stage by stage.
    pub passes: Vec<Pass>,
    /// Where each stage begins in `passes`; one more entry than stages.
    pub starts: Vec<usize>,
    /// Weight gradients are separate passes.
    pub split_backward: bool,
}

impl Order {
    /// Passes of one stage, in order.
    pub fn stage(&self, stage: usize) -> &[Pass] {
        match (self.starts.get(stage), self.starts.get(stage + 1)) {
            (Some(&from), Some(&to)) => &self.passes[from..to],
            _ => &[],
        }
    }

    /// Empties the order, keeping its memory.
    fn clear(&mut self) {
        self.passes.clear();
        self.starts.clear();
        self.split_backward = false;
    }
}

/// Times an order under some costs: time between steps, then of one step.
pub(crate) type Judge<'a> = dyn FnMut(&PipelineCosts, &Order) -> Result<(Time, Time), PipelineError> + 'a;

/// Costs of passes that all take the same time.
pub(crate) fn unit_costs(chunks: usize) -> PipelineCosts {
    let unit = ChunkCost { forward: Time(4), backward_input: Time(4), backward_weight: Time(4) };
    PipelineCosts { chunks: vec![unit; chunks], p2p_overlap: true, ..PipelineCosts::default() }
}

/// Writes the order of `spec` for given costs, of which only automatic schedules take notice. The specification has
/// passed [`check`] and the costs describe every chunk. `judge` times an order; the least is best.
pub(crate) fn build_for(
    spec: &PipelineSpec,
    costs: &PipelineCosts,
    order: &mut Order,
    judge: &mut Judge<'_>,
) -> Result<(), PipelineError> {
    order.clear();
    match spec.schedule {
        Schedule::Gpipe => interleaved::gpipe(spec, order),
        Schedule::OneFOneB | Schedule::Interleaved => interleaved::one_f_one_b(spec, order),
        Schedule::ZbH1 => zero_bubble::by_hand(spec, 1, order),
        Schedule::ZbH2 => zero_bubble::by_hand(spec, 2, order),
        Schedule::ZbV if spec.micro_batches < 2 * spec.stages => {
            // Too few for the rounds of the schedule by hand: the greedy one, as for equal passes.
            automatic(spec, &unit_costs(costs.chunks.len()), order, judge)?;
        }
        Schedule::ZbV => zero_bubble::v_by_hand(spec, order),
    }
    if spec.automatic && order.split_backward {
        automatic(spec, costs, order, judge)?;
    }
    Ok(())
}

/// Chunk activations that a stage may hold in a zero-bubble schedule.
pub fn memory_limit(spec: &PipelineSpec) -> u32 {
    match spec.schedule {
        Schedule::ZbH2 | Schedule::ZbV => spec.stages.saturating_mul(2),
        _ => spec.stages,
    }
}

/// Replaces `order` (empty, or a schedule by hand) by the best of itself and the greedy schedules for these durations.
fn automatic(
    spec: &PipelineSpec,
    costs: &PipelineCosts,
    order: &mut Order,
    judge: &mut Judge<'_>,
) -> Result<(), PipelineError> {
    let mut best = if order.passes.is_empty() { None } else { Some(judge(costs, order)?) };
    let mut candidate = Order::default();
    for policy in greedy::policies() {
        candidate.clear();
        greedy::schedule(spec, costs, memory_limit(spec), policy, &mut candidate);
        let key = judge(costs, &candidate)?;
        if best.is_none_or(|best| key < best) {
            best = Some(key);
            std::mem::swap(order, &mut candidate);
        }
    }
    Ok(())
}

/// Stage that runs model chunk `chunk`.
pub fn stage_of_chunk(spec: &PipelineSpec, chunk: u32) -> u32 {
    let (round, position) = (chunk / spec.stages, chunk % spec.stages);
    if spec.schedule == Schedule::ZbV && round % 2 == 1 { spec.stages - 1 - position } else { position }
}

/// Model chunk that is the `local`-th of `stage`; the inverse of [`stage_of_chunk`].
pub fn model_chunk(spec: &PipelineSpec, stage: u32, local: u32) -> u32 {
    let position =
        if spec.schedule == Schedule::ZbV && local % 2 == 1 { spec.stages - 1 - stage } else { stage };
    local * spec.stages + position
}

/// Micro-batches that one chunk takes in a row in interleaved 1F1B.
pub fn micro_batch_group(spec: &PipelineSpec) -> u32 {
    if spec.micro_batch_group == 0 { spec.stages } else { spec.micro_batch_group }
}

/// Rejects what no schedule, or not this one, can run.
pub(crate) fn check(spec: &PipelineSpec) -> Result<(), PipelineError> {
    if spec.stages == 0 || spec.chunks_per_stage == 0 || spec.micro_batches == 0 {
        return Err(PipelineError::Empty);
    }
    let chunks = spec.chunks_per_stage;
    let expected = match spec.schedule {
        Schedule::Interleaved if chunks > u32::from(u16::MAX) => Some("at most 65,535"),
        Schedule::Interleaved => None,
        Schedule::ZbV => (chunks != 2).then_some("2"),
        _ => (chunks != 1).then_some("1"),
    };
    if let Some(expected) = expected {
        return Err(PipelineError::Chunks { schedule: spec.schedule, found: chunks, expected });
    }
    let passes =
        [spec.stages, chunks, spec.micro_batches].map(u64::from).into_iter().fold(3, u64::saturating_mul);
    if passes > PASS_LIMIT {
        return Err(PipelineError::TooLarge { passes, limit: PASS_LIMIT });
    }
    if spec.schedule == Schedule::Interleaved && chunks > 1 {
        let (group, stages, micro_batches) = (micro_batch_group(spec), spec.stages, spec.micro_batches);
        if group < stages {
            return Err(PipelineError::Group { group, stages });
        }
        let remainder = micro_batches % group;
        if remainder != 0 && remainder < stages {
            return Err(PipelineError::Remainder { micro_batches, group, remainder, stages });
        }
    }
    Ok(())
}
