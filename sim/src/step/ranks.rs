//! Every rank of a step (L3): parts and speeds of their own, data-parallel replicas that wait for each other.
//!
//! Ranks are placed in Megatron order (tp fastest, then cp, dp, pp) on the nodes of the cluster. A stage of a replica goes
//! at the pace of its slowest rank, since its tensor- and context-parallel ranks meet in every layer; replicas whose
//! experts are exchanged meet in every layer too. Replicas meet where gradients are reduced and parameters gathered: a
//! bucket starts when the last of them is ready. Replicas that are alike are simulated once. Links are shared as the
//! placement of the groups shares them (ranks per node and card), not flow by flow.

use super::SimError;
use super::mesh::{Prepared, StageCosts};
use super::model::{Ranks, StepModel};
use super::predict::{costs, vocabulary_is_spread};
use super::program::spec;
use crate::pipeline::PipelineSim;
use crate::prediction::{Level, StepPrediction};
use psim_models::plan::Plan;
use psim_models::serving::rng::Rng;

/// Compute time of every stage of one replica over that of the reference.
type Row = Vec<f64>;

impl StepModel<'_> {
    /// Predicts one step with all ranks. On a uniform cluster without spread this is the prediction at L2.
    ///
    /// # Errors
    /// As [`StepModel::predict`].
    pub fn predict_ranks(
        &self,
        plan: &Plan,
        ranks: Ranks,
        timeline: bool,
    ) -> Result<StepPrediction, SimError> {
        let mut out = self.predict(plan, Level::L2, timeline)?;
        let rows = fold(self.rows(plan, ranks)?);
        let reference = out.step_time.value;
        let closed = self.straggler(plan);
        let drawn = ranks.spread > 0.0;
        let later = self.end_of(plan, &rows)? - self.end_of(plan, &[alike(plan)])?;
        // A drawn spread stands for the growth with scale that the closed form describes.
        let value = (reference / (1.0 + closed) + later) * if drawn { 1.0 } else { 1.0 + closed };
        let factor = value / reference;
        out.level = Level::L3;
        for time in [&mut out.step_time.value, &mut out.step_time.low, &mut out.step_time.high] {
            *time *= factor;
        }
        for rate in [
            &mut out.tokens_per_s_per_gpu,
            &mut out.mfu,
            &mut out.model_tflops_per_gpu,
            &mut out.bubble,
            &mut out.exposed_comm,
        ] {
            *rate /= factor;
        }
        out.energy_joule *= factor;
        let waited = value - reference;
        if out.breakdown.straggler.0 + waited >= 0.0 {
            out.breakdown.straggler.0 += waited;
        } else {
            out.breakdown.scale(factor);
        }
        self.check_memory(plan, &mut out);
        out.notes.retain(|note| !note.starts_with("the mixed cluster"));
        out.notes.push(format!(
            "{} ranks in {} data-parallel replicas, {} of them different",
            plan.world(),
            plan.dp,
            rows.len()
        ));
        Ok(out)
    }

    /// Compute time of every stage on its slowest rank over that on the slowest part of the cluster: below 1 where a
    /// stage lies on faster parts.
    ///
    /// # Errors
    /// As [`StepModel::predict`].
    pub fn stage_paces(&self, plan: &Plan) -> Result<Vec<f64>, SimError> {
        let rows = self.rows(plan, Ranks::default())?;
        let slowest = |stage: usize| rows.iter().filter_map(|r| r.get(stage)).copied().fold(0.0, f64::max);
        Ok((0..plan.pp.max(1) as usize).map(slowest).collect())
    }

    /// Seconds until the last rank has reduced its gradients.
    fn end_of(&self, plan: &Plan, rows: &[Row]) -> Result<f64, SimError> {
        let mesh = self.mesh_costs(plan)?;
        let shared = StageCosts { shape: self.shape(plan), layers: self.layer_times(plan) };
        let mut prepared = self.prepare(plan, &shared, &mesh);
        let deep = self.deepen(plan, &mut prepared)?;
        let mut sim = PipelineSim::new();
        let failed = |e: crate::pipeline::PipelineError| SimError::Schedule(e.to_string());
        let vocabulary = vocabulary_is_spread(plan);
        if !vocabulary && deep.has_events(&prepared) {
            let reference = costs(&prepared, self.stack.overlap.p2p);
            let events = self.rank_events(plan, &deep, &prepared, &reference, &mut sim, rows)?;
            let mut end = events.end;
            for row in rows {
                let own = costs(&paced(&prepared, row), self.stack.overlap.p2p);
                let result = sim.run(&spec(plan), &own).map_err(failed)?;
                end = end.max(result.step(plan.schedule).seconds().0);
            }
            return Ok(end);
        }
        // Nothing between the ends of a step lets replicas drift apart: gathered around every layer, or there is one.
        let slowest: Row = (0..plan.pp as usize)
            .map(|stage| rows.iter().filter_map(|row| row.get(stage)).copied().fold(0.0, f64::max))
            .collect();
        let prepared = paced(&prepared, &slowest);
        let result = if vocabulary {
            self.vocabulary_passes(plan, &shared.layers, &prepared).map_err(failed)?
        } else {
            let own = costs(&prepared, self.stack.overlap.p2p);
            sim.run(&spec(plan), &own).map_err(failed)?
        };
        Ok(self.after_pipeline(plan, &prepared, &result).0)
    }

    /// Compute times of all replicas.
    fn rows(&self, plan: &Plan, ranks: Ranks) -> Result<Vec<Row>, SimError> {
        let parts = self.part_times(plan)?;
        let (tp, cp, dp) = (plan.tp.max(1), plan.cp.max(1), plan.dp.max(1));
        let mut rows: Vec<Row> = (0..dp)
            .map(|replica| {
                (0..plan.pp as usize)
                    .map(|stage| {
                        let first = (stage as u32 * dp + replica) * cp * tp;
                        let pace = |rank: u32| {
                            let part = parts.get(self.group_of(rank)).and_then(|p| p.get(stage));
                            part.copied().unwrap_or(1.0) * drawn(ranks, rank)
                        };
                        (first..first + cp * tp).map(pace).fold(0.0, f64::max)
                    })
                    .collect()
            })
            .collect();
        // Replicas that exchange tokens between experts.
        let together = (plan.ep.max(1) * plan.etp.max(1)).div_ceil(tp * cp).max(1) as usize;
        if plan.ep > 1 {
            for block in rows.chunks_mut(together) {
                for stage in 0..plan.pp as usize {
                    let slowest = block.iter().map(|row| row[stage]).fold(0.0, f64::max);
                    block.iter_mut().for_each(|row| row[stage] = slowest);
                }
            }
        }
        Ok(rows)
    }

    /// Compute time of every stage on every kind of node over that on the reference, the slowest kind.
    fn part_times(&self, plan: &Plan) -> Result<Vec<Row>, SimError> {
        let groups = self.cluster.groups.len();
        if groups <= 1 {
            return Ok(vec![alike(plan)]);
        }
        let stages = |model: &Self| -> Result<Row, SimError> {
            let mesh = model.mesh_costs(plan)?;
            let shared = StageCosts { shape: model.shape(plan), layers: model.layer_times(plan) };
            let mut prepared = model.prepare(plan, &shared, &mesh);
            model.deepen(plan, &mut prepared)?;
            Ok((0..plan.pp as usize)
                .map(|stage| {
                    mesh.layout.chunks_of(stage).map(|(c, _)| prepared.chunks[c].total().time).sum::<f64>()
                })
                .collect())
        };
        let reference = stages(self)?;
        (0..groups)
            .map(|group| {
                let own = stages(&self.on_part(group))?;
                Ok(own.iter().zip(&reference).map(|(a, b)| if *b > 0.0 { a / b } else { 1.0 }).collect())
            })
            .collect()
    }

    /// Group of nodes that holds a rank.
    fn group_of(&self, rank: u32) -> usize {
        let mut before = 0;
        for (i, group) in self.cluster.groups.iter().enumerate() {
            before += group.count * group.node.accelerators;
            if rank < before {
                return i;
            }
        }
        self.cluster.groups.len() - 1
    }

    /// Every stage against the smallest memory among its own ranks.
    fn check_memory(&self, plan: &Plan, out: &mut StepPrediction) {
        let per_stage = plan.tp * plan.cp * plan.dp;
        out.fits = out.memory.iter().all(|stage| {
            let ranks = stage.stage * per_stage..(stage.stage + 1) * per_stage;
            ranks
                .map(|rank| self.cluster.groups[self.group_of(rank)].node.accelerator.memory)
                .min()
                .is_none_or(|memory| stage.total <= memory)
        });
    }
}

/// All stages at the pace of the reference.
fn alike(plan: &Plan) -> Row {
    vec![1.0; plan.pp.max(1) as usize]
}

/// Compute time of a rank over the mean.
fn drawn(ranks: Ranks, rank: u32) -> f64 {
    if ranks.spread <= 0.0 {
        return 1.0;
    }
    (ranks.spread * Rng::new(ranks.seed, u64::from(rank)).normal()).exp()
}

/// One of each kind of replica, in order of appearance.
fn fold(rows: Vec<Row>) -> Vec<Row> {
    let mut kept: Vec<Row> = Vec::new();
    for row in rows {
        if !kept.contains(&row) {
            kept.push(row);
        }
    }
    kept
}

/// The passes of a replica.
fn paced<'m>(prepared: &Prepared<'m>, row: &[f64]) -> Prepared<'m> {
    let mut out = Prepared {
        shape: prepared.shape.clone(),
        mesh: prepared.mesh,
        chunks: prepared.chunks.clone(),
        p2p: prepared.p2p,
    };
    for (chunk, stage) in out.chunks.iter_mut().zip(&prepared.mesh.stage_of) {
        let pace = row.get(*stage as usize).copied().unwrap_or(1.0);
        for pass in [&mut chunk.forward, &mut chunk.backward, &mut chunk.weight] {
            pass.time *= pace;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::tests::{plan, with_model};
    use psim_models::plan::Schedule;

    /// Step times at L2 and L3, and the ends of one and of all replicas unfolded.
    fn both(plan: &Plan) -> [f64; 4] {
        with_model("llama3-8b", "h100", 128, |model| {
            let l2 = model.predict(plan, Level::L2, false).unwrap().step_time.value;
            let l3 = model.predict(plan, Level::L3, false).unwrap().step_time.value;
            let one = model.end_of(plan, &[alike(plan)]).unwrap();
            let all = model.end_of(plan, &vec![alike(plan); plan.dp as usize]).unwrap();
            [l2, l3, one, all]
        })
    }

    #[test]
    fn equal_ranks_are_the_representative_one() {
        for plan in [
            plan(2, 2, 4, 1, 1, 64),
            Plan { schedule: Schedule::Interleaved, ..plan(2, 4, 3, 2, 1, 48) },
            plan(1, 1, 8, 1, 1, 32),
            Plan { schedule: Schedule::ZbH1, ..plan(1, 4, 4, 1, 1, 64) },
        ] {
            let [l2, l3, one, all] = both(&plan);
            assert!((l3 / l2 - 1.0).abs() < 1e-6, "{l3} against {l2}");
            assert!((all / one - 1.0).abs() < 1e-6, "unfolded {all} against {one}");
        }
    }

    #[test]
    fn a_spread_slows_the_step_and_more_of_it_slows_it_more() {
        with_model("llama3-8b", "h100", 128, |model| {
            let plan = plan(2, 2, 8, 1, 1, 128);
            let at = |spread| {
                let ranks = Ranks { spread, seed: 7 };
                model.predict_ranks(&plan, ranks, false).unwrap().step_time.value
            };
            let (none, little, much) = (at(1e-9), at(0.01), at(0.05));
            assert!(none < little && little < much, "{none} {little} {much}");
            assert_eq!(little.to_bits(), at(0.01).to_bits());
            // The slowest of 32 ranks is about two standard deviations behind; a lighter stage hides part of it.
            assert!(much / none > 1.01 && much / none < 1.25, "{}", much / none);
        });
    }

    /// One stage on H100, the other on A100: slower than all on H100, faster than all on A100, as L2 has it.
    #[test]
    fn a_mixed_cluster_is_between_its_parts() {
        let plan = plan(8, 2, 1, 1, 1, 32);
        let of = |part: &str| psim_hardware::catalogue::homogeneous(part, 16, &Default::default()).unwrap();
        let (fast, slow) = (of("h100"), of("a100"));
        let mut mixed = fast.clone();
        mixed.groups[0].count = 1;
        mixed.groups.push(psim_hardware::NodeGroup { count: 1, node: slow.groups[0].node.clone() });
        let library = psim_cost_models::ProfileLibrary::built_in();
        let stack = library.stack(psim_cost_models::stacks::DEFAULT_TRAINING).unwrap();
        let model = psim_models::presets::find("llama3-8b").unwrap();
        let workload = psim_models::TrainingWorkload { seq_len: 4096, ..Default::default() };
        let time = |cluster: &psim_hardware::Cluster, level| {
            let step = StepModel::new(&model, &workload, cluster, stack, &library);
            step.predict(&plan, level, false).unwrap().step_time.value
        };
        let (best, both, worst) = (time(&fast, Level::L3), time(&mixed, Level::L3), time(&mixed, Level::L2));
        assert!(best < both && both < worst * (1.0 - 1e-6), "{best} {both} {worst}");
    }

    #[test]
    fn one_slow_replica_holds_up_all_at_the_reduction() {
        with_model("llama3-8b", "h100", 128, |model| {
            let plan = plan(2, 2, 4, 1, 1, 64);
            let slow = vec![1.1; 2];
            let mixed = model.end_of(&plan, &[alike(&plan), slow.clone()]).unwrap();
            let alone = model.end_of(&plan, &[slow]).unwrap();
            let fast = model.end_of(&plan, &[alike(&plan)]).unwrap();
            assert!(mixed >= alone * (1.0 - 1e-9) && mixed < alone * 1.02, "{mixed} {alone}");
            assert!(mixed > 1.05 * fast);
        });
    }
}
