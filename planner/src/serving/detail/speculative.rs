//! Replicas that speculate.

use super::{DetailError, ServingDetail, SpeculationFigures, cache_tokens, finish};
use crate::serving::{Drafts, PoolLayout, Served, ServingRequest, Speculation, Split};
use psim_cost_models::serving::StepCost;
use psim_models::Model;
use psim_models::serving::{Deployment, Traffic};
use psim_sim::serving::speculation::{Drafter, Speculating};
use psim_sim::serving::{Beside, FleetOptions, ServingInput, ServingRun, simulate_with};

/// What is not simulated together with speculation, and why.
pub(in crate::serving) type Conflict = (&'static str, &'static str);

/// The conflict of replicas, if any.
pub(in crate::serving) fn conflict(
    deployment: &Deployment,
    speculation: &Speculation,
    options: &FleetOptions,
) -> Option<Conflict> {
    if deployment.pp > 1 {
        Some(("pipeline stages (pp)", "drafts come from the last stage, and the others would wait for it"))
    } else if deployment.attention_dp > 1 && speculation.extra_accelerators() > 0 {
        Some((
            "several copies of the attention (attention_dp) and drafts on accelerators of their own",
            "which copy is drafted for when is not published",
        ))
    } else if options.pace.is_some() {
        Some(("the pace of answers", "tokens of a round come at once"))
    } else {
        None
    }
}

/// The conflict of pools for prompts and for answers, if any.
pub(in crate::serving) fn conflict_of_pools(split: &Split, speculation: &Speculation) -> Option<Conflict> {
    let reads = matches!(speculation.drafts, Drafts::Model(_) | Drafts::LayerParallel { .. });
    if speculation.extra_accelerators() > 0 {
        let why = "a draft model beside the decode pool would have to read the prompts there";
        Some(("pools and drafts on accelerators of their own", why))
    } else if reads && split.prefill.context_parallel > 1 {
        Some(("context_parallel and a draft model", "how the draft model's prompts are cut is not modelled"))
    } else {
        let of = |pool: &PoolLayout| conflict(&pool.deployment, speculation, &FleetOptions::default());
        // Prompts alone draft nothing.
        of(&split.decode).or_else(|| if reads { of(&split.prefill) } else { None })
    }
}

/// The refusal of a conflict.
pub(in crate::serving) fn refusal((what, why): Conflict) -> DetailError {
    DetailError::Together {
        key: "speculation",
        what: format!("speculation together with {what} is not built: {why}"),
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

    /// The target's decoding steps as rounds.
    pub(in crate::serving) fn speculating(&self, speculation: &Speculation, seed: u64) -> Speculating<'_> {
        Speculating::new(&self.target, self.drafter(speculation), speculation.acceptance.clone(), seed)
    }
}

/// Prices a target on the nodes of a group, and its draft model.
pub(in crate::serving) fn priced(
    request: &ServingRequest<'_>,
    deployment: &Deployment,
    group: usize,
    drafts: Option<&Drafts>,
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
    let draft = match drafts {
        Some(Drafts::Model(model)) => Some(draft(model, deployment.tp)?),
        Some(Drafts::Parallel { model, tp }) => Some(draft(model, *tp)?),
        Some(Drafts::LayerParallel { model, .. }) => Some(draft(model, 1)?),
        Some(Drafts::Heads { .. } | Drafts::Tree(_) | Drafts::Copy) | None => None,
    };
    Ok(Priced { target, draft })
}

/// What a run's rounds did.
pub(super) fn figures(run: &ServingRun) -> SpeculationFigures {
    let rounds = run.extra.rounds;
    let tokens_per_round = run.extra.round_tokens as f64 / rounds.max(1) as f64;
    SpeculationFigures { rounds, tokens_per_round }
}

/// Serves the workload as it is.
pub(super) fn detail(
    request: &ServingRequest<'_>,
    deployment: &Deployment,
    speculation: &Speculation,
    served: &Served,
) -> Result<ServingDetail, DetailError> {
    if let Some(what) = conflict(deployment, speculation, &served.options) {
        return Err(refusal(what));
    }
    let prices = priced(request, deployment, served.group, Some(&speculation.drafts))?;
    let speculating = prices.speculating(speculation, request.seed);
    let traffic = Traffic::generate(request.workload, request.seed);
    let input = ServingInput {
        cost: &prices.target,
        engine: request.engine,
        traffic: &traffic,
        replicas: deployment.replicas,
        options: served.options,
    };
    let run = simulate_with(&input, Beside { speculation: Some(&speculating), ..Beside::default() })?;
    let rounds = figures(&run);
    let mut found = finish(request, (deployment, served.group), &prices.target, run, traffic);
    // Accelerators of drafts are paid for as long as the replicas that they draft for.
    let each = f64::from(deployment.accelerators_per_replica());
    found.usd_per_hour *= 1.0 + f64::from(speculation.extra_accelerators()) / each;
    found.cache_bytes = speculating.cache_bytes(&prices.target);
    found.cache_tokens = cache_tokens(found.cache_bytes, &speculating.cached(&prices.target));
    found.speculation = Some(rounds);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::detail;
    use crate::serving::fixture::Asked;
    use psim_models::serving::{Arrival, ServingWorkload};
    use psim_sim::serving::speculation::Acceptance;

    fn run(replicas: u32, speculation: Option<Speculation>, arrival: Arrival) -> ServingDetail {
        let workload = ServingWorkload::fixed("w", arrival, 60, 512, 128);
        let asked = Asked { seed: 2, ..Asked::new("llama3-70b", 16, workload) };
        let request = asked.request();
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
