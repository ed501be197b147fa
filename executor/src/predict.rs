//! The prediction for ranks that share the cores of one machine.
//!
//! The simulator prices every pass as if its rank had a core of its own. Here the same passes run in the same order
//! with the same dependencies, but busy ranks take turns on the cores (processor sharing, which is
//! what a fair scheduler gives threads) and slow each other down where they share caches and execution units, as
//! measured. With a core each and nothing shared the result is the pipeline simulation (tested).

use crate::error::{ExecutorError, Result};
use psim_cost_models::ProfileLibrary;
use psim_hardware::profile::StackProfile;
use psim_hardware::profile::machine::Sharing;
use psim_hardware::{Cluster, GroupShape};
use psim_models::operator::CollectiveKind;
use psim_models::{Model, Plan, TrainingWorkload};
use psim_sim::pipeline::PipelineSpec;
use psim_sim::residual::PhaseFactors;
use psim_sim::schedule::{Order, Pass, PassKind, model_chunk, stage_of_chunk};
use psim_sim::step::{StepModel, StepProgram};
use psim_sim::{Level, StepPrediction};
use std::collections::BTreeMap;

/// Everything a prediction reads beside the plan.
#[derive(Debug, Clone, Copy)]
pub struct Basis<'a> {
    /// Where it runs.
    pub cluster: &'a Cluster,
    /// Under which stack.
    pub stack: &'a StackProfile,
    /// With which profiles.
    pub library: &'a ProfileLibrary,
    /// How ranks share the cores; the default is a core each.
    pub sharing: &'a Sharing,
    /// What earlier runs on this machine say beside the prediction; factors of one where there were none.
    pub factors: PhaseFactors,
}

/// Prediction for one machine.
#[derive(Debug, Clone)]
pub struct HostPrediction {
    /// Seconds of the step with the cores shared.
    pub step: f64,
    /// Seconds per stage and kind of work, as they pass on the clock: passes, then what follows them.
    pub stages: Vec<StageTimes>,
    /// Processor seconds per stage, likewise, mean over its ranks; waiting is none.
    pub processor: Vec<StageTimes>,
    /// Length of a pass, per stage, in the order they run, on a core of its own: (kind, seconds).
    pub passes: Vec<Vec<(PassKind, f64)>>,
    /// The simulator's prediction, a core for every rank.
    pub alone: StepPrediction,
}

/// Where one rank of a stage spends a step.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct StageTimes {
    /// Forward passes, communication inside them included, waiting for other stages excluded.
    pub forward: f64,
    /// Backward passes (weight passes included), likewise.
    pub backward: f64,
    /// Waiting for other stages.
    pub wait: f64,
    /// Gradient reduction, optimizer, parameter gathering after the last pass.
    pub after: f64,
}

impl StageTimes {
    /// Adds to a pass of this kind, or to what follows the passes.
    fn add(&mut self, kind: Option<PassKind>, seconds: f64) {
        match kind {
            Some(PassKind::Forward) => self.forward += seconds,
            Some(_) => self.backward += seconds,
            None => self.after += seconds,
        }
    }

    /// Everything but waiting.
    pub fn busy(&self) -> f64 {
        self.forward + self.backward + self.after
    }
}

/// Predicts a step of `plan`, run as `program`, on ranks that share the cores of one machine.
///
/// # Errors
/// When the simulator refuses the plan.
pub fn predict(
    model: &Model,
    plan: &Plan,
    workload: &TrainingWorkload,
    program: &StepProgram,
    basis: Basis<'_>,
) -> Result<HostPrediction> {
    let priced = StepModel::new(model, workload, basis.cluster, basis.stack, basis.library);
    let failed = |e: psim_sim::step::SimError| ExecutorError::Prediction(e.to_string());
    let alone = priced.predict_program(plan, Level::L2, program).map_err(failed)?;
    let StepProgram { spec, order } = program;
    let mut durations: Vec<Vec<f64>> = vec![Vec::new(); plan.pp as usize];
    let mut last = 0.0_f64;
    if let Some(timeline) = &alone.timeline {
        // Spans come by start, and a stage runs its passes in order.
        for span in &timeline.spans {
            let seconds = span.end.seconds().0 - span.start.seconds().0;
            if let Some(stage) = durations.get_mut(span.track as usize) {
                stage.push(seconds);
            }
            last = last.max(span.end.seconds().0);
        }
    }
    let after = (alone.step_time.value - last).max(0.0);
    let bytes = 4 * u64::from(plan.micro_batch) * workload.seq_len * model.hidden
        / u64::from(plan.cp.max(1))
        / u64::from(plan.tp.max(1));
    let pair = GroupShape { ranks: 2, per_domain: 2, per_node: 2, stride: 1, level: 0 };
    let transfer = if plan.pp > 1 {
        priced.cost().collective(CollectiveKind::SendRecv, bytes, &pair).time.0
    } else {
        0.0
    };
    let per_stage = (plan.world() / plan.pp.max(1)) as usize;
    let PhaseFactors { forward, backward, after: finish } = basis.factors;
    let mut passes = Vec::with_capacity(durations.len());
    for (stage, own) in durations.iter_mut().enumerate() {
        let kinds = order.stage(stage).iter().map(|p| p.kind);
        for (duration, kind) in own.iter_mut().zip(kinds.clone()) {
            *duration *= if kind == PassKind::Forward { forward } else { backward };
        }
        passes.push(kinds.zip(own.iter().copied()).collect());
    }
    let replayed = replay(spec, order, &durations, transfer, after * finish, per_stage, basis.sharing);
    Ok(HostPrediction {
        step: replayed.step,
        stages: replayed.stages,
        processor: replayed.processor,
        passes,
        alone,
    })
}

/// A replayed step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Replayed {
    /// Length.
    pub(crate) step: f64,
    /// Where the clock time of each stage goes, mean over its ranks.
    pub(crate) stages: Vec<StageTimes>,
    /// Where its processor time goes, mean over its ranks.
    pub(crate) processor: Vec<StageTimes>,
}

/// A pass as a piece of work with dependencies on another stage.
struct Task {
    work: f64,
    kind: Option<PassKind>,
    /// (stage, index in its order) of what must be done before; on the rank with the same coordinates.
    after: Option<(usize, usize)>,
}

/// Length of the step and where the time of each stage goes.
///
/// `durations[stage][i]` are the seconds of the stage's passes on a core of its own; `transfer` is added to passes
/// whose result goes to another stage; `after` follows the passes of every rank, once its stage is done.
pub(crate) fn replay(
    spec: &PipelineSpec,
    order: &Order,
    durations: &[Vec<f64>],
    transfer: f64,
    after: f64,
    per_stage: usize,
    sharing: &Sharing,
) -> Replayed {
    let tasks = tasks(spec, order, durations, transfer, after);
    let stages = tasks.len();
    let ranks = stages * per_stage;
    // Per rank: next task, work left of it (None: not started).
    let mut next = vec![0_usize; ranks];
    let mut left: Vec<Option<f64>> = vec![None; ranks];
    let mut done: Vec<usize> = vec![0; ranks];
    let mut times = vec![StageTimes::default(); stages];
    let mut processor = times.clone();
    let mut clock = 0.0_f64;
    loop {
        for rank in 0..ranks {
            let (stage, lane) = (rank / per_stage, rank % per_stage);
            let Some(task) = tasks[stage].get(next[rank]) else { continue };
            // The last task is the optimizer: it needs the whole stage.
            let ready = match task.kind {
                None => (0..per_stage).all(|l| done[stage * per_stage + l] + 1 >= tasks[stage].len()),
                Some(_) => task.after.is_none_or(|(s, i)| done[s * per_stage + lane] > i),
            };
            if left[rank].is_none() && ready {
                left[rank] = Some(task.work);
            }
        }
        let active = left.iter().flatten().count();
        if active == 0 {
            break;
        }
        let active = active as u32;
        let (rate, share) = (sharing.speed(active), sharing.share(active));
        let shortest = left.iter().flatten().copied().fold(f64::INFINITY, f64::min);
        let passed = shortest / rate;
        clock += passed;
        for rank in 0..ranks {
            let stage = rank / per_stage;
            let Some(work) = left[rank] else {
                if next[rank] < tasks[stage].len() {
                    times[stage].wait += passed;
                }
                continue;
            };
            let kind = tasks[stage][next[rank]].kind;
            times[stage].add(kind, passed);
            processor[stage].add(kind, passed * share);
            let rest = work - shortest;
            if rest <= 1e-15 {
                left[rank] = None;
                next[rank] += 1;
                done[rank] += 1;
            } else {
                left[rank] = Some(rest);
            }
        }
    }
    for stage in times.iter_mut().chain(&mut processor) {
        let ranks = per_stage as f64;
        stage.forward /= ranks;
        stage.backward /= ranks;
        stage.wait /= ranks;
        stage.after /= ranks;
    }
    Replayed { step: clock, stages: times, processor }
}

fn tasks(
    spec: &PipelineSpec,
    order: &Order,
    durations: &[Vec<f64>],
    transfer: f64,
    after: f64,
) -> Vec<Vec<Task>> {
    let stages = spec.stages as usize;
    let chunks = spec.stages * spec.chunks_per_stage;
    let mut places: BTreeMap<(PassKind, u32, u32), (usize, usize)> = BTreeMap::new();
    let chunk_of = |stage: usize, pass: &Pass| model_chunk(spec, stage as u32, u32::from(pass.chunk));
    for stage in 0..stages {
        for (index, pass) in order.stage(stage).iter().enumerate() {
            places.insert((pass.kind, chunk_of(stage, pass), pass.micro_batch), (stage, index));
        }
    }
    (0..stages)
        .map(|stage| {
            let mut list: Vec<Task> = order
                .stage(stage)
                .iter()
                .enumerate()
                .map(|(index, pass)| {
                    let chunk = chunk_of(stage, pass);
                    let (source, target) = match pass.kind {
                        PassKind::Forward => {
                            (chunk.checked_sub(1), (chunk + 1 < chunks).then_some(chunk + 1))
                        }
                        PassKind::Backward => {
                            ((chunk + 1 < chunks).then_some(chunk + 1), chunk.checked_sub(1))
                        }
                        PassKind::Weight => (None, None),
                    };
                    let elsewhere = target.is_some_and(|c| stage_of_chunk(spec, c) as usize != stage);
                    let own = durations.get(stage).and_then(|d| d.get(index)).copied().unwrap_or(0.0);
                    Task {
                        work: own + if elsewhere { transfer } else { 0.0 },
                        kind: Some(pass.kind),
                        after: source.and_then(|c| places.get(&(pass.kind, c, pass.micro_batch)).copied()),
                    }
                })
                .collect();
            list.push(Task { work: after, kind: None, after: None });
            list
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_hardware::Time;
    use psim_models::plan::Schedule;
    use psim_sim::pipeline::{ChunkCost, PipelineCosts, build_order, simulate_with_timeline};

    fn case(
        schedule: Schedule,
        stages: u32,
        chunks: u32,
        micro_batches: u32,
    ) -> (PipelineSpec, PipelineCosts) {
        let spec = PipelineSpec {
            schedule,
            stages,
            chunks_per_stage: chunks,
            micro_batches,
            ..PipelineSpec::default()
        };
        let cost = |c: u32| ChunkCost {
            forward: Time(u64::from(10 + c * 3) * 1_000_000),
            backward_input: Time(u64::from(17 + c * 2) * 1_000_000),
            backward_weight: Time(u64::from(9 + c) * 1_000_000),
        };
        let costs =
            PipelineCosts { chunks: (0..stages * chunks).map(cost).collect(), ..PipelineCosts::default() };
        (spec, costs)
    }

    fn replayed(
        spec: &PipelineSpec,
        costs: &PipelineCosts,
        per_stage: usize,
        sharing: &Sharing,
    ) -> (Replayed, f64) {
        let (result, timeline) = simulate_with_timeline(spec, costs).unwrap();
        let mut order = Order::default();
        build_order(spec, &mut order).unwrap();
        let mut durations = vec![Vec::new(); spec.stages as usize];
        for span in &timeline.spans {
            durations[span.track as usize].push(span.end.seconds().0 - span.start.seconds().0);
        }
        let replayed = replay(spec, &order, &durations, 0.0, 0.0, per_stage, sharing);
        (replayed, result.makespan.seconds().0)
    }

    #[test]
    fn with_a_core_each_it_is_the_pipeline_simulation() {
        for (schedule, stages, chunks, micro_batches) in [
            (Schedule::Gpipe, 3, 1, 5),
            (Schedule::OneFOneB, 4, 1, 6),
            (Schedule::Interleaved, 2, 3, 4),
            (Schedule::OneFOneB, 1, 1, 3),
        ] {
            let (spec, costs) = case(schedule, stages, chunks, micro_batches);
            let (time, expected) = replayed(&spec, &costs, 2, &Sharing::default());
            let time = time.step;
            assert!((time / expected - 1.0).abs() < 1e-9, "{schedule:?}: {time} against {expected}");
        }
    }

    #[test]
    fn one_core_takes_the_sum_of_all_work() {
        let (spec, costs) = case(Schedule::OneFOneB, 3, 1, 4);
        let work: u64 =
            costs.chunks.iter().map(|c| 4 * (c.forward.0 + c.backward_input.0 + c.backward_weight.0)).sum();
        let work = work as f64 * 1e-12;
        let cores = |cores| Sharing { cores, together: Vec::new() };
        let (one, alone) = replayed(&spec, &costs, 1, &cores(1));
        assert!((one.step / work - 1.0).abs() < 1e-9);
        let (two, _) = replayed(&spec, &costs, 1, &cores(2));
        assert!(alone <= two.step && two.step <= one.step);
        // However they take turns, the processors do the work once.
        for replayed in [one, two] {
            let busy: f64 = replayed.processor.iter().map(StageTimes::busy).sum();
            assert!((busy / work - 1.0).abs() < 1e-9);
        }
    }
}
