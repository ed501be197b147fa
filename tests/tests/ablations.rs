//! Mechanisms switched on and off in published measurements: the predicted ratio against the measured one.
//!
//! An effect is right when its sign is and its size (the logarithm of the ratio) is within a third; effects that the
//! model misses are listed with what it reaches, so that they cannot get worse unnoticed.
#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use psim_calibration::validate::map::map;
use psim_calibration::validate::{Predictor, Row, row};
use std::collections::BTreeMap;

fn rows() -> Option<BTreeMap<String, Row>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/validation/train.jsonl");
    match std::fs::read_to_string(path) {
        Ok(text) => Some(row::read(&text).unwrap().into_iter().map(|r| (r.id.clone(), r)).collect()),
        Err(_) => {
            println!("SKIP: {path} is not here; nothing was checked");
            None
        }
    }
}

/// Seconds per step, as measured rates and predicted model FLOP/s are the same up to a factor that cancels.
fn predicted(rows: &BTreeMap<String, Row>, id: &str) -> Option<f64> {
    let predictor = Predictor::built_in();
    let mapped = map(&rows[id]).ok()?;
    let (stack, _) = predictor.stack_of(&mapped).ok()?;
    Some(predictor.predict(&mapped, &stack).ok()?.step_time.value)
}

fn measured(row: &Row) -> f64 {
    let m = &row.measured;
    m.step_time_s.or_else(|| m.tflops_per_gpu.map(|t| 1.0 / t)).or_else(|| m.mfu.map(|t| 1.0 / t)).unwrap()
}

/// (what, slower row, faster row)
const PAIRS: &[(&str, &str, &str)] = &[
    (
        "EP overlap",
        "mbridge-abl-qwen3-30b-16xh100-epoverlap-off",
        "mbridge-abl-qwen3-30b-16xh100-epoverlap-on-validation",
    ),
    (
        "70B fine-tuning, PP8 for DP2",
        "mbridge-abl-llama70bsft-32xh100-pp8",
        "mbridge-abl-llama70bsft-32xh100-golden",
    ),
    (
        "70B fine-tuning, TP8 for DP2",
        "mbridge-abl-llama70bsft-32xh100-tp8",
        "mbridge-abl-llama70bsft-32xh100-golden",
    ),
    ("full against selective recompute, 175B", "korthikanti22-t5-175b-full", "korthikanti22-t5-175b-seqsel"),
    ("full against selective recompute, 530B", "korthikanti22-t5-530b-full", "korthikanti22-t5-530b-seqsel"),
    ("flash attention, 1.3B at 2k", "fa2-gpt3-1.3b-2k-none", "fa2-gpt3-1.3b-2k-fa2"),
    ("flash attention, 1.3B at 8k", "fa2-gpt3-1.3b-8k-none", "fa2-gpt3-1.3b-8k-fa2"),
    ("flash attention, 2.7B at 2k", "fa2-gpt3-2.7b-2k-none", "fa2-gpt3-2.7b-2k-fa2"),
    ("flash attention, 2.7B at 8k", "fa2-gpt3-2.7b-8k-none", "fa2-gpt3-2.7b-8k-fa2"),
];

#[test]
fn published_ablations_have_their_sign() {
    let Some(rows) = rows() else { return };
    let (mut missed, mut wrong, mut checked) = (Vec::new(), Vec::new(), 0);
    for (what, slow, fast) in PAIRS {
        let real = (measured(&rows[*slow]) / measured(&rows[*fast])).ln();
        let (Some(slow), Some(fast)) = (predicted(&rows, slow), predicted(&rows, fast)) else {
            println!("{what}: the rows say too little to be predicted");
            continue;
        };
        let found = (slow / fast).ln();
        checked += 1;
        println!("{what}: measured {real:+.3}, predicted {found:+.3}, {:.2} of it", found / real);
        if real <= 0.0 || found <= 0.0 {
            wrong.push(*what);
        } else if !(2.0 / 3.0..=4.0 / 3.0).contains(&(found / real)) {
            missed.push(*what);
        }
    }
    println!("size off by more than a third: {missed:?}; sign wrong: {wrong:?}");
    assert!(checked >= 5, "only {checked} ablations could be predicted");
    assert!(wrong.is_empty(), "sign wrong: {wrong:?}");
}
