//! Every model name of the published rows is a model, and rows that print dimensions get them.

use std::collections::BTreeMap;

use psim_models::presets::{self, RowDims, from_row};

/// The `model` objects of rows with the printed parameter count in billions, by name.
type Rows = BTreeMap<String, Vec<(RowDims, Option<f64>)>>;

fn rows() -> Option<Rows> {
    let mut by_name = Rows::new();
    for file in ["validation/train.jsonl", "validation/serve.jsonl"] {
        let text = std::fs::read_to_string(super::shared(file)?).unwrap();
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            if row["model"].is_object() {
                let billions = row["model"]["params_b"].as_f64();
                let dims: RowDims = serde_json::from_value(row["model"].clone()).unwrap();
                by_name.entry(dims.name.clone()).or_default().push((dims, billions));
            }
        }
    }
    Some(by_name)
}

#[test]
fn every_name_prints_its_dimensions_or_is_a_preset() {
    let Some(rows) = rows() else { return };
    assert!(rows.len() > 90, "{} names", rows.len());
    for (name, dims) in &rows {
        if !dims.iter().any(|(d, _)| d.is_complete()) {
            presets::find(name).unwrap_or_else(|e| panic!("{name} prints no dimensions: {e}"));
        }
        for (row, _) in dims {
            let model = from_row(row).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(row.layers.is_none_or(|l| l == u64::from(model.layers())), "{name}");
            assert!(row.hidden.is_none_or(|h| h == model.hidden), "{name}");
            assert!(row.vocab.is_none_or(|v| v == model.vocab), "{name}");
        }
    }
}

#[test]
fn counts_that_rows_print_are_near() {
    let Some(rows) = rows() else { return };
    let mut checked = 0;
    for (name, dims) in &rows {
        for (row, billions) in dims {
            let Some(billions) = billions else { continue };
            let model = from_row(row).unwrap();
            if name.starts_with("mpt-") {
                // These print every digit; the table of learned positions is as long as the row's sequence.
                let rest = (billions * 1e9).round() as u64 - (model.parameters().total - 2048 * model.hidden);
                assert_eq!(rest % model.hidden, 0, "{name}");
                assert!((rest / model.hidden).is_power_of_two(), "{name}: {} positions", rest / model.hidden);
                continue;
            }
            let total = model.parameters().total as f64 / 1e9;
            let table = (model.vocab * model.hidden) as f64 / 1e9;
            checked += 1;
            // Rows round their counts, small ones to whole billions; some leave the embedding out or count it twice.
            let near = |ours: f64| (ours - billions).abs() < (0.05 * billions).max(0.6);
            let conventions = [total, total - table, total - 2.0 * table, total + table];
            assert!(
                conventions.into_iter().any(near),
                "{name}: {conventions:.3?} against {billions} printed"
            );
        }
    }
    assert!(checked > 300, "{checked}");
}

#[test]
fn presets_agree_with_the_table_of_older_models() {
    let Some(path) = super::shared("data/hf-configs/dims-llm-analysis.csv") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let mut checked = 0;
    for line in text.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let name = cells[0].rsplit('_').next().unwrap();
        // Traps of the table: LLaMA with four-fold networks, a BLOOM as wide as GPT-3, Megatron with OPT's vocabulary.
        let trap = cells[8] == "llama"
            || name == "bloom-175b"
            || name.starts_with("megatron")
            || name.starts_with("mt-nlg");
        let Ok(model) = presets::find(name) else { continue };
        if trap {
            continue;
        }
        let number = |at: usize| cells[at].parse::<u64>().unwrap();
        let psim_models::arch::Mixer::Attention(a) = &model.kinds[0].mixer else { panic!("{name}") };
        let psim_models::arch::Ffn::Dense(ffn) = &model.kinds[0].ffn else { panic!("{name}") };
        let ours = [u64::from(model.layers()), a.heads, model.hidden, model.vocab, ffn.hidden];
        assert_eq!(ours, [number(1), number(2), number(3), number(4), number(7)], "{name}");
        checked += 1;
    }
    assert!(checked >= 16, "{checked}");
}
