use super::*;
use crate::serving::RedundantExperts;
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::EngineProfile;
use psim_cost_models::serving::engine::find;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::{Arrival, NumberFormat, Quantization, ServingWorkload};
use psim_sim::serving::{FleetOptions, Partition};

struct Case {
    model: &'static str,
    deployment: Deployment,
    workload: ServingWorkload,
    engine: EngineProfile,
}

impl Case {
    fn run(
        &self,
        arrangement: Arrangement,
        redundant: Option<RedundantExperts>,
    ) -> Result<ServingDetail, DetailError> {
        let model = presets::find(self.model).unwrap();
        let cluster = homogeneous("H100-SXM-80GB", 32, &HomogeneousOptions::default()).unwrap();
        let library = ProfileLibrary::built_in();
        let request = ServingRequest {
            model: &model,
            cluster: &cluster,
            engine: &self.engine,
            workload: &self.workload,
            quantization: self.deployment.quantization,
            library: &library,
            requests: 100,
            seed: 3,
        };
        let served =
            Served { arrangement, redundant, ..Served::replicas(self.deployment, FleetOptions::default()) };
        detail(&request, &served)
    }
}

fn dense(replicas: u32) -> Case {
    let q = Quantization::uniform(NumberFormat::Bf16);
    Case {
        model: "llama3-70b",
        deployment: Deployment { replicas, ..Deployment::tensor_parallel(8, q) },
        workload: ServingWorkload::fixed("w", Arrival::Burst, 600, 1024, 256),
        engine: find("vllm-v1").unwrap().clone(),
    }
}

#[test]
fn nano_batches_hide_the_links_of_a_full_replica_and_lose_no_request() {
    let case = dense(1);
    let plain = case.run(Arrangement::InTurn, None).unwrap();
    let cut = case.run(Arrangement::NanoBatches, None).unwrap();
    assert!(matches!(cut.arrangement, Some(ArrangementFigures::NanoBatches(_))));
    assert!(plain.arrangement.is_none());
    assert_eq!((cut.report.requests, cut.run.generated_tokens), (600, 600 * 256));
    let gain = cut.report.output_tokens_per_s / plain.report.output_tokens_per_s;
    assert!(gain > 1.0 && gain < 1.6, "{gain}");
    // One lane only.
    let staged = Case { deployment: Deployment { tp: 4, pp: 2, ..case.deployment }, ..dense(1) };
    let error = staged.run(Arrangement::NanoBatches, None).unwrap_err();
    assert!(matches!(error, DetailError::Together { key: "overlap", .. }), "{error}");
}

#[test]
fn a_partition_deals_requests_to_replicas_and_keeps_answers_going_beside_prompts() {
    let mut case = dense(2);
    case.workload = ServingWorkload::fixed("w", Arrival::Poisson { rate: 6.0 }, 200, 4096, 128);
    let cut = case.run(Arrangement::Partitioned(Partition::default()), None).unwrap();
    assert_eq!((cut.report.requests, cut.run.generated_tokens), (200, 200 * 128));
    let Some(ArrangementFigures::Partition { mean, least, most, moves }) = cut.arrangement else {
        panic!("{:?}", cut.arrangement)
    };
    assert_eq!((least, most, moves), (0.5, 0.5, 0));
    assert!((mean - 0.5).abs() < 1e-9);
    // Long prompts no longer stop whole steps of answers: the gap between two tokens is steadier.
    let plain = case.run(Arrangement::InTurn, None).unwrap();
    assert!(cut.report.itl_ms.p99 < plain.report.itl_ms.p99);
    case.workload.tenants[0].prefix =
        Some(psim_models::serving::workload::SharedPrefix { tokens: 64, groups: 1 });
    let error = case.run(Arrangement::Partitioned(Partition::default()), None).unwrap_err();
    assert!(matches!(error, DetailError::Together { key: "sm_partition", .. }), "{error}");
}

#[test]
fn redundant_copies_speed_up_skewed_experts() {
    let q = Quantization::uniform(NumberFormat::Fp8Block);
    let case = Case {
        model: "deepseek-v3",
        deployment: Deployment { attention_dp: 32, ep: 32, ..Deployment::tensor_parallel(1, q) },
        workload: ServingWorkload::fixed("w", Arrival::Burst, 1500, 256, 64),
        engine: find("sglang").unwrap().clone(),
    };
    let with = |copies| case.run(Arrangement::InTurn, Some(RedundantExperts { copies, skew: 0.8 })).unwrap();
    let (none, some) = (with(0), with(64));
    assert!(some.report.output_tokens_per_s > 1.01 * none.report.output_tokens_per_s);
    assert!(some.cache_bytes < none.cache_bytes);
    assert!(dense(1).run(Arrangement::InTurn, Some(RedundantExperts { copies: 8, skew: 0.8 })).is_err());
}
