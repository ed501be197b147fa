//! Fits the numbers of engine profiles to half of the published rows; the other half is never seen.
//!
//! A number belongs to an engine in its era, or to that engine on an accelerator, and stays within
//! [`EngineParameters::BOUNDS`]. Rows are split by a hash of model, layout and lengths, so that no configuration is on
//! both sides.

use super::accuracy::{Class, class};
use super::map::{Mapped, map};
use super::predict::{Figures, ServingPredictor};
use crate::validate::row::Row;
use psim_cost_models::serving::engine::{AcceleratorOverride, EngineProfile, find};
use psim_cost_models::serving::{EngineParameters, StepCost, StepPieces};
use psim_models::serving::Traffic;
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

mod newton;

use newton::Problem;

/// One row of a fit, with all that does not change while numbers do.
struct Sample {
    mapped: Mapped,
    traffic: Traffic,
    pieces: RwLock<Option<Arc<StepPieces>>>,
    /// Metric and measured value.
    measured: Vec<(&'static str, f64)>,
    gpu: String,
}

impl Sample {
    fn figures(&self, predictor: &ServingPredictor, p: EngineParameters) -> Option<Figures> {
        let ready = self.pieces.read().ok()?.clone().filter(|pieces| pieces.fits(&p));
        let pieces = match ready {
            Some(pieces) => pieces,
            None => {
                let made = predictor.pieces(&self.mapped, &self.mapped.deployment, p).ok()?;
                *self.pieces.write().ok()? = Some(made.clone());
                made
            }
        };
        let cost = StepCost::from_pieces(pieces, p);
        predictor.run(&self.mapped, &cost, &self.traffic, self.mapped.deployment.replicas).ok()
    }
}

/// True for rows that are fitted to; the others test the fit.
pub fn is_training(row: &Row) -> bool {
    let load = row.value.get("workload");
    let config = row.value.get("config");
    let key =
        |v: Option<&serde_json::Value>, name: &str| v.and_then(|v| v.get(name)).map(ToString::to_string);
    let text = format!(
        "{} {:?} {:?} {:?} {:?} {:?}",
        row.model.name,
        row.config.tp,
        row.config.pp,
        key(config, "ep"),
        key(load, "isl"),
        key(load, "osl")
    );
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash >> 17).is_multiple_of(2)
}

/// Metrics that are fitted to, with their weights.
const FITTED: [(&str, f64); 6] = [
    ("output_tokens_per_s", 1.0),
    ("total_tokens_per_s", 1.0),
    ("request_per_s", 1.0),
    ("input_tokens_per_s", 1.0),
    ("tpot_ms", 1.5),
    ("ttft_ms", 0.7),
];

/// Parameters of a whole engine, then of an engine on an accelerator.
const BASE: [&str; 19] = [
    "step_us",
    "prompt_us",
    "loop_us",
    "overlap_us",
    "layer_us",
    "gemm",
    "decode",
    "moe",
    "sequence_us",
    "loop_sequence_us",
    "all_reduce",
    "prompt",
    "kv_reuse",
    "ttft_ms",
    "reduce_us",
    "cast",
    "eager_layer_us",
    "expert_imbalance",
    "pipeline",
];
const OWN: [&str; 14] = [
    "step_us",
    "prompt_us",
    "loop_us",
    "overlap_us",
    "layer_us",
    "gemm",
    "decode",
    "moe",
    "sequence_us",
    "loop_sequence_us",
    "all_reduce",
    "prompt",
    "reduce_us",
    "ttft_ms",
];
/// Pull of a number towards its anchor, per unit of logarithm.
const PULL: f64 = 0.0008;
/// A number stays if it lowers the mean error by this much.
const WORTH: f64 = 0.0025;
/// Samples that starting points are compared on, and most samples of a fit.
const FIRST: usize = 60;
const MOST: usize = 180;

/// Parameters of an engine on an accelerator with few rows.
const FEW: [&str; 5] = ["step_us", "gemm", "moe", "prompt", "ttft_ms"];

/// Fits the engines that have rows (`only` one of them, if named). Returns changed profiles and a line on each fit.
pub fn fit(
    rows: &[Row],
    predictor: &ServingPredictor,
    only: Option<&str>,
) -> (Vec<EngineProfile>, Vec<String>) {
    let mut groups: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for row in rows {
        let use_it =
            row.kind == "serve" && row.weak.is_none() && class(row) == Class::Aggregated && is_training(row);
        let doubtful = ["WARNING", "SUSPECT"].iter().any(|w| row.notes.contains(w));
        if !use_it || doubtful {
            continue;
        }
        let Ok(mapped) = map(row) else { continue };
        let measured: Vec<(&'static str, f64)> = FITTED
            .iter()
            .filter_map(|(metric, _)| {
                let value = row.value.get("measured")?.get(*metric)?.as_f64().filter(|v| *v > 0.0)?;
                Some((*metric, value))
            })
            .collect();
        if !measured.is_empty() && only.is_none_or(|o| o == mapped.engine.name) {
            let name = mapped.engine.name.clone();
            let mut traffic = Traffic::generate(&mapped.workload, 1);
            if traffic.clients.is_none() {
                // Long queues repeat themselves.
                traffic.requests.truncate(1500);
            }
            groups.entry(name).or_default().push(Sample {
                mapped,
                traffic,
                pieces: RwLock::new(None),
                measured,
                gpu: row.hardware.gpu.clone(),
            });
        }
    }
    let mut lines = Vec::new();
    let fitted = groups
        .iter()
        .filter_map(|(name, samples)| Some(fit_engine(find(name)?, samples, predictor, &mut lines)))
        .collect();
    (fitted, lines)
}

/// Numbers of the whole engine over all its rows, then of each accelerator over its own; what hardly helps goes.
fn fit_engine(
    built_in: &EngineProfile,
    samples: &[Sample],
    predictor: &ServingPredictor,
    lines: &mut Vec<String>,
) -> EngineProfile {
    let mut profile = built_in.clone();
    profile.accelerator.clear();
    let mut by_gpu: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
    for s in samples {
        by_gpu.entry(&s.gpu).or_default().push(s);
    }
    let default = EngineParameters { graph_tokens: built_in.parameters.graph_tokens, ..Default::default() };
    if samples.len() >= 12 {
        let every: Vec<&Sample> = samples.iter().collect();
        let problem = |most| Problem { predictor, samples: thin(&every, most), anchor: default, pull: PULL };
        let (few, all) = (problem(FIRST), problem(MOST));
        let (start, _) = starts(built_in.parameters)
            .into_iter()
            .map(|s| few.minimise(s, &BASE, 3))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .unwrap_or((built_in.parameters, 0.0));
        let (found, _) = all.minimise(start, &BASE, 4);
        let (kept, loss) = all.prune(found, &BASE, WORTH);
        lines.push(format!("{}: {} rows, loss {loss:.4}", profile.name, samples.len()));
        profile.parameters = rounded(kept);
    }
    if by_gpu.len() < 2 {
        return profile;
    }
    let base = profile.parameters;
    for (gpu, samples) in by_gpu.into_iter().filter(|(_, s)| s.len() >= 4) {
        let names = if samples.len() < 15 { &FEW[..] } else { &OWN[..] };
        let rows = samples.len();
        let own = Problem { predictor, samples: thin(&samples, MOST), anchor: base, pull: PULL };
        let (found, _) = own.minimise(base, names, 6);
        let (kept, loss) = own.prune(found, names, WORTH);
        let kept = rounded(kept);
        let changed: BTreeMap<String, f64> = OWN
            .iter()
            .filter_map(|n| Some(((*n).to_owned(), kept.get(n).filter(|v| Some(*v) != base.get(n))?)))
            .collect();
        lines.push(format!(
            "{} on {gpu}: {rows} rows, loss {:.4} -> {loss:.4} with {} numbers",
            profile.name,
            own.loss(base),
            changed.len()
        ));
        if !changed.is_empty() {
            profile.accelerator.push(AcceleratorOverride { name: gpu.to_owned(), parameters: changed });
        }
    }
    profile
}

/// Points to start from: hidden behind the accelerator a small number has no effect and no slope.
fn starts(present: EngineParameters) -> Vec<EngineParameters> {
    // Launches from the host without a captured graph, collectives of ranks out of step, casts of their own.
    let mut eager = present;
    for (name, larger) in [("eager_layer_us", 450.0), ("reduce_us", 3.0), ("cast", 0.8), ("loop_us", 2500.0)]
    {
        eager.set(name, larger);
    }
    vec![present, eager]
}

/// Four digits each.
fn rounded(p: EngineParameters) -> EngineParameters {
    let mut out = p;
    for (name, ..) in EngineParameters::BOUNDS {
        if let Some(v) = p.get(name).and_then(|v| format!("{v:.3e}").parse().ok()) {
            out.set(name, v);
        }
    }
    out
}

/// At most `most` samples, evenly picked.
fn thin<'a>(samples: &[&'a Sample], most: usize) -> Vec<&'a Sample> {
    let step = samples.len().div_ceil(most).max(1);
    samples.iter().step_by(step).copied().collect()
}
