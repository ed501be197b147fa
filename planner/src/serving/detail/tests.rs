use super::*;
use crate::serving::RedundantExperts;
use crate::serving::fixture::Asked;
use psim_cost_models::serving::EngineProfile;
use psim_cost_models::serving::engine::find;
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
        let asked = Asked {
            engine: self.engine.clone(),
            quantization: self.deployment.quantization,
            seed: 3,
            ..Asked::new(self.model, 32, self.workload.clone())
        };
        let request = asked.request();
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

/// One sequence at a time of Mixtral 8x7B on one H100, whose 93 GB of weights do not fit.
#[test]
fn experts_outside_by_hand() {
    use crate::serving::ExpertsOutside;
    use psim_sim::serving::offload::OffloadPolicy;
    let workload = ServingWorkload::fixed("w", Arrival::ClosedLoop { concurrency: 1 }, 3, 64, 33);
    let mut asked = Asked { seed: 3, ..Asked::new("mixtral-8x7b", 8, workload) };
    asked.engine.token_budget = 64;
    let deployment = Deployment::tensor_parallel(1, asked.quantization);
    let request = asked.request();
    let run = |deployment, policy: Option<OffloadPolicy>| {
        let link = psim_hardware::BytesPerSec(50e9);
        let experts_outside = policy.map(|policy| ExpertsOutside { policy, link, on_disk: false });
        detail(&request, &Served { experts_outside, ..Served::replicas(deployment, FleetOptions::default()) })
    };
    assert!(matches!(run(deployment, None), Err(DetailError::Cost(StepCostError::Memory { .. }))));
    // An expert is three matrices of 4,096 x 14,336 numbers of two bytes: 352 MB, 7.05 ms at 50 GB/s. A token chooses two
    // of eight in each of 32 layers: 451 ms of copies a token.
    let expert = 3.0 * 4096.0 * 14_336.0 * 2.0;
    let copies = 32.0 * 2.0 * expert / 50e9 * 1e3;
    let demand = run(deployment, Some(OffloadPolicy::OnDemand)).unwrap();
    let gated = run(deployment, Some(OffloadPolicy::PreGated)).unwrap();
    let all = run(deployment, Some(OffloadPolicy::PrefetchAll)).unwrap();
    assert_eq!((demand.report.requests, demand.run.generated_tokens), (3, 99));
    let tpot = |d: &ServingDetail| d.report.tpot_ms.p50;
    // Hidden behind copies but for the last layer, all steps being shorter than those: a layer of 32.
    let step = (tpot(&demand) - tpot(&gated)) * 32.0 / 31.0;
    assert!((tpot(&demand) / (copies + step) - 1.0).abs() < 1e-3, "{} {copies} {step}", tpot(&demand));
    assert!((tpot(&gated) / (copies + step / 32.0) - 1.0).abs() < 1e-3, "{} {copies}", tpot(&gated));
    // 47 billion numbers less the experts' 45, read at 3.35 TB/s at least, and the two experts of each layer.
    assert!((7.7..40.0).contains(&step), "{step}");
    // All eight experts instead of two.
    assert!((tpot(&all) / tpot(&gated) - 4.0).abs() < 0.01, "{} {}", tpot(&all), tpot(&gated));
    // The memory that is left: 80 GB less what is not an expert, two chosen experts of a layer twice, and the reserve.
    let attention = 2.0 * 1.6e9;
    assert!(demand.cache_bytes > gated.cache_bytes && gated.cache_bytes >= all.cache_bytes);
    assert!(demand.cache_bytes < 80e9 - attention, "{}", demand.cache_bytes);
    let spread = Deployment { attention_dp: 2, ep: 2, ..deployment };
    // Each of two ranks has four of the eight and copies one of a layer's two on average: half of the copies' time.
    let spread = run(spread, Some(OffloadPolicy::OnDemand)).unwrap();
    assert!(((tpot(&demand) - tpot(&spread)) / (0.5 * copies) - 1.0).abs() < 0.05, "{}", tpot(&spread));
    assert_eq!((spread.run.generated_tokens, spread.run.extra.leaked_bytes), (99, 0));
    let staged = run(Deployment { pp: 2, ..deployment }, Some(OffloadPolicy::PreGated));
    assert!(matches!(staged, Err(DetailError::Together { key: "expert_offload", .. })));
    let mut small = asked.cluster.clone();
    small.groups[0].node.host_memory = psim_hardware::Bytes(80_000_000_000);
    let request = ServingRequest { cluster: &small, ..request };
    let link = psim_hardware::BytesPerSec(50e9);
    let outside = ExpertsOutside { policy: OffloadPolicy::OnDemand, link, on_disk: false };
    let served =
        Served { experts_outside: Some(outside), ..Served::replicas(deployment, FleetOptions::default()) };
    assert!(matches!(detail(&request, &served), Err(DetailError::Crowded(_))));
}
