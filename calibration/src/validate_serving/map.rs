//! From a serving row to what is simulated.

use crate::validate::map::Reason;
use crate::validate::model;
use crate::validate::row::Row;
use psim_cost_models::serving::engine::{self, EngineParameters, EngineProfile};
use psim_hardware::catalogue::{HomogeneousOptions, accelerator, homogeneous};
use psim_hardware::{Cluster, DType};
use psim_models::Model;
use psim_models::serving::{
    Arrival, Deployment, Lengths, NumberFormat, Quantization, ServiceLevel, ServingWorkload, Tenant,
};
use serde_json::Value;

mod dynamo;
mod harness;

/// A row made ready.
#[derive(Debug, Clone)]
pub struct Mapped {
    /// Model.
    pub model: Model,
    /// Machine.
    pub cluster: Cluster,
    /// Layout.
    pub deployment: Deployment,
    /// Engine, with the row's own limits.
    pub engine: EngineProfile,
    /// Traffic.
    pub workload: ServingWorkload,
    /// Accelerators that a printed per-GPU rate divides by.
    pub gpus: u32,
    /// Rates are printed per GPU.
    pub per_gpu: bool,
    /// Percentile of printed latencies; `None` is the mean.
    pub percentile: Option<f64>,
    /// The run predicts several tokens at once.
    pub speculative: bool,
    /// Prompts and answers run on different accelerators: accelerators of each.
    pub disaggregated: Option<Disaggregated>,
    /// Only prompts are measured (`osl` 0).
    pub prompt_only: bool,
    /// Remarks.
    pub notes: Vec<String>,
}

impl Mapped {
    /// Format of the experts, where the model has any.
    pub fn experts(&self) -> Option<NumberFormat> {
        self.model.is_moe().then_some(self.deployment.quantization.experts)
    }

    /// The accelerator's name.
    pub fn accelerator(&self) -> &str {
        &self.cluster.first_node().accelerator.name
    }

    /// Numbers of an era of `engine` as the row's release has them.
    pub fn released(&self, engine: &EngineProfile, numbers: EngineParameters) -> EngineParameters {
        engine.released(self.engine.version, numbers, self.accelerator(), self.experts())
    }
}

/// Pools of a disaggregated row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disaggregated {
    /// Prompt side.
    pub prefill: Deployment,
    /// Answer side.
    pub decode: Deployment,
}

fn number(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    }
}

fn count(value: Option<&Value>) -> Option<u32> {
    number(value).filter(|n| *n >= 0.0 && *n < 4e9).map(|n| n as u32)
}

fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(s)) => s.to_lowercase(),
        Some(Value::Bool(b)) => b.to_string(),
        Some(Value::Number(n)) => n.to_string(),
        _ => String::new(),
    }
}

fn flag(value: Option<&Value>) -> bool {
    text(value) == "true"
}

/// Models without printed dimensions whose blocks another preset shares.
const SAME_SHAPE: [(&str, &str); 3] =
    [("qwen2-7b", "qwen2.5-7b"), ("qwen2-72b", "qwen2.5-72b"), ("llama-7b", "llama2-7b")];

/// Maps a row.
///
/// # Errors
/// What is missing or not supported.
pub fn map(row: &Row) -> Result<Mapped, Reason> {
    let v = &row.value;
    let empty = Value::Null;
    let (config, load, measured) = (
        v.get("config").unwrap_or(&empty),
        v.get("workload").unwrap_or(&empty),
        v.get("measured").unwrap_or(&empty),
    );
    if row.kind != "serve" {
        return Err(Reason::Unsupported(format!("kind `{}` is not a serving row", row.kind)));
    }
    let extra = config.get("extra").unwrap_or(&empty);
    if extra.get("num_adapters").is_some() {
        return Err(Reason::Unsupported("serving with LoRA adapters is not built".to_owned()));
    }
    let mut notes = Vec::new();
    let mut fields = row.model.clone();
    if fields.layers.is_none()
        && let Some((_, same)) = SAME_SHAPE.iter().find(|(name, _)| *name == fields.name)
    {
        notes.push(format!("dimensions of {same} taken for {}", fields.name));
        (*same).clone_into(&mut fields.name);
    }
    let (model, remarks) = model::map(&fields, &row.config).map_err(Reason::Incomplete)?;
    notes.extend(remarks);
    let gpu = row.hardware.gpu.as_str();
    let part = accelerator(gpu).map_err(|e| Reason::Unsupported(e.to_string()))?;
    let engine_text = text(config.get("engine"));
    let (name, remark) = engine_for(&engine_text, gpu);
    notes.extend(remark);
    let mut profile = engine::find(name)
        .cloned()
        .ok_or_else(|| Reason::Unsupported(format!("engine profile `{name}` is missing")))?;
    let quantization = quantization(
        &model,
        &text(config.get("quant")),
        &text(config.get("kv_dtype")),
        &engine_text,
        part.peak(DType::Fp4).is_some(),
        text(extra.get("gemm_quant")).as_str(),
    );
    let gpus = count(v.get("hardware").and_then(|h| h.get("gpus")));
    let disaggregated = config.get("disagg").filter(|d| d.is_object());
    let mut layout = layout(config, extra, gpus, &engine_text, quantization)?;
    let printed = config.get("ep").is_some() || extra.get("attention_dp").is_some();
    if !printed
        && disaggregated.is_none()
        && profile.name == "trtllm-1.0"
        && prefers_copies(&model, layout.tp)
    {
        notes
            .push("attention copies taken: the maximum-throughput setting of few key/value heads".to_owned());
        layout = Deployment { attention_dp: layout.tp, ep: layout.tp, tp: 1, ..layout };
    }
    let total = gpus.unwrap_or(layout.accelerators_per_replica()).max(layout.accelerators_per_replica());
    let mut deployment =
        Deployment { replicas: (total / layout.accelerators_per_replica()).max(1), ..layout };
    if disaggregated.is_none() {
        deployment.check(&model).map_err(|e| Reason::Incomplete(e.to_string()))?;
    }
    let pools = match disaggregated {
        Some(d) => Some(pools(d, quantization, &model)?),
        None => None,
    };
    if pools.is_some() {
        deployment.replicas = 1;
    }
    let mut accelerators = total.max(deployment.accelerators());
    if let Some(p) = &pools {
        // Roles lie on nodes of their own.
        accelerators =
            accelerators.max(p.prefill.accelerators() + p.decode.accelerators()).next_multiple_of(8) + 16;
    }
    let cluster = machine(gpu, accelerators).map_err(Reason::Incomplete)?;
    harness::apply(&mut profile, &engine_text, &model, gpu, load, disaggregated.is_some());
    let seats = deployment.attention_dp * deployment.replicas;
    let (mut workload, prompt_only) = traffic(load, extra, config, seats, &mut profile)?;
    if let Some(tenant) = workload.tenants.first_mut() {
        tenant.slo = ServiceLevel::default();
    }
    let percentile = match text(measured.get("percentile")).as_str() {
        "" | "mean" | "avg" => None,
        p => Some(p.trim_start_matches('p').parse().unwrap_or(50.0)),
    };
    let speculative = text(config.get("speculative"));
    profile.version =
        dynamo::engine_release(&engine_text, release(&engine_text)).map(|(major, minor)| [major, minor]);
    Ok(Mapped {
        model,
        cluster,
        deployment,
        engine: profile,
        workload,
        gpus: total,
        per_gpu: flag(measured.get("per_gpu")),
        percentile,
        speculative: !matches!(speculative.as_str(), "" | "none" | "false"),
        disaggregated: pools,
        prompt_only,
        notes,
    })
}

/// Experts behind at most four key/value heads on at least as many ranks: tables of the highest throughput run such
/// models with attention copies (the benchmark options of TensorRT-LLM 1.0's performance page), not with split heads.
fn prefers_copies(model: &Model, tp: u32) -> bool {
    let heads = model.kinds.iter().find_map(|block| match &block.mixer {
        psim_models::arch::Mixer::Attention(a) => Some(a.kv_heads),
        _ => None,
    });
    model.is_moe() && heads.is_some_and(|h| h <= 4 && u64::from(tp) >= h)
}

/// Nodes that hold at least so many accelerators.
fn machine(gpu: &str, gpus: u32) -> Result<Cluster, String> {
    let options = HomogeneousOptions::default();
    let mut last = String::new();
    for size in [gpus.next_multiple_of(8), gpus.next_multiple_of(4), gpus] {
        match homogeneous(gpu, size, &options) {
            Ok(cluster) => return Ok(cluster),
            Err(e) => last = e.to_string(),
        }
    }
    Err(last)
}

/// The profile of an engine text, and a remark where it is only the nearest.
pub fn engine_for(text: &str, gpu: &str) -> (&'static str, Option<String>) {
    let amd = gpu.starts_with("MI");
    let text = text.to_lowercase();
    let version = dynamo::engine_release(&text, release(&text));
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    let year_2024 = has(&["(2024)", "may 2024", "2023"]);
    if has(&["llama.cpp", "llamacpp", "llama-bench"]) {
        return ("llama.cpp-2024", None);
    }
    if has(&["trtllm", "tensorrt", "trt"]) {
        let name = match version {
            _ if year_2024 => "trtllm-static-2024",
            Some((0, minor)) if minor < 10 => "trtllm-static",
            Some((0, minor)) if minor < 14 => "trtllm-0.10",
            Some((0, _)) => "trtllm-0.14",
            _ => "trtllm-1.0",
        };
        return (name, None);
    }
    if has(&["atom"]) {
        return ("rocm-atom", None);
    }
    if has(&["sglang"]) {
        return ("sglang", None);
    }
    if has(&["gaudi"]) {
        return ("deepspeed-gaudi-2024", None);
    }
    if has(&["mii", "fastgen", "deepspeed"]) {
        return ("deepspeed-mii-2024", None);
    }
    if has(&["vllm"]) {
        let oldest = text.contains("2023") || matches!(version, Some((0, minor)) if minor < 3);
        if oldest && !amd {
            return ("vllm-2023", None);
        }
        let old = year_2024 || matches!(version, Some((0, minor)) if minor < 8);
        return match (old, amd) {
            (true, true) => ("rocm-vllm-2024", None),
            (true, false) => ("vllm-2024", None),
            _ => ("vllm-v1", None),
        };
    }
    if has(&["nim"]) {
        return ("trtllm-0.14", Some("a NIM wraps TensorRT-LLM of its time".to_owned()));
    }
    let nearest = if amd { "rocm-vllm-2024" } else { "vllm-2024" };
    (nearest, Some(format!("engine `{text}` has no profile: {nearest} taken")))
}

/// First `major.minor` in a text.
fn release(text: &str) -> Option<(u32, u32)> {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i].is_ascii_digit() {
            let start = i;
            while i < bytes.len() && bytes[i].is_ascii_digit() {
                i += 1;
            }
            let major: u32 = text[start..i].parse().ok()?;
            if i + 1 < bytes.len() && bytes[i] == b'.' && bytes[i + 1].is_ascii_digit() {
                let from = i + 1;
                i += 1;
                while i < bytes.len() && bytes[i].is_ascii_digit() {
                    i += 1;
                }
                return Some((major, text[from..i].parse().ok()?));
            }
        }
        i += 1;
    }
    None
}

/// Number formats.
fn quantization(
    model: &Model,
    quant: &str,
    kv: &str,
    engine: &str,
    blackwell: bool,
    gemm: &str,
) -> Quantization {
    use NumberFormat::{Bf16, Fp8, Fp8Block, Int8, Mxfp4, Nvfp4, Q4km, W4a8, W4a16};
    let name = model.name.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| name.contains(w));
    let tensorrt = engine.contains("trt") || engine.contains("tensorrt");
    // Checkpoints as their authors publish them; NVIDIA's own for Qwen3 have one scale per tensor.
    let authors = has(&["qwen3"]) && model.is_moe() && !tensorrt;
    let block = authors || gemm.contains("block") || has(&["deepseek", "minimax", "qwen3.5", "glm", "kimi"]);
    let latent = has(&["deepseek", "kimi"]);
    let (dense, attention, experts) = match quant {
        _ if has(&["gpt-oss"]) && quant != "bf16" => (Bf16, Bf16, Mxfp4),
        q if q.contains("q4") => (Q4km, Q4km, Q4km),
        q if q.contains("w4a8") => (W4a8, W4a8, W4a8),
        q if q.contains("int4") || q.contains("awq") || q.contains("w4a16") || q.contains("gptq") => {
            if model.is_moe() { (Bf16, Bf16, W4a16) } else { (W4a16, W4a16, W4a16) }
        }
        q if q.contains("mxfp4") => (Mxfp4, Mxfp4, Mxfp4),
        q if q.contains("fp4") => (Nvfp4, if latent || has(&["glm"]) { Bf16 } else { Nvfp4 }, Nvfp4),
        q if q.contains("fp8") => {
            let f = if block { Fp8Block } else { Fp8 };
            (f, f, f)
        }
        q if q.contains("int8") => (Int8, Int8, Int8),
        _ => (Bf16, Bf16, Bf16),
    };
    let low = quant.contains("fp8") || quant.contains("fp4");
    let kv = match kv {
        "fp8" => DType::Fp8,
        "int8" => DType::Int8,
        "fp16" | "bf16" => DType::Bf16,
        _ if low && (tensorrt || blackwell) => DType::Fp8,
        _ => DType::Bf16,
    };
    Quantization { dense, attention, experts, kv }
}

/// Parallel degrees of one replica.
fn layout(
    config: &Value,
    extra: &Value,
    gpus: Option<u32>,
    engine: &str,
    quantization: Quantization,
) -> Result<Deployment, Reason> {
    let pp = count(config.get("pp")).unwrap_or(1).max(1);
    let printed_tp = count(config.get("tp")).filter(|t| *t > 0);
    if engine.contains("llama.cpp") {
        // Layers are split over the cards, one sequence passes them in turn.
        let pp = gpus.unwrap_or(1).max(1);
        return Ok(Deployment { replicas: 1, tp: 1, pp, attention_dp: 1, ep: 1, quantization });
    }
    let mut attention_dp = count(extra.get("attention_dp")).unwrap_or(1).max(1);
    let mut tp = printed_tp;
    if flag(extra.get("dp_attention")) {
        // InferenceMAX prints the number of GPUs as tp.
        attention_dp = printed_tp.or(gpus).unwrap_or(1);
        tp = Some(1);
    }
    let tp = match (tp, gpus) {
        (Some(tp), _) => tp,
        (None, Some(gpus)) => (gpus / (pp * attention_dp)).max(1),
        (None, None) => return Err(Reason::Incomplete("neither `tp` nor `gpus` is printed".to_owned())),
    };
    let ep = count(config.get("ep")).unwrap_or(1).clamp(1, tp * attention_dp);
    Ok(Deployment { replicas: 1, tp, pp, attention_dp, ep, quantization })
}

/// Pools of a disaggregated row.
fn pools(d: &Value, quantization: Quantization, model: &Model) -> Result<Disaggregated, Reason> {
    let side = |name: &str| -> Result<Deployment, Reason> {
        let get = |key: &str| d.get(format!("{name}_{key}"));
        let workers = count(get("num_workers")).or_else(|| count(get("workers")));
        let gpus = count(d.get(format!("num_{name}_gpu"))).or_else(|| count(get("gpus")));
        let tp = count(get("tp")).filter(|t| *t > 0);
        let dp = flag(get("dp_attention")) || count(get("attention_dp")).is_some_and(|n| n > 1);
        let Some(tp) = tp else {
            return Err(Reason::Incomplete(format!("the {name} pool prints no tp")));
        };
        let explicit = count(get("attention_dp")).unwrap_or(1).max(1);
        let printed_ep = count(get("ep")).unwrap_or(1).max(1);
        // Some launchers print degrees of one for whatever ran; accelerators over workers are the ranks.
        let ranks = match (gpus, workers) {
            (Some(gpus), Some(workers)) if workers > 0 && gpus >= workers => gpus / workers,
            _ if dp && !flag(get("dp_attention")) => tp * explicit,
            _ => tp,
        };
        let (tp, attention_dp) = match (dp, flag(get("dp_attention"))) {
            (true, true) => (1, ranks),
            (true, false) => ((ranks / explicit).max(1), explicit),
            (false, _) => (ranks, 1),
        };
        let replicas = workers.or(gpus.map(|g| g / (tp * attention_dp))).unwrap_or(1).max(1);
        let unprinted = dp && printed_ep == 1 && count(get("tp")) == Some(1) && ranks > 1;
        let ep = if unprinted { ranks } else { printed_ep.clamp(1, tp * attention_dp) };
        let deployment = Deployment { replicas, tp, pp: 1, attention_dp, ep, quantization };
        deployment.check(model).map_err(|e| Reason::Incomplete(e.to_string()))?;
        Ok(deployment)
    };
    Ok(Disaggregated { prefill: side("prefill")?, decode: side("decode")? })
}

/// Traffic, and whether only prompts are measured.
fn traffic(
    load: &Value,
    extra: &Value,
    config: &Value,
    seats: u32,
    profile: &mut EngineProfile,
) -> Result<(ServingWorkload, bool), Reason> {
    let isl = number(load.get("isl"));
    let osl = number(load.get("osl"));
    let (Some(isl), Some(osl)) = (isl, osl) else {
        return Err(Reason::Incomplete("`isl` or `osl` is not a number".to_owned()));
    };
    if isl.max(osl) > 4e6 {
        return Err(Reason::Incomplete(format!("lengths {isl} and {osl} are absurd")));
    }
    let (isl, osl) = (isl.round() as u64, osl.round() as u64);
    let prompt_only = osl == 0;
    let distribution = text(load.get("isl_dist"));
    let uniform = distribution.contains("uniform");
    let unstated = distribution.contains("not stated");
    let lengths = |n: u64| {
        let n = n.max(1);
        if uniform && n > 4 { Lengths::Uniform([n * 4 / 5, n]) } else { Lengths::Fixed(n) }
    };
    let arrival_text = text(load.get("arrival"));
    // Rows of a closed loop without clients print the batch that each attention copy reaches.
    let batch = count(extra.get("batch_per_dp_rank")).filter(|b| *b > 0 && arrival_text.contains("closed"));
    let concurrency =
        count(load.get("concurrency")).filter(|c| *c > 0).or(batch.map(|b| b.saturating_mul(seats)));
    let requests = count(load.get("requests")).filter(|c| *c > 0);
    let fixed_batch = count(extra.get("static_batch")).filter(|b| *b > 0);
    if let Some(tokens) = count(extra.get("max_num_tokens")).filter(|t| *t > 0) {
        profile.token_budget = tokens.max(isl.min(1 << 20) as u32);
    }
    if let (Some(batch), None) = (count(config.get("max_batch")).filter(|b| *b > 0), fixed_batch) {
        profile.max_sequences = profile.max_sequences.min(batch);
    }
    let rate = number(load.get("rate_rps")).filter(|r| *r > 0.0 && r.is_finite());
    let (arrival, n) = if let Some(batch) = fixed_batch {
        (Arrival::Burst, batch)
    } else if arrival_text.contains("single") {
        (Arrival::Burst, 1)
    } else if let Some(rate) = rate {
        (Arrival::Poisson { rate }, requests.unwrap_or(1000))
    } else if let Some(c) = concurrency.filter(|_| !arrival_text.contains("offline")) {
        let usual = harness::requests(c, unstated);
        (Arrival::ClosedLoop { concurrency: c }, requests.unwrap_or(usual).min(usual).max(c))
    } else {
        let usual = match isl + osl {
            0..=256 => 30_000,
            257..20_000 => 3000,
            _ => 1000,
        };
        (Arrival::Burst, requests.or(concurrency).unwrap_or(usual))
    };
    let name = "row".to_owned();
    let tenant = Tenant {
        name: name.clone(),
        arrival,
        requests: Some(n.clamp(1, 40_000)),
        duration_s: None,
        input: lengths(isl),
        output: lengths(osl),
        pairs: None,
        prefix: None,
        sessions: None,
        adapters: None,
        slo: ServiceLevel::default(),
    };
    Ok((ServingWorkload { name, tenants: vec![tenant] }, prompt_only))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_and_releases() {
        for (text, gpu, name) in [
            ("TensorRT-LLM 0.9.0", "H100-SXM-80GB", "trtllm-static"),
            ("TensorRT-LLM 0.13.0", "H100-SXM-80GB", "trtllm-0.10"),
            ("TensorRT-LLM 0.21", "B200-SXM", "trtllm-0.14"),
            ("trtllm 1.0.0rc3", "H100-SXM-80GB", "trtllm-1.0"),
            ("trt (nvidia/tensorrt-llm/release:1.2.0rc2)", "B200-SXM", "trtllm-1.0"),
            ("vLLM (2024)", "MI300X", "rocm-vllm-2024"),
            ("vllm (vllm/vllm-openai:v0.13.0)", "H200-SXM-141GB", "vllm-v1"),
            ("sglang 0.5.9", "B200-SXM", "sglang"),
            ("dynamo-trt (nvidia/ai-dynamo/tensorrtllm-runtime:0.5.1-rc0.pre3)", "GB200", "trtllm-1.0"),
            ("vllm 0.6.0", "H100-SXM-80GB", "vllm-2024"),
            ("vllm 0.2.1", "A100-SXM-80GB", "vllm-2023"),
        ] {
            assert_eq!(engine_for(text, gpu).0, name, "{text}");
        }
        assert_eq!(engine_for("novel engine", "H100-SXM-80GB").0, "vllm-2024");
    }
}
