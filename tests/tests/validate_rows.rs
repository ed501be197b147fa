//! The published training rows end to end: coverage, accuracy floors, and independence from what was measured.

use psim_calibration::validate::{Predictor, row, run, run_rows};
use serde_json::Value;

fn rows() -> Option<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/validation/train.jsonl");
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(_) => {
            println!("SKIP: {path} is not here; nothing was checked");
            None
        }
    }
}

/// Floors a little above what is reached, so that a regression fails and noise does not.
#[test]
fn published_rows_are_predicted_within_the_promised_error() {
    let Some(text) = rows() else { return };
    let report = run(&text, &Predictor::built_in()).unwrap();
    println!("{}", report.table());
    let coverage = report.all.covered as f64 / report.all.rows as f64;
    assert!(coverage >= 0.97, "coverage {coverage}");
    let macro_median = report.all.macro_median_ape.unwrap();
    assert!(macro_median <= 6.0, "macro median {macro_median} %");
    for (source, summary) in &report.sources {
        let median = summary.median_ape.unwrap();
        assert!(median <= 15.0, "{source}: median {median} %");
    }
    assert!(report.all.ranking.kendall_tau.unwrap() >= 0.6);
}

#[test]
fn measurements_and_outcomes_do_not_reach_the_prediction() {
    let Some(text) = rows() else { return };
    let predictor = Predictor::built_in();
    let original = row::read(&text).unwrap();
    let blanked: String = text
        .lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            if let Some(measured) = value["measured"].as_object_mut() {
                for entry in measured.values_mut().filter(|v| v.is_number()) {
                    *entry = Value::from(1.0);
                }
            }
            value.as_object_mut().unwrap().remove("outcome");
            format!("{value}\n")
        })
        .collect();
    let blanked = row::read(&blanked).unwrap();
    let (before, after) = (run_rows(&original, &predictor), run_rows(&blanked, &predictor));
    for (a, b) in before.rows.iter().zip(&after.rows) {
        assert_eq!((&a.id, &a.status, a.fits), (&b.id, &b.status, b.fits));
        for (x, y) in a.entries.iter().zip(&b.entries) {
            assert_eq!((x.metric, x.predicted), (y.metric, y.predicted), "{}", a.id);
        }
    }
}

#[test]
fn odd_rows_are_answered_not_refused() {
    let lines = [
        r#"{"id":"x-1"}"#,
        r#"{"id":"x-2","kind":"serve","model":{"name":"llama3-8b"}}"#,
        r#"{"id":"x-3","kind":"train","model":{"name":"llama3-8b","layers":"many"}}"#,
        r#"{"id":"x-4","kind":"train","model":{"name":"no such model"},"hardware":{"gpu":"H100-SXM-80GB","gpus":8},"config":{"seq_len":4096}}"#,
        r#"{"id":"x-5","kind":"train","model":{"name":"llama3-8b"},"hardware":{"gpu":"H100-SXM-80GB","gpus":8},"config":{"tp":3,"seq_len":4096,"global_batch_seqs":8}}"#,
        r#"{"id":"x-6","kind":"train","model":{"name":"llama3-8b"},"hardware":{"gpu":"H100-SXM-80GB","gpus":8},"config":{"framework":"Brand New 2031","tp":null,"seq_len":4096,"global_batch_seqs":8,"precision":null},"measured":{"mfu":40.0}}"#,
    ];
    let report = run(&lines.join("\n"), &Predictor::built_in()).unwrap();
    let json = report.json();
    let status = |id: &str| {
        let rows = json["rows"].as_array().unwrap();
        rows.iter().find(|r| r["id"] == id && r["metric"] == "fits").unwrap()["status"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(status("x-1"), "unsupported");
    assert_eq!(status("x-2"), "unsupported");
    for id in ["x-3", "x-4", "x-5"] {
        assert_eq!(status(id), "incomplete", "{id}");
    }
    assert_eq!(status("x-6"), "predicted");
    let last = report.rows.last().unwrap();
    assert!(last.notes.iter().any(|n| n.contains("nearest era")), "{:?}", last.notes);
}
