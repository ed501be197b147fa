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
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

mod newton;
mod releases;

pub use releases::fit_releases;

use newton::Problem;

/// One row of a fit, with all that does not change while numbers do.
struct Sample {
    order: u64,
    mapped: Mapped,
    traffic: Traffic,
    pieces: RwLock<Option<Arc<StepPieces>>>,
    /// Metric and measured value.
    measured: Vec<(&'static str, f64)>,
    gpu: String,
}

impl Sample {
    /// Figures under numbers of the newest release.
    fn figures(&self, predictor: &ServingPredictor, p: EngineParameters) -> Option<Figures> {
        self.exactly(predictor, self.mapped.released(&self.mapped.engine, p))
    }

    /// Figures under numbers of the row's own release.
    fn exactly(&self, predictor: &ServingPredictor, p: EngineParameters) -> Option<Figures> {
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

/// Metrics that are fitted to, with their weights: a first token scatters four times as much as a token.
const FITTED: [(&str, f64); 6] = [
    ("output_tokens_per_s", 1.0),
    ("total_tokens_per_s", 1.0),
    ("request_per_s", 1.0),
    ("input_tokens_per_s", 1.0),
    ("tpot_ms", 3.0),
    ("ttft_ms", 0.7),
];

/// Parameters of a whole engine.
const BASE: [&str; 23] = [
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
    "small",
    "arithmetic",
    "moe_arithmetic",
    "moe_us",
    "front_us",
    "eager_layer_us",
    "pipeline",
];
/// Those of an engine on an accelerator; its front end runs on the host.
const OWN: [&str; 20] = [
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
    "cast",
    "eager_layer_us",
    "small",
    "arithmetic",
    "moe_arithmetic",
    "moe_us",
];
/// Those of an engine on an accelerator with few rows.
const FEW: [&str; 6] = ["step_us", "gemm", "moe", "arithmetic", "moe_arithmetic", "ttft_ms"];
/// Pull of a number towards its anchor, per unit of logarithm.
const PULL: f64 = 0.0008;
/// A number stays if it lowers the mean error by this much.
const WORTH: f64 = 0.0004;
/// Samples that starting points are compared on, and most samples of a fit.
const FIRST: usize = 60;
const MOST: usize = 180;
/// Rounds of steps of one number after another.
const WALKS: usize = 5;
/// Rows of an accelerator from which it gets numbers of its own, and all of them.
const FEW_ROWS: usize = 4;
const OWN_ROWS: usize = 15;

/// How far a fit of one engine has come; kept after every accelerator, so that a fit that is cut off goes on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Progress {
    /// The profile so far.
    pub profile: EngineProfile,
    /// Accelerators that are done.
    pub done: Vec<String>,
}

/// Fits one engine, if it has rows. Starts at `so_far` and tells `keep` after every part that is done, with a line on it.
pub fn fit(
    rows: &[Row],
    predictor: &ServingPredictor,
    engine: &str,
    so_far: Option<Progress>,
    keep: &mut dyn FnMut(&Progress, &str),
) -> Option<EngineProfile> {
    let samples = samples(rows, engine);
    (!samples.is_empty()).then(|| fit_engine(find(engine)?, &samples, predictor, so_far, keep))?
}

/// Rows of the fitting half that an engine may be fitted to.
fn samples(rows: &[Row], engine: &str) -> Vec<Sample> {
    let mut out = Vec::new();
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
        if measured.is_empty() || mapped.engine.name != engine {
            continue;
        }
        let mut traffic = Traffic::generate(&mapped.workload, 1);
        if traffic.clients.is_none() {
            // Long queues repeat themselves.
            traffic.requests.truncate(1500);
        }
        let gpu = row.hardware.gpu.clone();
        out.push(Sample { order: order(&row.id), mapped, traffic, pieces: RwLock::new(None), measured, gpu });
    }
    // In an order that has nothing to do with lengths or clients: the first of them stand for all.
    out.sort_by_key(|s| s.order);
    out
}

/// Place of a row among others, from its name.
fn order(id: &str) -> u64 {
    let mixed =
        id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    mixed ^ (mixed >> 29)
}

/// Numbers of the whole engine over all its rows, then of each accelerator over its own; what hardly helps goes.
fn fit_engine(
    built_in: &EngineProfile,
    samples: &[Sample],
    predictor: &ServingPredictor,
    so_far: Option<Progress>,
    keep: &mut dyn FnMut(&Progress, &str),
) -> Option<EngineProfile> {
    let name = &built_in.name;
    let mut by_gpu: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
    for s in samples {
        by_gpu.entry(&s.gpu).or_default().push(s);
    }
    let default = EngineParameters { graph_tokens: built_in.parameters.graph_tokens, ..Default::default() };
    let mut progress = so_far.unwrap_or_else(|| {
        let mut profile = built_in.clone();
        profile.accelerator.clear();
        let mut progress = Progress { profile, done: Vec::new() };
        if samples.len() >= 12 {
            let every: Vec<&Sample> = samples.iter().collect();
            let names = movable(&BASE, &every);
            let problem =
                |most| Problem { predictor, samples: first(&every, most), anchor: default, pull: PULL };
            let (few, all) = (problem(FIRST), problem(MOST));
            let start = starts(built_in.parameters)
                .into_iter()
                .map(|s| few.minimise(s, &names, 3))
                .min_by(|a, b| a.1.total_cmp(&b.1))
                .map_or(built_in.parameters, |s| s.0);
            let (found, _) = all.minimise(start, &names, 6);
            let (kept, loss) = all.refined(found, &names);
            progress.profile.parameters = rounded(kept);
            keep(&progress, &format!("{name}: {} rows, loss {loss:.4}", samples.len()));
        }
        progress
    });
    if by_gpu.len() < 2 {
        return Some(releases::refit(progress.profile, samples, predictor, keep));
    }
    let base = progress.profile.parameters;
    for (gpu, samples) in by_gpu.into_iter().filter(|(_, s)| s.len() >= FEW_ROWS) {
        if progress.done.iter().any(|d| d == gpu) {
            continue;
        }
        let names = movable(if samples.len() < OWN_ROWS { &FEW } else { &OWN }, &samples);
        let rows = samples.len();
        let own = Problem { predictor, samples: first(&samples, MOST), anchor: base, pull: PULL };
        // From the engine's numbers, or from what the accelerator had before, whichever is nearer.
        let mut before = base;
        for name in &names {
            before.set(name, built_in.on(gpu).0.get(name).unwrap_or_default());
        }
        let start = if own.loss(before) < own.loss(base) { before } else { base };
        let (found, _) = own.minimise(start, &names, 6);
        let (kept, loss) = own.refined(found, &names);
        let kept = rounded(kept);
        let changed: BTreeMap<String, f64> = OWN
            .iter()
            .filter_map(|n| Some(((*n).to_owned(), kept.get(n).filter(|v| Some(*v) != base.get(n))?)))
            .collect();
        let line = format!(
            "{name} on {gpu}: {rows} rows, loss {:.4} -> {loss:.4} with {} numbers",
            own.loss(base),
            changed.len()
        );
        if !changed.is_empty() {
            let own = AcceleratorOverride { name: gpu.to_owned(), parameters: changed };
            progress.profile.accelerator.push(own);
        }
        progress.done.push(gpu.to_owned());
        keep(&progress, &line);
    }
    Some(releases::refit(progress.profile, samples, predictor, keep))
}

/// Those of the numbers that any of the rows can tell.
fn movable(names: &[&'static str], samples: &[&Sample]) -> Vec<&'static str> {
    let any = |test: &dyn Fn(&Mapped) -> bool| samples.iter().any(|s| test(&s.mapped));
    let split = any(&|m| m.deployment.tp > 1);
    let experts = any(&|m| m.model.is_moe());
    let timed = samples.iter().any(|s| s.measured.iter().any(|(metric, _)| *metric == "ttft_ms"));
    let told = |name: &&&str| match **name {
        "moe" | "moe_arithmetic" | "moe_us" => experts,
        "all_reduce" | "reduce_us" => split,
        "pipeline" => any(&|m| m.deployment.pp > 1),
        "ttft_ms" | "front_us" => timed,
        "cast" => any(&|m| m.deployment.quantization.dense.weight_bits() < 16.0),
        // Releases from 2024 on share the keys of a group.
        "kv_reuse" => !any(&|m| m.engine.lookahead),
        _ => true,
    };
    names.iter().filter(told).copied().collect()
}

/// Points to start from: hidden behind the accelerator a small number has no effect and no slope.
fn starts(present: EngineParameters) -> Vec<EngineParameters> {
    // Launches from the host without a captured graph, collectives of ranks out of step, casts of their own.
    let plain = EngineParameters { graph_tokens: present.graph_tokens, ..EngineParameters::default() };
    let mut eager = present;
    for (name, larger) in [("eager_layer_us", 450.0), ("reduce_us", 3.0), ("cast", 0.8), ("loop_us", 2500.0)]
    {
        eager.set(name, larger);
    }
    // No cast is fused, small kernels as timed alone.
    let mut apart = plain;
    apart.set("cast", 1.0);
    vec![present, plain, eager, apart]
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

impl Problem<'_> {
    /// Steps of one number after another, and what hardly helps put back. Numbers are chosen on straight lines, which
    /// mislead where a step bends: where the true loss then is worse than the numbers put back are worth, they are put
    /// back one by one instead, each where the true loss allows it.
    fn refined(&self, start: EngineParameters, names: &[&'static str]) -> (EngineParameters, f64) {
        let (found, loss) = self.walk(start, names, WALKS);
        let (kept, after) = self.prune(found, names, WORTH);
        let differ = |p: &EngineParameters| names.iter().filter(|n| p.get(n) != self.anchor.get(n)).count();
        let put_back = differ(&found).saturating_sub(differ(&kept)) as f64;
        if after <= loss + WORTH * put_back {
            return (kept, after);
        }
        let (mut best, mut value) = (found, loss);
        for name in names.iter().filter(|n| found.get(n) != self.anchor.get(n)) {
            let mut next = best;
            next.set(name, self.anchor.get(name).unwrap_or_default());
            let there = self.loss(next);
            if there < value + WORTH {
                (best, value) = (next, there);
            }
        }
        (best, value)
    }
}

/// At most `most` samples.
fn first<'a>(samples: &[&'a Sample], most: usize) -> Vec<&'a Sample> {
    samples.iter().take(most).copied().collect()
}
