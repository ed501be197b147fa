//! The evaluations of the search against the full predictions, over real models and clusters.

mod common;

use common::{SPACES, with_space};
use psim_planner::evaluator::Evaluator;
use psim_planner::search::refine::L1_TO_L2_GAP;
use psim_planner::search::{Simulated, Stream};
use psim_sim::Level;

/// Every `step`-th candidate, at most `most`.
fn sample(len: usize, most: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by((len / most).max(1))
}

#[test]
fn fast_evaluations_are_the_full_predictions() {
    for space in SPACES {
        with_space(space, |evaluator, _, prepared| {
            let step = evaluator.step_model();
            for i in sample(prepared.candidates.len(), 40) {
                let c = &prepared.candidates[i];
                let costs = prepared.costs[c.costs as usize].as_ref().unwrap();
                let mesh = prepared.meshes[c.mesh as usize].as_ref().unwrap();
                let full = step.predict(&c.plan, Level::L1, false).unwrap();
                let l1 = evaluator.l1(costs, mesh, &c.plan);
                assert_eq!(l1, psim_hardware::Seconds(full.step_time.value).into(), "{space:?} {:?}", c.plan);
                assert_eq!(c.memory, step.peak_memory(&c.plan).unwrap(), "{space:?} {:?}", c.plan);
                let joules = evaluator.energy(costs, mesh, &c.plan, l1);
                let apart = (joules / full.energy_joule - 1.0).abs();
                assert!(apart < 1e-6, "{space:?} {:?}: {joules} J, {} J", c.plan, full.energy_joule);
            }
        });
    }
}

#[test]
fn the_bound_is_never_above_the_simulated_time() {
    let (mut tight, mut all) = (0, 0);
    for space in SPACES {
        with_space(space, |evaluator, _, prepared| {
            for i in sample(prepared.candidates.len(), 400) {
                let c = &prepared.candidates[i];
                let costs = prepared.costs[c.costs as usize].as_ref().unwrap();
                let mesh = prepared.meshes[c.mesh as usize].as_ref().unwrap();
                let l1 = evaluator.l1(costs, mesh, &c.plan);
                assert!(c.l0 <= l1, "{space:?} {:?}: L0 {} above L1 {l1}", c.plan, c.l0);
                all += 1;
                tight += u32::from(c.l0.0 as f64 >= 0.95 * l1.0 as f64);
            }
        });
    }
    // The bound holds for the operator-level simulation too, which hides what L1 exposes at the end of every layer.
    assert!(f64::from(tight) > 0.55 * f64::from(all), "{tight} of {all} bounds within 5 %");
}

#[test]
fn pruned_search_equals_exhaustive_search_on_real_spaces() {
    for space in SPACES {
        with_space(space, |evaluator, scorer, prepared| {
            let mut stream = Stream::new(evaluator, scorer, prepared);
            let found: Vec<Simulated> = stream.by_ref().take(10).collect();
            let oracle: Vec<Simulated> = Stream::exhaustive(evaluator, scorer, prepared).take(10).collect();
            assert!(!found.is_empty(), "{space:?} has no feasible plan");
            assert_eq!(found, oracle, "{space:?}");
        });
    }
}

/// The gap that the refinement relies on: no candidate falls further below its L1 time.
#[test]
fn the_gap_between_l1_and_l2_holds_on_every_space() {
    assert!(SPACES.len() >= 20);
    let mut least = f64::INFINITY;
    for space in SPACES {
        with_space(space, |evaluator, _, prepared| {
            for i in sample(prepared.candidates.len(), 60) {
                let c = &prepared.candidates[i];
                let costs = prepared.costs[c.costs as usize].as_ref().unwrap();
                let mesh = prepared.meshes[c.mesh as usize].as_ref().unwrap();
                let l1 = evaluator.l1(costs, mesh, &c.plan).seconds().0;
                let l2 = evaluator.l2(&c.plan).unwrap().step_time.value;
                assert!(l2 >= l1 * (1.0 - L1_TO_L2_GAP), "{space:?} {:?}: L1 {l1}, L2 {l2}", c.plan);
                least = least.min(l2 / l1);
            }
        });
    }
    println!("smallest L2 / L1: {least:.4}");
}
