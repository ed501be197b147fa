//! Names of plans side by side: the usual label, and what tells apart those that would read alike.

use psim_models::Plan;
use psim_models::plan::ContextParallel;
use psim_reports::plan_label;
use serde_json::{Map, Value};

/// Fields that the usual label shows.
const SHOWN: [&str; 8] = ["tp", "pp", "dp", "cp", "ep", "vpp", "micro_batch", "recompute"];

/// One label per plan; different plans get different labels.
pub(super) fn labels(plans: &[Plan]) -> Vec<String> {
    let short: Vec<String> = plans.iter().map(plan_label).collect();
    let fields: Vec<Map<String, Value>> = plans.iter().map(fields).collect();
    (0..plans.len())
        .map(|i| {
            let alike: Vec<usize> = (0..plans.len()).filter(|&j| short[j] == short[i]).collect();
            let mut label = short[i].clone();
            for (name, value) in &fields[i] {
                let hidden = !SHOWN.contains(&name.as_str());
                if hidden && alike.iter().any(|&j| fields[j].get(name) != Some(value)) {
                    label.push_str(&format!(" {}", words(name, value)));
                }
            }
            label
        })
        .collect()
}

fn fields(plan: &Plan) -> Map<String, Value> {
    match serde_json::to_value(plan) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// `schedule gpipe`, `no sequence parallel`, `stage layers 1+3`.
fn words(name: &str, value: &Value) -> String {
    let name = name.replace('_', " ");
    match value {
        Value::Bool(true) => name,
        Value::Bool(false) => format!("no {name}"),
        Value::String(text) => format!("{name} {text}"),
        Value::Array(list) if list.is_empty() => format!("even {name}"),
        Value::Array(list) => {
            format!("{name} {}", list.iter().map(ToString::to_string).collect::<Vec<_>>().join("+"))
        }
        other => format!("{name} {other}"),
    }
}

/// The plan without choices that change nothing where a size is 1: equal ones run the same program.
pub(super) fn canonical(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    if plan.tp == 1 {
        plan.sequence_parallel = false;
    }
    if plan.cp == 1 {
        plan.cp_kind = ContextParallel::Ring;
    }
    if plan.pp == 1 {
        plan.stage_layers.clear();
        plan.vocabulary_parallel = false;
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Plan {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn plans_that_read_alike_say_what_differs() {
        let base = "tp = 2\npp = 2\ndp = 1\nmicro_batch = 1\nglobal_batch = 8\n";
        let plans = [
            plan(base),
            plan(&format!("{base}schedule = \"gpipe\"\n")),
            plan(&format!("{base}stage_layers = [1, 3]\n")),
            plan("tp = 1\npp = 2\ndp = 2\nmicro_batch = 1\nglobal_batch = 8\n"),
        ];
        let labels = labels(&plans);
        assert_eq!(labels[3], plan_label(&plans[3]));
        assert!(labels[1].contains("schedule gpipe"), "{labels:?}");
        assert!(labels[2].contains("stage layers 1+3"), "{labels:?}");
        for (i, label) in labels.iter().enumerate() {
            assert_eq!(labels.iter().position(|l| l == label), Some(i), "{labels:?}");
        }
    }

    #[test]
    fn choices_without_effect_do_not_make_another_program() {
        let one =
            plan("tp = 1\npp = 1\ndp = 4\nmicro_batch = 1\nglobal_batch = 8\nsequence_parallel = true\n");
        let other = Plan { sequence_parallel: false, ..one.clone() };
        assert!(one != other && canonical(&one) == canonical(&other));
        let two = Plan { tp: 2, dp: 2, ..one };
        assert_ne!(canonical(&two), canonical(&Plan { sequence_parallel: false, ..two.clone() }));
    }
}
