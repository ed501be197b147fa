//! Predicts mapped rows and restates the predictions in the rows' own metrics.

use super::facts::Facts;
use super::map::{Mapped, Reason, map};
use super::ranking::{self, Candidate};
use super::row::{Row, source_of};
use super::score::{Entry, RowResult, Status};
use super::stack;
use psim_cost_models::ProfileLibrary;
use psim_hardware::profile::StackProfile;
use psim_models::plan::Recompute;
use psim_sim::step::{StepInput, predict_step};
use psim_sim::{Level, StepPrediction};

/// How rows are predicted.
#[derive(Debug, Clone)]
pub struct Predictor {
    /// Profiles of accelerators, fabrics and stacks.
    pub library: ProfileLibrary,
    /// Stacks to choose from, in the library's order.
    pub stacks: Vec<StackProfile>,
    /// One stack for every row in place of the row's own.
    pub stack: Option<StackProfile>,
    /// Depth.
    pub level: Level,
}

impl Predictor {
    /// The built-in profiles at the depth that people are shown.
    pub fn built_in() -> Self {
        Self::new(ProfileLibrary::built_in())
    }

    /// Predicts with the profiles of `library` at L2.
    pub fn new(library: ProfileLibrary) -> Self {
        let stacks = library.stacks().cloned().collect();
        Self { library, stacks, stack: None, level: Level::L2 }
    }

    /// The stack of a mapped row, release and switches applied.
    ///
    /// # Errors
    /// No stack at all, or a release that a profile cannot apply.
    pub fn stack_of(&self, mapped: &Mapped) -> Result<(StackProfile, Option<String>), String> {
        match &self.stack {
            Some(stack) => {
                let mut profile = stack.clone();
                stack::apply(&mut profile, &mapped.stack.switches);
                Ok((profile, None))
            }
            None => {
                let chosen = stack::choose(&self.stacks, &mapped.stack).ok_or("there is no stack profile")?;
                let mut profile = chosen.profile.with_release(&chosen.release).map_err(|e| e.to_string())?;
                stack::apply(&mut profile, &mapped.stack.switches);
                Ok((profile, chosen.note))
            }
        }
    }

    /// Predicts one mapped row with one stack.
    ///
    /// # Errors
    /// The simulator's reason.
    pub fn predict(&self, mapped: &Mapped, stack: &StackProfile) -> Result<StepPrediction, String> {
        let input = StepInput {
            model: &mapped.model,
            plan: &mapped.plan,
            workload: &mapped.workload,
            cluster: &mapped.cluster,
            stack,
            library: &self.library,
        };
        predict_step(&input, self.level).map_err(|e| e.to_string())
    }

    /// A row that does not say what it recomputes fits if some recomputation makes it fit.
    fn fits_with_recomputation(&self, result: &mut RowResult, mapped: &Mapped) {
        let mut lighter = mapped.clone();
        lighter.plan.recompute = Recompute::Full;
        let fits = self
            .stack_of(&lighter)
            .and_then(|(stack, _)| self.predict(&lighter, &stack))
            .is_ok_and(|prediction| prediction.fits);
        if fits {
            result.fits = Some(true);
            result.notes.push("fits with recomputation, about which the row says nothing".to_owned());
        }
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
        let outcome = self.stack_of(&mapped).and_then(|(stack, note)| {
            result.notes.extend(note);
            result.stack = stack.name.clone();
            self.predict(&mapped, &stack)
        });
        match outcome {
            Err(why) => result.status = Status::Incomplete(why),
            Ok(prediction) => {
                fill(&mut result, row, &mapped, &prediction);
                if !prediction.fits && row.config.recompute.is_none() {
                    self.fits_with_recomputation(&mut result, &mapped);
                }
            }
        }
        result.notes.extend(mapped.notes);
        result
    }
}

/// The row with its measurements and no prediction.
fn blank(row: &Row) -> RowResult {
    let m = &row.measured;
    let printed = [
        ("step_time_s", m.step_time_s),
        ("tokens_per_s_per_gpu", m.tokens_per_s_per_gpu),
        ("tflops_per_gpu", m.tflops_per_gpu),
        ("mfu", m.mfu),
        ("peak_mem_gb", m.peak_mem_gb),
    ];
    let mut entries: Vec<Entry> = printed
        .iter()
        .filter_map(|(metric, value)| Some(Entry { metric, measured: (*value)?, predicted: None }))
        .collect();
    let has_time = entries.iter().any(|e| e.metric != "peak_mem_gb");
    if let (false, Some(hfu)) = (has_time, m.hfu) {
        entries.push(Entry { metric: "hfu", measured: hfu, predicted: None });
    }
    let scored = ["step_time_s", "tokens_per_s_per_gpu", "tflops_per_gpu", "mfu", "hfu"]
        .iter()
        .find_map(|metric| entries.iter().position(|e| e.metric == *metric));
    let memory = entries.iter().position(|e| e.metric == "peak_mem_gb");
    let out_of_memory = row.outcome.as_deref().is_some_and(|o| o.to_lowercase().contains("oom"));
    let ran = if out_of_memory { Some(false) } else { scored.map(|_| true) };
    let doubtful = ["WARNING", "SUSPECT"].iter().any(|w| row.notes.contains(w));
    RowResult {
        id: row.id.clone(),
        source: source_of(&row.id).to_owned(),
        weak: row.weak.is_some(),
        doubtful,
        gpu: row.hardware.gpu.clone(),
        mixture: row.model.experts.is_some_and(|e| e > 1),
        status: Status::Predicted,
        stack: String::new(),
        entries,
        scored,
        memory,
        fits: None,
        ran,
        candidate: None,
        notes: Vec::new(),
        breakdown: Vec::new(),
        doubts: Vec::new(),
        facts: None,
    }
}

fn fill(result: &mut RowResult, row: &Row, mapped: &Mapped, prediction: &StepPrediction) {
    let scale = mapped.batch_scale;
    let times =
        [prediction.step_time.value, prediction.step_time.low, prediction.step_time.high].map(|t| t * scale);
    let tokens = f64::from(mapped.plan.global_batch) * mapped.workload.seq_len as f64 * scale
        / f64::from(mapped.cluster.accelerators().max(1));
    // A fast step is a high rate: the ends of the interval change places.
    let rates = [tokens / times[0], tokens / times[2], tokens / times[1]];
    let memory = peak_memory_gb(row, prediction);
    for entry in &mut result.entries {
        let of_rate = |f: &dyn Fn(f64) -> f64| Some(rates.map(f));
        entry.predicted = match entry.metric {
            "step_time_s" => Some(times),
            "tokens_per_s_per_gpu" => Some(rates),
            "tflops_per_gpu" => of_rate(&|r| mapped.convention.tflops(r)),
            "mfu" => of_rate(&|r| mapped.convention.mfu(r)),
            "hfu" => of_rate(&|r| mapped.convention.hfu(r)),
            _ => Some([memory, memory * (1.0 - MEMORY_BAND), memory * (1.0 + MEMORY_BAND)]),
        };
    }
    result.fits = Some(prediction.fits);
    let (peers, sisters) = ranking::relations(row);
    result.facts = Some(Facts {
        peers,
        sisters,
        batch: row.config.global_batch_seqs.map_or(f64::from(mapped.plan.global_batch), |b| b as f64),
        seconds: row.measured.step_time_s,
        tflops: row.measured.tflops_per_gpu,
        ideal: Some(prediction.breakdown.ideal_compute.0 * scale),
        peak: row.measured.peak_mem_gb,
        ledger: Some(memory),
        capacity: prediction.memory_capacity.gib(),
    });
    let step = times[0];
    let mut parts: Vec<(&'static str, f64)> = prediction
        .breakdown
        .terms()
        .iter()
        .map(|(name, t)| (*name, t.0 * scale / step))
        .filter(|(_, share)| *share > 1e-4)
        .collect();
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    result.breakdown = parts;
    result.doubts.clone_from(&prediction.doubts);
    result.notes.extend(prediction.notes.iter().cloned());
    if let Some(entry) = result.scored.and_then(|i| result.entries.get(i)) {
        let measured = if entry.metric == "step_time_s" { entry.measured } else { 1.0 / entry.measured };
        let predicted = match (entry.metric, entry.predicted) {
            ("step_time_s", Some([value, ..])) => value,
            (_, Some([value, ..])) => 1.0 / value,
            (_, None) => return,
        };
        let (group, configuration) = ranking::keys(row);
        result.candidate = Some(Candidate { group, configuration, measured, predicted });
    }
}

/// Half-width of the memory interval.
const MEMORY_BAND: f64 = 0.08;

/// Peak of the largest stage, GiB, in the way the source reads it.
///
/// Rows that say "allocated" read the allocator (tensors only); all others read the driver (context, buffers and
/// fragmentation too).
fn peak_memory_gb(row: &Row, prediction: &StepPrediction) -> f64 {
    let text = format!("{} {}", row.notes, row.config.framework).to_lowercase();
    let allocated =
        text.contains("alloc") || text.contains("zero bubble") || text.contains("vocabulary parallel");
    let outside =
        |name: &str| allocated && (name.starts_with("context") || name.starts_with("communication"));
    let stage = |parts: &[(&'static str, psim_hardware::Bytes)]| -> f64 {
        parts.iter().filter(|(name, _)| !outside(name)).map(|(_, bytes)| bytes.gib()).sum()
    };
    prediction.memory.iter().map(|m| stage(&m.parts)).fold(0.0, f64::max)
}
