//! Mechanisms switched on and off in published measurements: the predicted effect against the measured one.
//!
//! Every case of `data/ablations.jsonl` holds two runs in the schema of the validation rows, which differ in one
//! mechanism, and the stack settings that a run differs in where the row's own fields cannot say it. An effect is the
//! logarithm of slower over faster time, so that model FLOP conventions cancel. Its sign is right when both logarithms
//! are positive, its size when the predicted one is within a third of the measured one.

use super::map::{Mapped, map};
use super::row::{self, Row};
use super::{Predictor, RowsError};
use psim_hardware::profile::StackProfile;
use psim_models::plan::Recompute;
use psim_sim::step::StepModel;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

const CASES: &str = include_str!("../../data/ablations.jsonl");

/// Largest error of a size, relative to the measured effect.
const A_THIRD: f64 = 1.0 / 3.0;

/// Why an ablation could not be predicted.
#[derive(Debug, thiserror::Error)]
pub enum AblationError {
    /// The embedded file is damaged.
    #[error("ablations, line {line}: {cause}")]
    File {
        /// Line, from 1.
        line: usize,
        /// What the JSON reader says.
        cause: String,
    },
    /// A run is no row.
    #[error("{what}: {cause}")]
    Row {
        /// The case.
        what: String,
        /// What is wrong with it.
        cause: RowsError,
    },
    /// A run cannot be predicted, or measured nothing that is a time.
    #[error("{what}: {cause}")]
    Run {
        /// The case.
        what: String,
        /// Why.
        cause: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    row: Value,
    /// Stack values by dotted key.
    #[serde(default)]
    set: BTreeMap<String, Value>,
}

/// What the measured time is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Per {
    #[default]
    Step,
    /// Forward and backward pass of one layer.
    Layer,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    mechanism: String,
    what: String,
    source: String,
    #[serde(default)]
    note: String,
    #[serde(default)]
    per: Per,
    slow: Run,
    fast: Run,
}

/// One published effect and its prediction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effect {
    /// What is switched.
    pub mechanism: String,
    /// Model, and slower against faster run.
    pub what: String,
    /// Publication.
    pub source: String,
    /// What had to be assumed; empty if nothing.
    pub note: String,
    /// Logarithm of the measured times' ratio, slower over faster.
    pub measured: f64,
    /// The same of the predicted times.
    pub predicted: f64,
}

impl Effect {
    /// Predicted over measured effect: 1 is right.
    pub fn ratio(&self) -> f64 {
        self.predicted / self.measured
    }

    /// The slower run is predicted slower.
    pub fn sign_is_right(&self) -> bool {
        self.ratio() > 0.0
    }

    /// The predicted effect is within a third of the measured one.
    pub fn size_is_right(&self) -> bool {
        (self.ratio() - 1.0).abs() <= A_THIRD
    }
}

/// Predicts every published ablation with the predictor's profiles, in the order of the file.
///
/// # Errors
/// A damaged case, or a run that cannot be predicted.
pub fn run(predictor: &Predictor) -> Result<Vec<Effect>, AblationError> {
    let mut effects = Vec::new();
    for (i, line) in CASES.lines().enumerate() {
        let case: Case = serde_json::from_str(line)
            .map_err(|e| AblationError::File { line: i + 1, cause: e.to_string() })?;
        let (slow, fast) = (times(predictor, &case, &case.slow)?, times(predictor, &case, &case.fast)?);
        let effect = |at: usize| (slow[at] / fast[at]).ln();
        let (measured, predicted) = (effect(0), effect(1));
        let Case { mechanism, what, source, note, .. } = case;
        effects.push(Effect { mechanism, what, source, note, measured, predicted });
    }
    Ok(effects)
}

/// Measured and predicted time of a run, the measured one up to the factor between a time and a rate.
fn times(predictor: &Predictor, case: &Case, run: &Run) -> Result<[f64; 2], AblationError> {
    let what = || case.what.clone();
    let failed = |cause: &str| AblationError::Run { what: what(), cause: cause.to_owned() };
    let rows = row::read(&run.row.to_string()).map_err(|cause| AblationError::Row { what: what(), cause })?;
    let row = rows.first().ok_or_else(|| failed("no row"))?;
    let measured = measured(row).ok_or_else(|| failed("no time and no rate was measured"))?;
    let mapped = map(row).map_err(|reason| failed(&format!("{reason:?}")))?;
    let (stack, _) = predictor.stack_of(&mapped).map_err(|cause| failed(&cause))?;
    let stack = set(stack, &run.set).map_err(|cause| failed(&cause))?;
    let predicted = match case.per {
        Per::Step => predictor
            .predict(&mapped, &stack)
            .map(|p| p.step_time.value * mapped.batch_scale)
            .map_err(|cause| failed(&cause))?,
        Per::Layer => layer(predictor, &mapped, &stack).ok_or_else(|| failed("the model has no layers"))?,
    };
    Ok([measured, predicted])
}

fn measured(row: &Row) -> Option<f64> {
    let m = &row.measured;
    let rate = m.tokens_per_s_per_gpu.or(m.tflops_per_gpu).or(m.mfu);
    m.step_time_s.or(rate.map(|rate| 1.0 / rate)).filter(|t| *t > 0.0)
}

/// Seconds of the passes of one micro-batch through the first kind of layer.
fn layer(predictor: &Predictor, mapped: &Mapped, stack: &StackProfile) -> Option<f64> {
    let model = StepModel::new(&mapped.model, &mapped.workload, &mapped.cluster, stack, &predictor.library);
    let times = model.layer_times(&mapped.plan);
    let kind = times.kinds.first()?;
    let again = match mapped.plan.recompute {
        Recompute::None => 0.0,
        Recompute::Selective => kind.selective.time,
        Recompute::Full | Recompute::Layers(_) => kind.forward.time,
    };
    Some(kind.forward.time + kind.backward.time + again)
}

/// The profile with values replaced by dotted key.
fn set(stack: StackProfile, values: &BTreeMap<String, Value>) -> Result<StackProfile, String> {
    if values.is_empty() {
        return Ok(stack);
    }
    let mut tree = serde_json::to_value(&stack).map_err(|e| e.to_string())?;
    for (key, value) in values {
        let pointer = format!("/{}", key.replace('.', "/"));
        *tree.pointer_mut(&pointer).ok_or_else(|| format!("no key `{key}`"))? = value.clone();
    }
    serde_json::from_value(tree).map_err(|e| e.to_string())
}

/// The effects as a Markdown table, with the counts below it.
pub fn table(effects: &[Effect]) -> String {
    let mut out = String::from(
        "| mechanism | runs, slower against faster | source | measured | predicted | of it | within a third |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let percent = |effect: f64| format!("{:+.1} %", 100.0 * effect.exp_m1());
    for e in effects {
        let verdict = if e.size_is_right() { "yes" } else { "no" };
        out.push_str(&format!(
            "| {} | {} | {} | {} | {} | {:.2} | {verdict} |\n",
            e.mechanism,
            e.what,
            e.source,
            percent(e.measured),
            percent(e.predicted),
            e.ratio()
        ));
    }
    let count = |right: fn(&Effect) -> bool| effects.iter().filter(|e| right(e)).count();
    out.push_str(&format!(
        "\n{} effects: {} signs right, {} sizes within a third.\n",
        effects.len(),
        count(Effect::sign_is_right),
        count(Effect::size_is_right)
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_replaces_one_value() {
        let stack = Predictor::built_in().stacks[0].clone();
        let fused = stack.fusion.softmax;
        let values = BTreeMap::from([("fusion.softmax".to_owned(), Value::Bool(!fused))]);
        assert_eq!(set(stack.clone(), &values).unwrap().fusion.softmax, !fused);
        assert!(set(stack, &BTreeMap::from([("fusion.nothing".to_owned(), Value::Null)])).is_err());
    }

    #[test]
    fn every_published_sign_is_right() {
        let effects = run(&Predictor::built_in()).unwrap();
        println!("{}", table(&effects));
        let wrong: Vec<&str> =
            effects.iter().filter(|e| !e.sign_is_right()).map(|e| e.what.as_str()).collect();
        assert!(wrong.is_empty(), "sign wrong: {wrong:?}");
    }

    #[test]
    fn sizes_are_judged_by_the_measured_effect() {
        let effect = |predicted| Effect {
            mechanism: String::new(),
            what: String::new(),
            source: String::new(),
            note: String::new(),
            measured: 0.3,
            predicted,
        };
        assert!(effect(0.21).size_is_right() && effect(0.39).size_is_right());
        assert!(!effect(0.19).size_is_right() && !effect(0.41).size_is_right());
        assert!(!effect(-0.1).sign_is_right());
    }
}
