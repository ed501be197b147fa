//! What the serving loop says: phases predicted against measured, and the plans ranked again.

use super::super::LoopArguments;
use super::super::journal::Executed;
use super::super::ranking::{Figure, Rankings, error_percent};
use super::{Bench, Phase, Ran};
use crate::table::{Align, Table, wrap};
use psim_executor::serving::{ServeRun, Served, StepPrice};
use psim_sim::residual::ServingLayout;
use psim_sim::serving::ServingRun;
use serde_json::{Value, json};

/// `tp 2 x 1, 16 sequences, 64 tokens a step`.
pub(super) fn label(l: &ServingLayout) -> String {
    format!("tp {} x {}, {} sequences, {} tokens a step", l.tp, l.replicas, l.sequences, l.tokens)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.filter(|v| v.is_finite()).fold((0.0, 0.0), |(s, n), v| (s + v, n + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Mean time per token of a run.
fn pace(run: &ServeRun) -> f64 {
    mean(run.requests.iter().map(Served::tpot))
}

/// Largest over smallest mean time per token of the runs, less one.
pub(super) fn spread(runs: &[ServeRun]) -> f64 {
    let most = runs.iter().map(pace).fold(0.0, f64::max);
    let least = runs.iter().map(pace).fold(f64::INFINITY, f64::min);
    if least > 0.0 { most / least - 1.0 } else { 0.0 }
}

/// What requests waited and were served for: means over them, the median run.
pub(super) fn requests(runs: &[ServeRun], simulated: &ServingRun) -> Vec<Phase> {
    let outcomes = &simulated.outcomes;
    let seconds = |t: psim_hardware::Time| t.seconds().0;
    let tokens = |i: usize| runs.first().map_or(0, |r| r.requests[i].tokens.len());
    let per_token = mean(outcomes.iter().enumerate().map(|(i, o)| match tokens(i) {
        0 | 1 => f64::NAN,
        n => seconds(o.finish - o.first_token) / (n - 1) as f64,
    }));
    let row = |phase: &str, of: &dyn Fn(&ServeRun) -> f64, predicted: f64| Phase {
        phase: phase.to_owned(),
        measured_s: median(runs.iter().map(of).collect()),
        predicted_s: predicted,
    };
    vec![
        row(
            "queue",
            &|run| mean(run.requests.iter().map(|r| r.admitted - r.arrival)),
            mean(outcomes.iter().map(|o| seconds(o.admitted - o.sent))),
        ),
        row(
            "prefill",
            &|run| mean(run.requests.iter().map(|r| r.arrival + r.ttft() - r.admitted)),
            mean(outcomes.iter().map(|o| seconds(o.first_token - o.admitted))),
        ),
        row("decode, a token", &pace, per_token),
    ]
}

/// What the engine's steps took, and what the same steps are priced at: means over them.
pub(super) fn steps(runs: &[ServeRun], prices: &[Vec<StepPrice>]) -> Vec<Phase> {
    let pairs = || runs.iter().zip(prices).flat_map(|(run, prices)| run.steps.iter().zip(prices));
    [("step of decoding", false), ("step with prompts", true)]
        .into_iter()
        .filter(|(_, prompts)| pairs().any(|(s, _)| (s.prompt > 0) == *prompts))
        .map(|(phase, prompts)| Phase {
            phase: phase.to_owned(),
            measured_s: mean(pairs().filter(|(s, _)| (s.prompt > 0) == prompts).map(|(s, _)| s.seconds)),
            predicted_s: mean(pairs().filter(|(s, _)| (s.prompt > 0) == prompts).map(|(_, p)| p.total())),
        })
        .collect()
}

/// Outcome of the loop.
pub(super) struct Answer {
    pub(super) executed: Executed<Ran>,
    /// Requests a second within the promises.
    pub(super) rankings: Rankings<ServingLayout>,
}

impl Answer {
    pub(super) fn json(&self, bench: &Bench<'_>, arguments: &LoopArguments) -> Value {
        let mut answer = json!({
            "schema": 1, "kind": "serving", "model": bench.job.model.name, "ranks": bench.ranks,
            "requests": bench.requests.len(), "executed": self.executed.rans, "resumed": self.executed.resumed,
            "residuals": arguments.residuals,
        });
        let one = |l: &ServingLayout, rate: f64| json!({ "label": label(l), "layout": l, "rate": rate });
        self.rankings.add_to(&mut answer, usize::MAX, label, one);
        answer
    }

    pub(super) fn text(&self, bench: &Bench<'_>, arguments: &LoopArguments) -> String {
        let (machine, job) = (bench.machine, bench.job);
        let mut out = format!(
            "{} on {} rank threads, {} cores ({}); prediction from: {}\n",
            job.model.name,
            bench.ranks,
            machine.facts.sharing.cores,
            machine.accelerator.name,
            machine.origin,
        );
        if let Some(note) = machine.stand_in(&job.cluster) {
            out.push_str(&format!("{}\n", wrap(&format!("note: {note}"), 100, "  ")));
        }
        if machine.facts.engine_steps.is_empty() {
            out.push_str(
                "note: the profile says nothing of the engine's own loop, which is priced at nothing; calibrate longer\n",
            );
        }
        out.push_str(&format!(
            "{} serving plans for this machine; executed {} of them{}: {} requests of the workload, {} times\n\n",
            self.rankings.before.len(),
            self.executed.rans.len(),
            self.executed.resumed_in_words(),
            bench.requests.len(),
            bench.runs,
        ));
        let right = Align::Right;
        let mut table = Table::new(&[
            ("plan", Align::Left),
            ("phase", Align::Left),
            ("measured ms", right),
            ("predicted ms", right),
            ("error %", right),
        ]);
        for ran in &self.executed.rans {
            let mut name = label(&ran.observation.layout);
            for p in &ran.phases {
                let ms = |s: f64| format!("{:.2}", s * 1e3);
                let error = error_percent(p.measured_s, p.predicted_s);
                let name = std::mem::take(&mut name);
                table.row([name, p.phase.clone(), ms(p.measured_s), ms(p.predicted_s), error]);
            }
            let (spread, f) = (format!("{:.0} %", ran.spread * 1e2), ran.observation.factors);
            table.row([String::new(), "spread of the runs".to_owned(), spread, String::new(), String::new()]);
            let learned = format!("x{:.2}, x{:.2}", f.step, f.token);
            table.row([
                String::new(),
                "learned: a step, a token more".to_owned(),
                learned,
                String::new(),
                String::new(),
            ]);
        }
        out.push_str(&table.render());
        out.push('\n');
        let figure = Figure { now: "requests/s", before: "before", scale: 1.0 };
        out.push_str(&self.rankings.text(&figure, label));
        out.push_str(&format!("updated {}\n", arguments.residuals.display()));
        out
    }
}
