//! Plans on clusters of several kinds of nodes: stages on faster parts take more layers.

use psim_hardware::{Cluster, DType};
use psim_models::Model;
use psim_models::layout::{Chunk, Layout};
use psim_models::plan::{Plan, Recompute};
use psim_sim::StepModel;

/// The plan with its layers dealt to the stages by the pace of their parts, if that is another plan; one chunk per stage
/// only. Embedding and output layer count as they do in the plan's own split, which the deal starts from.
pub(super) fn by_pace(step: &StepModel<'_>, model: &Model, plan: &Plan) -> Option<Plan> {
    if plan.pp < 2 || plan.vpp != 1 || matches!(plan.recompute, Recompute::Layers(_)) {
        return None;
    }
    let paces = step.stage_paces(plan).ok()?;
    let layout = Layout::new(model, plan).ok()?;
    let layers: Vec<u32> = layout.chunks.iter().map(Chunk::count).collect();
    let counts = deal(&layers, &paces)?;
    (counts != layers).then(|| Plan { stage_layers: counts, ..plan.clone() })
}

/// Layers of every stage when each next layer goes to the stage that has it done first, at its pace. What a stage of the
/// given split has less than the fullest one stands for other work (embedding, output layer) of as many layers.
fn deal(layers: &[u32], paces: &[f64]) -> Option<Vec<u32>> {
    let total: u32 = layers.iter().sum();
    let fullest = *layers.iter().max()?;
    if layers.len() != paces.len() || layers.len() as u32 > total || paces.iter().any(|p| *p <= 0.0) {
        return None;
    }
    // An even split that does not divide leaves stages one short: that is no other work.
    let other: Vec<f64> = layers.iter().map(|n| f64::from((fullest - n).saturating_sub(1))).collect();
    let mut counts = vec![1u32; layers.len()];
    for _ in 0..total - counts.len() as u32 {
        let next = (0..counts.len()).min_by(|a, b| {
            let done = |s: usize| (f64::from(counts[s] + 1) + other[s]) * paces[s];
            done(*a).total_cmp(&done(*b))
        })?;
        counts[next] += 1;
    }
    Some(counts)
}

/// The slowest part's rate over the fastest's, the smaller of arithmetic and memory: no step is faster by more.
pub(super) fn slowest_over_fastest(cluster: &Cluster) -> f64 {
    let over = |rate: &dyn Fn(usize) -> f64| {
        let rates: Vec<f64> = (0..cluster.groups.len()).map(rate).filter(|r| *r > 0.0).collect();
        let (least, most) = rates.iter().fold((f64::INFINITY, 0.0f64), |(a, b), r| (a.min(*r), b.max(*r)));
        if most > 0.0 { least / most } else { 1.0 }
    };
    let part = |i: usize| &cluster.groups[i].node.accelerator;
    let arithmetic = over(&|i| part(i).peak(DType::Bf16).map_or(0.0, |p| p.0));
    arithmetic.min(over(&|i| part(i).memory_bandwidth.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faster_stages_take_more_layers() {
        // One stage twice as fast: 20 and 10 of 30 layers, both done after 10 of the slow part's.
        assert_eq!(deal(&[15, 15], &[0.5, 1.0]).unwrap(), [20, 10]);
        assert_eq!(deal(&[8, 8], &[1.0, 1.0]).unwrap(), [8, 8]);
        // The last stage's output layer counts as two layers more than the others have, less the rounding.
        assert_eq!(deal(&[11, 8], &[1.0, 1.0]).unwrap(), [11, 8]);
        assert_eq!(deal(&[1, 1], &[0.1, 1.0]).unwrap(), [1, 1]);
        assert!(deal(&[1, 1], &[0.0, 1.0]).is_none());
    }
}
