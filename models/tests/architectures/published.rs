//! The table of published parameter counts that comes with the configurations, row by row.

use std::collections::BTreeMap;

use psim_models::{Model, presets};

/// What the printed total counts.
enum Counts {
    /// The model of this file, without prediction layers.
    Language(&'static str),
    /// The same from a preset.
    Preset(&'static str),
    /// Prediction layers included.
    WithPrediction(&'static str),
    /// A preset without its embedding and output layer (the GLM-4.5 report says so), with or without prediction layers.
    WithoutVocabulary { preset: &'static str, prediction: bool },
    /// The checkpoint: prediction layers that hold copies of the embedding and of the output layer.
    Checkpoint(&'static str),
    /// The language model of this file, its prediction layers where `prediction`, and a vision tower of known size.
    Tower { file: &'static str, prediction: bool, vision: u64 },
    /// A vision tower of unknown size, at most this share of the total, is in the printed number.
    UnknownTower { file: &'static str, share: f64 },
    /// Not testable, and why.
    Skip(&'static str),
}
use Counts::{Checkpoint, Language, Preset, Skip, Tower, UnknownTower, WithPrediction, WithoutVocabulary};

/// Parameters of the vision tower of Qwen3.5: patches of 2·16·16·3 values, learned positions, blocks of layer norm,
/// attention and a plain network with biases, and a merger of four patches into the language width.
const fn qwen_vision(out: u64) -> u64 {
    let (width, ffn, depth) = (1152, 4304, 27);
    let patch = 3 * 2 * 16 * 16 * width + width;
    let positions = 2304 * width;
    let block = 4 * width * width + 4 * width + 2 * width * ffn + ffn + width + 4 * width;
    let merged = 4 * width;
    let merger = 2 * width + merged * merged + merged + merged * out + out;
    patch + positions + depth * block + merger
}

/// The matrices of a vision tower: attention and a plain network per layer, without the small rest.
const fn matrices(layers: u64, width: u64, ffn: u64) -> u64 {
    layers * (4 * width * width + 2 * width * ffn)
}

const TABLE: &[(&str, Counts)] = &[
    ("zai-org/GLM-5.2", Language("zai-org--GLM-5.2")),
    ("openai/gpt-oss-120b", Language("openai--gpt-oss-120b")),
    ("openai/gpt-oss-20b", Language("openai--gpt-oss-20b")),
    ("nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16", Skip("its configuration is not public here")),
    (
        "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16",
        WithPrediction("nvidia--NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4"),
    ),
    (
        "nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16",
        // Nemotron-3-Nano with two towers, which are 1.44B of 33.02B.
        UnknownTower { file: "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", share: 0.05 },
    ),
    // The configuration of Qwen3.5-27B, of the same dimensions: to the last digit with its vision tower.
    ("Qwen/Qwen3.8-27B", Tower { file: "Qwen--Qwen3.5-27B", prediction: true, vision: qwen_vision(5120) }),
    (
        "stepfun-ai/Step-3.5-Flash",
        Skip("as constructed by the training framework, 3.0B above the released model"),
    ),
    ("gpt2", Preset("gpt2")),
    ("mistralai/Mixtral-8x7B-v0.1", Language("mistralai--Mixtral-8x7B-v0.1")),
    ("mistralai/Mistral-7B (vocab 32768)", Preset("mistral-7b")),
    ("bigscience/bloom", Preset("bloom-176b")),
    ("deepseek-ai/DeepSeek-V3", Language("deepseek-ai--DeepSeek-V3")),
    ("zai-org/GLM-4.5", WithoutVocabulary { preset: "glm-4.5", prediction: true }),
    ("zai-org/GLM-4.5-Air", WithoutVocabulary { preset: "glm-4.5-air", prediction: false }),
    ("zai-org/GLM-4.7", Checkpoint("glm-4.7")),
    ("zai-org/GLM-4.7-Flash", Preset("glm-4.7-flash")),
    ("zai-org/GLM-5 (nvidia/GLM-5-NVFP4)", Language("zai-org--GLM-5")),
    ("moonshotai/Kimi-K2.6", Preset("kimi-k2.6")),
    ("Qwen/Qwen3-30B-A3B", Language("Qwen--Qwen3-30B-A3B")),
    ("Qwen/Qwen3-235B-A22B", Language("Qwen--Qwen3-235B-A22B")),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", Language("Qwen--Qwen3-Next-80B-A3B-Instruct")),
    ("Qwen/Qwen3.5-35B-A3B", Language("Qwen--Qwen3.5-35B-A3B")),
    ("Qwen/Qwen3.5-122B-A10B", Language("Qwen--Qwen3.5-122B-A10B")),
    (
        "Qwen/Qwen3.5-397B-A17B",
        Tower { file: "Qwen--Qwen3.5-397B-A17B", prediction: false, vision: qwen_vision(4096) },
    ),
    // A tower of 32 layers, 1,280 wide, and two projectors, whose inner widths are not public here.
    ("MiniMaxAI/MiniMax-M3", UnknownTower { file: "MiniMaxAI--MiniMax-M3", share: 0.005 }),
    ("allenai/OLMoE-1B-7B-0125", Preset("olmoe-1b-7b")),
    ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", Language("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")),
    (
        "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",
        Language("nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16"),
    ),
    // The file lacks the 96 heads of windowed layers and the vision tower.
    ("stepfun-ai/Step-3.7-Flash", UnknownTower { file: "stepfun-ai--Step-3.7-Flash", share: 0.015 }),
    (
        "google/gemma-4-26B-A4B",
        Tower { file: "google--gemma-4-26B-A4B", prediction: false, vision: matrices(27, 1152, 4304) },
    ),
    ("MiniMaxAI/MiniMax-M2", Skip("SUSPECT")),
    ("meta-llama/Meta-Llama-3.1-405B", Language("meta-llama--Meta-Llama-3.1-405B")),
    ("mistralai/Mistral-7B-v0.1", Preset("mistral-7b")),
    ("meta-llama/Meta-Llama-3.1-8B", Language("meta-llama--Meta-Llama-3.1-8B")),
    ("meta-llama/Meta-Llama-3.1-70B", Language("meta-llama--Meta-Llama-3.1-70B")),
    ("meta-llama/Llama-2-7b-hf", Language("meta-llama--Llama-2-7b-hf")),
    ("mistralai/Mixtral-8x22B-v0.1", Language("mistralai--Mixtral-8x22B-v0.1")),
];

struct Printed {
    total: u64,
    active: Option<u64>,
    precision: String,
    note: String,
}

/// The table, by model name.
fn printed() -> Option<BTreeMap<String, Printed>> {
    let text = std::fs::read_to_string(super::shared("data/hf-configs/params.csv")?).unwrap();
    let mut rows = BTreeMap::new();
    for line in text.lines().skip(1) {
        let cells = cells(line);
        let row = Printed {
            total: cells[1].parse().unwrap(),
            active: cells[2].parse().ok(),
            precision: cells[3].clone(),
            note: cells[6].clone(),
        };
        rows.insert(cells[0].clone(), row);
    }
    Some(rows)
}

/// Cells of a line of comma-separated values with quotes.
fn cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            c => cells.last_mut().unwrap().push(c),
        }
    }
    cells
}

/// Rounds to the last digit that is printed, which is the last that is not zero.
fn rounded_like(value: u64, printed: u64) -> u64 {
    let mut unit = 1;
    while printed.is_multiple_of(unit * 10) {
        unit *= 10;
    }
    (value + unit / 2) / unit * unit
}

#[test]
fn published_totals_come_out() {
    let Some(printed) = printed() else { return };
    assert_eq!(printed.len(), 38);
    assert_eq!(TABLE.len(), 38);
    let mut exact = 0;
    for (name, counts) in TABLE {
        let row = &printed[*name];
        let ours = match counts {
            Skip(reason) => {
                println!("{name}: not tested: {reason}");
                assert!(*reason != "SUSPECT" || row.note.contains("SUSPECT"));
                continue;
            }
            UnknownTower { file, share } => {
                let language = super::released(file).unwrap().parameters().total;
                let rest = 1.0 - language as f64 / row.total as f64;
                println!(
                    "{name}: {language} without towers, {:.2} % of {} unexplained",
                    100.0 * rest,
                    row.total
                );
                assert!((0.0..*share).contains(&rest), "{name}: {language} against {}", row.total);
                continue;
            }
            Language(file) => super::released(file).unwrap().parameters().total,
            WithPrediction(file) => super::released(file).unwrap().parameters().total_with_mtp(),
            Tower { file, prediction, vision } => {
                let count = super::released(file).unwrap().parameters();
                vision + if *prediction { count.total_with_mtp() } else { count.total }
            }
            Preset(preset) => {
                let mut model = presets::find(preset).unwrap();
                if name.contains("vocab 32768") {
                    model.vocab = 32_768;
                }
                model.parameters().total
            }
            WithoutVocabulary { preset, prediction } => {
                let model = presets::find(preset).unwrap();
                let count = model.parameters();
                let all = if *prediction { count.total_with_mtp() } else { count.total };
                all - 2 * model.vocab * model.hidden
            }
            Checkpoint(preset) => {
                let model = presets::find(preset).unwrap();
                model.parameters().total_with_mtp()
                    + 2 * model.vocab * model.hidden * u64::from(model.mtp_layers)
            }
        };
        println!("{name}: {ours} against {} ({})", row.total, row.precision);
        if row.precision.starts_with("rounded") {
            assert_eq!(rounded_like(ours, row.total), row.total, "{name}: {ours}");
        } else {
            exact += 1;
            assert_eq!(ours, row.total, "{name}");
        }
    }
    assert!(exact >= 15, "{exact} exact rows");
}

/// Active parameters under the conventions in use: with the embedding table, without it, without the output layer too.
fn active(model: &Model) -> [u64; 3] {
    let count = model.parameters();
    let table = model.vocab * model.hidden;
    [count.active, count.active - table, count.active - 2 * table]
}

#[test]
fn published_active_counts_come_out_under_one_of_their_conventions() {
    let Some(printed) = printed() else { return };
    for (name, counts) in TABLE {
        let Some(printed) = printed[*name].active else { continue };
        let model = match counts {
            Language(file) | WithPrediction(file) | Tower { file, .. } => super::released(file).unwrap(),
            Preset(preset) | Checkpoint(preset) | WithoutVocabulary { preset, .. } => {
                presets::find(preset).unwrap()
            }
            UnknownTower { .. } | Skip(_) => continue,
        };
        let candidates = active(&model);
        let near = |ours: u64| {
            rounded_like(ours, printed) == printed || (ours as f64 / printed as f64 - 1.0).abs() < 0.05
        };
        assert!(candidates.into_iter().any(near), "{name}: {candidates:?} against {printed}");
    }
}
