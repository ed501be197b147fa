//! What the serving loop says: phases predicted against measured, and the plans ranked again.

use super::{Bench, LoopArguments, Phase, Ran, Ranked};
use crate::table::{Align, Table, wrap};
use psim_executor::serving::{ServeRun, Served, StepPrice};
use psim_sim::residual::ServingLayout;
use psim_sim::serving::ServingRun;
use serde_json::json;

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
    pub(super) rans: Vec<Ran>,
    pub(super) resumed: usize,
    pub(super) before: Vec<Ranked>,
    pub(super) after: Vec<Ranked>,
}

impl Answer {
    fn winners(&self) -> Option<(&Ranked, &Ranked)> {
        self.before.first().zip(self.after.first())
    }

    pub(super) fn json(&self, bench: &Bench<'_>, arguments: &LoopArguments) -> serde_json::Value {
        let list = |plans: &[Ranked]| -> Vec<_> {
            let one = |(l, rate): &Ranked| json!({ "label": label(l), "layout": l, "rate": rate });
            plans.iter().map(one).collect()
        };
        json!({
            "schema": 1, "kind": "serving", "model": bench.job.model.name, "ranks": bench.ranks,
            "requests": bench.requests.len(), "executed": self.rans, "resumed": self.resumed,
            "ranking_before": list(&self.before), "ranking_after": list(&self.after),
            "winner_changed": self.winners().map(|(a, b)| a.0 != b.0),
            "winner_before": self.before.first().map(|b| label(&b.0)),
            "winner_after": self.after.first().map(|a| label(&a.0)), "residuals": arguments.residuals,
        })
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
            self.before.len(),
            self.rans.len(),
            if self.resumed > 0 {
                format!(" ({} before this loop was interrupted)", self.resumed)
            } else {
                String::new()
            },
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
        for ran in &self.rans {
            let mut name = label(&ran.observation.layout);
            for p in &ran.phases {
                let ms = |s: f64| format!("{:.2}", s * 1e3);
                let error = if p.measured_s > 1e-9 {
                    format!("{:+.0}", (p.predicted_s / p.measured_s - 1.0) * 1e2)
                } else {
                    String::new()
                };
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
        let mut ranking = Table::new(&[
            ("ranked again", Align::Left),
            ("requests/s", right),
            ("before", right),
            ("was", right),
        ]);
        for (layout, rate) in self.after.iter().take(5) {
            let at = self.before.iter().position(|(l, _)| l == layout);
            let old = at.and_then(|i| self.before.get(i)).map_or(0.0, |b| b.1);
            let was = at.map_or(String::new(), |i| format!("#{}", i + 1));
            ranking.row([label(layout), format!("{rate:.2}"), format!("{old:.2}"), was]);
        }
        out.push('\n');
        out.push_str(&ranking.render());
        if let Some((first, last)) = self.winners() {
            out.push_str(&if first.0 == last.0 {
                format!("the winner stays: {}\n", label(&first.0))
            } else {
                format!("the winner changed: {} instead of {}\n", label(&last.0), label(&first.0))
            });
        }
        out.push_str(&format!("updated {}\n", arguments.residuals.display()));
        out
    }
}
