//! What each mechanism costs, found by taking it out: the waterfall of `psim simulate`, `psim explain` and `psim compare`.

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
use std::thread;

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
/// Name of the line that only single ranks (L3) have.
pub(crate) const RANKS: &str = "ranks unlike each other";

/// The terms from the peak down to what the plan achieves; their losses sum to the gap exactly. Every term is found at the
/// prediction's own level; of single ranks (L3) at L2, and what the ranks add is a term of its own.
pub(crate) fn falls(job: &Job, plan: &Plan, prediction: &StepPrediction) -> Result<Vec<Fall>, Failure> {
    let software = &job.software;
    let level = prediction.level.min(Level::L2);
    let time = |stack: &StackProfile| -> Result<f64, Failure> {
        StepModel::new(&job.model, &job.workload, &job.cluster, stack, &software.library)
            .predict(plan, level, false)
            .map(|p| p.step_time.value)
            .map_err(|e| Failure::input(e.to_string(), "the plan itself can be simulated: report this"))
    };
    let without = |stack: &StackProfile, set: &[&str]| {
        set.iter().try_fold(stack.clone(), |stack, setting| settings::apply(&stack, setting))
    };
    // Every mechanism after those before it, and each of them alone.
    let (mut stack, mut together, mut alone) = (software.stack.clone(), Vec::new(), Vec::new());
    for mechanism in MECHANISMS {
        stack = without(&stack, mechanism.settings)?;
        together.push(stack.clone());
        alone.push(without(&software.stack, mechanism.settings)?);
    }
    let times = |stacks: &[StackProfile]| stacks.iter().map(time).collect::<Result<Vec<f64>, Failure>>();
    let (together, alone) = thread::scope(|scope| {
        let other = scope.spawn(|| times(&alone));
        let first = times(&together);
        (first, other.join())
    });
    let (together, alone) = match (together, alone) {
        (together, Ok(alone)) => (together?, alone?),
        (_, Err(panic)) => std::panic::resume_unwind(panic),
    };
    let achieved = prediction.step_time.value;
    let whole = if prediction.level > level { time(&software.stack)? } else { achieved };
    let mut left = whole;
    let mut terms = Vec::with_capacity(MECHANISMS.len());
    for ((mechanism, shorter), alone) in MECHANISMS.iter().zip(together).zip(alone) {
        terms.push((mechanism, left, left - shorter, whole - alone));
        left = shorter;
    }
    let work = prediction.model_tflops_per_gpu * achieved;
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
    if achieved != whole {
        out.push(fall(RANKS, achieved - whole, achieved - whole, achieved, Vec::new()));
    }
    Ok(out)
}

/// How to read the table.
pub(crate) const HOW_TO_READ: &str = "The losses sum to the gap. `time` is what the step gets shorter by when the term's \
    mechanism is taken out after all those in the lines below it, `alone` when it alone is: run psim simulate with the \
    line's --set, each value behind a --set of its own.";

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
