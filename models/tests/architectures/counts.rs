//! Exact parameter counts: printed by the models' cards, papers and checkpoints.

use psim_models::presets;

/// Preset and its count to the last digit; multi-token-prediction layers are not in.
const EXACT: &[(&str, u64, &str)] = &[
    ("gpt2", 124_439_808, "karpathy/llm.c README"),
    ("gpt2-medium", 354_823_168, "openai-community/gpt2-medium checkpoint"),
    ("gpt2-large", 774_030_080, "openai-community/gpt2-large checkpoint"),
    ("gpt2-xl", 1_557_611_200, "openai-community/gpt2-xl checkpoint"),
    // The model card prints 6,053,381,344, which its published dimensions do not make.
    ("gpt-j-6b", 6_050_882_784, "EleutherAI/gpt-j-6b as loaded"),
    ("gpt-neox-20b", 20_554_567_680, "EleutherAI/gpt-neox-20b model card"),
    ("pythia-1b", 1_011_781_632, "EleutherAI/pythia-1b model card"),
    ("pythia-6.9b", 6_857_302_016, "EleutherAI/pythia-6.9b model card"),
    ("pythia-12b", 11_846_072_320, "EleutherAI/pythia-12b model card"),
    ("opt-125m", 125_239_296, "facebook/opt-125m checkpoint"),
    ("opt-350m", 331_196_416, "facebook/opt-350m checkpoint"),
    ("opt-6.7b", 6_658_473_984, "facebook/opt-6.7b checkpoint"),
    ("bloom-560m", 559_214_592, "bigscience/bloom-560m model card"),
    ("bloom-1b1", 1_065_314_304, "bigscience/bloom-1b1 model card"),
    ("bloom-7b1", 7_069_016_064, "bigscience/bloom-7b1 model card"),
    ("bloom-176b", 176_247_271_424, "bigscience/bloom model card"),
    ("t5-small", 60_506_624, "google-t5/t5-small checkpoint"),
    ("t5-base", 222_903_552, "google-t5/t5-base checkpoint"),
    ("t5-large", 737_668_096, "google-t5/t5-large checkpoint"),
    ("t5-3b", 2_851_598_336, "google-t5/t5-3b checkpoint"),
    ("t5-11b", 11_307_321_344, "google-t5/t5-11b checkpoint"),
    ("flan-t5-base", 247_577_856, "google/flan-t5-base checkpoint"),
    ("flan-t5-xl", 2_849_757_184, "google/flan-t5-xl checkpoint"),
    ("flan-t5-xxl", 11_135_332_352, "google/flan-t5-xxl checkpoint"),
    ("llama2-7b", 6_738_415_616, "meta-llama/Llama-2-7b-hf checkpoint"),
    ("llama2-13b", 13_015_864_320, "meta-llama/Llama-2-13b-hf checkpoint"),
    ("llama2-70b", 68_976_648_192, "meta-llama/Llama-2-70b-hf checkpoint"),
    ("llama3-8b", 8_030_261_248, "meta-llama/Meta-Llama-3-8B checkpoint"),
    ("llama3-70b", 70_553_706_496, "meta-llama/Meta-Llama-3-70B checkpoint"),
    ("llama3.1-405b", 405_853_388_800, "gminneci/mantile model_configs"),
    ("llama3.2-1b", 1_235_814_400, "meta-llama/Llama-3.2-1B checkpoint"),
    ("llama3.2-3b", 3_212_749_824, "meta-llama/Llama-3.2-3B checkpoint"),
    ("mistral-7b", 7_241_732_096, "gminneci/mantile model_configs"),
    ("mistral-nemo-12b", 12_247_782_400, "mistralai/Mistral-Nemo-Instruct-2407 checkpoint"),
    ("mixtral-8x7b", 46_702_792_704, "awsome-distributed-training FSDP README"),
    ("mixtral-8x22b", 140_620_634_112, "derived from the released configuration"),
    ("qwen2-0.5b", 494_032_768, "Qwen/Qwen2-0.5B checkpoint"),
    ("qwen2-7b", 7_615_616_512, "Qwen/Qwen2-7B checkpoint"),
    ("qwen2-72b", 72_706_203_648, "Qwen/Qwen2-72B checkpoint"),
    ("qwen2.5-32b", 32_763_876_352, "Qwen/Qwen2.5-32B checkpoint"),
    ("qwen3-30b-a3b", 30_532_122_624, "Qwen/Qwen3-30B-A3B checkpoint"),
    ("qwen3-235b-a22b", 235_093_634_560, "Qwen/Qwen3-235B-A22B checkpoint"),
    ("gemma-2b", 2_506_172_416, "google/gemma-2b checkpoint"),
    ("gemma-7b", 8_537_680_896, "google/gemma-7b checkpoint"),
    ("gemma2-9b", 9_241_705_984, "google/gemma-2-9b checkpoint"),
    ("gemma2-27b", 27_227_128_320, "google/gemma-2-27b checkpoint"),
    ("gemma3-1b", 999_885_952, "google/gemma-3-1b-pt checkpoint"),
    ("phi-2", 2_779_683_840, "microsoft/phi-2 checkpoint"),
    ("phi-3-mini", 3_821_079_552, "microsoft/Phi-3-mini-4k-instruct checkpoint"),
    ("phi-4", 14_659_507_200, "microsoft/phi-4 checkpoint"),
    ("olmoe-1b-7b", 6_919_161_856, "allenai/OLMoE-1B-7B-0125 checkpoint"),
    ("dbrx", 131_596_523_520, "databricks/dbrx-base checkpoint"),
    ("gpt-oss-20b", 20_914_757_184, "Megatron-Bridge verification card"),
    ("gpt-oss-120b", 116_829_156_672, "Megatron-Bridge verification card"),
    ("deepseek-v2-lite", 15_706_484_224, "deepseek-ai/DeepSeek-V2-Lite checkpoint"),
    ("deepseek-v2", 235_741_434_880, "deepseek-ai/DeepSeek-V2 checkpoint"),
    ("glm-4-9b", 9_399_951_360, "THUDM/glm-4-9b checkpoint"),
    ("glm-5.2", 743_377_000_704, "Megatron-Bridge verification card"),
    ("command-r-35b", 34_980_831_232, "CohereForAI/c4ai-command-r-v01 checkpoint"),
    ("falcon-7b", 6_921_720_704, "tiiuae/falcon-7b loaded with its tied output layer"),
    ("mpt-7b-alibi", 6_649_286_656, "mosaicml/mpt-7b checkpoint"),
    // The rows of the LLM Foundry throughput tables print their counts.
    ("mpt-125m", 125_311_488, "LLM Foundry throughput tables"),
    ("mpt-760m", 760_470_528, "LLM Foundry throughput tables"),
    ("mpt-13b", 12_853_954_560, "LLM Foundry throughput tables"),
    ("mpt-70b", 64_862_437_376, "LLM Foundry throughput tables"),
];

#[test]
fn exact_counts_come_out_to_the_last_digit() {
    assert!(EXACT.len() >= 30);
    for (name, expected, source) in EXACT {
        let model = presets::find(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(model.parameters().total, *expected, "{name}, {source}");
    }
}

/// Rounded counts: preset, printed billions, half a unit of the last printed digit.
const ROUNDED: &[(&str, f64, f64, &str)] = &[
    ("megatron-1.7b", 1.7, 0.05, "Narayanan et al. 2021, table 1"),
    ("megatron-3.6b", 3.6, 0.05, "Narayanan et al. 2021, table 1"),
    ("megatron-7.5b", 7.5, 0.05, "Narayanan et al. 2021, table 1"),
    ("megatron-18b", 18.4, 0.05, "Narayanan et al. 2021, table 1"),
    ("megatron-39b", 39.1, 0.05, "Narayanan et al. 2021, table 1"),
    ("megatron-76b", 76.1, 0.05, "Narayanan et al. 2021, table 1"),
    ("megatron-145b", 145.6, 0.05, "Narayanan et al. 2021, table 1"),
    ("megatron-310b", 310.1, 0.05, "Narayanan et al. 2021, table 1"),
    ("megatron-530b", 529.6, 0.05, "Narayanan et al. 2021, table 1"),
    ("megatron-1t", 1008.0, 0.05, "Narayanan et al. 2021, table 1"),
    ("megatron-22b", 22.0, 0.5, "Korthikanti et al. 2022, table 3"),
    ("gpt3-175b", 174.6, 0.05, "Narayanan et al. 2021, section 5"),
    ("llama-7b", 6.7, 0.05, "LLaMA paper, table 2"),
    ("llama-13b", 13.0, 0.05, "LLaMA paper, table 2"),
    ("llama-33b", 32.5, 0.05, "LLaMA paper, table 2"),
    ("llama-65b", 65.2, 0.1, "LLaMA paper, table 2 (65.286 printed as 65.2)"),
    ("aquila-7b", 7.3, 0.05, "BAAI/Aquila-7B checkpoint"),
    ("decilm-7b", 7.04, 0.005, "Deci/DeciLM-7B model card"),
    ("qwen1.5-7b", 7.72, 0.005, "Qwen/Qwen1.5-7B checkpoint"),
    ("qwen2-57b-a14b", 57.4, 0.05, "Qwen2 report, table 1"),
    ("nemotron-340b", 341.0, 0.5, "Nemotron-4 340B report: 9.4B embedding and 331.6B other"),
    ("nemotron4-15b", 15.6, 0.05, "Nemotron-4 15B report: 3.2B embedding and 12.5B other"),
    ("nemotron-h-8b", 8.1, 0.05, "nvidia/Nemotron-H-8B-Base-8K checkpoint"),
    ("nemotron-h-56b", 56.3, 0.05, "Nemotron-H report, section 2"),
    ("starcoder", 15.5, 0.05, "StarCoder paper, table 8"),
    ("mamba2-2.7b", 2.7, 0.05, "Mamba-2 paper, table 10"),
    ("deepseek-v3", 671.0, 0.5, "DeepSeek-V3 report, section 4.2"),
    ("kimi-k2", 1026.0, 5.0, "Kimi K2 report, table 2 (1.03T)"),
    ("kimi-k3", 2800.0, 50.0, "moonshotai/Kimi-K3 model card (2.8T)"),
    ("deepseek-v4-flash", 284.0, 0.5, "DeepSeek-V4 report, abstract"),
    ("deepseek-v4-pro", 1600.0, 50.0, "DeepSeek-V4 report, abstract (1.6T)"),
    ("mimo-v2-flash", 309.0, 0.5, "XiaomiMiMo/MiMo-V2-Flash model card"),
    ("phi-3.5-moe", 41.9, 0.05, "microsoft/Phi-3.5-MoE-instruct model card"),
    ("llama-4-maverick", 401.0, 1.0, "meta-llama/Llama-4-Maverick without its vision tower"),
    ("llama-4-scout", 108.0, 0.5, "meta-llama/Llama-4-Scout without its vision tower"),
    ("minimax-m2.5", 229.0, 0.5, "MiniMaxAI/MiniMax-M2.5 checkpoint"),
    ("step-3", 316.0, 0.5, "stepfun-ai/step3 model card: language model"),
    ("nemotron-3-super", 120.6, 0.1, "nvidia/NVIDIA-Nemotron-3-Super model card"),
    ("palm-8b", 8.63, 0.005, "PaLM paper, table 1"),
    ("palm-62b", 62.50, 0.005, "PaLM paper, table 1"),
    ("palm-540b", 540.35, 0.01, "PaLM paper, table 1 (540.356 printed as 540.35)"),
    ("tinyllama-1.1b", 1.1, 0.05, "TinyLlama/TinyLlama-1.1B checkpoint"),
    ("smollm2-1.7b", 1.71, 0.005, "HuggingFaceTB/SmolLM2-1.7B checkpoint"),
    ("deepseek-67b", 67.4, 0.05, "deepseek-ai/deepseek-llm-67b-base checkpoint"),
    ("internlm2-7b", 7.74, 0.005, "internlm/internlm2-7b checkpoint"),
    ("internlm2-20b", 19.86, 0.005, "internlm/internlm2-20b checkpoint"),
    ("qwen-14b", 14.2, 0.05, "Qwen/Qwen-14B checkpoint"),
    ("qwen-72b", 72.3, 0.05, "Qwen/Qwen-72B checkpoint"),
    ("turing-nlg-17b", 17.2, 0.05, "Turing-NLG announcement (2020): 17.2B"),
    ("kimi-linear-48b-a3b", 49.1, 0.1, "moonshotai/Kimi-Linear-48B-A3B checkpoint"),
    ("nemotron-nano-9b-v2", 8.89, 0.005, "nvidia/NVIDIA-Nemotron-Nano-9B-v2 checkpoint"),
    ("falcon-180b", 179.5, 0.05, "tiiuae/falcon-180B checkpoint"),
];

#[test]
fn rounded_counts_come_out_to_the_printed_digits() {
    for (name, billions, half_unit, source) in ROUNDED {
        let total = presets::find(name).unwrap_or_else(|e| panic!("{name}: {e}")).parameters().total;
        let error = (total as f64 / 1e9 - billions).abs();
        assert!(error <= half_unit + 1e-9, "{name}: {total} against {billions}B ({source})");
    }
}

#[test]
fn the_published_formula_of_megatron_holds() {
    // Narayanan et al. 2021, equation 2: 12 l h² (1 + 13 / 12h + (V + s) / 12lh), which leaves out the final norm.
    for (name, layers, hidden) in [("megatron-1.7b", 24u64, 2304u64), ("megatron-145b", 80, 12_288)] {
        let formula = 12 * layers * hidden * hidden + 13 * layers * hidden + (51_200 + 2048) * hidden;
        assert_eq!(presets::find(name).unwrap().parameters().total, formula + 2 * hidden);
    }
}

#[test]
fn the_parts_of_a_model_add_up() {
    for entry in presets::list().unwrap() {
        let model = presets::find(entry.name).unwrap();
        let count = model.parameters();
        let layers: u64 = model.pattern.iter().map(|k| count.blocks[usize::from(*k)].total()).sum();
        let extra: u64 = model.extra_parameters.iter().map(|(_, n)| n).sum();
        assert_eq!(
            count.total,
            count.embedding + count.head + count.encoder + extra + layers,
            "{}",
            entry.name
        );
        assert!(count.active <= count.total);
        assert_eq!(count.active == count.total, !model.is_moe(), "{}", entry.name);
        for block in &count.blocks {
            let split = block.dense_split();
            assert_eq!(split.total() + block.experts, block.total(), "{}", entry.name);
            assert!(block.experts_active <= block.experts);
            assert!(block.mixer_replicated <= block.mixer && block.ffn_replicated <= block.ffn_dense);
        }
    }
}

#[test]
fn every_preset_agrees_with_the_file_of_its_model() {
    for (preset, stem) in [
        ("llama2-7b", "meta-llama--Llama-2-7b-hf"),
        ("llama2-70b", "meta-llama--Llama-2-70b-hf"),
        ("llama3-8b", "meta-llama--Meta-Llama-3-8B"),
        ("llama3-70b", "meta-llama--Meta-Llama-3-70B"),
        ("llama3.1-8b", "meta-llama--Meta-Llama-3.1-8B"),
        ("llama3.1-70b", "meta-llama--Meta-Llama-3.1-70B"),
        ("llama3.1-405b", "meta-llama--Meta-Llama-3.1-405B"),
        ("llama3.2-1b", "meta-llama--Llama-3.2-1B-Instruct"),
        ("llama3.3-70b", "meta-llama--Llama-3.3-70B"),
        ("codellama-34b", "codellama--CodeLlama-34b-Instruct-hf"),
        ("yi-34b", "01-ai--Yi-34B"),
        ("mistral-nemo-12b", "mistralai--Mistral-Nemo-Instruct-2407"),
        ("mixtral-8x7b", "mistralai--Mixtral-8x7B-v0.1"),
        ("mixtral-8x22b", "mistralai--Mixtral-8x22B-v0.1"),
        ("qwen2.5-7b", "Qwen--Qwen2.5-7B-Instruct"),
        ("qwen1.5-72b", "xft--qwen2-72b"),
        ("qwen3-32b", "Qwen--Qwen3-32B"),
        ("qwen3-235b-a22b", "Qwen--Qwen3-235B-A22B"),
        ("qwen3-next-80b-a3b", "Qwen--Qwen3-Next-80B-A3B-Instruct"),
        ("qwen3.5-397b-a17b", "Qwen--Qwen3.5-397B-A17B"),
        ("deepseek-v3", "deepseek-ai--DeepSeek-V3"),
        ("deepseek-v4-flash", "deepseek-ai--DeepSeek-V4-Flash"),
        ("kimi-k2.5", "moonshotai--Kimi-K2.5"),
        ("kimi-k3", "moonshotai--Kimi-K3"),
        ("gpt-oss-120b", "openai--gpt-oss-120b"),
        ("dbrx", "databricks--dbrx-base"),
        ("mpt-7b-alibi", "mosaicml--mpt-7b"),
        ("falcon-40b", "tiiuae--falcon-40b"),
        ("gemma4-26b-a4b", "google--gemma-4-26B-A4B"),
        ("nemotron-3-super", "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8"),
        ("nemotron-3-ultra", "nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16"),
        ("minimax-m3", "MiniMaxAI--MiniMax-M3"),
        ("glm-5.2", "zai-org--GLM-5.2"),
        ("mimo-v2-flash", "XiaomiMiMo--MiMo-V2-Flash"),
        ("step-3", "stepfun-ai--step-moe"),
        ("llama-4-scout", "meta-llama--Llama-4-Scout-17B-16E-Instruct"),
    ] {
        let Some(mut file) = super::released(stem) else { return };
        let preset = presets::find(preset).unwrap();
        (file.name, file.source) = (preset.name.clone(), preset.source.clone());
        assert_eq!(file, preset, "{stem}");
    }
}
