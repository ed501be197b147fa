use super::trials::highest_rate;
use super::units::{Side, units};
use super::*;
use crate::serving::bounds::{decode_rate, prefill_rate};
use crate::serving::fixture::Asked;
use psim_hardware::Cluster;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::serving::{Lengths, ServiceLevel, ServingWorkload};

fn chat(slo: &str) -> ServingWorkload {
    let mut w = ServingWorkload::fixed("chat", Arrival::Poisson { rate: 1.0 }, 100, 1, 1);
    w.tenants[0].input = Lengths::Lognormal { mean: 1500.0, cv: 0.8 };
    w.tenants[0].output = Lengths::Lognormal { mean: 200.0, cv: 0.8 };
    w.tenants[0].slo = ServiceLevel::parse(slo).unwrap();
    w
}

fn asked(model: &str, cluster: &Cluster, workload: &ServingWorkload) -> Asked {
    Asked { requests: 200, ..Asked::new(model, 8, workload.clone()).on(cluster.clone()) }
}

fn plan(
    model: &str,
    cluster: &Cluster,
    workload: &ServingWorkload,
) -> Result<DisaggregatedReport, ServingPlanError> {
    plan_disaggregated(&asked(model, cluster, workload).request())
}

#[test]
fn sixty_four_accelerators_in_three_seconds() {
    let cluster = homogeneous("H100-SXM-80GB", 64, &HomogeneousOptions::default()).unwrap();
    let workload = chat("ttft<2000ms@p90,tpot<40ms@p90");
    let clock = std::time::Instant::now();
    let report = plan("llama3-70b", &cluster, &workload).unwrap();
    let seconds = clock.elapsed().as_secs_f64();
    let best = &report.plans[0];
    println!(
        "{seconds:.2} s, {} of {} splits: {}x prefill tp {} pp {} + {}x decode tp {} pp {}: {:.1} rps",
        report.simulated,
        report.searched,
        best.prefill.replicas,
        best.prefill.tp,
        best.prefill.pp,
        best.decode.replicas,
        best.decode.tp,
        best.decode.pp,
        best.rate
    );
    assert!(best.rate > 0.0 && best.accelerators <= 64);
    // Three seconds alone; others may share the machine.
    assert!(seconds < 9.0, "{seconds}");
}

#[test]
fn static_batches_have_no_splits() {
    let workload = chat("ttft<2000ms@p90");
    let mut asked = asked("llama3-8b", &Asked::new("llama3-8b", 4, workload.clone()).cluster, &workload);
    asked.engine = psim_cost_models::serving::engine::find("trtllm-static").unwrap().clone();
    let refused = plan_disaggregated(&asked.request()).unwrap_err();
    assert!(refused.to_string().contains("static batches"), "{refused}");
}

#[test]
fn the_pruned_search_finds_what_the_full_one_finds_and_more_never_carries_less() {
    let workload = chat("ttft<1500ms@p90,tpot<30ms@p90");
    let mut last = 0.0;
    for gpus in [2, 4, 6, 8, 16] {
        let options =
            HomogeneousOptions { gpus_per_node: Some(gpus.min(8)), ..HomogeneousOptions::default() };
        let cluster = homogeneous("H100-SXM-80GB", gpus, &options).unwrap();
        let report = plan("llama3-8b", &cluster, &workload).unwrap();
        assert!(report.plans[0].rate >= last, "{gpus}: {} {last}", report.plans[0].rate);
        last = report.plans[0].rate;
        if gpus != 4 {
            continue;
        }
        // The oracle simulates every unit.
        let asked = asked("llama3-8b", &cluster, &workload);
        let request = asked.request();
        let sides: Vec<Side> = candidates(&request, 4, 4)
            .into_iter()
            .filter(|d| d.pp <= 2)
            .filter_map(|deployment| {
                let node = cluster.first_node();
                let cost = StepCost::new(
                    request.model,
                    &deployment,
                    &cluster,
                    node,
                    request.engine,
                    request.library,
                )
                .ok()?;
                let prefill = prefill_rate(&cost, request.engine, 1500.0);
                let decode = decode_rate(&cost, request.engine, &workload);
                Some(Side { deployment, group: 0, cost, prefill, decode })
            })
            .collect();
        let oracle = units(&request, &sides)
            .iter()
            .filter_map(|u| Some(highest_rate(&request, &sides, u, 0.0)?.0 * f64::from(u.units)))
            .fold(0.0, f64::max);
        assert!((last / oracle - 1.0).abs() < 0.021, "{last} {oracle}");
    }
}

#[test]
fn a_promise_nothing_keeps_is_an_answer() {
    let cluster = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default()).unwrap();
    assert!(matches!(
        plan("llama3-8b", &cluster, &chat("tpot<0.01ms")),
        Err(ServingPlanError::Infeasible { .. })
    ));
}

#[test]
fn pools_on_two_kinds_of_accelerators_are_tried_and_never_make_it_worse() {
    let mixed = {
        let mut h100 = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default()).unwrap();
        let a100 = homogeneous("A100-SXM-80GB", 8, &HomogeneousOptions::default()).unwrap();
        h100.groups.extend(a100.groups);
        h100
    };
    let alone = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default()).unwrap();
    let workload = chat("ttft<1500ms@p90,tpot<30ms@p90");
    let one = plan("llama3-8b", &alone, &workload).unwrap();
    let both = plan("llama3-8b", &mixed, &workload).unwrap();
    assert!(both.searched > one.searched);
    assert!(both.plans[0].rate >= one.plans[0].rate * 0.98, "{} {}", both.plans[0].rate, one.plans[0].rate);
    let best = &both.plans[0];
    let price = |g: usize| mixed.groups[g].node.price_per_gpu_hour;
    let usd = f64::from(best.prefill.accelerators()) * price(best.prefill_group)
        + f64::from(best.decode.accelerators()) * price(best.decode_group);
    assert!((best.usd_per_hour / usd - 1.0).abs() < 1e-9);
    // What is planned can be simulated as it stands.
    let split = best.split();
    assert_eq!((split.prefill.group, split.decode.group), (best.prefill_group, best.decode_group));
}
