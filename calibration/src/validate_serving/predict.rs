//! Simulates mapped rows and restates the results in the rows' own metrics.

use super::map::{Mapped, map};
use crate::validate::map::Reason;
use crate::validate::row::{Row, source_of};
use crate::validate::score::{Entry, RowResult, Status};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::{EngineParameters, EngineProfile, StepCost, StepCostError, StepPieces};
use psim_models::serving::{Deployment, Traffic};
use psim_sim::serving::{FleetOptions, Percentiles, ServingInput, ServingReport, simulate};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

mod pools;
mod speculation;

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

impl Figures {
    fn of(report: &ServingReport, sigma: f64) -> Self {
        Self {
            output: report.output_tokens_per_s,
            input: report.input_tokens_per_s,
            requests: report.requests_per_s,
            ttft: report.ttft_ms,
            tpot: report.tpot_ms,
            sigma,
            decode_gpus: 0,
            prefill_gpus: 0,
        }
    }
}

/// Why a mapped row has no figures.
#[derive(Debug, Clone, PartialEq)]
pub enum NoFigures {
    /// The weights or a request do not fit.
    Memory(String),
    /// Anything else.
    Other(String),
}

impl ServingPredictor {
    /// Simulates a mapped row.
    ///
    /// # Errors
    /// What does not fit or cannot be priced.
    pub fn figures(&self, mapped: &Mapped) -> Result<Figures, NoFigures> {
        if let Some(pools) = &mapped.disaggregated {
            return pools::figures(self, mapped, pools);
        }
        let cost = self.cost(mapped, &mapped.deployment)?;
        let traffic = Traffic::generate(&mapped.workload, 1);
        if !mapped.speculative {
            return self.run(mapped, &cost, &traffic, mapped.deployment.replicas);
        }
        let drafts = speculation::drafts(mapped, &mapped.deployment);
        let (cost, traffic, gain) = speculation::drafted(&cost, traffic, drafts);
        Ok(gain.restated(self.run(mapped, &cost, &traffic, mapped.deployment.replicas)?))
    }

    /// The numbers of a row's engine on its accelerator.
    pub fn numbers(&self, mapped: &Mapped) -> EngineParameters {
        let (gpu, experts) = (mapped.accelerator(), mapped.experts());
        let engine = self.engine.as_ref().unwrap_or(&mapped.engine);
        let version = engine.version;
        let engine = self.tuned.get(&engine.name).unwrap_or(engine);
        let numbers = self.parameters.unwrap_or_else(|| engine.on(gpu).0);
        engine.released(version, numbers, gpu, experts)
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
        Ok(Figures::of(&report, cost.sigma()))
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
    // Never fitted to, and unstated numbers of drafts, schedules of pools: as wide as their errors.
    let wider = match (&mapped.disaggregated, mapped.speculative) {
        (Some(_), _) => 2.2,
        (None, true) => 1.6,
        (None, false) => 1.0,
    };
    let scatter = scatter * wider;
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
        gpu: row.hardware.gpu.clone(),
        mixture: row.model.experts.is_some_and(|e| e > 1),
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
        doubts: Vec::new(),
        facts: None,
    }
}
