//! Deployment files: how a model is served, as `psim plan --emit` writes it and `psim simulate --plan` reads it.
//!
//! ```toml
//! schema = 1
//! replicas = 8
//! tp = 8
//! weights = "bf16"
//! kv = "bf16"
//! engine = "vllm-v1"
//! router = "least-load"
//! ```

use crate::Host;
use crate::failure::Failure;
use crate::files::read_text;
use psim_cost_models::serving::EngineProfile;
use psim_hardware::source_error::{MAX_FILE_BYTES, find_key, parse_toml_body};
use psim_hardware::{BytesPerSec, DType, SourceError};
use psim_models::serving::{Deployment, NumberFormat, Quantization};
use psim_sim::serving::{FleetOptions, Preemption, Router};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Most accelerators of a deployment.
const MOST: u64 = 1 << 24;

/// Keys of the field that psim does not simulate, with the reason.
const NOT_BUILT: [(&str, &str); 6] = [
    ("cp", "context parallelism for prompts is not built"),
    ("prefill", "separate pools for prompts and answers are not built in a deployment file"),
    ("decode", "separate pools for prompts and answers are not built in a deployment file"),
    ("speculative", "speculative decoding is not built in a deployment file"),
    ("autoscale", "autoscaling is not built"),
    ("offload", "offload of experts or of the cache is not built"),
];

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "one")]
    replicas: u32,
    #[serde(default = "one")]
    tp: u32,
    #[serde(default = "one")]
    pp: u32,
    #[serde(default = "one")]
    attention_dp: u32,
    #[serde(default = "one")]
    ep: u32,
    #[serde(default = "half")]
    weights: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attention: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    experts: Option<String>,
    #[serde(default = "half")]
    kv: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    engine: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    router: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    preemption: Option<String>,
    /// Gigabytes a second to host memory, with `preemption = "swap"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    swap_gb_per_s: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_sequences: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_budget: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_share: Option<f64>,
}

fn one() -> u32 {
    1
}

fn half() -> String {
    "bf16".to_owned()
}

/// A deployment with what the file says of its engine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Deployed {
    /// Layout.
    pub(crate) deployment: Deployment,
    /// Engine profile named by the file.
    pub(crate) engine: Option<String>,
    /// Router and treatment of thrown-out sequences.
    pub(crate) options: FleetOptions,
    /// Most sequences that run at once, per copy of the attention.
    pub(crate) max_sequences: Option<u32>,
    /// Most tokens of a step.
    pub(crate) token_budget: Option<u32>,
    /// Share of the memory that the engine fills.
    pub(crate) memory_share: Option<f64>,
}

const HINT: &str = "a deployment has `schema = 1`, replicas, tp and optionally pp, attention_dp, ep, weights, kv, engine, \
                    router; `psim plan --workload … --emit DIR` writes one";

/// Format of the cache by name.
pub(crate) fn cache_format(text: &str) -> Option<DType> {
    Some(match text.trim().to_lowercase().as_str() {
        "bf16" | "bfloat16" => DType::Bf16,
        "fp16" | "float16" | "half" => DType::Fp16,
        "fp8" => DType::Fp8,
        "int8" => DType::Int8,
        "fp4" | "nvfp4" => DType::Fp4,
        "int4" => DType::Int4,
        _ => return None,
    })
}

/// The file of a deployment.
pub(crate) fn to_toml(
    deployment: &Deployment,
    engine: &EngineProfile,
    token_budget: u32,
    router: Router,
) -> Result<String, Failure> {
    let q = deployment.quantization;
    let differs = |f: NumberFormat| (f != q.dense).then(|| f.name().to_owned());
    let file = File {
        replicas: deployment.replicas,
        tp: deployment.tp,
        pp: deployment.pp,
        attention_dp: deployment.attention_dp,
        ep: deployment.ep,
        weights: q.dense.name().to_owned(),
        attention: differs(q.attention),
        experts: differs(q.experts),
        kv: q.kv.name().to_owned(),
        engine: Some(engine.name.clone()),
        router: Some(router_name(router).to_owned()),
        preemption: None,
        swap_gb_per_s: None,
        max_sequences: None,
        token_budget: (token_budget != engine.token_budget).then_some(token_budget),
        memory_share: None,
    };
    Ok(format!("schema = 1\n{}", toml::to_string(&file).map_err(Failure::defect)?))
}

/// The name of a router in files.
pub(crate) fn router_name(router: Router) -> &'static str {
    match router {
        Router::RoundRobin => "round-robin",
        Router::LeastLoad => "least-load",
        Router::PrefixAware => "prefix-aware",
    }
}

/// Reads a deployment file.
pub(crate) fn read(host: &Host<'_>, path: &Path) -> Result<Deployed, Failure> {
    let shown = path.display().to_string();
    let text = read_text(host, path, "deployment", MAX_FILE_BYTES)?;
    let at = |key: &str, message: String, hint: &str| -> Failure {
        match find_key(&text, key) {
            Some(span) => SourceError::at(&shown, &text, &span, message, hint).into(),
            None => Failure::input_at(message, shown.clone(), hint),
        }
    };
    if let Ok(table) = toml::from_str::<toml::Table>(&text) {
        if let Some((key, why)) = NOT_BUILT.iter().find(|(key, _)| table.contains_key(*key)) {
            return Err(at(key, format!("`{key}`: {why}"), "leave it out"));
        }
        if table.contains_key("micro_batch") || table.contains_key("global_batch") {
            return Err(at(
                "micro_batch",
                "this is a plan of training, and the workload is traffic".to_owned(),
                HINT,
            ));
        }
    }
    let file: File = parse_toml_body(&shown, &text, "deployment", 1, HINT)?;
    let sizes = [
        ("replicas", file.replicas),
        ("tp", file.tp),
        ("pp", file.pp),
        ("attention_dp", file.attention_dp),
        ("ep", file.ep),
    ];
    for (key, value) in sizes {
        if value == 0 || u64::from(value) > MOST {
            return Err(at(key, format!("{key} is {value}, must lie between 1 and {MOST}"), HINT));
        }
    }
    let all: u64 = sizes[..4].iter().fold(1u64, |n, (_, v)| n.saturating_mul(u64::from(*v)));
    if all > MOST {
        return Err(at(
            "replicas",
            format!("replicas · tp · pp · attention_dp is {all}, at most {MOST} accelerators are supported"),
            "check the numbers",
        ));
    }
    let format = |key: &str, name: &str| {
        NumberFormat::parse(name).ok_or_else(|| {
            let known: Vec<&str> = NumberFormat::ALL.iter().map(|f| f.name()).collect();
            at(
                key,
                format!("`{name}` is not a number format of weights"),
                &format!("one of {}", known.join(", ")),
            )
        })
    };
    let dense = format("weights", &file.weights)?;
    let or = |key: &str, given: &Option<String>| given.as_deref().map_or(Ok(dense), |n| format(key, n));
    let quantization = Quantization {
        dense,
        attention: or("attention", &file.attention)?,
        experts: or("experts", &file.experts)?,
        kv: cache_format(&file.kv).ok_or_else(|| {
            at(
                "kv",
                format!("`{}` is not a format of the cache", file.kv),
                "one of bf16, fp8, int8, fp4, int4",
            )
        })?,
    };
    let router = match &file.router {
        Some(name) => Router::parse(name).map_err(|m| at("router", m, "leave it out for round-robin"))?,
        None => Router::default(),
    };
    let preemption = match (file.preemption.as_deref(), file.swap_gb_per_s) {
        (None | Some("recompute"), None) => Preemption::Recompute,
        (Some("swap"), Some(rate)) if rate.is_finite() && rate > 0.0 => {
            Preemption::Swap(BytesPerSec(rate * 1e9))
        }
        (Some("swap"), _) => {
            return Err(at(
                "preemption",
                "swapping needs `swap_gb_per_s`, a number above zero".to_owned(),
                "add `swap_gb_per_s = 50.0`, the rate of the link to host memory",
            ));
        }
        (_, Some(_)) => {
            return Err(at(
                "swap_gb_per_s",
                "a swap rate without swapping".to_owned(),
                "add `preemption = \"swap\"`",
            ));
        }
        (Some(other), None) => {
            return Err(at(
                "preemption",
                format!("`{other}` is not a treatment of thrown-out sequences"),
                "recompute or swap",
            ));
        }
    };
    for (key, value) in [("max_sequences", file.max_sequences), ("token_budget", file.token_budget)] {
        if value == Some(0) {
            return Err(at(
                key,
                format!("{key} is 0, must be at least 1"),
                "leave it out for the engine's own",
            ));
        }
    }
    if let Some(share) = file.memory_share.filter(|s| !(*s > 0.0 && *s <= 1.0)) {
        return Err(at(
            "memory_share",
            format!("memory_share is {share}, a share lies above 0 and at most 1"),
            "leave it out for the engine's own",
        ));
    }
    Ok(Deployed {
        deployment: Deployment {
            replicas: file.replicas,
            tp: file.tp,
            pp: file.pp,
            attention_dp: file.attention_dp,
            ep: file.ep,
            quantization,
        },
        engine: file.engine,
        options: FleetOptions { router, preemption, ..FleetOptions::default() },
        max_sequences: file.max_sequences,
        token_budget: file.token_budget,
        memory_share: file.memory_share,
    })
}
