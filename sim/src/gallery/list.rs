//! The scenarios, one line each.

use super::Entry;

macro_rules! scenario {
    ($name:literal) => {
        Entry { name: $name, text: include_str!(concat!("../../data/gallery/", $name, ".toml")) }
    };
}

pub(super) const ENTRIES: &[Entry] = &[
    // Batching policies of one engine.
    scenario!("orca-llama2-13b"),
    scenario!("paged-llama2-13b"),
    scenario!("chunked-prefill-llama3-8b"),
    scenario!("splitfuse-llama2-70b"),
    scenario!("radix-llama3-8b"),
    scenario!("conversations-llama3-8b"),
    scenario!("kv-tiers-llama3-8b"),
    scenario!("flover-llama-13b"),
    scenario!("fastswitch-qwen2.5-32b"),
    scenario!("s-lora-many-adapters"),
    scenario!("s-lora-against-peft"),
    scenario!("inflight-llama2-70b"),
    scenario!("distserve-vllm-first-token"),
    scenario!("distserve-vllm-per-token"),
    scenario!("nanoflow-llama2-70b"),
    scenario!("four-engines-llama2-70b"),
    scenario!("fastgen-effective-fastgen"),
    scenario!("fastgen-effective-vllm"),
    scenario!("flexllm-llama3.1-8b"),
    scenario!("autoscale-diurnal"),
    // Training: pipelines, sharding, kernels, scale.
    scenario!("ptd-p-1t"),
    scenario!("ptd-p-interleaving"),
    scenario!("megascale-baseline-175b"),
    scenario!("megascale-strong-scaling"),
    scenario!("mt-nlg-530b"),
    scenario!("mt-nlg-strong-scaling"),
    scenario!("zero-optimizer-states"),
    scenario!("zero-gradients"),
    scenario!("zero-parameters"),
    scenario!("gpipe-transformer"),
    scenario!("zero-bubble-h1"),
    scenario!("vocabulary-parallelism-256k"),
    scenario!("ptd-p-against-zero-3"),
    // Deployments, speculation, offload, slow networks, other devices.
    scenario!("attention-ffn-ping-pong"),
    scenario!("aggressive-copy-llama3-8b"),
    scenario!("cloudmatrix384-decode"),
    scenario!("deepseek-96-h100"),
    scenario!("distserve-opt-13b"),
    scenario!("distserve-opt-66b"),
    scenario!("dovetail-llama2-7b"),
    scenario!("draft-model-llama2-70b"),
    scenario!("easyspec-llama3-8b-drafts"),
    scenario!("layer-wise-transfer"),
    scenario!("long-vita-context-parallel"),
    scenario!("pools-of-two-kinds"),
    scenario!("ppd-vicuna-7b"),
    scenario!("replicas-of-two-kinds"),
    scenario!("semi-pd-deepseek-v2-lite"),
    scenario!("duplex-over-processor"),
    scenario!("expertflow-switch-128"),
    scenario!("llep-gpt-oss-95"),
    scenario!("mtp-tokens-per-step"),
    scenario!("neupims-over-npu"),
    scenario!("pearl-llama2-70b"),
    scenario!("pre-gated-on-demand"),
    scenario!("pre-gated-prefetch-all"),
    scenario!("se-moe-ring"),
    scenario!("sn40l-model-switch"),
    scenario!("tpi-llm-ring"),
    scenario!("tpi-llm-star"),
    scenario!("tpi-llm-tree"),
    scenario!("waferllm-vector-product"),
];
