//! Serving answers as JSON.

use super::super::deployment::{placement_name, transfer_name};
use super::super::job::ServingJob;
use super::arrival;
use psim_models::serving::{Deployment, ServingWorkload};
use psim_planner::serving::{DisaggregatedPlan, Layout, PoolLayout, Served, ServingDetail, ServingPlan};
use psim_sim::serving::{Percentiles, ServingReport};
use serde_json::{Value, json};

/// A deployment as JSON.
pub(crate) fn deployment(d: &Deployment) -> Value {
    let q = d.quantization;
    json!({
        "replicas": d.replicas, "tp": d.tp, "pp": d.pp, "attention_dp": d.attention_dp, "ep": d.ep,
        "weights": q.dense.name(), "attention": q.attention.name(), "experts": q.experts.name(), "kv": q.kv.name(),
    })
}

/// The figures of a run as JSON; latencies of a saturated run are null, and times per token where no answer has a second.
pub(crate) fn report(report: &ServingReport) -> Value {
    let latency = |p: &Percentiles| if report.saturated || p.max <= 0.0 { Value::Null } else { json!(p) };
    let promises: Vec<Value> = report
        .promises
        .iter()
        .map(|k| {
            let mut value = json!(k);
            if report.saturated || k.reached_ms <= 0.0 {
                value["reached_ms"] = Value::Null;
            }
            value
        })
        .collect();
    json!({
        "saturated": report.saturated,
        "too_short": report.too_short,
        "requests": report.requests,
        "refused": report.refused,
        "seconds": report.seconds,
        "requests_per_s": report.requests_per_s,
        "while_requests_come": report.flowing,
        "input_tokens_per_s": report.input_tokens_per_s,
        "output_tokens_per_s": report.output_tokens_per_s,
        "ttft_ms": latency(&report.ttft_ms),
        "tpot_ms": latency(&report.tpot_ms),
        "itl_ms": latency(&report.itl_ms),
        "e2e_ms": latency(&report.e2e_ms),
        "promises": promises,
        "goodput_rps": report.goodput,
        "good_share": report.good_share,
        "mean_in_system": report.mean_in_system,
        "peak_cache": report.peak_cache,
        "preemptions": report.preemptions,
        "cache_hits": report.cache_hits,
        "steps": report.steps,
    })
}

/// Tokens a second of one user; null where no answer has a second token.
fn per_user(rate: f64, report: &ServingReport) -> Value {
    if report.tpot_ms.max > 0.0 { json!(rate) } else { Value::Null }
}

/// A plan as JSON.
pub(crate) fn plan(plan: &ServingPlan, rate: Option<f64>) -> Value {
    let finite = |v: f64| if v.is_finite() { json!(v) } else { Value::Null };
    json!({
        "deployment": deployment(&plan.deployment),
        "token_budget": plan.token_budget,
        "accelerators": plan.accelerators,
        "keeps_promises": plan.rate_per_replica > 0.0,
        "goodput_rps": plan.rate,
        "goodput_rps_per_replica": plan.rate_per_replica,
        "goodput_rps_per_gpu": plan.rate_per_accelerator,
        "output_tokens_per_s_per_gpu": plan.tokens_per_s_per_accelerator,
        "output_tokens_per_s_per_user": per_user(plan.tokens_per_s_per_user, &plan.report),
        "usd_per_million_output_tokens": finite(plan.usd_per_million_tokens),
        "energy_j_per_output_token": plan.joule_per_token,
        "accelerator": plan.accelerator,
        "pareto": plan.pareto,
        "measured": plan.measured,
        "needed": rate.and_then(|r| plan.needed(r)),
        "replica_at_that_rate": report(&plan.report),
    })
}

/// The question as JSON.
pub(crate) fn question(job: &ServingJob) -> Value {
    let (input, output) = job.workload.mean_lengths();
    json!({
        "model": job.model.name,
        "parameters": job.model.parameters().total,
        "cluster": job.cluster.name,
        "accelerator": job.cluster.first_node().accelerator.name,
        "accelerators": job.cluster.accelerators(),
        "workload": job.workload.name,
        "tenants": tenants(&job.workload),
        "rate_rps": job.workload.rate(),
        "mean_input_tokens": input,
        "mean_output_tokens": output,
        "engine": job.engine.name,
        "weights": job.quantization.dense.name(),
        "kv": job.quantization.kv.name(),
        "seed": job.seed,
        "assumptions": job.assumptions,
    })
}

fn tenants(workload: &ServingWorkload) -> Vec<Value> {
    workload
        .tenants
        .iter()
        .map(|t| {
            let (input, output) = t.mean_lengths();
            json!({
                "name": t.name, "arrival": arrival(&t.arrival), "rate_rps": t.rate(), "requests": t.requests,
                "mean_input_tokens": input, "mean_output_tokens": output, "promises": t.slo.promises,
                "requests_per_conversation": t.sessions.as_ref().map(|_| t.requests_per_arrival()),
                "shared_prefix_tokens": t.prefix.map(|p| p.tokens), "adapters": t.adapters.map(|a| a.count),
            })
        })
        .collect()
}

/// Replicas or pools as JSON.
pub(crate) fn layout(layout: &Layout) -> Value {
    match layout {
        Layout::Replicas(d) => deployment(d),
        Layout::Pools(split) => {
            let pool = |p: &PoolLayout| {
                let mut value = deployment(&p.deployment);
                value["cp"] = json!(p.context_parallel);
                value["group"] = json!(p.group);
                value
            };
            json!({
                "prefill": pool(&split.prefill),
                "decode": pool(&split.decode),
                "placement": placement_name(split.placement),
                "transfer": transfer_name(split.transfer),
            })
        }
    }
}

/// A simulated deployment as JSON.
pub(crate) fn simulation(job: &ServingJob, served: &Served, found: &ServingDetail) -> Value {
    json!({
        "schema": 1,
        "kind": "serving",
        "question": question(job),
        "deployment": layout(&found.layout),
        "accelerators": served.accelerators(),
        "cache_tokens_per_replica": found.cache_tokens.is_finite().then_some(found.cache_tokens),
        "measured": found.measured,
        "pools": found.pools,
        "speculation": found.speculation,
        "arrangement": found.arrangement,
        "experts_outside": served.experts_outside,
        "attention_ffn": served.apart.map(|a| json!({ "layout": a, "figures": found.apart })),
        "mean_replicas": found.run.replica_seconds / found.run.end.seconds().0.max(1e-12),
        "moved_bytes": found.run.extra.moved_bytes,
        "tuned_tokens": found.run.extra.tuned_tokens,
        "usd_per_hour": found.usd_per_hour,
        "usd_per_million_output_tokens": found.usd_per_million_tokens(),
        "kilowatts": found.energy.kilowatts,
        "energy_j_per_output_token": found.energy.joule_per_token,
        "report": report(&found.report),
    })
}

/// A split as JSON.
pub(crate) fn split(p: &DisaggregatedPlan) -> Value {
    json!({
        "prefill": deployment(&p.prefill),
        "decode": deployment(&p.decode),
        "unit": { "prefill": p.unit_prefill, "decode": p.unit_decode, "units": p.units },
        "accelerators": p.accelerators,
        "goodput_rps": p.rate,
        "goodput_rps_per_gpu": p.rate_per_accelerator,
        "output_tokens_per_s_per_gpu": p.tokens_per_s_per_accelerator,
        "output_tokens_per_s_per_user": per_user(p.tokens_per_s_per_user, &p.report),
        "usd_per_million_output_tokens": p.usd_per_million_tokens,
        "energy_j_per_output_token": p.joule_per_token,
        "pareto": p.pareto,
        "transfer_ms": p.transfer_ms,
        "measured": p.measured,
        "unit_at_that_rate": report(&p.report),
    })
}
