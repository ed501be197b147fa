//! What public benchmark harnesses do that rows do not print: launch options of their scripts, requests of a run.

use psim_cost_models::serving::EngineProfile;
use psim_models::Model;
use serde_json::Value;

/// Requests of a closed loop of `clients` whose number is not printed.
///
/// InferenceMAX sends ten a client (`--num-prompts $((CONC * 10))`); fewer rounds of thousands of clients reach the same
/// steady state. The mean latencies of runs with unstated lengths, in nanoseconds, are multiples of one part in 20 times
/// the clients, from 100 clients on of one in 2,000.
pub(super) fn requests(clients: u32, unstated: bool) -> u32 {
    match (unstated, clients) {
        (true, _) => clients.saturating_mul(20).min(2000).max(clients),
        (_, 1025..) => clients.saturating_mul(5),
        _ => clients * 10,
    }
}

/// Options of InferenceMAX's launch scripts (SemiAnalysisAI/InferenceMAX, `benchmarks/*.sh`, 2025-26) on one pool:
///
/// - SGLang on Blackwell with DeepSeek and Qwen3.5 looks at its queue every 10 decoding steps, from 16 clients on every 30
///   (`dsr1_fp4_b200*`, `qwen3.5_*_b200*`: `--scheduler-recv-interval`); not with GLM-5 (`glm5_fp8_b200_sglang`).
/// - TensorRT-LLM with DeepSeek takes steps of one prompt beside the decoding (`dsr1_*_b200_trt*`: `MAX_NUM_TOKENS`), and
///   its attention copies wait up to 60 steps for one another, then not for more; with gpt-oss it takes 20,000 tokens
///   (`gptoss_fp4_b200_trt*`) and waits as by default.
///
/// Runs of NVIDIA's configurator with TensorRT-LLM (lengths not stated) take steps of `clients + prompt + 1500` tokens
/// (ai-dynamo/aiconfigurator, its generator's `max_num_tokens`).
pub(super) fn apply(
    profile: &mut EngineProfile,
    engine: &str,
    model: &Model,
    gpu: &str,
    load: &Value,
    disaggregated: bool,
) {
    let number = |key: &str| load.get(key).and_then(Value::as_f64).filter(|n| (1.0..1e7).contains(n));
    let lengths = load.get("isl_dist").and_then(Value::as_str).unwrap_or_default().to_lowercase();
    let (clients, prompt) = (number("concurrency"), number("isl"));
    if !disaggregated
        && lengths.contains("not stated")
        && engine.contains("trt")
        && let (Some(clients), Some(prompt)) = (clients, prompt)
    {
        profile.token_budget = (clients + prompt + 1500.0) as u32;
    }
    if disaggregated || !lengths.contains("uniform [0.8x") {
        return;
    }
    let name = model.name.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| name.contains(w));
    if engine.contains("sglang") {
        let blackwell = gpu.starts_with('B') || gpu.starts_with("GB");
        if blackwell && has(&["deepseek", "qwen3.5"]) {
            profile.receive_steps = clients.map(|c| if c >= 16.0 { 30 } else { 10 });
        }
    } else if engine.contains("trt") {
        if let (true, Some(clients), Some(prompt)) = (has(&["deepseek"]), clients, prompt) {
            profile.token_budget = ((clients + prompt + 127.0) / 64.0).floor() as u32 * 64;
            profile.prompt_wait_steps = Some(60);
            profile.prompt_batch_steps = None;
        } else if has(&["gpt-oss"]) {
            profile.token_budget = 20_000;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_cost_models::serving::engine::find;
    use psim_models::presets;
    use serde_json::json;

    #[test]
    fn launch_options_of_the_scripts() {
        let model = presets::find("deepseek-v3").unwrap();
        let load =
            |clients: u32, lengths: &str| json!({"concurrency": clients, "isl": 1024, "isl_dist": lengths});
        let random = "random uniform [0.8x, 1.0x] of the nominal length";
        let looked = |engine: &str, gpu: &str, clients, lengths| {
            let mut profile = find(engine).unwrap().clone();
            apply(&mut profile, engine, &model, gpu, &load(clients, lengths), false);
            (profile.receive_steps, profile.token_budget)
        };
        let budget = find("sglang").unwrap().token_budget;
        assert_eq!(looked("sglang", "B200-SXM", 8, random), (Some(10), budget));
        assert_eq!(looked("sglang", "B200-SXM", 16, random), (Some(30), budget));
        assert_eq!(looked("sglang", "H200-SXM-141GB", 16, random), (None, budget));
        assert_eq!(looked("sglang", "B200-SXM", 16, "synthetic"), (None, budget));
        // (64 + 1024 + 64 + 63) / 64 in whole numbers, times 64.
        assert_eq!(looked("trtllm-1.0", "B200-SXM", 64, random), (None, 1152));
    }

    #[test]
    fn requests_of_a_run() {
        assert_eq!([requests(8, false), requests(2048, false)], [80, 10_240]);
        assert_eq!([requests(8, true), requests(128, true), requests(4000, true)], [160, 2000, 4000]);
    }
}
