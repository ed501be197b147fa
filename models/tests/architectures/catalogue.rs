//! The catalogue of presets and its names.

use psim_models::presets::{self, PresetError};

#[test]
fn every_preset_and_alias_is_a_model() {
    let list = presets::list().unwrap();
    assert_eq!(presets::names().unwrap().len(), list.len());
    assert!(list.len() > 150);
    for entry in list {
        let model = presets::find(entry.name).unwrap_or_else(|e| panic!("{}: {e}", entry.name));
        assert_eq!(model.name, entry.name);
        assert_eq!(model.source, entry.source);
        assert!(entry.source.len() > 10, "{}: a source names where the numbers come from", entry.name);
        for alias in &entry.aliases {
            assert_eq!(presets::find(alias).unwrap(), model, "{alias}");
        }
    }
}

#[test]
fn names_that_people_type_are_known() {
    for (typed, name) in [
        ("7b", "llama2-7b"),
        ("8b", "llama3-8b"),
        ("13b", "llama2-13b"),
        ("70b", "llama3-70b"),
        ("405b", "llama3.1-405b"),
        ("175b", "gpt3-175b"),
        ("GPT3-175B", "gpt3-175b"),
        ("Llama-3.1-405B", "llama3.1-405b"),
        ("meta-llama/Meta-Llama-3-70B-Instruct", "llama3-70b"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3.3-70b"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
        ("Qwen/Qwen3-235B-A22B", "qwen3-235b-a22b"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "nemotron-3-nano"),
        ("mt-nlg-530b", "megatron-530b"),
        ("gptj", "gpt-j-6b"),
        ("t5_11b", "t5-11b"),
        ("bloom", "bloom-176b"),
        ("grok1", "grok1-314b"),
    ] {
        assert_eq!(presets::find(typed).unwrap_or_else(|e| panic!("{typed}: {e}")).name, name, "{typed}");
    }
}

#[test]
fn an_unknown_name_suggests_near_ones() {
    let Err(error) = presets::find("lama3-70b") else { panic!("found") };
    assert!(error.to_string().contains("llama3-70b"), "{error}");
    for name in [
        "",
        "   ",
        "(",
        ")",
        "( layers)",
        "no-such-model-at-all",
        "70b (fast)",
        "70b (0 layers)",
        "70b (81 layers)",
        "\u{0}",
    ] {
        let Err(error) = presets::find(name) else { panic!("`{name}` was found") };
        assert!(!error.to_string().is_empty() && !error.hint().is_empty());
    }
    assert!(presets::find(&"x".repeat(1 << 20)).is_err());
    assert!(matches!(presets::find("70b (81 layers)"), Err(PresetError::Layers { available: 80, .. })));
}

#[test]
fn a_cut_down_model_keeps_its_layers() {
    let full = presets::find("deepseek-v3").unwrap();
    let short = presets::find("deepseek-v3 (4 layers)").unwrap();
    assert_eq!(short.pattern[..], full.pattern[..4]);
    assert_eq!(short.mtp_layer_parameters(), full.mtp_layer_parameters());
    assert_eq!(presets::find("llama3.1-405b (proxy, 8 layers)").unwrap().layers(), 8);
}
