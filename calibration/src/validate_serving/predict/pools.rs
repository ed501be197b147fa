//! Rows with prompts and answers in pools of their own: the two pools are simulated together, with the caches that
//! move between them and the clients that wait for answers before they ask again.

use super::speculation;
use super::{Figures, NoFigures, ServingPredictor};
use crate::validate_serving::map::{Disaggregated, Mapped};
use psim_models::serving::{Arrival, Traffic};
use psim_sim::serving::disaggregated::{DisaggregatedInput, Pool, simulate_disaggregated};
use psim_sim::serving::{Placement, ServingReport, TransferMode};

/// Requests of a closed loop beyond which no more are sent: the steady state is reached long before.
const MOST: u32 = 40_000;

pub(super) fn figures(
    predictor: &ServingPredictor,
    mapped: &Mapped,
    pools: &Disaggregated,
) -> Result<Figures, NoFigures> {
    let mut workload = mapped.workload.clone();
    for t in &mut workload.tenants {
        if let Arrival::ClosedLoop { concurrency } = t.arrival {
            t.requests = t.requests.map(|n| n.min(MOST.max(3 * concurrency)));
        }
    }
    let traffic = Traffic::generate(&workload, 1);
    let prefill = predictor.cost(mapped, &pools.prefill)?;
    let decode = predictor.cost(mapped, &pools.decode)?;
    let (decode, traffic, gain) = if mapped.speculative {
        let (cost, traffic, gain) =
            speculation::drafted(&decode, traffic, speculation::drafts(mapped, &pools.decode));
        (cost, traffic, Some(gain))
    } else {
        (decode, traffic, None)
    };
    let engine = predictor.engine.as_ref().unwrap_or(&mapped.engine);
    let pool = |cost, instances| Pool { cost, engine, instances, context_parallel: 1, group: 0 };
    let run = simulate_disaggregated(&DisaggregatedInput {
        prefill: pool(&prefill, pools.prefill.replicas),
        decode: pool(&decode, pools.decode.replicas),
        cluster: &mapped.cluster,
        placement: Placement::Apart,
        transfer: TransferMode::AfterPrompt,
        traffic: &traffic,
        coalesce: true,
    })
    .map_err(|e| NoFigures::Other(e.to_string()))?;
    let report = ServingReport::new(&run.run, &traffic, &[]);
    if report.requests == 0 {
        return Err(NoFigures::Memory("no request fits the cache".to_owned()));
    }
    let figures = Figures {
        decode_gpus: pools.decode.accelerators(),
        prefill_gpus: pools.prefill.accelerators(),
        ..Figures::of(&report, decode.sigma().max(prefill.sigma()) + 0.1)
    };
    Ok(gain.map_or(figures, |g| g.restated(figures)))
}
