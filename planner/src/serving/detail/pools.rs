//! Prompts and answers on pools of their own, under the workload's own traffic.

use super::speculative::{conflict_of_pools, figures, priced, refusal};
use super::{DetailError, PoolFigures, ServingDetail, cache_tokens, levels};
use crate::serving::energy::{Activity, Energy, joules};
use crate::serving::{Layout, PoolLayout, RedundantExperts, Served, ServingRequest, Split};
use psim_cost_models::serving::EngineProfile;
use psim_models::serving::Traffic;
use psim_sim::serving::{Beside, DisaggregatedInput, Pool, ServingReport, simulate_disaggregated_with};

/// The engine of a pool: the request's, with the pool's own limits. Pools whose experts are not spread have no copies.
fn engine(
    request: &ServingRequest<'_>,
    pool: &PoolLayout,
    redundant: Option<&RedundantExperts>,
) -> EngineProfile {
    let own = request.engine;
    let engine = EngineProfile {
        token_budget: pool.token_budget.unwrap_or(own.token_budget),
        max_sequences: pool.max_sequences.unwrap_or(own.max_sequences),
        ..own.clone()
    };
    match redundant {
        Some(r) if r.fault(request.model, &pool.deployment).is_none() => {
            let accelerator = &request.node(pool.group).accelerator.name;
            r.on(&engine, accelerator, request.model, &pool.deployment)
        }
        _ => engine,
    }
}

/// Serves the workload as it is.
pub(super) fn detail(
    request: &ServingRequest<'_>,
    split: &Split,
    served: &Served,
) -> Result<ServingDetail, DetailError> {
    let (redundant, speculation) = (served.redundant.as_ref(), served.speculation.as_ref());
    if let Some(what) = speculation.and_then(|s| conflict_of_pools(split, s)) {
        return Err(refusal(what));
    }
    if let Some(r) = redundant {
        let faults = [&split.prefill, &split.decode].map(|p| r.fault(request.model, &p.deployment));
        if let [Some(_), Some(what)] = faults {
            return Err(DetailError::Together { key: "redundant_experts", what });
        }
    }
    let (prefill_engine, decode_engine) =
        (engine(request, &split.prefill, redundant), engine(request, &split.decode, redundant));
    let price = |pool: &PoolLayout, engine: &EngineProfile| {
        let with = ServingRequest { engine, ..*request };
        priced(&with, &pool.deployment, pool.group, speculation.map(|s| &s.drafts))
    };
    let (prompts, answers) = (price(&split.prefill, &prefill_engine)?, price(&split.decode, &decode_engine)?);
    let (prefill, decode) = (&prompts.target, &answers.target);
    let drafts = speculation.map(|s| (answers.speculating(s, request.seed), prompts.drafter(s)));
    let beside = Beside {
        speculation: drafts.as_ref().map(|(rounds, _)| rounds),
        prompts: drafts.as_ref().map(|(_, drafter)| drafter),
        stop: None,
    };
    let traffic = Traffic::generate(request.workload, request.seed);
    let input = DisaggregatedInput {
        prefill: Pool {
            cost: prefill,
            engine: &prefill_engine,
            instances: split.prefill.deployment.replicas,
            context_parallel: split.prefill.context_parallel.max(1),
            group: split.prefill.group,
        },
        decode: Pool {
            cost: decode,
            engine: &decode_engine,
            instances: split.decode.deployment.replicas,
            context_parallel: 1,
            group: split.decode.group,
        },
        cluster: request.cluster,
        placement: split.placement,
        transfer: split.transfer,
        traffic: &traffic,
        coalesce: true,
    };
    let found = simulate_disaggregated_with(&input, beside)?;
    let run = found.run;
    let report = ServingReport::new(&run, &traffic, &levels(request));
    let side = |pool: &PoolLayout, busy: f64, prompt_tokens: f64| {
        let activity = Activity {
            instance_seconds: report.seconds * f64::from(pool.deployment.replicas),
            busy,
            prompt_tokens,
        };
        let node = request.node(pool.group);
        let width = f64::from(pool.context_parallel.max(1));
        width * joules(request.model, request.cluster, node, &pool.deployment, &activity)
    };
    let spent = side(&split.prefill, found.prefill_busy, run.computed_prompt_tokens as f64)
        + side(&split.decode, found.decode_busy, 0.0);
    let usd =
        |pool: &PoolLayout| f64::from(pool.accelerators()) * request.node(pool.group).price_per_gpu_hour;
    let (cache_bytes, cached) = drafts.as_ref().map_or_else(
        || (decode.cache_bytes(), decode.shape().clone()),
        |(rounds, _)| (rounds.cache_bytes(decode), rounds.cached(decode)),
    );
    let moved = found.transfer_seconds.len().max(1) as f64;
    let share = |busy: f64, pool: &PoolLayout| {
        busy / (report.seconds * f64::from(pool.deployment.replicas.max(1))).max(f64::MIN_POSITIVE)
    };
    Ok(ServingDetail {
        layout: Layout::Pools(*split),
        pools: Some(PoolFigures {
            transfer_ms: 1e3 * (found.transfer_seconds.iter().sum::<f64>() + 0.0) / moved,
            bytes: found.bytes,
            held_back: found.held_back,
            prefill_busy: share(found.prefill_busy, &split.prefill),
            decode_busy: share(found.decode_busy, &split.decode),
        }),
        speculation: speculation.map(|_| figures(&run)),
        arrangement: None,
        apart: None,
        energy: Energy::of(spent, report.seconds, run.generated_tokens as f64),
        usd_per_hour: usd(&split.prefill) + usd(&split.decode),
        cache_bytes,
        cache_tokens: cache_tokens(cache_bytes, &cached),
        measured: prefill.own_laws() && decode.own_laws(),
        report,
        run,
        traffic,
    })
}
