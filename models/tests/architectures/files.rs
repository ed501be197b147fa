//! Every real configuration is read, or refused with its reason.

use psim_models::hf::{HfProblem, import};

/// Files at the top of the folder that psim refuses: none at present.
const REFUSED: &[&str] = &[];

/// Reduced files that psim refuses, with a word of the reason.
const REFUSED_REDUCED: &[(&str, &str)] = &[("jamba", "Mamba-1")];

fn stems(folder: &std::path::Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut stems: Vec<String> = files
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .map(|p| p.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    stems.sort();
    stems
}

#[test]
fn every_released_configuration_is_read_or_refused_with_a_reason() {
    let Some(folder) = super::shared("data/hf-configs") else { return };
    let stems = stems(&folder);
    assert_eq!(stems.len(), 82);
    let mut refused = Vec::new();
    for stem in &stems {
        let text = std::fs::read_to_string(folder.join(format!("{stem}.json"))).unwrap();
        match import(stem, &text) {
            Ok(model) => {
                let count = model.parameters();
                println!(
                    "{stem}: read, {} parameters, {} active, {} in prediction layers",
                    count.total, count.active, count.mtp
                );
                assert!(count.total > 100_000_000, "{stem}");
            }
            Err(error) => {
                println!("{stem}: refused: {error}");
                assert!(matches!(error.problem, HfProblem::Unsupported { .. }), "{error}");
                refused.push(stem.as_str());
            }
        }
    }
    assert_eq!(refused, REFUSED);
}

#[test]
fn reduced_configurations_are_read_or_refused_with_a_reason() {
    let Some(folder) = super::shared("data/hf-configs/reduced") else { return };
    let stems = stems(&folder);
    assert_eq!(stems.len(), 16);
    for stem in &stems {
        let text = std::fs::read_to_string(folder.join(format!("{stem}.json"))).unwrap();
        let expected = REFUSED_REDUCED.iter().find(|(name, _)| name == stem);
        match (import(stem, &text), expected) {
            (Ok(model), None) => println!("{stem}: read, {} parameters", model.parameters().total),
            (Err(error), Some((_, reason))) => assert!(error.to_string().contains(reason), "{error}"),
            (result, _) => panic!("{stem}: {:?}", result.map(|m| m.name)),
        }
    }
}

#[test]
fn a_window_that_is_switched_off_means_full_attention() {
    for stem in [
        "Qwen--Qwen2.5-7B-Instruct",
        "Qwen2-MoE-example",
        "VITA-MLLM--Long-VITA-14B",
        "XiaomiMiMo--MiMo-7B-Base",
        "xft--qwen2-0_5b",
        "xft--qwen2-14b",
        "xft--qwen2-72b",
    ] {
        let Some(model) = super::released(stem) else { return };
        for block in &model.kinds {
            let psim_models::arch::Mixer::Attention(a) = &block.mixer else { panic!("{stem}") };
            assert_eq!(a.window, None, "{stem}");
        }
    }
}

#[test]
fn windows_that_are_on_are_kept() {
    for (stem, windowed, full) in [
        ("openai--gpt-oss-120b", 18, 18),
        ("google--gemma-4-26B-A4B", 25, 5),
        ("XiaomiMiMo--MiMo-V2-Flash", 39, 9),
        ("microsoft--Phi-mini-MoE-instruct", 32, 0),
        ("meta-llama--Llama-4-Scout-17B-16E-Instruct", 36, 12),
        ("deepseek-ai--DeepSeek-V4-Flash", 43, 0),
    ] {
        let Some(model) = super::released(stem) else { return };
        let mut counts = (0, 0);
        for layer in 0..model.pattern.len() {
            match &model.block(layer).mixer {
                psim_models::arch::Mixer::Attention(a) if a.window.is_some() => counts.0 += 1,
                _ => counts.1 += 1,
            }
        }
        assert_eq!(counts, (windowed, full), "{stem}");
    }
}

#[test]
fn hybrids_have_the_layers_that_their_patterns_say() {
    use psim_models::arch::{Ffn, Mixer};
    for (stem, mamba, linear, attention, experts, dense) in [
        ("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 23, 0, 6, 23, 0),
        ("nvidia--Nemotron-H-56B-Base-8K", 54, 0, 10, 0, 54),
        ("Qwen--Qwen3-Next-80B-A3B-Instruct", 0, 36, 12, 48, 0),
        ("Qwen--Qwen3.5-27B", 0, 48, 16, 0, 64),
        ("moonshotai--Kimi-K3", 0, 69, 24, 92, 1),
    ] {
        let Some(model) = super::released(stem) else { return };
        let mut counts = (0, 0, 0, 0, 0);
        for layer in 0..model.pattern.len() {
            let block = model.block(layer);
            match block.mixer {
                Mixer::Mamba2(_) => counts.0 += 1,
                Mixer::Linear(_) => counts.1 += 1,
                Mixer::Attention(_) | Mixer::Mla(_) => counts.2 += 1,
                Mixer::None => {}
            }
            match block.ffn {
                Ffn::Moe(_) => counts.3 += 1,
                Ffn::Dense(_) => counts.4 += 1,
                Ffn::None => {}
            }
        }
        assert_eq!(counts, (mamba, linear, attention, experts, dense), "{stem}");
    }
}
