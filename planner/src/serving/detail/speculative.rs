//! Replicas that speculate.

use super::dealt::{shared, together, undealt};
use super::{DetailError, ServingDetail, SpeculationFigures, finish};
use crate::parallel::map_long;
use crate::serving::{Drafts, Served, ServingRequest, Speculation};
use psim_cost_models::serving::StepCost;
use psim_models::Model;
use psim_models::serving::{Deployment, Traffic};
use psim_sim::serving::speculation::{Drafter, SpeculativeInput, SpeculativeRun, simulate_speculative};
use psim_sim::serving::{FleetOptions, ServingError};

/// What is not simulated together with speculation.
pub(in crate::serving) fn conflicts(
    request: &ServingRequest<'_>,
    deployment: &Deployment,
    options: &FleetOptions,
) -> Option<&'static str> {
    let tenants = &request.workload.tenants;
    if tenants.iter().any(|t| t.sessions.is_some()) {
        Some("conversations of several turns")
    } else if deployment.attention_dp > 1 {
        Some("several copies of the attention (attention_dp)")
    } else if deployment.pp > 1 {
        Some("pipeline stages (pp)")
    } else {
        undealt(request, options)
    }
}

/// Step costs of a target and of its draft model, if there is one.
#[derive(Debug)]
pub(in crate::serving) struct Priced {
    pub(in crate::serving) target: StepCost,
    draft: Option<StepCost>,
}

impl Priced {
    /// The source of drafts.
    pub(in crate::serving) fn drafter(&self, speculation: &Speculation) -> Drafter<'_> {
        let tokens = speculation.tokens;
        match (&speculation.drafts, &self.draft) {
            (Drafts::Model(_), Some(cost)) => Drafter::Model { cost, tokens, exchange: 0.0 },
            (Drafts::Parallel { .. }, Some(cost)) => Drafter::Parallel { cost, tokens },
            (Drafts::LayerParallel { group, .. }, Some(cost)) => {
                Drafter::LayerParallel { cost, tokens, group: *group }
            }
            (Drafts::Heads { layers }, _) => Drafter::Heads { tokens, layers: *layers },
            (Drafts::Tree(chances), _) => Drafter::Tree(chances.best_tree(tokens as usize)),
            _ => Drafter::Copy { tokens },
        }
    }
}

/// Prices a target on the nodes of a group, and its draft model.
pub(in crate::serving) fn priced(
    request: &ServingRequest<'_>,
    deployment: &Deployment,
    group: usize,
    speculation: &Speculation,
) -> Result<Priced, DetailError> {
    let node = request.node(group);
    let price = |model: &Model, deployment: &Deployment| {
        StepCost::new(model, deployment, request.cluster, node, request.engine, request.library)
    };
    let target = price(request.model, deployment)?;
    let draft = |model: &Model, tp: u32| {
        price(model, &Deployment { replicas: 1, tp, pp: 1, attention_dp: 1, ep: 1, ..*deployment })
            .map_err(|error| DetailError::Draft { name: model.name.clone(), error })
    };
    let draft = match &speculation.drafts {
        Drafts::Model(model) => Some(draft(model, deployment.tp)?),
        Drafts::Parallel { model, tp } => Some(draft(model, *tp)?),
        Drafts::LayerParallel { model, .. } => Some(draft(model, 1)?),
        Drafts::Heads { .. } | Drafts::Tree(_) | Drafts::Copy => None,
    };
    Ok(Priced { target, draft })
}

/// Serves the workload as it is.
pub(super) fn detail(
    request: &ServingRequest<'_>,
    deployment: &Deployment,
    speculation: &Speculation,
    served: &Served,
) -> Result<ServingDetail, DetailError> {
    if let Some(what) = conflicts(request, deployment, &served.options) {
        let what = format!("speculation together with {what} is not built");
        return Err(DetailError::Together { key: "speculation", what });
    }
    let node = request.node(served.group);
    let prices = priced(request, deployment, served.group, speculation)?;
    let (target, drafter) = (&prices.target, prices.drafter(speculation));
    let traffic = Traffic::generate(request.workload, request.seed);
    let shares = shared(&traffic, deployment.replicas);
    let runs = map_long(&shares, |share| {
        simulate_speculative(&SpeculativeInput {
            target,
            engine: request.engine,
            drafter: drafter.clone(),
            acceptance: speculation.acceptance.clone(),
            traffic: share,
            seed: request.seed,
        })
    });
    let runs: Vec<SpeculativeRun> = runs.into_iter().collect::<Result<_, ServingError>>()?;
    let rounds: u64 = runs.iter().map(|r| r.rounds).sum();
    let uncut: u64 = runs.iter().map(|r| r.uncut_tokens).sum();
    let each: Vec<_> = runs.iter().map(|r| &r.run).collect();
    let run = together(&each, traffic.requests.len(), deployment.replicas).ok_or(ServingError::NoRequests)?;
    let mut found = finish(request, (deployment, served.group), target, run, traffic);
    let extra = f64::from(speculation.extra_accelerators() * deployment.replicas);
    found.usd_per_hour += extra * node.price_per_gpu_hour;
    found.speculation =
        Some(SpeculationFigures { rounds, tokens_per_round: uncut as f64 / rounds.max(1) as f64 });
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::detail;
    use psim_cost_models::ProfileLibrary;
    use psim_cost_models::serving::engine::find;
    use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
    use psim_models::presets;
    use psim_models::serving::{Arrival, NumberFormat, Quantization, ServingWorkload};
    use psim_sim::serving::speculation::Acceptance;

    fn run(replicas: u32, speculation: Option<Speculation>, arrival: Arrival) -> ServingDetail {
        let model = presets::find("llama3-70b").unwrap();
        let cluster = homogeneous("H100-SXM-80GB", 16, &HomogeneousOptions::default()).unwrap();
        let workload = ServingWorkload::fixed("w", arrival, 60, 512, 128);
        let request = ServingRequest {
            model: &model,
            cluster: &cluster,
            engine: find("vllm-v1").unwrap(),
            workload: &workload,
            quantization: Quantization::uniform(NumberFormat::Bf16),
            library: &ProfileLibrary::built_in(),
            requests: 60,
            seed: 2,
        };
        let deployment = Deployment { replicas, ..Deployment::tensor_parallel(4, request.quantization) };
        let mut served = Served::replicas(deployment, FleetOptions::default());
        served.speculation = speculation;
        detail(&request, &served).unwrap()
    }

    fn heads(rate: f64) -> Speculation {
        Speculation {
            name: "mtp".to_owned(),
            drafts: Drafts::Heads { layers: 1 },
            tokens: 1,
            acceptance: Acceptance::Rate(rate),
        }
    }

    #[test]
    fn heads_that_are_always_right_nearly_halve_the_time_per_token() {
        let loop_of = |clients| Arrival::ClosedLoop { concurrency: clients };
        let plain = run(1, None, loop_of(1));
        let right = run(1, Some(heads(1.0)), loop_of(1));
        let wrong = run(1, Some(heads(0.0)), loop_of(1));
        assert_eq!(right.speculation.unwrap().tokens_per_round, 2.0);
        let (a, b, c) = (plain.report.tpot_ms.p50, right.report.tpot_ms.p50, wrong.report.tpot_ms.p50);
        // Two tokens a round, whose price is a step of two candidates and one layer of 80 with its output layer.
        assert!(b > 0.5 * a && b < 0.62 * a, "{a} {b}");
        assert!(c > a, "drafts that are never right cost time: {a} {c}");
    }

    #[test]
    fn replicas_share_the_requests_and_lose_none() {
        for arrival in [Arrival::Poisson { rate: 4.0 }, Arrival::ClosedLoop { concurrency: 3 }] {
            let found = run(4, Some(heads(0.7)), arrival);
            assert_eq!(found.report.requests, 60);
            assert_eq!(found.run.generated_tokens, 60 * 128);
            assert!(found.run.outcomes.iter().all(|o| o.finish.0 > 0));
        }
    }
}
