//! What a run reports: phases, communication, memory, beside the prediction.

use crate::predict::{HostPrediction, StageTimes};
use crate::run::RankRecord;
use psim_models::operator::Dimension;
use psim_sim::residual::PhaseFactors;
use psim_sim::schedule::PassKind;
use serde::Serialize;

/// One phase of one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseRow {
    /// Stage.
    pub stage: usize,
    /// `forward`, `backward`, `after` (reduction, optimizer, gathering), `wait` (for other stages).
    pub phase: &'static str,
    /// Median over steps of the mean over the stage's ranks, seconds.
    pub measured: f64,
    /// Predicted, seconds.
    pub predicted: Option<f64>,
    /// Processor seconds of a rank in it, likewise: what other programs on the machine do not change. Where the device is
    /// a GPU, the seconds that it was busy.
    pub processor: f64,
    /// Predicted, likewise.
    pub predicted_processor: Option<f64>,
}

/// Communication of one dimension.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CommunicationRow {
    /// `tp`, `pp` …
    pub dimension: &'static str,
    /// Seconds per rank and step, waiting included.
    pub seconds: f64,
    /// Of them, blocked on peers.
    pub wait: f64,
    /// Bytes sent per rank and step.
    pub bytes: u64,
}

/// Outcome of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExecuteReport {
    /// What ran.
    pub device: String,
    /// Ranks, and the cores they shared.
    pub ranks: u32,
    /// Cores of the machine.
    pub cores: u32,
    /// Mean loss per token, per timed step.
    pub losses: Vec<f64>,
    /// Seconds of every timed step (the slowest rank).
    pub step_seconds: Vec<f64>,
    /// Median of them.
    pub measured: f64,
    /// (largest − smallest) / median of the timed steps: what repeating the same step changes.
    pub spread: f64,
    /// Predicted step, seconds.
    pub predicted: Option<f64>,
    /// Processor seconds of all ranks in a step, median over steps.
    pub processor: f64,
    /// Their (largest − smallest) / median over the timed steps.
    pub processor_spread: f64,
    /// Predicted processor seconds of all ranks.
    pub predicted_processor: Option<f64>,
    /// Phases per stage.
    pub phases: Vec<PhaseRow>,
    /// Communication per dimension, mean over ranks, last step.
    pub communication: Vec<CommunicationRow>,
    /// Largest memory held by buffers of one rank, bytes.
    pub memory: u64,
    /// The ledger of the fullest stage without driver context and fragmentation, bytes.
    pub predicted_memory: Option<u64>,
    /// Memory of the device that is taken when the last step is done, as its driver says, bytes.
    pub device_memory: Option<u64>,
    /// Remarks.
    pub notes: Vec<String>,
}

impl ExecuteReport {
    /// Relative error of the predicted step, if there is one.
    pub fn error(&self) -> Option<f64> {
        self.predicted.map(|p| p / self.measured - 1.0)
    }

    /// Measured over predicted per phase, over all stages; `None` without a prediction. Processor time, which other
    /// programs do not change, where the processor does the work.
    pub fn factors(&self) -> Option<PhaseFactors> {
        let ratio = |phase: &str| -> Option<f64> {
            let rows = || self.phases.iter().filter(|r| r.phase == phase);
            let predicted: f64 = rows().map(|r| r.predicted_processor).sum::<Option<f64>>()?;
            let measured: f64 = rows().map(|r| r.processor).sum();
            Some(if predicted > 0.0 && measured > 0.0 { measured / predicted } else { 1.0 })
        };
        Some(PhaseFactors {
            forward: ratio("forward")?,
            backward: ratio("backward")?,
            after: ratio("after")?,
        })
    }
}

/// Median; zero for nothing.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => 0.5 * (values[n / 2 - 1] + values[n / 2]),
    }
}

/// (largest − smallest) / median.
pub(super) fn spread(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(0.0, f64::max);
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    (largest - smallest) / median(values.to_vec()).max(f64::MIN_POSITIVE)
}

/// One rank's step by phase: clock time, processor time (on a GPU, the time of the device).
pub(super) fn stage_times(rank: &RankRecord, step: usize, on_gpu: bool) -> (StageTimes, StageTimes) {
    let Some(record) = rank.steps.get(step) else { return Default::default() };
    let mut times = StageTimes { after: record.optimizer, ..StageTimes::default() };
    let mut processor = StageTimes { after: record.optimizer_processor, ..StageTimes::default() };
    for pass in &record.passes {
        let own = pass.end - pass.start - pass.pipeline_wait;
        match pass.pass.kind {
            PassKind::Forward => {
                times.forward += own;
                processor.forward += pass.processor;
            }
            PassKind::Backward | PassKind::Weight => {
                times.backward += own;
                processor.backward += pass.processor;
            }
        }
        times.wait += pass.pipeline_wait;
    }
    (times, if on_gpu { StageTimes { wait: 0.0, ..times } } else { processor })
}

/// A phase out of the times of a stage.
type Select = fn(&StageTimes) -> f64;

pub(super) fn phases(
    ranks: &[RankRecord],
    stages: usize,
    skip: usize,
    predicted: Option<&HostPrediction>,
    on_gpu: bool,
) -> Vec<PhaseRow> {
    let steps = ranks.first().map_or(0, |r| r.steps.len());
    let mut rows = Vec::new();
    for stage in 0..stages {
        let own: Vec<&RankRecord> = ranks.iter().filter(|r| r.stage == stage).collect();
        let select: [(&'static str, Select); 4] = [
            ("forward", |t| t.forward),
            ("backward", |t| t.backward),
            ("after", |t| t.after),
            ("wait", |t| t.wait),
        ];
        for (phase, of) in select {
            let mean = |pick: fn((StageTimes, StageTimes)) -> StageTimes| {
                let per_step = (skip..steps)
                    .map(|s| {
                        own.iter().map(|r| of(&pick(stage_times(r, s, on_gpu)))).sum::<f64>()
                            / own.len().max(1) as f64
                    })
                    .collect();
                median(per_step)
            };
            rows.push(PhaseRow {
                stage,
                phase,
                measured: mean(|t| t.0),
                predicted: predicted.and_then(|p| p.stages.get(stage)).map(of),
                processor: mean(|t| t.1),
                predicted_processor: predicted.and_then(|p| p.processor.get(stage)).map(of),
            });
        }
    }
    rows
}

pub(super) fn communication(ranks: &[RankRecord]) -> Vec<CommunicationRow> {
    let count = ranks.len().max(1) as f64;
    [
        (Dimension::Tp, "tp"),
        (Dimension::Pp, "pp"),
        (Dimension::Dp, "dp"),
        (Dimension::Cp, "cp"),
        (Dimension::Ep, "ep"),
        (Dimension::Etp, "etp"),
    ]
    .into_iter()
    .filter_map(|(dimension, name)| {
        let accounts: Vec<_> = ranks.iter().filter_map(|r| r.communication.get(&dimension)).collect();
        (!accounts.is_empty()).then(|| CommunicationRow {
            dimension: name,
            seconds: accounts.iter().map(|a| a.total).sum::<f64>() / count,
            wait: accounts.iter().map(|a| a.wait).sum::<f64>() / count,
            bytes: (accounts.iter().map(|a| a.sent).sum::<u64>() as f64 / count) as u64,
        })
    })
    .collect()
}
