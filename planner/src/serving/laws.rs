//! Laws of serving searches: more accelerators never carry less, and the same answer with any number of threads.

use super::fixture::{Asked, fixed};
use super::{
    Drafts, Speculation, plan_disaggregated, plan_serving, plan_speculative, plan_speculative_splits,
    size_all,
};
use proptest::prelude::*;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::serving::Lengths;
use psim_models::serving::workload::Sessions;
use psim_sim::serving::speculation::Acceptance;

fn heads(rate: f64) -> Speculation {
    Speculation {
        name: "mtp".to_owned(),
        drafts: Drafts::Heads { layers: 1 },
        tokens: 2,
        acceptance: Acceptance::Rate(rate),
    }
}

fn asked(gpus: u32, (input, output): (f64, f64), (ttft, tpot): (u32, u32), talks: bool) -> Asked {
    let mut w = fixed(60, 1, 1);
    w.tenants[0].input = Lengths::Lognormal { mean: input, cv: 0.8 };
    w.tenants[0].output = Lengths::Lognormal { mean: output, cv: 0.8 };
    if talks {
        w.tenants[0].sessions = Some(Sessions { turns: Lengths::Fixed(2), think_s: 1.0, max_tokens: None });
    }
    let options = HomogeneousOptions { gpus_per_node: Some(gpus.min(4)), ..HomogeneousOptions::default() };
    Asked::new("llama3-8b", gpus, w)
        .on(homogeneous("H100-SXM-80GB", gpus, &options).unwrap())
        .promising(&format!("ttft<{ttft}ms@p90,tpot<{tpot}ms@p90"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn more_accelerators_never_carry_less(
        input in 200.0f64..2500.0,
        output in 20.0f64..250.0,
        ttft in 300u32..3000,
        tpot in 8u32..60,
        rate in 0.0f64..1.0,
        talks in any::<bool>(),
    ) {
        let mut last = [0.0f64; 3];
        for gpus in [2, 4, 8] {
            let asked = asked(gpus, (input, output), (ttft, tpot), talks);
            let request = asked.request();
            let plans = plan_serving(&request).unwrap().plans;
            let drafted = plan_speculative(&request, &heads(rate), &plans).unwrap();
            let split = plan_disaggregated(&request).map_or(0.0, |found| found.plans[0].rate);
            let rates = [plans[0].rate, drafted.first().map_or(0.0, |p| p.rate), split];
            for (now, before) in rates.iter().zip(last) {
                prop_assert!(*now >= before, "{gpus}: {rates:?} {last:?}");
            }
            last = rates;
        }
    }
}

#[test]
fn one_thread_and_two_answer_with_the_same_bytes() {
    let asked = asked(4, (800.0, 100.0), (1500, 20), false);
    let request = asked.request();
    let answers = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let plans = plan_serving(&request).unwrap();
            let splits = plan_disaggregated(&request).unwrap();
            let drafted = plan_speculative(&request, &heads(0.8), &plans.plans).unwrap();
            let apart = plan_speculative_splits(&request, &heads(0.8), &splits.plans).unwrap();
            let sizes = size_all(&[request, request], 20.0, 0.999);
            // Debug prints every bit of a number.
            format!("{plans:?} {splits:?} {drafted:?} {apart:?} {sizes:?}")
        })
    };
    assert!(!answers(1).contains("NaN"));
    assert_eq!(answers(1), answers(2));
}
