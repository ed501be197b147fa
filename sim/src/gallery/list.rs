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
    // Deployments, speculation, offload, slow networks, other devices.
    scenario!("attention-ffn-ping-pong", deployments::simulate),
    scenario!("distserve-opt-66b", deployments::simulate),
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
