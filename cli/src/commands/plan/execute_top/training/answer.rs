//! What the loop over training plans says: phases predicted against measured, and the plans ranked again.

use super::super::LoopArguments;
use super::super::journal::Executed;
use super::super::ranking::{Figure, Rankings, error_percent};
use super::Ran;
use super::labels::labels;
use crate::inputs::Job;
use crate::machine::Place;
use crate::number::grouped;
use crate::table::{Align, Table, wrap};
use psim_executor::execute::ExecuteDevice;
use psim_models::Plan;
use psim_reports::plan_label;
use serde_json::{Value, json};

/// How many plans of each ranking the JSON answer lists.
const LISTED: usize = 10;

/// Outcome of the loop.
pub(super) struct Answer {
    executed: Executed<Ran>,
    /// Seconds of a step.
    rankings: Rankings<Plan>,
    /// How many plans the planner gave, those included that the executor does not run.
    found: usize,
    /// What each plan of the answer is called.
    names: Vec<(Plan, String)>,
}

impl Answer {
    pub(super) fn new(executed: Executed<Ran>, rankings: Rankings<Plan>, found: usize) -> Self {
        let mut plans: Vec<Plan> = rankings.before.iter().map(|(plan, _)| plan.clone()).collect();
        // An interrupted loop may have run others.
        for ran in &executed.rans {
            if !plans.contains(&ran.observation.plan) {
                plans.push(ran.observation.plan.clone());
            }
        }
        let labels = labels(&plans);
        Self { executed, rankings, found, names: plans.into_iter().zip(labels).collect() }
    }

    fn name(&self, plan: &Plan) -> String {
        self.names.iter().find(|(p, _)| p == plan).map_or_else(|| plan_label(plan), |(_, name)| name.clone())
    }

    pub(super) fn json(&self, job: &Job, arguments: &LoopArguments) -> Value {
        let name = |plan: &Plan| self.name(plan);
        let mut answer = json!({
            "schema": 1, "model": job.model.name, "ranks": job.cluster.accelerators(),
            "executed": self.executed.rans, "resumed": self.executed.resumed, "residuals": arguments.residuals,
        });
        let one = |plan: &Plan, step: f64| json!({ "label": name(plan), "plan": plan, "predicted_s": step });
        self.rankings.add_to(&mut answer, LISTED, name, one);
        answer
    }

    pub(super) fn text(&self, job: &Job, place: &Place, arguments: &LoopArguments) -> String {
        let ranks = match place.device {
            ExecuteDevice::Cpu => {
                format!("{} rank threads, {} cores", job.cluster.accelerators(), place.sharing.cores)
            }
            ExecuteDevice::Cuda(index) => format!("cuda:{index}"),
        };
        let mut out = format!(
            "{} on {ranks} ({}); prediction from: {}\n",
            job.model.name, place.accelerator, place.origin,
        );
        if let Some(note) = &place.note {
            out.push_str(&format!("{}\n", wrap(&format!("note: {note}"), 100, "  ")));
        }
        out.push_str(&format!(
            "{} of the planner's {} best plans run here; executed {} of them{}\n\n",
            grouped(self.rankings.before.len() as u64),
            grouped(self.found as u64),
            self.executed.rans.len(),
            self.executed.resumed_in_words(),
        ));
        let right = Align::Right;
        let mut table = Table::new(&[
            ("plan", Align::Left),
            ("stage", right),
            ("phase", Align::Left),
            ("measured ms", right),
            ("predicted ms", right),
            ("error %", right),
        ]);
        let mut row = |name: String, stage: String, phase: &str, measured: f64, predicted: f64| {
            let ms = |s: f64| format!("{:.2}", s * 1e3);
            let error = error_percent(measured, predicted);
            table.row([name, stage, phase.to_owned(), ms(measured), ms(predicted), error]);
        };
        for ran in &self.executed.rans {
            let o = &ran.observation;
            row(self.name(&o.plan), String::new(), "step", o.measured, ran.predicted_before_s);
            for p in &ran.phases {
                row(String::new(), p.stage.to_string(), &p.phase, p.measured_s, p.predicted_s);
            }
        }
        out.push_str(&table.render());
        out.push('\n');
        let figure = Figure { now: "predicted ms", before: "before ms", scale: 1e3 };
        out.push_str(&self.rankings.text(&figure, |plan| self.name(plan)));
        out.push_str(&format!("updated {}\n", arguments.residuals.display()));
        out
    }
}
