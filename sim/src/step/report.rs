//! From times to the prediction that is shown: rates, intervals, memory per stage, energy.

use super::energy::step_energy;
use super::interval;
use super::mesh::Prepared;
use super::model::StepModel;
use super::{Pass, SimError};
use crate::pipeline::{ChunkMemory, PipelineResult};
use crate::prediction::{Breakdown, Estimate, Level, StageMemory, StepPrediction};
use psim_hardware::Bytes;
use psim_hardware::profile::Provenance;
use psim_models::layout::Layout;
use psim_models::memory::{self, Held};
use psim_models::plan::Plan;

impl StepModel<'_> {
    #[expect(clippy::too_many_arguments, reason = "one call, all distinct")]
    pub(super) fn report(
        &self,
        plan: &Plan,
        level: Level,
        prepared: &Prepared<'_>,
        result: &PipelineResult,
        mean: &Pass,
        breakdown: Breakdown,
        value: f64,
        timeline: Option<crate::Timeline>,
    ) -> Result<StepPrediction, SimError> {
        let world = plan.world();
        let sequences = f64::from(plan.global_batch);
        let useful = 3.0 * self.flops_per_sequence() * sequences;
        let rate = useful / value / f64::from(world);
        let tokens = sequences * self.workload.seq_len as f64;
        let memory = self.memory(plan, prepared, level, result);
        let capacity = self.node.accelerator.memory;
        let fits = memory.iter().all(|m| m.total <= capacity);
        let exposed = breakdown.tp_exposed
            + breakdown.cp_exposed
            + breakdown.ep_exposed
            + breakdown.pp_exposed
            + breakdown.dp_exposed;
        let doubts = interval::doubts(
            self.stack,
            &prepared.shape.groups,
            mean,
            &breakdown,
            value,
            self.model.is_moe(),
        );
        let spread = interval::half_width(&doubts).exp();
        let mut notes = Vec::new();
        let provenance = if mean.unmeasured > 0.1 * mean.time {
            notes.push(format!(
                "kernel times of {} are transferred from a measured relative or taken from defaults",
                self.node.accelerator.name
            ));
            self.cost.provenance().min(Provenance::Transferred)
        } else {
            self.cost.provenance()
        };
        if self.cluster.is_mixed() {
            notes.push(format!(
                "the mixed cluster is priced by its slowest part, {}",
                self.node.accelerator.name
            ));
        }
        Ok(StepPrediction {
            level,
            step_time: Estimate { value, low: value / spread, high: value * spread },
            tokens_per_s_per_gpu: tokens / value / f64::from(world),
            mfu: 100.0 * rate / self.mean_peak(plan),
            model_tflops_per_gpu: rate / 1e12,
            memory,
            memory_capacity: capacity,
            fits,
            bubble: ((breakdown.bubble + breakdown.imbalance).0 / value).max(0.0),
            exposed_comm: exposed.0 / value,
            energy_joule: step_energy(self.cluster, &self.cost, mean, value, world),
            breakdown,
            provenance,
            doubts,
            timeline,
            notes,
        })
    }

    /// Memory per stage: activations in flight from the simulated schedule at L2, in closed form at L1.
    fn memory(
        &self,
        plan: &Plan,
        prepared: &Prepared<'_>,
        level: Level,
        result: &PipelineResult,
    ) -> Vec<StageMemory> {
        (0..plan.pp)
            .map(|stage| {
                let counts;
                let held = match result.stages.get(stage as usize) {
                    Some(s) if level >= Level::L2 => Held::Total(s.peak_activations),
                    _ => {
                        counts = memory::in_flight(plan, stage);
                        Held::MicroBatches(&counts)
                    }
                };
                let ledger = memory::stage_ledger_with(
                    self.model,
                    plan,
                    &prepared.mesh.layout,
                    &prepared.shape,
                    self.stack,
                    stage,
                    held,
                );
                let mut parts: Vec<(&'static str, Bytes)> = ledger.parts().to_vec();
                parts.sort_by_key(|p| std::cmp::Reverse(p.1));
                StageMemory { stage, parts, total: ledger.total() }
            })
            .collect()
    }

    /// Activations of one micro-batch in every chunk; weight-gradient passes of split schedules keep the linear
    /// layers' inputs, about half of them (Qi et al. 2024, section 2.3 keeps the whole).
    pub(super) fn chunk_memory(&self, plan: &Plan, prepared: &Prepared) -> Vec<ChunkMemory> {
        prepared
            .mesh
            .layout
            .chunks
            .iter()
            .map(|c| {
                let forward = memory::chunk_activations(c, self.model, plan, &prepared.shape);
                ChunkMemory { forward, weight: Bytes(forward.0 / 2) }
            })
            .collect()
    }

    /// The largest stage's memory in closed form, without pricing anything.
    ///
    /// # Errors
    /// A layout that does not exist.
    pub fn peak_memory(&self, plan: &Plan) -> Result<Bytes, SimError> {
        let shape = self.shape(plan);
        let layout = Layout::new(self.model, plan)?;
        let all = memory::ledger(self.model, plan, &layout, &shape, self.stack);
        Ok(all.iter().map(memory::StageLedger::total).max().unwrap_or_default())
    }
}
