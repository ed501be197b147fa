use super::*;
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::engine::find;
use psim_cost_models::serving::{EngineProfile, Policy, StepCost};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::{
    Arrival, Deployment, Lengths, NumberFormat, Quantization, ServiceLevel, ServingWorkload, Traffic,
};

mod engines;
mod fleets;
mod laws;
mod prefixes;
mod queueing;

const POLICIES: [Policy; 11] = [
    Policy::Static,
    Policy::Orca,
    Policy::PrefillPriority,
    Policy::ChunkedPrefill,
    Policy::SplitFuse,
    Policy::Radix,
    Policy::InflightNoEvict,
    Policy::Flover,
    Policy::FastSwitch,
    Policy::SLora,
    Policy::FlexLlm,
];

pub(in crate::serving) fn cost(model: &str, gpu: &str, d: Deployment, engine: &EngineProfile) -> StepCost {
    let cluster = homogeneous(gpu, 8, &HomogeneousOptions::default()).unwrap();
    let model = presets::find(model).unwrap();
    StepCost::new(&model, &d, &cluster, cluster.first_node(), engine, &ProfileLibrary::built_in()).unwrap()
}

pub(in crate::serving) fn bf16(tp: u32) -> Deployment {
    Deployment::tensor_parallel(tp, Quantization::uniform(NumberFormat::Bf16))
}

pub(in crate::serving) fn engine(policy: Policy) -> EngineProfile {
    EngineProfile { policy, lookahead: false, ..find("vllm-v1").unwrap().clone() }
}

pub(in crate::serving) fn workload(
    arrival: Arrival,
    requests: u32,
    input: Lengths,
    output: Lengths,
) -> Traffic {
    let mut w = ServingWorkload::fixed("w", arrival, requests, 1, 1);
    w.tenants[0].input = input;
    w.tenants[0].output = output;
    Traffic::generate(&w, 11)
}

pub(in crate::serving) fn serve(
    cost: &StepCost,
    engine: &EngineProfile,
    traffic: &Traffic,
    options: FleetOptions,
) -> ServingRun {
    simulate(&ServingInput { cost, engine, traffic, replicas: 2, options }).unwrap()
}

pub(in crate::serving) fn single(cost: &StepCost, engine: &EngineProfile, traffic: &Traffic) -> ServingRun {
    simulate(&ServingInput { cost, engine, traffic, replicas: 1, options: FleetOptions::default() }).unwrap()
}

pub(in crate::serving) fn check_laws(run: &ServingRun, traffic: &Traffic) {
    let mut sojourn = 0.0;
    let mut generated = 0;
    for (o, r) in run.outcomes.iter().zip(&traffic.requests) {
        if !o.refused {
            assert!(
                o.sent <= o.admitted && o.admitted <= o.first_token && o.first_token <= o.finish,
                "{o:?}"
            );
            assert!(o.finish.0 > 0);
            generated += u64::from(r.output);
        }
        sojourn += (o.finish - o.sent).0 as f64 * 1e-12;
    }
    assert_eq!(run.generated_tokens, generated);
    assert!(run.peak_cache <= 1.0);
    assert_eq!((run.extra.unfinished, run.extra.leaked_bytes), (0, 0));
    // Little: the time integral of the number in the system is the sum of the times in it.
    assert!((run.request_seconds / sojourn - 1.0).abs() < 1e-9, "{} {sojourn}", run.request_seconds);
    let preempted = run.outcomes.iter().any(|o| o.preemptions > 0);
    let prompts: u64 = run
        .outcomes
        .iter()
        .zip(&traffic.requests)
        .filter(|(o, _)| !o.refused)
        .map(|(_, r)| u64::from(r.input))
        .sum();
    let computed = run.computed_prompt_tokens + run.cached_prompt_tokens;
    assert!(if preempted { computed >= prompts } else { computed == prompts }, "{computed} {prompts}");
}
