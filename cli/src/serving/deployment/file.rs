//! The keys of a deployment file.

use psim_models::serving::{Deployment, Quantization};
use psim_sim::serving::Autoscale;
use psim_sim::serving::speculation::TreeChances;
use serde::{Deserialize, Serialize};

/// Keys of the field that psim does not simulate in a deployment, with the reason.
pub(in crate::serving) const NOT_BUILT: [(&str, &str); 3] = [
    ("cp", "context parallelism is for the prompts of a [prefill] pool only"),
    ("speculative", "the table is called [speculation]"),
    ("offload", "caches go into [kv_offload], experts into [expert_offload]"),
];

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serving) struct File {
    /// Accelerator of the cluster's nodes on which replicas lie; the first group where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) accelerator: Option<String>,
    /// A device of several engines in place of an accelerator, by name or file; `explain` prices its decoding steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) device: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) replicas: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) tp: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) pp: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) attention_dp: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) ep: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) weights: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) attention: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) experts: Option<String>,
    #[serde(default = "half")]
    pub(in crate::serving) kv: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) engine: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) router: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) preemption: Option<String>,
    /// Gigabytes a second to host memory, with `preemption = "swap"`; the node's own link where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) swap_gb_per_s: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) max_sequences: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) token_budget: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) memory_share: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) priority_steps: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) placement: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) transfer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) swap: Option<SwapFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) prefill: Option<PoolFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) decode: Option<PoolFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) speculation: Option<SpeculationFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) autoscale: Option<Autoscale>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) kv_offload: Option<OffloadFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) adapters: Option<AdapterFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) co_serving: Option<CoServingFile>,
    /// nanoflow: two halves of every batch, one's products beside the other's caches and links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) overlap: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) sm_partition: Option<SmPartitionFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) redundant_experts: Option<RedundantExpertsFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) expert_offload: Option<ExpertOffloadFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) attention_ffn: Option<AttentionFfnFile>,
}

impl Default for File {
    /// A file that says nothing.
    fn default() -> Self {
        Self {
            kv: half(),
            accelerator: None,
            device: None,
            replicas: None,
            tp: None,
            pp: None,
            attention_dp: None,
            ep: None,
            router: None,
            preemption: None,
            swap_gb_per_s: None,
            max_sequences: None,
            token_budget: None,
            memory_share: None,
            priority_steps: None,
            placement: None,
            transfer: None,
            swap: None,
            prefill: None,
            decode: None,
            speculation: None,
            autoscale: None,
            kv_offload: None,
            adapters: None,
            co_serving: None,
            overlap: None,
            sm_partition: None,
            redundant_experts: None,
            expert_offload: None,
            attention_ffn: None,
            weights: None,
            attention: None,
            experts: None,
            engine: None,
        }
    }
}

impl File {
    /// A file of formats and an engine, and nothing else.
    pub(in crate::serving) fn of(q: Quantization, engine: &str) -> Self {
        let differs = |f: psim_models::serving::NumberFormat| (f != q.dense).then(|| f.name().to_owned());
        Self {
            weights: Some(q.dense.name().to_owned()),
            attention: differs(q.attention),
            experts: differs(q.experts),
            kv: q.kv.name().to_owned(),
            engine: Some(engine.to_owned()),
            ..Self::default()
        }
    }
}

/// How swapped caches are copied.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serving) struct SwapFile {
    /// Neighbouring blocks that one copy moves.
    pub(in crate::serving) group_blocks: Option<u32>,
    /// Host time to launch one copy, microseconds.
    pub(in crate::serving) copy_us: Option<f64>,
    /// Copies run beside the steps of other sequences.
    #[serde(default)]
    pub(in crate::serving) asynchronous: bool,
    /// The copy in host memory stays valid.
    #[serde(default)]
    pub(in crate::serving) reuse: bool,
}

/// A pool of a split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serving) struct PoolFile {
    /// Accelerator of the cluster's nodes on which it lies; the first group where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) accelerator: Option<String>,
    #[serde(default = "one")]
    pub(in crate::serving) replicas: u32,
    #[serde(default = "one")]
    pub(in crate::serving) tp: u32,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(in crate::serving) pp: u32,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(in crate::serving) attention_dp: u32,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(in crate::serving) ep: u32,
    /// Ranks that share each prompt.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(in crate::serving) cp: u32,
    /// Format of the weights, where it is not the deployment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) weights: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) token_budget: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) max_sequences: Option<u32>,
}

impl PoolFile {
    pub(in crate::serving) fn of(d: &Deployment, cp: u32, accelerator: Option<String>) -> Self {
        Self {
            accelerator,
            replicas: d.replicas,
            tp: d.tp,
            pp: d.pp,
            attention_dp: d.attention_dp,
            ep: d.ep,
            cp,
            weights: None,
            token_budget: None,
            max_sequences: None,
        }
    }

    /// Sizes by name.
    pub(in crate::serving) fn sizes(&self) -> [(&'static str, u32); 6] {
        [
            ("replicas", self.replicas),
            ("tp", self.tp),
            ("pp", self.pp),
            ("attention_dp", self.attention_dp),
            ("cp", self.cp),
            ("ep", self.ep),
        ]
    }
}

/// Chances that drafts are taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(in crate::serving) enum AcceptanceFile {
    /// The same for every token.
    Rate(f64),
    /// By depth.
    Depth(Vec<f64>),
}

/// Speculative decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serving) struct SpeculationFile {
    /// draft-model, mtp, eagle, medusa, ppd, pearl, easyspec, prompt-lookup.
    pub(in crate::serving) method: String,
    /// Drafted tokens of a round; candidates of a tree.
    pub(in crate::serving) tokens: Option<u32>,
    /// Chance that a draft is taken, or one by depth.
    pub(in crate::serving) acceptance: Option<AcceptanceFile>,
    /// Draft model: a preset or the path of a config.json.
    pub(in crate::serving) draft_model: Option<String>,
    /// Accelerators of a draft model that runs beside the target (pearl).
    pub(in crate::serving) draft_tp: Option<u32>,
    /// Attention layers that run side by side (easyspec).
    pub(in crate::serving) group: Option<u32>,
    /// Layers of each prediction head (mtp, eagle).
    pub(in crate::serving) layers: Option<u32>,
    /// Chances by depth and rank of a tree's candidates (medusa, ppd).
    pub(in crate::serving) chances: Option<Vec<Vec<f64>>>,
}

impl SpeculationFile {
    pub(in crate::serving) fn tree(&self) -> Option<TreeChances> {
        self.chances.clone().map(|chances| TreeChances { chances })
    }
}

/// Tiers below the device memory that keep prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serving) struct OffloadFile {
    /// Host memory for caches, gigabytes an accelerator.
    pub(in crate::serving) host_gb: Option<f64>,
    /// Rate from it to one accelerator; the node's host link where it is not given.
    pub(in crate::serving) host_gb_per_s: Option<f64>,
    /// Local disk for caches, gigabytes an accelerator.
    pub(in crate::serving) disk_gb: Option<f64>,
    /// Rate from it to one accelerator; the node's disks shared by its accelerators where it is not given.
    pub(in crate::serving) disk_gb_per_s: Option<f64>,
}

/// Low-rank adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serving) struct AdapterFile {
    /// Rank of every adapter; matrices of q, k, v and o in 16 bits.
    pub(in crate::serving) rank: u32,
    /// unified (all in one batch) or one-at-a-time.
    pub(in crate::serving) mode: Option<String>,
    /// Launches of the gathered kernels in one layer, microseconds.
    pub(in crate::serving) launch_us_per_layer: Option<f64>,
}

/// Fine-tuning beside inference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serving) struct CoServingFile {
    /// A step is filled with tokens of fine-tuning up to this time.
    pub(in crate::serving) step_ms: f64,
    /// Most of them in a step.
    pub(in crate::serving) most_tokens: u32,
}

/// Prompts and answers at the same time, each on a share of the multiprocessors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serving) struct SmPartitionFile {
    /// Share of prompts at the start; one half where it is not given.
    pub(in crate::serving) prompts: Option<f64>,
    /// Share of the multiprocessors that draws the memory's whole rate; one half where it is not given.
    pub(in crate::serving) saturation: Option<f64>,
    /// The border moves to keep this time to the first token for nine in ten requests, milliseconds...
    pub(in crate::serving) ttft_ms: Option<f64>,
    /// ...and this time per token; both or none.
    pub(in crate::serving) tpot_ms: Option<f64>,
}

/// Copies of hot experts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serving) struct RedundantExpertsFile {
    /// Copies in all.
    pub(in crate::serving) copies: u32,
    /// Exponent of Zipf's law of how often experts are chosen; 0 is even.
    pub(in crate::serving) skew: f64,
}

/// Experts outside the accelerators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serving) struct ExpertOffloadFile {
    /// on-demand, prefetch-all, pre-gated, predicted:RATE, ring:LAYERS.
    pub(in crate::serving) policy: String,
    /// host or disk.
    #[serde(default = "in_host")]
    pub(in crate::serving) tier: String,
    /// Gigabytes a second to each accelerator; the node's own link where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) gb_per_s: Option<f64>,
}

/// Feed-forward layers on accelerators of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serving) struct AttentionFfnFile {
    /// Feed-forward instances of one replica; experts are spread over them.
    pub(in crate::serving) instances: u32,
    /// Ranks of an instance.
    #[serde(default = "one")]
    pub(in crate::serving) tp: u32,
    /// Micro-batches that go to and fro.
    pub(in crate::serving) micro_batches: u32,
    /// Accelerator of the cluster's nodes on which they lie; that of the attention where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::serving) accelerator: Option<String>,
}

fn in_host() -> String {
    "host".to_owned()
}

fn one() -> u32 {
    1
}

fn is_one(value: &u32) -> bool {
    *value == 1
}

fn half() -> String {
    "bf16".to_owned()
}
