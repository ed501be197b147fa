//! Simulates mapped rows and restates the results in the rows' own metrics.

use super::map::{Disaggregated, Mapped, map};
use crate::validate::map::Reason;
use crate::validate::row::{Row, source_of};
use crate::validate::score::{Entry, RowResult, Status};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::{EngineParameters, EngineProfile, StepCost, StepCostError, StepPieces};
use psim_models::serving::{Arrival, Deployment, Lengths, Traffic};
use psim_sim::serving::{FleetOptions, Percentiles, ServingInput, ServingReport, simulate};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Metrics of a serving row, in the order in which one is scored.
pub const METRICS: [&str; 6] = [
    "output_tokens_per_s",
    "total_tokens_per_s",
    "request_per_s",
    "input_tokens_per_s",
    "tpot_ms",
    "ttft_ms",
];

/// How rows are predicted.
#[derive(Debug, Clone)]
pub struct ServingPredictor {
    /// Profiles.
    pub library: ProfileLibrary,
    /// One engine for every row in place of the row's own.
    pub engine: Option<EngineProfile>,
    /// Numbers in place of the engine's own (fitting).
    pub parameters: Option<EngineParameters>,
    /// Profiles whose numbers stand in for the built-in ones of the same name.
    pub tuned: BTreeMap<String, EngineProfile>,
}

impl ServingPredictor {
    /// The built-in profiles.
    pub fn built_in() -> Self {
        Self { library: ProfileLibrary::built_in(), engine: None, parameters: None, tuned: BTreeMap::new() }
    }
}

/// What a simulation says about a row, per replica set of the row.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Figures {
    /// Output tokens a second.
    pub output: f64,
    /// Input tokens a second.
    pub input: f64,
    /// Requests a second.
    pub requests: f64,
    /// Time to first token.
    pub ttft: Percentiles,
    /// Time per output token.
    pub tpot: Percentiles,
    /// Logarithmic standard deviation of the kernel laws.
    pub sigma: f64,
    /// Accelerators on the answer side, where pools differ.
    pub decode_gpus: u32,
    /// Accelerators on the prompt side.
    pub prefill_gpus: u32,
}

/// Why a mapped row has no figures.
#[derive(Debug, Clone, PartialEq)]
pub enum NoFigures {
    /// The weights or a request do not fit.
    Memory(String),
    /// Anything else.
    Other(String),
}

/// Tokens per step of multi-token prediction: one drafted token more, accepted at this rate (DeepSeek-V3 report,
/// section 5.4.3: 85 to 90 per cent for the second token).
const MTP_ACCEPTANCE: f64 = 0.85;

impl ServingPredictor {
    /// Simulates a mapped row.
    ///
    /// # Errors
    /// What does not fit or cannot be priced.
    pub fn figures(&self, mapped: &Mapped) -> Result<Figures, NoFigures> {
        if let Some(pools) = &mapped.disaggregated {
            return self.both_pools(mapped, pools);
        }
        let cost = self.cost(mapped, &mapped.deployment)?;
        let traffic = Traffic::generate(&mapped.workload, 1);
        self.run(mapped, &cost, &traffic, mapped.deployment.replicas)
    }

    /// The numbers of a row's engine on its accelerator.
    pub fn numbers(&self, mapped: &Mapped) -> EngineParameters {
        let engine = self.engine.as_ref().unwrap_or(&mapped.engine);
        let engine = self.tuned.get(&engine.name).unwrap_or(engine);
        self.parameters.unwrap_or_else(|| engine.on(&mapped.cluster.first_node().accelerator.name).0)
    }

    /// Prices of a deployment.
    ///
    /// # Errors
    /// As [`ServingPredictor::figures`].
    pub fn cost(&self, mapped: &Mapped, deployment: &Deployment) -> Result<StepCost, NoFigures> {
        let parameters = self.numbers(mapped);
        Ok(StepCost::from_pieces(self.pieces(mapped, deployment, parameters)?, parameters))
    }

    /// Tables of a deployment, before efficiencies.
    ///
    /// # Errors
    /// As [`ServingPredictor::figures`].
    pub fn pieces(
        &self,
        mapped: &Mapped,
        deployment: &Deployment,
        parameters: EngineParameters,
    ) -> Result<Arc<StepPieces>, NoFigures> {
        let node = mapped.cluster.first_node();
        let engine = self.engine.as_ref().unwrap_or(&mapped.engine);
        let pieces = StepPieces::new(
            &mapped.model,
            deployment,
            &mapped.cluster,
            node,
            engine,
            parameters,
            &self.library,
        );
        pieces.map(Arc::new).map_err(|e| match e {
            StepCostError::Memory { .. } => NoFigures::Memory(e.to_string()),
            other => NoFigures::Other(other.to_string()),
        })
    }

    /// Simulates one pool under given traffic.
    ///
    /// # Errors
    /// As [`ServingPredictor::figures`].
    pub fn run(
        &self,
        mapped: &Mapped,
        cost: &StepCost,
        traffic: &Traffic,
        replicas: u32,
    ) -> Result<Figures, NoFigures> {
        let engine = self.engine.as_ref().unwrap_or(&mapped.engine);
        let options = FleetOptions::default();
        let run = simulate(&ServingInput { cost, engine, traffic, replicas, options })
            .map_err(|e| NoFigures::Other(e.to_string()))?;
        let report = ServingReport::new(&run, traffic, &[]);
        if report.requests == 0 {
            return Err(NoFigures::Memory("no request fits the cache".to_owned()));
        }
        let mut tpot = report.tpot_ms;
        let mut scale = 1.0;
        if mapped.speculative {
            // One draft layer more in each step, 1 + acceptance tokens out of it.
            let layers = f64::from(mapped.model.layers().max(1));
            scale = (1.0 + MTP_ACCEPTANCE) / (1.0 + 1.5 / layers + 0.12);
            for value in [&mut tpot.mean, &mut tpot.p50, &mut tpot.p90, &mut tpot.p95, &mut tpot.p99] {
                *value /= scale;
            }
        }
        // The share of an answer that is not the first token is sped up.
        let wait = report.ttft_ms.mean / report.e2e_ms.mean.max(1e-9);
        let faster = 1.0 / (wait + (1.0 - wait) / scale);
        Ok(Figures {
            output: report.output_tokens_per_s * faster,
            input: report.input_tokens_per_s * faster,
            requests: report.requests_per_s * faster,
            ttft: report.ttft_ms,
            tpot,
            sigma: cost.sigma(),
            decode_gpus: 0,
            prefill_gpus: 0,
        })
    }

    /// Prompt and answer pools one after the other: the prompt pool in a closed loop of its own, the answer pool with
    /// what then remains in flight; the slower pool sets the rate. A closed form, reported apart.
    fn both_pools(&self, mapped: &Mapped, pools: &Disaggregated) -> Result<Figures, NoFigures> {
        let Some(tenant) = mapped.workload.tenants.first() else {
            return Err(NoFigures::Other("no traffic".to_owned()));
        };
        let Arrival::ClosedLoop { concurrency } = tenant.arrival else {
            return Err(NoFigures::Other(
                "disaggregated rows are predicted in a closed loop only".to_owned(),
            ));
        };
        let side = |deployment: &Deployment, clients: u32, prompts: bool| -> Result<Figures, NoFigures> {
            let cost = self.cost(mapped, deployment)?;
            let mut workload = mapped.workload.clone();
            for t in &mut workload.tenants {
                t.arrival = Arrival::ClosedLoop { concurrency: clients.max(1) };
                t.requests = Some(t.requests.unwrap_or(100).min(clients.max(1) * 8));
                if prompts {
                    t.output = Lengths::Fixed(1);
                }
            }
            let mut traffic = Traffic::generate(&workload, 1);
            if !prompts {
                // The cache arrives whole: a prompt of one token is left to compute, the rest is context.
                for r in &mut traffic.requests {
                    r.prefix = 0;
                }
            }
            self.run(mapped, &cost, &traffic, deployment.replicas)
        };
        // In flight on the prompt side: found by a few rounds of Little's law.
        let mut waiting = (f64::from(concurrency) * 0.1).max(1.0);
        let mut prefill = side(&pools.prefill, waiting.round() as u32, true)?;
        let decode = self.decode_only(mapped, pools, concurrency)?;
        for _ in 0..3 {
            let rate = prefill.requests.min(decode.requests);
            let next = (rate * prefill.ttft.mean * 1e-3).clamp(1.0, f64::from(concurrency));
            waiting = 0.5 * (waiting + next);
            prefill = side(&pools.prefill, waiting.round() as u32, true)?;
        }
        let decode_clients = (f64::from(concurrency) - waiting).max(1.0);
        let decode = if decode_clients < 0.95 * f64::from(concurrency) {
            self.decode_only(mapped, pools, decode_clients.round() as u32)?
        } else {
            decode
        };
        let rate = prefill.requests.min(decode.requests);
        let per_request = decode.output / decode.requests.max(1e-12);
        let (mean_in, _) = mapped.workload.mean_lengths();
        Ok(Figures {
            output: rate * per_request,
            input: rate * mean_in,
            requests: rate,
            ttft: prefill.ttft,
            tpot: decode.tpot,
            sigma: prefill.sigma.max(decode.sigma) + 0.1,
            decode_gpus: pools.decode.accelerators(),
            prefill_gpus: pools.prefill.accelerators(),
        })
    }

    /// Steady decoding of a pool: every client's sequence is in the batch, at the mean length.
    fn decode_only(
        &self,
        mapped: &Mapped,
        pools: &Disaggregated,
        clients: u32,
    ) -> Result<Figures, NoFigures> {
        use psim_cost_models::serving::{KINDS, Lane};
        let d = &pools.decode;
        let cost = self.cost(mapped, d)?;
        let (input, output) = mapped.workload.mean_lengths();
        let lanes = cost.lanes().max(1);
        let per_lane = (f64::from(clients) / f64::from(d.replicas * lanes)).max(1.0);
        let length = input + output / 2.0;
        let bytes = cost.shape().sequence_bytes((input + output) as u64).max(1.0);
        let most = (cost.cache_bytes() / bytes).floor();
        if most < 1.0 {
            return Err(NoFigures::Memory("no request fits the cache".to_owned()));
        }
        let batch = per_lane.min(most).round().max(1.0) as u32;
        let mut context = [0; KINDS];
        for (slot, limit) in context.iter_mut().zip(cost.reads_at_most()) {
            let read = limit.map_or(length, |w| length.min(w as f64));
            *slot = (f64::from(batch) * read) as u64;
        }
        let lane = Lane { decoding: batch, context, chunks: &[] };
        let busy = (f64::from(clients) / f64::from(d.replicas)).min(f64::from(lanes)).max(1.0) as usize;
        let step = cost.seconds(&vec![lane; busy]);
        let mut tpot = step * 1e3;
        if mapped.speculative {
            tpot /= (1.0 + MTP_ACCEPTANCE) / (1.12 + 1.5 / f64::from(mapped.model.layers().max(1)));
        }
        let sequences = f64::from(batch) * busy as f64 * f64::from(d.replicas);
        let rate = sequences / (tpot * 1e-3 * output.max(1.0));
        let p = Percentiles { mean: tpot, p50: tpot, p90: tpot, p95: tpot, p99: tpot, max: tpot };
        Ok(Figures {
            output: rate * output,
            input: rate * input,
            requests: rate,
            tpot: p,
            sigma: cost.sigma(),
            ..Figures::default()
        })
    }

    /// Predicts one row and restates the prediction in its metrics.
    pub fn row(&self, row: &Row) -> RowResult {
        let mut result = blank(row);
        let mapped = match map(row) {
            Ok(mapped) => mapped,
            Err(reason) => {
                result.status = match reason {
                    Reason::Unsupported(why) => Status::Unsupported(why),
                    Reason::Incomplete(why) => Status::Incomplete(why),
                };
                return result;
            }
        };
        result.stack = mapped.engine.name.clone();
        result.notes.extend(mapped.notes.iter().cloned());
        match self.figures(&mapped) {
            Ok(figures) => {
                result.fits = Some(true);
                for entry in &mut result.entries {
                    entry.predicted = restate(entry.metric, &mapped, &figures);
                }
            }
            Err(NoFigures::Memory(why)) => {
                result.fits = Some(false);
                // Its times all the same, as if the memory were there.
                let mut roomy = mapped.clone();
                roomy.engine.memory_share = 1e3;
                match self.figures(&roomy) {
                    Ok(figures) => {
                        result.notes.push(format!("predicted not to fit: {why}; times as if it did"));
                        for entry in &mut result.entries {
                            entry.predicted = restate(entry.metric, &mapped, &figures);
                        }
                    }
                    Err(_) => {
                        result.status = Status::Incomplete(format!("predicted not to fit: {why}"));
                    }
                }
            }
            Err(NoFigures::Other(why)) => result.status = Status::Incomplete(why),
        }
        result
    }
}

/// Predicts one row with the built-in profiles.
pub fn predict_row(row: &Row) -> RowResult {
    ServingPredictor::built_in().row(row)
}

/// Value and 80 % interval of a metric in the row's unit.
pub fn restate(metric: &str, mapped: &Mapped, f: &Figures) -> Option<[f64; 3]> {
    let pick = |p: &Percentiles| match mapped.percentile {
        None => p.mean,
        Some(q) if q <= 50.0 => p.p50,
        Some(q) if q <= 90.0 => p.p90,
        Some(q) if q <= 95.0 => p.p95,
        Some(_) => p.p99,
    };
    let share = |pool: u32| {
        if !mapped.per_gpu {
            1.0
        } else if pool > 0 {
            f64::from(pool)
        } else {
            f64::from(mapped.gpus.max(1))
        }
    };
    let all = if f.decode_gpus > 0 { f.decode_gpus + f.prefill_gpus } else { 0 };
    let value = match metric {
        "output_tokens_per_s" => f.output / share(f.decode_gpus),
        "input_tokens_per_s" if mapped.prompt_only => 1e3 * f.input / (1e3 * share(f.prefill_gpus)),
        "input_tokens_per_s" => f.input / share(f.prefill_gpus),
        "total_tokens_per_s" if f.decode_gpus > 0 => {
            if mapped.per_gpu {
                f.output / f64::from(f.decode_gpus) + f.input / f64::from(f.prefill_gpus.max(1))
            } else {
                f.output + f.input
            }
        }
        "total_tokens_per_s" => (f.output + f.input) / share(all),
        "request_per_s" => f.requests,
        "ttft_ms" => pick(&f.ttft),
        "tpot_ms" => pick(&f.tpot),
        _ => return None,
    };
    // 80 % of the logarithmic errors on configurations that no number was fitted to, widened by the kernels' own.
    let scatter: f64 = match metric {
        "tpot_ms" => 0.16,
        "ttft_ms" => 0.50,
        _ => 0.21,
    };
    let spread = (scatter * scatter + 0.02 * f.sigma * f.sigma).sqrt().exp();
    value.is_finite().then_some([value, value / spread, value * spread])
}

/// The row with its measurements and no prediction.
fn blank(row: &Row) -> RowResult {
    let measured = row.value.get("measured");
    let printed = |metric: &str| measured.and_then(|m| m.get(metric)).and_then(Value::as_f64);
    let entries: Vec<Entry> = METRICS
        .iter()
        .filter_map(|metric| {
            Some(Entry { metric, measured: printed(metric).filter(|m| *m > 0.0)?, predicted: None })
        })
        .collect();
    let scored = (!entries.is_empty()).then_some(0);
    let out_of_memory = row.outcome.as_deref().is_some_and(|o| o.to_lowercase().contains("oom"));
    RowResult {
        id: row.id.clone(),
        source: source_of(&row.id).to_owned(),
        weak: row.weak.is_some(),
        doubtful: ["WARNING", "SUSPECT"].iter().any(|w| row.notes.contains(w)),
        status: Status::Predicted,
        stack: String::new(),
        ran: if out_of_memory { Some(false) } else { scored.map(|_| true) },
        entries,
        scored,
        memory: None,
        fits: None,
        candidate: None,
        notes: Vec::new(),
        breakdown: Vec::new(),
    }
}
