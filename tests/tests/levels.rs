//! The depths of simulation against each other, over every published training row.
#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use psim_calibration::validate::map::map;
use psim_calibration::validate::{Predictor, row};
use psim_sim::step::StepModel;
use psim_sim::{Level, StepPrediction};
use std::time::{Duration, Instant};

fn rows() -> Option<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/validation/train.jsonl");
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(_) => {
            println!("SKIP: {path} is not here; nothing was checked");
            None
        }
    }
}

/// Calls `check` with id, L0 in seconds, L1 and L2 of every row that maps; prints how long L1 and L2 took.
fn for_each_row(text: &str, mut check: impl FnMut(&str, f64, &StepPrediction, &StepPrediction)) {
    let predictor = Predictor::built_in();
    let mut spent = [Duration::ZERO; 2];
    for row in row::read(text).unwrap() {
        let Ok(mapped) = map(&row) else { continue };
        let Ok((stack, _)) = predictor.stack_of(&mapped) else { continue };
        let model =
            StepModel::new(&mapped.model, &mapped.workload, &mapped.cluster, &stack, &predictor.library);
        let plan = &mapped.plan;
        if model.check(plan).is_err() {
            continue;
        }
        let timed = |level, slot: &mut Duration| {
            let start = Instant::now();
            let prediction = model.predict(plan, level, false);
            *slot += start.elapsed();
            prediction
        };
        let [first, second] = &mut spent;
        let Ok(l1) = timed(Level::L1, first) else { continue };
        let l2 = timed(Level::L2, second).unwrap();
        let bound = model.lower_bound(plan, &model.layer_times(plan)).unwrap();
        check(&row.id, bound, &l1, &l2);
    }
    println!("L1 took {:?}, L2 {:?}", spent[0], spent[1]);
}

#[test]
fn no_depth_beats_the_bound_and_l2_stays_near_l1() {
    let Some(text) = rows() else { return };
    let mut ratios: Vec<(f64, String)> = Vec::new();
    let mut broken: Vec<String> = Vec::new();
    for_each_row(&text, |id, bound, l1, l2| {
        let (one, two) = (l1.step_time.value, l2.step_time.value);
        if bound > one || bound > two {
            broken.push(format!("{id}: L0 {bound} above L1 {one} or L2 {two}"));
        }
        let sum = l2.breakdown.total().0;
        assert!((sum / two - 1.0).abs() < 1e-9, "{id}: the terms sum to {sum}, not {two}");
        for (term, value) in l2.breakdown.terms() {
            if value.0 <= -1e-6 * two {
                broken.push(format!("{id}: {term} is {} of {two}", value.0));
            }
        }
        if std::env::var("PSIM_TERMS").is_ok_and(|wanted| id.contains(&wanted)) {
            for ((term, a), (_, b)) in l1.breakdown.terms().iter().zip(l2.breakdown.terms()) {
                println!("{id} {term}: {:.5} {:.5}", a.0, b.0);
            }
        }
        ratios.push((two / one, id.to_owned()));
    });
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let at = |share: f64| &ratios[((ratios.len() - 1) as f64 * share) as usize];
    for share in [0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0] {
        println!("L2 / L1 at {:.0} %: {:.4} ({})", share * 100.0, at(share).0, at(share).1);
    }
    assert!(broken.is_empty(), "{}: {}", broken.len(), broken.join("\n"));
    assert!((at(0.5).0 - 1.0).abs() < 0.02);
}

#[test]
fn l2_is_as_accurate_as_l1() {
    let Some(text) = rows() else { return };
    let at = |level| {
        let predictor = Predictor { level, ..Predictor::built_in() };
        psim_calibration::validate::run(&text, &predictor).unwrap()
    };
    let (l1, l2) = (at(Level::L1), at(Level::L2));
    for (source, summary) in &l2.sources {
        let before = &l1.sources[source];
        println!(
            "{source}: L1 {:.2} (p90 {:.1}, tau {:?}), L2 {:.2} (p90 {:.1}, tau {:?})",
            before.median_ape.unwrap(),
            before.p90_ape.unwrap(),
            before.ranking.kendall_tau,
            summary.median_ape.unwrap(),
            summary.p90_ape.unwrap(),
            summary.ranking.kendall_tau
        );
    }
    let (one, two) = (l1.all.macro_median_ape.unwrap(), l2.all.macro_median_ape.unwrap());
    println!(
        "macro median: L1 {one:.3}, L2 {two:.3}; tau {:?} {:?}",
        l1.all.ranking.kendall_tau, l2.all.ranking.kendall_tau
    );
    assert!(two <= one + 0.5, "L2 {two} %, L1 {one} %");
}
