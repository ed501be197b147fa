//! Where a step ends: vocabulary passes in the pipeline, reductions and gatherings behind it in closed form.

use super::LayerTimes;
use super::data_parallel::{LastBackward, exposed_gather, exposed_reduction};
use super::mesh::Prepared;
use super::model::{StepModel, is_split};
use crate::pipeline::PipelineResult;
use crate::pipeline::vocabulary::{
    VocabularyCosts, VocabularySchedule, VocabularyStageCost, simulate_vocabulary,
};
use psim_hardware::{Seconds, Time};
use psim_models::operator::CollectiveKind;
use psim_models::plan::Plan;

impl StepModel<'_> {
    /// The step with the output layer's S and T passes on every stage (Vocab-1 of arXiv 2411.05288).
    pub(super) fn vocabulary_passes(
        &self,
        plan: &Plan,
        layers: &LayerTimes,
        prepared: &Prepared<'_>,
    ) -> Result<PipelineResult, crate::pipeline::PipelineError> {
        let share = 1.0 / f64::from(plan.pp);
        // The exchanges run beside the layers all the time (F and B are 6 % longer in the paper's own profiles).
        let slowed = 1.0 + self.stack.efficiency.contention;
        let (head, embedding) = (&layers.head, &layers.embedding);
        let time = |seconds: f64| Time::from(Seconds(seconds.max(0.0)));
        let kept = self.chunk_memory(plan, prepared);
        let stages = prepared
            .chunks
            .iter()
            .zip(&kept)
            .map(|(chunk, kept)| VocabularyStageCost {
                forward: time(
                    slowed * (chunk.forward.time - share * (head.forward.time + embedding.forward.time)),
                ),
                backward: time(
                    slowed * (chunk.backward.time - share * (head.backward.time + embedding.backward.time)),
                ),
                softmax: time(share * head.forward.time),
                gradient: time(share * head.backward.time),
                input_layer: time(share * (embedding.forward.time + embedding.backward.time)),
                activation: kept.forward,
            })
            .collect();
        let shape = &prepared.shape;
        let bytes = (shape.base.size() * (shape.tokens * self.model.hidden) as f64).ceil() as u64;
        let barrier = self.cost.collective(CollectiveKind::Broadcast, bytes, &shape.groups.pp).time;
        let costs = VocabularyCosts { stages, p2p: time(prepared.p2p), barrier: Time::from(barrier) };
        simulate_vocabulary(VocabularySchedule::TwoBarriers, &costs, plan.micro_batches().max(1))
    }

    /// End of the last reduction and gathering, with the exposed communication and the slow-down behind it.
    ///
    /// A gathering delays the step by what sticks out after the stage's first input has arrived. Where stages run on
    /// into the next step (zero bubble), the longest span of one stage counts instead.
    pub(super) fn after_pipeline(
        &self,
        plan: &Plan,
        prepared: &Prepared<'_>,
        result: &PipelineResult,
    ) -> (f64, f64, f64) {
        let runs_on = is_split(plan.schedule);
        // (until when, slow-down in it) of the reduction and of the gathering that decide.
        let (mut end, mut gather) = ((0.0f64, 0.0f64), (0.0f64, 0.0f64));
        for (stage, outcome) in result.stages.iter().enumerate() {
            let local = || prepared.mesh.layout.chunks_of(stage).map(|(c, _)| &prepared.chunks[c]);
            let forward: f64 = local().map(|c| c.forward.time).sum();
            let r = &prepared.mesh.reductions[stage];
            let layers = |c: usize| f64::from(prepared.mesh.layout.chunks[c].count()).max(1.0);
            let all: f64 = prepared.mesh.layout.chunks_of(stage).map(|(c, _)| layers(c)).sum();
            let last_passes = || {
                prepared.mesh.layout.chunks_of(stage).zip(&outcome.chunk_done).map(|((c, _), done)| {
                    let times = &prepared.chunks[c];
                    let duration = times.backward.time + times.weight.time;
                    LastBackward { done: done.seconds().0, duration, share: layers(c) / all }
                })
            };
            let reduction = exposed_reduction(r, last_passes, outcome.last_end.seconds().0, self.stack);
            let gathering = exposed_gather(r, forward, self.stack);
            let (first, last) = (outcome.first_start.seconds().0, outcome.last_end.seconds().0);
            let (out, late) = if runs_on {
                let slowed = reduction.1 + gathering.1;
                ((last - first + reduction.0 + gathering.0 + slowed, slowed), (0.0, 0.0))
            } else {
                let late = (gathering.0 + gathering.1 - first).max(0.0);
                ((last + reduction.0 + reduction.1, reduction.1), (late, gathering.1.min(late)))
            };
            if out.0 > end.0 {
                end = out;
            }
            if late.0 > gather.0 {
                gather = late;
            }
        }
        let pipeline = result.step(plan.schedule).seconds().0;
        let until = f64::max(end.0, pipeline);
        let contention = f64::min(end.1, until - pipeline) + gather.1;
        let total = until + gather.0;
        (total, total - pipeline - contention, contention)
    }
}
