//! Fits the numbers of engine profiles to half of the published rows; the other half is never seen.
//!
//! A number belongs to an engine in its era, or to that engine on an accelerator, and stays within
//! [`EngineParameters::BOUNDS`]. Rows are split by a hash of model, layout and lengths, so that no configuration is on
//! both sides.

use super::accuracy::{Class, class};
use super::map::{Mapped, map};
use super::predict::{Figures, ServingPredictor, restate};
use crate::validate::row::Row;
use psim_cost_models::serving::engine::{AcceleratorOverride, EngineProfile, find};
use psim_cost_models::serving::{EngineParameters, StepCost, StepPieces};
use psim_models::serving::Traffic;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

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
const BASE: [&str; 16] = [
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
    "eager_layer_us",
    "pipeline",
];
const OWN: [&str; 13] = [
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
    "ttft_ms",
];
/// Parameters of an engine on an accelerator with few rows.
const FEW: [&str; 5] = ["step_us", "gemm", "moe", "prompt", "ttft_ms"];

/// Most rows of one fit; evenly picked.
const MOST: usize = 64;

/// Fits the engines that have rows (`only` one of them, if named). Returns changed profiles and the number of numbers
/// that were fitted.
pub fn fit(rows: &[Row], predictor: &ServingPredictor, only: Option<&str>) -> (Vec<EngineProfile>, usize) {
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
    let fitted: Vec<(EngineProfile, usize)> = groups
        .par_iter()
        .filter_map(|(name, samples)| {
            let mut profile = find(name)?.clone();
            profile.accelerator.clear();
            let mut count = 0;
            if samples.len() >= 12 {
                let picked = thin(samples.iter().collect());
                let start = profile.parameters;
                profile.parameters = descend(predictor, &picked, start, &start, &BASE, &mut count);
            }
            let mut by_gpu: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
            for s in samples {
                by_gpu.entry(&s.gpu).or_default().push(s);
            }
            if by_gpu.len() > 1 {
                for (gpu, samples) in by_gpu.into_iter().filter(|(_, s)| s.len() >= 4) {
                    let names = if samples.len() < 15 { &FEW[..] } else { &OWN[..] };
                    let picked = thin(samples);
                    let base = profile.parameters;
                    let own = descend(predictor, &picked, base, &base, names, &mut count);
                    let changed: BTreeMap<String, f64> = OWN
                        .iter()
                        .filter_map(|n| {
                            Some(((*n).to_owned(), own.get(n).filter(|v| Some(*v) != base.get(n))?))
                        })
                        .collect();
                    if !changed.is_empty() {
                        profile
                            .accelerator
                            .push(AcceleratorOverride { name: gpu.to_owned(), parameters: changed });
                    }
                }
            }
            Some((profile, count))
        })
        .collect();
    let count = fitted.iter().map(|f| f.1).sum();
    (fitted.into_iter().map(|f| f.0).collect(), count)
}

fn thin(samples: Vec<&Sample>) -> Vec<&Sample> {
    let step = samples.len().div_ceil(MOST).max(1);
    samples.into_iter().step_by(step).collect()
}

/// Mean error of a set of numbers, pulled slightly towards where it started.
fn loss(
    predictor: &ServingPredictor,
    samples: &[&Sample],
    p: EngineParameters,
    prior: &EngineParameters,
) -> f64 {
    let mut with = predictor.clone();
    with.parameters = Some(p);
    let total: f64 = samples
        .par_iter()
        .map(|s| {
            let Some(figures) = s.figures(&with, p) else { return 1.0 };
            let (mut sum, mut weights) = (0.0, 0.0);
            for (metric, measured) in &s.measured {
                let weight = FITTED.iter().find(|f| f.0 == *metric).map_or(0.0, |f| f.1);
                let Some([value, ..]) = restate(metric, &s.mapped, &figures) else { continue };
                let e = (value / measured).ln().abs();
                sum += weight * if e.is_finite() { e.min(0.8) } else { 0.8 };
                weights += weight;
            }
            sum / f64::max(weights, 1e-9)
        })
        .sum();
    let pull: f64 = EngineParameters::BOUNDS
        .iter()
        .filter_map(|(n, ..)| {
            let (a, b) = (p.get(n)?, prior.get(n)?);
            Some(((a.max(1e-3)) / b.max(1e-3)).ln().abs().min(3.0))
        })
        .sum();
    total / samples.len() as f64 + 0.0015 * pull
}

/// Coordinate descent with shrinking multiplicative steps.
fn descend(
    predictor: &ServingPredictor,
    samples: &[&Sample],
    start: EngineParameters,
    prior: &EngineParameters,
    names: &[&str],
    count: &mut usize,
) -> EngineParameters {
    let mut best = start;
    // Hidden behind the accelerator a small number has no effect: one larger start each.
    let mut value = loss(predictor, samples, best, prior);
    for (name, larger) in [("prompt_us", 4000.0), ("loop_sequence_us", 50.0), ("loop_us", 4000.0)] {
        let mut next = best;
        if names.contains(&name) && next.set(name, larger) {
            let candidate = loss(predictor, samples, next, prior);
            if candidate < value - 1e-4 {
                (best, value) = (next, candidate);
            }
        }
    }
    for factor in [1.8, 1.25, 1.08] {
        for name in names {
            let mut moved = false;
            for direction in [factor, 1.0 / factor] {
                // Go on in a direction while it helps.
                for _ in 0..3 {
                    let mut next = best;
                    let now = best.get(name).unwrap_or(0.0).max(0.02);
                    if !next.set(name, now * direction) || next == best {
                        break;
                    }
                    if let Some(rounded) = next.get(name).and_then(|v| format!("{v:.3e}").parse().ok()) {
                        next.set(name, rounded);
                    }
                    let candidate = loss(predictor, samples, next, prior);
                    if candidate >= value - 1e-5 {
                        break;
                    }
                    (best, value, moved) = (next, candidate, true);
                }
                if moved {
                    break;
                }
            }
        }
    }
    *count += names.iter().filter(|n| best.get(n) != start.get(n)).count();
    best
}
