//! Pipeline-level simulation (L1): micro-batches flow through stages under a schedule.
//!
//! Every schedule is a fixed order of passes per stage ([`crate::schedule`]); times follow from that order and from
//! the dependencies by one relaxation ([`PipelineSim`]): exact, without an event queue, a few nanoseconds per pass.
//! The general executor of [`crate::stream`] is its oracle in the tests.
//!
//! ```
//! use psim_hardware::Time;
//! use psim_models::plan::Schedule;
//! use psim_sim::pipeline::{simulate, ChunkCost, PipelineCosts, PipelineSpec};
//!
//! let spec = PipelineSpec { schedule: Schedule::OneFOneB, stages: 4, chunks_per_stage: 1, micro_batches: 8, ..Default::default() };
//! let chunk = ChunkCost { forward: Time(10), backward_input: Time(12), backward_weight: Time(8) };
//! let costs = PipelineCosts { chunks: vec![chunk; 4], ..Default::default() };
//! // Uniform 1F1B without communication takes (m + p - 1)(F + B).
//! assert_eq!(simulate(&spec, &costs).unwrap().makespan, Time((8 + 4 - 1) * 30));
//! ```

mod program;
mod relax;
pub mod vocabulary;
mod wavefront;

pub use crate::passes::{ChunkCost, ChunkMemory, PipelineCosts, PipelineError, PipelineSpec};
pub use relax::PipelineSim;
pub(crate) use relax::order_for;

use crate::Timeline;
use crate::schedule::{self, Order};
use psim_hardware::{Bytes, Time};
use psim_models::plan::Schedule;

/// Writes the order of `spec` into `order`, reusing its memory; automatic schedules take all passes as equally long.
///
/// # Errors
/// A specification that the schedule cannot run.
pub fn build_order(spec: &PipelineSpec, order: &mut Order) -> Result<(), PipelineError> {
    schedule::check(spec)?;
    order_for(spec, &schedule::unit_costs((spec.stages * spec.chunks_per_stage) as usize), order)
}

/// Simulates one step of a pipeline. Callers with many plans keep a [`PipelineSim`] and reuse its memory.
///
/// # Errors
/// A specification that the schedule cannot run, or costs that do not match it.
pub fn simulate(spec: &PipelineSpec, costs: &PipelineCosts) -> Result<PipelineResult, PipelineError> {
    PipelineSim::new().run(spec, costs)
}

/// Like [`simulate`], with what happened when: one track per stage, a span per pass (`F3`, `B3`, `W3`; with several
/// chunks per stage `F3.1` is micro-batch 3 in local chunk 1).
///
/// # Errors
/// As [`simulate`].
pub fn simulate_with_timeline(
    spec: &PipelineSpec,
    costs: &PipelineCosts,
) -> Result<(PipelineResult, Timeline), PipelineError> {
    PipelineSim::new().run_with_timeline(spec, costs)
}

/// One stage's outcome.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StageResult {
    /// Time spent computing.
    pub busy: Time,
    /// Start of its first task.
    pub first_start: Time,
    /// End of its last task.
    pub last_end: Time,
    /// End of its last task that produces gradients, per local chunk, for gradient reduction.
    pub chunk_done: Vec<Time>,
    /// Largest number of micro-batches whose activations are held at once, per local chunk.
    pub peak_in_flight: Vec<u32>,
    /// Largest number of chunk activations held at once, over all local chunks together.
    pub peak_total_in_flight: u32,
    /// Largest activation memory held at once (zero if the costs gave none).
    pub peak_activations: Bytes,
}

/// Outcome of a pipeline simulation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PipelineResult {
    /// End of the last task.
    pub makespan: Time,
    /// Per stage.
    pub stages: Vec<StageResult>,
}

impl PipelineResult {
    /// Time between two steps when stages do not wait for each other in between: the longest span from the first to
    /// the last pass of one stage. Zero-bubble training reaches it by checking the gradient norm after the optimizer
    /// step instead of before (Qi et al. 2024, §4); otherwise the step takes [`Self::makespan`].
    pub fn period(&self) -> Time {
        self.stages.iter().map(|stage| stage.last_end - stage.first_start).max().unwrap_or_default()
    }

    /// Time of one step: [`Self::period`] for the zero-bubble schedules, whose runtime lets stages run on into the next
    /// step, and [`Self::makespan`] for all others.
    pub fn step(&self, schedule: Schedule) -> Time {
        match schedule {
            Schedule::ZbH1 | Schedule::ZbH2 | Schedule::ZbV => self.period(),
            Schedule::Gpipe | Schedule::OneFOneB | Schedule::Interleaved => self.makespan,
        }
    }
}
