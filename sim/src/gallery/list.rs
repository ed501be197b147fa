//! The scenarios, one line each.

use super::{Entry, deployments, serving};

macro_rules! scenario {
    ($name:literal, $simulate:path) => {
        Entry {
            name: $name,
            text: include_str!(concat!("../../data/gallery/", $name, ".toml")),
            simulate: $simulate,
        }
    };
}

pub(super) const ENTRIES: &[Entry] = &[
    // Batching policies of one engine.
    scenario!("orca-llama2-13b", serving::simulate),
    scenario!("paged-llama2-13b", serving::simulate),
    scenario!("chunked-prefill-llama3-8b", serving::simulate),
    scenario!("splitfuse-llama2-70b", serving::simulate),
    scenario!("radix-llama3-8b", serving::simulate),
    scenario!("conversations-llama3-8b", serving::simulate),
    scenario!("kv-tiers-llama3-8b", serving::simulate),
    scenario!("flover-llama-13b", serving::simulate),
    scenario!("fastswitch-qwen2.5-32b", serving::simulate),
    scenario!("s-lora-many-adapters", serving::simulate),
    scenario!("s-lora-against-peft", serving::simulate),
    scenario!("inflight-llama2-70b", serving::simulate),
    scenario!("distserve-vllm-first-token", serving::simulate),
    scenario!("distserve-vllm-per-token", serving::simulate),
    scenario!("nanoflow-llama2-70b", serving::simulate),
    scenario!("four-engines-llama2-70b", serving::simulate),
    scenario!("fastgen-effective-fastgen", serving::simulate),
    scenario!("fastgen-effective-vllm", serving::simulate),
    scenario!("flexllm-llama3.1-8b", serving::simulate),
    scenario!("autoscale-diurnal", serving::simulate),
    // Deployments, speculation, offload, slow networks, other devices.
    scenario!("attention-ffn-ping-pong", deployments::simulate),
    scenario!("aggressive-copy-llama3-8b", deployments::simulate),
    scenario!("cloudmatrix384-decode", deployments::simulate),
    scenario!("deepseek-96-h100", deployments::simulate),
    scenario!("distserve-opt-13b", deployments::simulate),
    scenario!("distserve-opt-66b", deployments::simulate),
    scenario!("dovetail-llama2-7b", deployments::simulate),
    scenario!("draft-model-llama2-70b", deployments::simulate),
    scenario!("easyspec-llama3-8b-drafts", deployments::simulate),
    scenario!("layer-wise-transfer", deployments::simulate),
    scenario!("long-vita-context-parallel", deployments::simulate),
    scenario!("pools-of-two-kinds", deployments::simulate),
    scenario!("ppd-vicuna-7b", deployments::simulate),
    scenario!("replicas-of-two-kinds", deployments::simulate),
    scenario!("semi-pd-deepseek-v2-lite", deployments::simulate),
    scenario!("duplex-over-processor", deployments::simulate),
    scenario!("expertflow-switch-128", deployments::simulate),
    scenario!("llep-gpt-oss-95", deployments::simulate),
    scenario!("mtp-tokens-per-step", deployments::simulate),
    scenario!("neupims-over-npu", deployments::simulate),
    scenario!("pearl-llama2-70b", deployments::simulate),
    scenario!("pre-gated-on-demand", deployments::simulate),
    scenario!("pre-gated-prefetch-all", deployments::simulate),
    scenario!("se-moe-ring", deployments::simulate),
    scenario!("sn40l-model-switch", deployments::simulate),
    scenario!("tpi-llm-ring", deployments::simulate),
    scenario!("tpi-llm-star", deployments::simulate),
    scenario!("tpi-llm-tree", deployments::simulate),
    scenario!("waferllm-vector-product", deployments::simulate),
];
