//! From peak to achieved: what each term of a step costs in TFLOP/s per accelerator.

use crate::number::{seconds, three};
use crate::table::{Align::Left, Align::Right, Table};
use psim_sim::StepPrediction;
use serde::Serialize;

/// One step down from the peak.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Fall {
    /// Name of the term.
    pub(crate) term: &'static str,
    /// Seconds of the step.
    pub(crate) seconds: f64,
    /// TFLOP/s per accelerator lost to it, in this order of taking the terms away.
    pub(crate) tflops_lost: f64,
    /// TFLOP/s per accelerator left after it.
    pub(crate) tflops_left: f64,
}

/// The terms in order; the losses sum to peak − achieved.
pub(crate) fn falls(prediction: &StepPrediction) -> Vec<Fall> {
    let terms = prediction.breakdown.terms();
    let total: f64 = terms.iter().map(|t| t.1.0).sum();
    // Useful work is the same at every step down: rate × time so far stays constant.
    let work = prediction.model_tflops_per_gpu * total;
    let mut elapsed = 0.0;
    let mut out = Vec::new();
    // The datasheet rate; what is executed at that rate beyond the model's own count is a fall of its own.
    let peak =
        if prediction.mfu > 0.0 { prediction.model_tflops_per_gpu / prediction.mfu * 100.0 } else { 0.0 };
    out.push(Fall {
        term: "datasheet peak",
        seconds: work / peak.max(1e-9),
        tflops_lost: 0.0,
        tflops_left: peak,
    });
    for (i, (term, duration)) in terms.iter().enumerate() {
        let before = out.last().map_or(peak, |f| f.tflops_left);
        elapsed += duration.0;
        let left = if elapsed > 0.0 { work / elapsed } else { before };
        let (term, seconds) = if i == 0 {
            ("work beyond the model's FLOPs", elapsed - work / peak.max(1e-9))
        } else {
            (*term, duration.0)
        };
        if seconds.abs() > 1e-12 * total {
            out.push(Fall { term, seconds, tflops_lost: before - left, tflops_left: left });
        }
    }
    out
}

/// The waterfall as a table.
pub(crate) fn text(prediction: &StepPrediction) -> String {
    let columns =
        [("term", Left), ("time", Right), ("lost", Right), ("left, TFLOP/s/GPU", Right), ("", Left)];
    let mut table = Table::new(&columns);
    let falls = falls(prediction);
    let peak = falls.first().map_or(1.0, |f| f.tflops_left).max(1e-9);
    for (i, fall) in falls.iter().enumerate() {
        table.row([
            fall.term.to_owned(),
            seconds(fall.seconds),
            if i == 0 { String::new() } else { format!("-{}", three(fall.tflops_lost)) },
            three(fall.tflops_left),
            "#".repeat((fall.tflops_left / peak * 40.0).round().clamp(0.0, 60.0) as usize),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_hardware::profile::Provenance;
    use psim_hardware::{Bytes, Seconds};
    use psim_sim::{Breakdown, Estimate, Level};

    #[test]
    fn losses_sum_to_the_gap() {
        let breakdown = Breakdown {
            ideal_compute: Seconds(4.0),
            kernel_inefficiency: Seconds(2.0),
            bubble: Seconds(1.5),
            fixed: Seconds(0.5),
            ..Breakdown::default()
        };
        let prediction = StepPrediction {
            level: Level::L2,
            step_time: Estimate { value: 8.0, low: 8.0, high: 8.0 },
            tokens_per_s_per_gpu: 1.0,
            mfu: 50.0,
            model_tflops_per_gpu: 494.5,
            memory: Vec::new(),
            memory_capacity: Bytes(1),
            fits: true,
            bubble: 0.0,
            exposed_comm: 0.0,
            breakdown,
            energy_joule: 1.0,
            provenance: Provenance::Measured,
            timeline: None,
            notes: Vec::new(),
        };
        let falls = falls(&prediction);
        let lost: f64 = falls.iter().map(|f| f.tflops_lost).sum();
        assert!((falls[0].tflops_left - 989.0).abs() < 1e-9);
        assert!((lost - 494.5).abs() < 1e-9);
        assert!((falls.last().unwrap().tflops_left - 494.5).abs() < 1e-9);
        assert_eq!(falls.len(), 4);
    }
}
