//! Fits the free parameters of stacks, releases and accelerators on end-to-end rows, and refits them without a source.
//!
//! Free are the numbers listed in [`free`]: physical properties of an accelerator, a software stack or a release of
//! it. The objective is the mean over sources of a robust loss of ln(predicted / measured) plus a weak pull towards
//! each parameter's documented default; a parameter that no row speaks about stays at that default. Coordinate descent
//! in logarithms: every trial re-predicts only the rows that the parameter touches.

pub mod free;
pub mod left_out;
pub mod nested;
pub mod write;

use super::left_out::LeftOut;
use super::map::map;
use super::percentile::percentile;
use super::predict::Predictor;
use super::row::{Row, source_of};
use super::score::summarise;
use super::stack;
use super::{Mapped, convention};
use free::Slot;
use psim_cost_models::ProfileLibrary;
use psim_hardware::profile::StackProfile;
use psim_hardware::profile::sustained::{FabricShare, Sustained};
use psim_sim::Level;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

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
        let state = State::of(&predictor.library);
        let slots = free::slots(&state, &prepared);
        let idle = free::idle(&state, &prepared);
        Self { rows: prepared, slots, idle, base: predictor.library }
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
                    return f64::NAN;
                };
                let mut profile = profile.clone();
                stack::apply(&mut profile, &row.mapped.stack.switches);
                match predictor.predict(&row.mapped, &profile) {
                    Ok(p) => {
                        let error = (p.step_time.value * row.mapped.batch_scale / row.measured).ln();
                        error.clamp(-2.0, 2.0)
                    }
                    Err(_) => f64::NAN,
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

    /// Refits without each source in turn, from the values of `start`.
    pub fn fits_without(
        &self,
        start: &State,
        sweeps: usize,
        progress: &mut dyn FnMut(&str),
    ) -> BTreeMap<String, State> {
        self.sources()
            .into_iter()
            .map(|source| {
                progress(source);
                (source.to_owned(), self.fit(start.clone(), Some(source), sweeps, &mut |_, _| {}))
            })
            .collect()
    }

    /// Sources of the rows in use.
    pub fn sources(&self) -> BTreeSet<&str> {
        self.rows.iter().map(|r| r.source.as_str()).collect()
    }

    /// Scores the rows of each source by the fit that never saw it, with intervals as wide as the errors of the others say.
    pub fn left_out(&self, rows: &[Row], states: &BTreeMap<String, State>) -> LeftOut {
        let mut out = LeftOut::default();
        for (source, state) in states {
            let own: Vec<Row> = rows.iter().filter(|r| source_of(&r.id) == source).cloned().collect();
            out.rows.extend(super::run_rows(&own, &self.predictor(state)).rows);
        }
        out.nested = nested::nested(&out.rows);
        for row in &mut out.rows {
            let calibrated = out.nested.as_ref().and_then(|n| n.sources.get(&row.source));
            if let Some(entry) = row.scored.and_then(|i| row.entries.get_mut(i)) {
                nested::widen(entry, calibrated.map_or(1.0, |c| c.factor));
            }
        }
        for source in states.keys() {
            let own = out.rows.iter().filter(|r| !r.weak && r.source == *source);
            if own.clone().next().is_some() {
                out.sources.insert(source.clone(), summarise(own));
            }
        }
        out.all = summarise(out.rows.iter().filter(|r| !r.weak));
        out
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
