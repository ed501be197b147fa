//! Fits the free parameters of stacks, releases and accelerators on end-to-end rows, and refits them without a source.
//!
//! Free are the numbers listed in [`free`]: physical properties of an accelerator, a software stack or a release of
//! it. The objective is the mean over sources of a robust loss of ln(predicted / measured) plus a weak pull towards
//! each parameter's documented default; a parameter that no row speaks about stays at that default. Coordinate descent
//! in logarithms: every trial re-predicts only the rows that the parameter touches.

pub mod free;
pub mod write;

use super::accuracy::LeftOut;
use super::map::map;
use super::predict::Predictor;
use super::row::{Row, source_of};
use super::score::percentile;
use super::stack;
use super::{Mapped, convention};
use free::Slot;
use psim_cost_models::ProfileLibrary;
use psim_hardware::profile::StackProfile;
use psim_hardware::profile::sustained::{FabricShare, Sustained};
use psim_sim::Level;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// 80 % of a normal distribution lies within this many standard deviations.
const NORMAL_80: f64 = 1.2816;
/// Spread where nothing is known.
const SIGMA: f64 = 0.1;

/// A row ready for fitting.
#[derive(Debug, Clone)]
pub struct FitRow {
    /// Identifier.
    pub id: String,
    /// Source.
    pub source: String,
    /// Simulator inputs.
    pub mapped: Mapped,
    /// Stack profile.
    pub stack: String,
    /// Index of the release in that profile.
    pub release: Option<usize>,
    /// Measured step time, seconds.
    pub measured: f64,
}

/// Values of every stack and accelerator.
#[derive(Debug, Clone)]
pub struct State {
    /// Stacks by name.
    pub stacks: BTreeMap<String, StackProfile>,
    /// Sustained shares by accelerator.
    pub sustained: BTreeMap<String, Sustained>,
    /// Sustained shares by kind of fabric.
    pub fabrics: BTreeMap<String, f64>,
}

/// Rows, parameters and their defaults.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Rows with a metric that are neither weak nor doubtful.
    pub rows: Vec<FitRow>,
    /// Free parameters.
    pub slots: Vec<Slot>,
    /// Numbers of stacks without rows.
    pub idle: Vec<Slot>,
    /// Rows of sources that have no other: their absolute errors say little, the spread around their median does.
    weak: Vec<FitRow>,
    base: ProfileLibrary,
}

/// Below this |ln(predicted / measured)| the loss is quadratic, above linear.
const KNEE: f64 = 0.03;
/// Weight of the pull towards defaults: a parameter one typical spread away costs as much as this error everywhere.
const PULL: f64 = 0.0002;

impl Problem {
    /// Prepares the rows of a file for fitting with the built-in profiles as a start.
    pub fn new(rows: &[Row]) -> Self {
        Self::with(rows, Predictor::built_in())
    }

    /// As [`Problem::new`] with the profiles of a predictor as a start.
    pub fn with(rows: &[Row], predictor: Predictor) -> Self {
        let strong = rows.iter().filter(|row| row.weak.is_none());
        let prepared: Vec<FitRow> = strong.filter_map(|row| prepare(row, &predictor)).collect();
        let known = |row: &Row| prepared.iter().any(|p| p.source == source_of(&row.id));
        let weak = rows.iter().filter(|row| row.weak.is_some() && !known(row));
        let weak = weak.filter_map(|row| prepare(row, &predictor)).collect();
        let state = State::of(&predictor.library);
        let slots = free::slots(&state, &prepared);
        let idle = free::idle(&state, &prepared);
        Self { rows: prepared, slots, idle, weak, base: predictor.library }
    }

    /// The built-in values.
    pub fn start(&self) -> State {
        let mut state = State::of(&self.base);
        for row in &self.rows {
            let name = &row.mapped.cluster.slowest_node().accelerator.name;
            let shares = self.base.sustained(&row.mapped.cluster.slowest_node().accelerator);
            let kind = &row.mapped.cluster.fabric.kind;
            state.fabrics.entry(kind.clone()).or_insert(self.base.fabric_share(kind));
            state.sustained.entry(name.clone()).or_insert(Sustained { accelerator: name.clone(), ..shares });
        }
        state
    }

    /// ln(predicted / measured) of the rows in `which`; NaN where there is no prediction.
    pub fn residuals(&self, state: &State, which: &[usize]) -> Vec<f64> {
        let rows: Vec<&FitRow> = which.iter().map(|&index| &self.rows[index]).collect();
        self.errors(state, &rows)
    }

    fn errors(&self, state: &State, rows: &[&FitRow]) -> Vec<f64> {
        self.outcomes(state, rows).into_iter().map(|outcome| outcome.0).collect()
    }

    /// ln(predicted / measured) and the variance that the prediction's tables state for themselves.
    fn outcomes(&self, state: &State, rows: &[&FitRow]) -> Vec<(f64, f64)> {
        let mut library = self.base.clone();
        for shares in state.sustained.values() {
            library.add_sustained(shares.clone());
        }
        for (kind, share) in &state.fabrics {
            library.add_fabric_share(FabricShare { kind: kind.clone(), share: *share });
        }
        // The closed form of a step: within a few percent of what people are shown and many times as fast.
        let predictor = Predictor { level: Level::L1, ..Predictor::new(library) };
        let releases = release_profiles(state);
        rows.par_iter()
            .map(|row| {
                let Some(profile) = releases.get(&(row.stack.as_str(), row.release)) else {
                    return (f64::NAN, f64::NAN);
                };
                let mut profile = profile.clone();
                stack::apply(&mut profile, &row.mapped.stack.switches);
                match predictor.predict(&row.mapped, &profile) {
                    Ok(p) => {
                        let time = p.step_time;
                        let error = (time.value * row.mapped.batch_scale / row.measured).ln();
                        let sigma = (time.high / time.value).ln() / NORMAL_80;
                        (error.clamp(-2.0, 2.0), sigma * sigma - profile.residual_sigma.powi(2))
                    }
                    Err(_) => (f64::NAN, f64::NAN),
                }
            })
            .collect()
    }

    /// Mean over sources of the robust loss of the rows that `keep` leaves in.
    fn loss(&self, residuals: &[f64], without: Option<&str>) -> f64 {
        let mut by_source: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for (row, r) in self.rows.iter().zip(residuals) {
            if Some(row.source.as_str()) != without && !r.is_nan() {
                let entry = by_source.entry(&row.source).or_default();
                entry.0 += (r * r + KNEE * KNEE).sqrt() - KNEE;
                entry.1 += 1.0;
            }
        }
        // Sources count alike, with a little more for those that hold more rows.
        let weight = |n: f64| n.powf(0.25);
        let total: f64 = by_source.values().map(|(_, n)| weight(*n)).sum();
        by_source.values().map(|(sum, n)| weight(*n) * sum / n).sum::<f64>() / total.max(1e-9)
    }

    /// Fits the slots for which `free` holds, leaving one source out if asked.
    pub fn fit(
        &self,
        mut state: State,
        without: Option<&str>,
        sweeps: usize,
        progress: &mut dyn FnMut(usize, f64),
    ) -> State {
        let touched: Vec<Vec<usize>> = self.slots.iter().map(|slot| self.touched(slot, without)).collect();
        for slot in &self.slots {
            // The members of a family start from one value.
            let value = slot.value(&state);
            slot.set(&mut state, value);
        }
        for (slot, rows) in self.slots.iter().zip(&touched) {
            // Nothing left that speaks about it: the documented default.
            if rows.is_empty() || (without.is_some() && self.touched(slot, None).len() > rows.len()) {
                slot.set(&mut state, slot.default);
            }
        }
        let all: Vec<usize> = (0..self.rows.len()).collect();
        let mut residuals = self.residuals(&state, &all);
        let mut steps: Vec<f64> = self.slots.iter().map(|s| 0.35 * s.spread).collect();
        let mut best = self.loss(&residuals, without) + self.pull(&state);
        for sweep in 0..sweeps {
            let before = best;
            for (index, slot) in self.slots.iter().enumerate() {
                let rows = &touched[index];
                if rows.is_empty() || steps[index] < 0.004 * slot.spread {
                    continue;
                }
                let mut moved = false;
                for direction in [1.0, -1.0] {
                    let mut trial = state.clone();
                    if !slot.shift(&mut trial, direction * steps[index]) {
                        continue;
                    }
                    let mut tried = residuals.clone();
                    for (row, r) in rows.iter().zip(self.residuals(&trial, rows)) {
                        tried[*row] = r;
                    }
                    let value = self.loss(&tried, without) + self.pull(&trial);
                    if value < best - 1e-7 {
                        (best, state, residuals, moved) = (value, trial, tried, true);
                        steps[index] *= 1.4 * direction.signum();
                        break;
                    }
                }
                // A negative step remembers the direction that helped.
                steps[index] = if moved { steps[index].abs() } else { 0.45 * steps[index].abs() };
            }
            progress(sweep, best);
            if before - best < 2e-6 {
                break;
            }
        }
        self.pool(&mut state, &touched);
        state
    }

    /// Numbers that no row in use speaks about take the defaults of their era, estimated from the rows in use.
    fn pool(&self, state: &mut State, touched: &[Vec<usize>]) {
        let with = |empty: bool| self.slots.iter().zip(touched).filter(move |(_, r)| r.is_empty() == empty);
        let spoken: Vec<&Slot> = with(false).map(|(s, _)| s).collect();
        for slot in with(true).map(|(s, _)| s).chain(&self.idle) {
            if let Some(value) = free::pooled(slot, &spoken, state) {
                slot.set(state, value);
            }
        }
    }

    /// Rows that a slot changes, all of them (the left-out source is not counted).
    fn touched(&self, slot: &Slot, without: Option<&str>) -> Vec<usize> {
        (0..self.rows.len())
            .filter(|&i| Some(self.rows[i].source.as_str()) != without && slot.touches(&self.rows[i]))
            .collect()
    }

    fn pull(&self, state: &State) -> f64 {
        self.slots.iter().map(|s| PULL * (s.distance(state) / s.spread).powi(2)).sum::<f64>()
    }

    /// A predictor with the values of `state`.
    pub fn predictor(&self, state: &State) -> Predictor {
        let mut library = self.base.clone();
        for shares in state.sustained.values() {
            library.add_sustained(shares.clone());
        }
        for (kind, share) in &state.fabrics {
            library.add_fabric_share(FabricShare { kind: kind.clone(), share: *share });
        }
        for stack in state.stacks.values() {
            library.add_stack(stack.clone());
        }
        Predictor::new(library)
    }

    /// Refits without each source in turn, from the values of `start`, and scores that source's rows. The intervals of
    /// a source's rows are made from the left-out errors of the other sources.
    pub fn leave_one_out(
        &self,
        rows: &[Row],
        start: &State,
        sweeps: usize,
        progress: &mut dyn FnMut(&str),
    ) -> LeftOut {
        let mut names: Vec<&str> = self.rows.iter().map(|r| r.source.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let mut out = LeftOut::default();
        let mut states = Vec::new();
        for source in names {
            progress(source);
            let state = self.fit(start.clone(), Some(source), sweeps, &mut |_, _| {});
            out.spreads.insert(source.to_owned(), self.spread(&state, source));
            out.sizes.insert(source.to_owned(), [0.5, 0.7, 0.8, 0.9].map(|p| self.size(&state, source, p)));
            states.push((source, state));
        }
        let names: BTreeSet<&str> = self.weak.iter().map(|r| r.source.as_str()).collect();
        for source in names {
            out.spreads.insert(source.to_owned(), self.weak_spread(start, source));
        }
        for (source, mut state) in states {
            let sigma = self.transferred(&out.spreads, source);
            for stack in state.stacks.values_mut() {
                stack.residual_sigma = sigma;
            }
            let own: Vec<Row> = rows.iter().filter(|r| source_of(&r.id) == source).cloned().collect();
            let report = super::run_rows(&own, &self.predictor(&state));
            if let Some(summary) = report.sources.get(source) {
                out.sources.insert(source.to_owned(), summary.clone());
            }
        }
        out
    }

    /// Standard deviation of ln(predicted / measured) of a source's rows, from the 80th percentile of its size, beyond
    /// what the tables of kernels and collectives state for themselves.
    fn spread(&self, state: &State, source: &str) -> f64 {
        let own: Vec<&FitRow> = self.rows.iter().filter(|r| r.source == source).collect();
        let tables: Vec<f64> =
            self.outcomes(state, &own).into_iter().map(|o| o.1).filter(|v| !v.is_nan()).collect();
        let tables = tables.iter().sum::<f64>() / tables.len().max(1) as f64;
        let all = self.size(state, source, 0.8) / NORMAL_80;
        (all * all - tables).max(0.02 * 0.02).sqrt()
    }

    /// A percentile of |ln(predicted / measured)| over a source's rows.
    fn size(&self, state: &State, source: &str, share: f64) -> f64 {
        let own: Vec<usize> = (0..self.rows.len()).filter(|&i| self.rows[i].source == source).collect();
        let sizes: Vec<f64> =
            self.residuals(state, &own).iter().filter(|r| !r.is_nan()).map(|r| r.abs()).collect();
        percentile(&sizes, share).unwrap_or(SIGMA * NORMAL_80)
    }

    /// The same around the median for a source whose rows are all weak.
    fn weak_spread(&self, state: &State, source: &str) -> f64 {
        let own: Vec<&FitRow> = self.weak.iter().filter(|r| r.source == source).collect();
        let errors: Vec<f64> = self.errors(state, &own).into_iter().filter(|r| !r.is_nan()).collect();
        let Some(middle) = percentile(&errors, 0.5) else { return SIGMA };
        let sizes: Vec<f64> = errors.iter().map(|r| (r - middle).abs()).collect();
        percentile(&sizes, 0.8).unwrap_or(SIGMA) / NORMAL_80
    }

    /// Spread expected of a source that no fit has seen: the mean of the left-out spreads of the other sources of its
    /// kind, of weak sources of its kind where there is no other, of all others where there is none either.
    fn transferred(&self, spreads: &BTreeMap<String, f64>, source: &str) -> f64 {
        let own = self.kind(source);
        let mean = |alike: bool, weak: bool| {
            let is_weak = |name: &str| self.weak.iter().any(|r| r.source == name);
            let others = spreads
                .iter()
                .filter(|(o, _)| *o != source && (!alike || self.kind(o) == own) && (weak || !is_weak(o)));
            let values: Vec<f64> = others.map(|(_, spread)| *spread).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let found = mean(true, false).or_else(|| mean(true, true)).or_else(|| mean(false, true));
        found.unwrap_or(SIGMA).clamp(0.02, 0.5)
    }

    /// What a source is about: whether most of its rows are mixtures of experts, ran software of before 2022.9, are
    /// pipelines and nothing else (schedule studies: every error of the kernels counts in full, nothing averages it out).
    fn kind(&self, source: &str) -> (bool, bool, bool) {
        let own = || self.rows.iter().chain(&self.weak).filter(|r| r.source == source);
        let most = |holds: &dyn Fn(&FitRow) -> bool| 2 * own().filter(|r| holds(r)).count() > own().count();
        let pipeline = |r: &FitRow| r.mapped.plan.pp > 1 && r.mapped.plan.pp == r.mapped.plan.world();
        let early = |r: &FitRow| self.base.stacks().any(|s| s.name == r.stack && s.era < 2022.9);
        (most(&|r| r.mapped.model.is_moe()), most(&early), most(&pipeline))
    }

    /// The spread of every stack for the intervals: the mean of what its own sources show when they are in the fit and
    /// when they are left out; of all left-out sources for stacks without rows.
    pub fn sigmas(&self, state: &State, left_out: &LeftOut) -> BTreeMap<String, f64> {
        let all = &left_out.spreads;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let anyone = mean(&all.values().copied().collect::<Vec<_>>());
        state
            .stacks
            .keys()
            .map(|stack| {
                let sources: BTreeSet<&str> =
                    self.rows.iter().filter(|r| r.stack == *stack).map(|r| r.source.as_str()).collect();
                let own: Vec<f64> = sources
                    .iter()
                    .flat_map(|s| [Some(self.spread(state, s)), all.get(*s).copied()])
                    .flatten()
                    .collect();
                let sigma = if own.is_empty() { anyone } else { mean(&own) };
                (stack.clone(), sigma.clamp(0.02, 0.5))
            })
            .collect()
    }

    /// Median absolute error per source, percent.
    pub fn medians(&self, state: &State) -> BTreeMap<String, f64> {
        let all: Vec<usize> = (0..self.rows.len()).collect();
        let mut by_source: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (row, r) in self.rows.iter().zip(self.residuals(state, &all)) {
            by_source.entry(row.source.clone()).or_default().push(row.ape(r));
        }
        by_source.into_iter().filter_map(|(s, v)| Some((s, percentile(&v, 0.5)?))).collect()
    }
}

impl FitRow {
    /// Absolute error in percent of the printed metric (a rate is the inverse of a time).
    fn ape(&self, residual: f64) -> f64 {
        100.0 * (residual.exp() - 1.0).abs()
    }
}

impl State {
    /// The values of a library.
    pub fn of(library: &ProfileLibrary) -> Self {
        Self {
            stacks: library.stacks().map(|s| (s.name.clone(), s.clone())).collect(),
            sustained: BTreeMap::new(),
            fabrics: BTreeMap::new(),
        }
    }
}

/// Profiles with their release deltas applied, by stack and release.
fn release_profiles(state: &State) -> BTreeMap<(&str, Option<usize>), StackProfile> {
    let mut all = BTreeMap::new();
    for (name, profile) in &state.stacks {
        all.insert((name.as_str(), None), profile.clone());
        for (index, release) in profile.releases.iter().enumerate() {
            let mut changed = profile.clone();
            for (key, value) in &release.deltas {
                // Bounds are checked when a slot moves; a delta that does not apply leaves the profile as it is.
                let _ = changed.set_number(key, *value);
            }
            all.insert((name.as_str(), Some(index)), changed);
        }
    }
    all
}

fn prepare(row: &Row, predictor: &Predictor) -> Option<FitRow> {
    let doubtful = ["WARNING", "SUSPECT"].iter().any(|w| row.notes.contains(w));
    if doubtful {
        return None;
    }
    let mapped = map(row).ok()?;
    let chosen = stack::choose(&predictor.stacks, &mapped.stack)?;
    let release = chosen.profile.release(&chosen.release).map(|r| r.matches.clone());
    let release = release.and_then(|m| chosen.profile.releases.iter().position(|r| r.matches == m));
    let measured = measured_time(row, &mapped)?;
    Some(FitRow {
        id: row.id.clone(),
        source: source_of(&row.id).to_owned(),
        mapped,
        stack: chosen.profile.name,
        release,
        measured,
    })
}

/// The scored metric as a step time.
fn measured_time(row: &Row, mapped: &Mapped) -> Option<f64> {
    let m = &row.measured;
    let tokens = f64::from(mapped.plan.global_batch) * mapped.workload.seq_len as f64 * mapped.batch_scale
        / f64::from(mapped.cluster.accelerators().max(1));
    let c: &convention::Convention = &mapped.convention;
    let time = if let Some(step) = m.step_time_s {
        step
    } else if let Some(rate) = m.tokens_per_s_per_gpu {
        tokens / rate
    } else if let Some(tflops) = m.tflops_per_gpu {
        tokens * c.tflops(1.0) / tflops
    } else if let Some(mfu) = m.mfu {
        tokens * c.mfu(1.0) / mfu
    } else {
        tokens * c.hfu(1.0) / m.hfu?
    };
    (time.is_finite() && time > 0.0).then_some(time)
}
