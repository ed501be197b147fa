//! What each mechanism costs, found by taking it out: the waterfall of `psim explain` and `psim compare`.

use crate::failure::Failure;
use crate::inputs::{Job, settings};
use crate::number::{seconds, three};
use crate::table::{Align::Left, Align::Right, Table};
use psim_hardware::profile::StackProfile;
use psim_hardware::profile::stack::MECHANISMS;
use psim_models::Plan;
use psim_sim::step::StepModel;
use psim_sim::{Level, StepPrediction};
use serde::Serialize;

/// One step down from the peak.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Fall {
    /// Name of the term.
    pub(crate) term: &'static str,
    /// Seconds that the step gets shorter when the mechanism is taken out after all those below it in the table.
    pub(crate) seconds: f64,
    /// Seconds that the step gets shorter when this mechanism alone is taken out.
    pub(crate) alone_seconds: f64,
    /// TFLOP/s per accelerator lost to it.
    pub(crate) tflops_lost: f64,
    /// TFLOP/s per accelerator left after it.
    pub(crate) tflops_left: f64,
    /// `--set` values that take the mechanism out.
    pub(crate) set: Vec<&'static str>,
}

/// Name of the first line.
pub(crate) const PEAK: &str = "datasheet peak";
/// Name of the line between the peak and the executed operations.
pub(crate) const BEYOND: &str = "work beyond the model's FLOPs";

/// The terms from the peak down to what the plan achieves; their losses sum to the gap exactly.
pub(crate) fn falls(job: &Job, plan: &Plan, prediction: &StepPrediction) -> Result<Vec<Fall>, Failure> {
    let software = &job.software;
    let time = |stack: &StackProfile| -> Result<f64, Failure> {
        StepModel::new(&job.model, &job.workload, &job.cluster, stack, &software.library)
            .predict(plan, Level::L2, false)
            .map(|p| p.step_time.value)
            .map_err(|e| Failure::input(e.to_string(), "the plan itself can be simulated: report this"))
    };
    let without = |stack: &StackProfile, set: &[&str]| {
        set.iter().try_fold(stack.clone(), |stack, setting| settings::apply(&stack, setting))
    };
    let whole = time(&software.stack)?;
    let mut stack = software.stack.clone();
    let mut left = whole;
    let mut terms = Vec::with_capacity(MECHANISMS.len());
    for mechanism in MECHANISMS {
        stack = without(&stack, mechanism.settings)?;
        let shorter = time(&stack)?;
        let alone = whole - time(&without(&software.stack, mechanism.settings)?)?;
        terms.push((mechanism, left, left - shorter, alone));
        left = shorter;
    }
    let work = prediction.model_tflops_per_gpu * whole;
    let peak =
        if prediction.mfu > 0.0 { prediction.model_tflops_per_gpu / prediction.mfu * 100.0 } else { 0.0 };
    let ideal = work / peak.max(1e-9);
    let fall = |term, seconds, alone_seconds, after: f64, set| {
        let before = after - seconds;
        let rate = |time: f64| if time > 0.0 { work / time } else { peak };
        Fall {
            term,
            seconds,
            alone_seconds,
            tflops_lost: rate(before) - rate(after),
            tflops_left: rate(after),
            set,
        }
    };
    let mut out = vec![
        Fall {
            term: PEAK,
            seconds: ideal,
            alone_seconds: ideal,
            tflops_lost: 0.0,
            tflops_left: peak,
            set: Vec::new(),
        },
        fall(BEYOND, left - ideal, left - ideal, left, Vec::new()),
    ];
    for (mechanism, after, seconds, alone) in terms.into_iter().rev() {
        if seconds.abs() > 1e-9 * whole || alone.abs() > 1e-9 * whole {
            out.push(fall(mechanism.term, seconds, alone, after, mechanism.settings.to_vec()));
        }
    }
    Ok(out)
}

/// The waterfall as a table.
pub(crate) fn text(falls: &[Fall]) -> String {
    let columns = [
        ("term", Left),
        ("time", Right),
        ("alone", Right),
        ("lost", Right),
        ("left, TFLOP/s/GPU", Right),
        ("taken out by --set", Left),
    ];
    let mut table = Table::new(&columns);
    for (i, fall) in falls.iter().enumerate() {
        let signed = |x: f64| format!("{}{}", if x >= 0.0 { "-" } else { "+" }, three(x.abs()));
        table.row([
            fall.term.to_owned(),
            seconds(fall.seconds),
            if fall.set.is_empty() { String::new() } else { seconds(fall.alone_seconds) },
            if i == 0 { String::new() } else { signed(fall.tflops_lost) },
            three(fall.tflops_left),
            fall.set.join(" "),
        ]);
    }
    table.render()
}
