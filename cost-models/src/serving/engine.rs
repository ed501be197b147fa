//! Engine profiles: what a release of a serving engine does and what its host side costs.
//!
//! Files: `data/serving/engines/*.toml`, one per engine and era. Parameters are properties of the software on an
//! accelerator (never of a model or a run); `[[accelerator]]` tables override them for parts whose names start with a
//! text, `[[release]]` tables those of earlier releases. Fitted ones are bounded by [`EngineParameters::BOUNDS`].

use psim_models::serving::NumberFormat;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::OnceLock;

pub mod version;

pub use version::{Releases, Version, VersionError, named};

/// Batching policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// A batch is formed, prefilled and decoded to its last token before the next one starts.
    Static,
    /// Iteration-level batching with memory reserved for the whole answer at admission (Orca, Yu et al. 2022).
    Orca,
    /// Waiting prompts run first, whole, in steps of their own; decoding is paused (vLLM of 2023, Kwon et al. 2023).
    PrefillPriority,
    /// One token budget a step: decodes first, prompts in chunks with what is left (vLLM v1, Sarathi).
    ChunkedPrefill,
    /// As chunked prefill, but every step is filled to the same number of tokens (DeepSpeed-FastGen).
    #[serde(rename = "splitfuse")]
    SplitFuse,
    /// Prompts run first in chunks, matched against a radix tree of cached prefixes (SGLang).
    Radix,
    /// In-flight batching without eviction: a request is admitted when its longest answer fits (TensorRT-LLM).
    InflightNoEvict,
    /// Requests in flight advance together; a new one computes its prompt alone and joins (Flover, temporal fusion).
    Flover,
    /// Priorities that change, with context switches to host memory (FastSwitch).
    #[serde(rename = "fastswitch")]
    FastSwitch,
    /// Many adapters in one batch, one pool for adapters and cache (S-LoRA).
    #[serde(rename = "s-lora")]
    SLora,
    /// Inference with fine-tuning in the room that the promised step time leaves (FlexLLM).
    #[serde(rename = "flexllm")]
    FlexLlm,
}

/// Names of the field that are not policies of one engine, with where they are or why not.
const NOT_BUILT: [(&str, &str); 2] = [
    (
        "nanoflow",
        "nano-batches arrange the kernels of a step under any policy; see `psim gallery nanoflow-llama2-70b`",
    ),
    (
        "semi-pd",
        "a partition of the multiprocessors is a deployment, not a policy; see `psim gallery semi-pd*`",
    ),
];

impl Policy {
    /// Every name, as in files.
    pub const NAMES: [&'static str; 11] = [
        "static",
        "orca",
        "prefill-priority",
        "chunked-prefill",
        "splitfuse",
        "radix",
        "inflight-no-evict",
        "flover",
        "fastswitch",
        "s-lora",
        "flexllm",
    ];

    /// Reads a name.
    ///
    /// # Errors
    /// A sentence: unknown, or known and not built with the reason.
    pub fn parse(name: &str) -> Result<Self, String> {
        Ok(match name {
            "static" => Self::Static,
            "orca" => Self::Orca,
            "prefill-priority" | "vllm-2023" => Self::PrefillPriority,
            "chunked-prefill" | "sarathi" | "vllm-v1" => Self::ChunkedPrefill,
            "splitfuse" => Self::SplitFuse,
            "radix" | "sglang" => Self::Radix,
            "inflight-no-evict" | "trtllm" => Self::InflightNoEvict,
            "flover" => Self::Flover,
            "fastswitch" => Self::FastSwitch,
            "s-lora" => Self::SLora,
            "flexllm" => Self::FlexLlm,
            other => {
                return Err(match NOT_BUILT.iter().find(|(known, _)| *known == other) {
                    Some((name, why)) => format!("policy `{name}` is not built: {why}"),
                    None => format!("`{other}` is not a policy; known: {}", Self::NAMES.join(", ")),
                });
            }
        })
    }
}

/// Numbers of an engine on an accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineParameters {
    /// Host time of a step that the accelerator waits for, microseconds.
    pub step_us: f64,
    /// The same per running sequence, microseconds.
    pub sequence_us: f64,
    /// The same per prompt chunk in the step, microseconds.
    pub prompt_us: f64,
    /// Share of these three that every further accelerator of a replica adds, where steps are handed to worker processes
    /// one after another with all their arguments (vLLM of 2023 under Ray).
    pub worker: f64,
    /// Idle between the kernels of one layer under a captured graph, microseconds.
    pub layer_us: f64,
    /// Part of a kernel timed alone that hides behind its neighbours in a captured graph (launch and drain),
    /// microseconds.
    pub overlap_us: f64,
    /// Host time of a step that runs beside the accelerator; a step takes at least as long, microseconds.
    pub loop_us: f64,
    /// The same per running sequence, microseconds.
    pub loop_sequence_us: f64,
    /// Host time to launch one layer without a captured graph; hidden where the kernels take longer, microseconds.
    pub eager_layer_us: f64,
    /// Most tokens of a step that runs as a captured graph; 0 without graphs.
    pub graph_tokens: u32,
    /// Constant part of the time to the first token (HTTP, tokenisation, first streaming), milliseconds.
    pub ttft_ms: f64,
    /// What a collective of small messages takes beyond its kernel timed alone: ranks that arrive at different times,
    /// microseconds.
    pub reduce_us: f64,
    /// Share of the casts of activations to a narrow format that run as kernels of their own; the others are fused
    /// into the kernel before.
    pub cast: f64,
    /// Launches of memory-bound kernels (norms, rotary, activation) over those of the same kernels timed alone: inside a
    /// captured graph a launch is shorter, and some are fused. What they move takes its time all the same.
    pub small: f64,
    /// What a layer of experts takes beyond its fused kernel timed alone (routing, permutation and casts launched apart),
    /// microseconds.
    pub moe_us: f64,
    /// Rows that every expert of a rank is padded to and computed with, whether or not a token chose it: grouped products
    /// over one contiguous buffer (DeepGEMM's alignment of 128 in vLLM's `compute_aligned_M`). 0 where only the experts
    /// that tokens chose run.
    pub expert_rows: f64,
    /// Arithmetic of dense products beyond the tabled: share of their time at the peak rate. Products run one after
    /// another on real activations draw more power than a kernel timed alone; scales and bias are applied to tiles.
    pub arithmetic: f64,
    /// The same of fused experts: unpacking of narrow weights, padded tiles of unequal experts.
    pub moe_arithmetic: f64,
    /// Time that the front end (HTTP, tokenisation, hand-over to the engine) is busy with one request, one after
    /// another and beside the accelerator, microseconds.
    pub front_us: f64,
    /// Reached over tabled rate of dense products; above 1 where the engine tunes a kernel for each shape and the table
    /// holds one kernel for all. The roofline of a step holds in any case.
    pub gemm: f64,
    /// The same of decoding attention.
    pub decode: f64,
    /// The same of prompt attention.
    pub prompt: f64,
    /// The same of fused experts.
    pub moe: f64,
    /// The same of all-reduces.
    pub all_reduce: f64,
    /// Share of the key/value reads that query heads of one group share: 1 reads each key once, 0 once per query head.
    pub kv_reuse: f64,
    /// Busiest over mean rank of experts spread over ranks; 0 derives it from the spread of their popularity
    /// ([`super::kernels::MoeCall::busiest`]).
    pub expert_imbalance: f64,
    /// Share of a pipeline's ideal overlap that is reached: 0 runs stages one after another.
    pub pipeline: f64,
}

impl Default for EngineParameters {
    fn default() -> Self {
        Self {
            step_us: 1000.0,
            sequence_us: 5.0,
            prompt_us: 100.0,
            worker: 0.0,
            layer_us: 3.0,
            overlap_us: 0.3,
            loop_us: 1000.0,
            loop_sequence_us: 10.0,
            eager_layer_us: 150.0,
            graph_tokens: 512,
            ttft_ms: 20.0,
            reduce_us: 0.0,
            cast: 0.0,
            small: 1.0,
            moe_us: 0.0,
            expert_rows: 0.0,
            arithmetic: 0.0,
            moe_arithmetic: 0.0,
            front_us: 0.0,
            gemm: 0.95,
            decode: 0.9,
            prompt: 0.9,
            moe: 0.9,
            all_reduce: 1.0,
            kv_reuse: 1.0,
            expert_imbalance: 0.0,
            pipeline: 1.0,
        }
    }
}

impl EngineParameters {
    /// Name, least and greatest value of every fitted parameter.
    pub const BOUNDS: [(&'static str, f64, f64); 26] = [
        ("step_us", 10.0, 80_000.0),
        ("sequence_us", 0.1, 2000.0),
        ("prompt_us", 1.0, 10_000.0),
        ("worker", 0.0, 1.0),
        ("layer_us", 0.1, 200.0),
        ("overlap_us", 0.02, 4.0),
        ("loop_us", 10.0, 40_000.0),
        ("loop_sequence_us", 0.1, 300.0),
        ("eager_layer_us", 10.0, 1500.0),
        ("ttft_ms", 1.0, 400.0),
        ("reduce_us", 0.0, 20.0),
        ("cast", 0.0, 2.0),
        ("small", 0.05, 1.5),
        ("moe_us", 0.0, 150.0),
        ("expert_rows", 0.0, 256.0),
        ("arithmetic", 0.0, 1.0),
        ("moe_arithmetic", 0.0, 2.0),
        ("front_us", 0.0, 20_000.0),
        ("gemm", 0.35, 1.15),
        ("decode", 0.25, 1.0),
        ("prompt", 0.35, 1.0),
        ("moe", 0.25, 1.2),
        ("all_reduce", 0.4, 1.3),
        ("kv_reuse", 0.0, 1.0),
        ("expert_imbalance", 0.0, 4.0),
        ("pipeline", 0.0, 1.0),
    ];

    /// A parameter by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        let mut copy = *self;
        copy.slot(name).map(|s| *s)
    }

    /// Sets a parameter by name, within its bounds; unknown names and values that are not finite are refused.
    pub fn set(&mut self, name: &str, value: f64) -> bool {
        let Some((_, low, high)) = Self::BOUNDS.iter().find(|(n, ..)| *n == name) else { return false };
        match self.slot(name) {
            Some(slot) if value.is_finite() => {
                *slot = value.clamp(*low, *high);
                true
            }
            _ => false,
        }
    }

    fn slot(&mut self, name: &str) -> Option<&mut f64> {
        Some(match name {
            "step_us" => &mut self.step_us,
            "sequence_us" => &mut self.sequence_us,
            "prompt_us" => &mut self.prompt_us,
            "worker" => &mut self.worker,
            "layer_us" => &mut self.layer_us,
            "overlap_us" => &mut self.overlap_us,
            "loop_us" => &mut self.loop_us,
            "loop_sequence_us" => &mut self.loop_sequence_us,
            "eager_layer_us" => &mut self.eager_layer_us,
            "ttft_ms" => &mut self.ttft_ms,
            "reduce_us" => &mut self.reduce_us,
            "cast" => &mut self.cast,
            "small" => &mut self.small,
            "moe_us" => &mut self.moe_us,
            "expert_rows" => &mut self.expert_rows,
            "arithmetic" => &mut self.arithmetic,
            "moe_arithmetic" => &mut self.moe_arithmetic,
            "front_us" => &mut self.front_us,
            "gemm" => &mut self.gemm,
            "decode" => &mut self.decode,
            "prompt" => &mut self.prompt,
            "moe" => &mut self.moe,
            "all_reduce" => &mut self.all_reduce,
            "kv_reuse" => &mut self.kv_reuse,
            "expert_imbalance" => &mut self.expert_imbalance,
            "pipeline" => &mut self.pipeline,
            _ => return None,
        })
    }
}

/// Overrides for some accelerators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceleratorOverride {
    /// The accelerator's canonical name starts with this.
    pub name: String,
    /// Parameter to value.
    pub parameters: BTreeMap<String, f64>,
}

/// What earlier releases of an era did otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Holds for releases before this one: major and minor number.
    pub before: Version,
    /// Holds for models whose experts have this format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<NumberFormat>,
    /// Holds for accelerators whose names start with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// What differs, with its source.
    pub why: String,
    /// Parameter to value, in place of the era's.
    pub parameters: BTreeMap<String, f64>,
}

/// One engine in one era.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineProfile {
    /// Schema version.
    pub schema: u32,
    /// Name (`vllm-v1`).
    pub name: String,
    /// Releases and time that it stands for, with the source of the behaviour.
    pub era: String,
    /// Kernel library of the laws: `trtllm`, `vllm`, `sglang`.
    pub library: String,
    /// Batching policy.
    pub policy: Policy,
    /// Most sequences that run at once, per attention copy.
    pub max_sequences: u32,
    /// Most tokens of a step.
    pub token_budget: u32,
    /// Share of the device memory that the engine fills.
    pub memory_share: f64,
    /// Activations, graphs and workspaces inside that share, GiB.
    pub reserve_gib: f64,
    /// Tokens of one cache block.
    pub block_tokens: u32,
    /// With attention copies, prompts wait for so many steps at most until every copy has one, because the copies run in
    /// step and one copy's prompt stalls all (TensorRT-LLM's `attention_dp_config.timeout_iters`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_wait_steps: Option<u32>,
    /// Steps that they wait longer once every copy has one, so that more prompts share the step
    /// (`attention_dp_config.batching_wait_iters`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_batch_steps: Option<u32>,
    /// A step is scheduled while the one before it runs (overlap or asynchronous scheduling): a request that comes
    /// during a step runs in the step after the next.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lookahead: bool,
    /// Decoding steps between two looks at the queue of new requests (SGLang's `--scheduler-recv-interval`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_steps: Option<u32>,
    /// Prompts run in batches of so many tokens, which follow one another through pipeline stages (llama.cpp).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_micro_batch: Option<u32>,
    /// Releases of the engine that it stands for; none where its numbers belong to a time or a paper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub releases: Option<Releases>,
    /// The release in use (`[[release]]` tables hold for it); none is the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Numbers on any accelerator.
    #[serde(default)]
    pub parameters: EngineParameters,
    /// Numbers that differ on some accelerators; the longest matching name wins.
    #[serde(default)]
    pub accelerator: Vec<AcceleratorOverride>,
    /// What earlier releases did otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub release: Vec<Release>,
}

impl EngineProfile {
    /// The numbers on an accelerator, and whether a table of its own gave them.
    pub fn on(&self, accelerator: &str) -> (EngineParameters, bool) {
        let mut parameters = self.parameters;
        let own =
            self.accelerator.iter().filter(|o| accelerator.starts_with(&o.name)).max_by_key(|o| o.name.len());
        if let Some(o) = own {
            for (name, value) in &o.parameters {
                parameters.set(name, *value);
            }
        }
        (parameters, own.is_some())
    }

    /// What a release did otherwise than the era's last with experts of a format (`None`: no experts): of the tables that
    /// hold for it the one with the nearest release.
    pub fn deltas(
        &self,
        release: (u32, u32),
        experts: Option<NumberFormat>,
        accelerator: &str,
    ) -> Option<&Release> {
        let holds = |r: &&Release| {
            release < (r.before[0], r.before[1])
                && r.experts.is_none_or(|format| experts == Some(format))
                && r.accelerator.as_ref().is_none_or(|name| accelerator.starts_with(name.as_str()))
        };
        self.release.iter().filter(holds).min_by_key(|r| r.before)
    }
}

/// Embedded engine files.
const FILES: [(&str, &str); 16] = [
    ("deepspeed-mii-2024", include_str!("../../data/serving/engines/deepspeed-mii-2024.toml")),
    ("deepspeed-gaudi-2024", include_str!("../../data/serving/engines/deepspeed-gaudi-2024.toml")),
    ("distserve-2024", include_str!("../../data/serving/engines/distserve-2024.toml")),
    ("llama.cpp-2024", include_str!("../../data/serving/engines/llama.cpp-2024.toml")),
    ("orca", include_str!("../../data/serving/engines/orca.toml")),
    ("rocm-atom", include_str!("../../data/serving/engines/rocm-atom.toml")),
    ("rocm-vllm-2024", include_str!("../../data/serving/engines/rocm-vllm-2024.toml")),
    ("sglang", include_str!("../../data/serving/engines/sglang.toml")),
    ("trtllm-0.10", include_str!("../../data/serving/engines/trtllm-0.10.toml")),
    ("trtllm-0.14", include_str!("../../data/serving/engines/trtllm-0.14.toml")),
    ("trtllm-1.0", include_str!("../../data/serving/engines/trtllm-1.0.toml")),
    ("trtllm-static", include_str!("../../data/serving/engines/trtllm-static.toml")),
    ("trtllm-static-2024", include_str!("../../data/serving/engines/trtllm-static-2024.toml")),
    ("vllm-2023", include_str!("../../data/serving/engines/vllm-2023.toml")),
    ("vllm-2024", include_str!("../../data/serving/engines/vllm-2024.toml")),
    ("vllm-v1", include_str!("../../data/serving/engines/vllm-v1.toml")),
];

/// The engine of a serving question that names none.
pub const DEFAULT_ENGINE: &str = "vllm-v1";

static ENGINES: OnceLock<Vec<EngineProfile>> = OnceLock::new();

/// Every built-in engine profile.
pub fn engines() -> &'static [EngineProfile] {
    ENGINES.get_or_init(|| FILES.iter().filter_map(|(_, text)| toml::from_str(text).ok()).collect())
}

/// A built-in engine by name.
pub fn find(name: &str) -> Option<&'static EngineProfile> {
    engines().iter().find(|e| e.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_file_parses_and_keeps_its_bounds() {
        for (name, text) in FILES {
            let parsed: Result<EngineProfile, _> = toml::from_str(text);
            let engine = parsed.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(engine.name, name);
            for (parameter, low, high) in EngineParameters::BOUNDS {
                let value = engine.parameters.get(parameter).unwrap();
                assert!((low..=high).contains(&value), "{name}: {parameter} = {value}");
                for o in &engine.accelerator {
                    for (key, value) in &o.parameters {
                        assert!(EngineParameters::default().get(key).is_some(), "{name}: {key}");
                        if key == parameter {
                            assert!((low..=high).contains(value), "{name} {}: {key} = {value}", o.name);
                        }
                    }
                }
            }
        }
        assert!(find(DEFAULT_ENGINE).is_some());
    }

    #[test]
    fn releases_state_few_known_numbers_within_their_bounds() {
        for engine in engines() {
            for release in &engine.release {
                assert!((1..=3).contains(&release.parameters.len()), "{}: {release:?}", engine.name);
                assert!(!release.why.is_empty(), "{}", engine.name);
                for (name, value) in &release.parameters {
                    let (_, low, high) = EngineParameters::BOUNDS.iter().find(|b| b.0 == name).unwrap();
                    assert!((low..=high).contains(&value), "{}: {name} = {value}", engine.name);
                }
            }
        }
    }

    #[test]
    fn the_nearest_later_release_holds() {
        let table = |minor: u32, experts, accelerator: Option<&str>| Release {
            before: [0, minor],
            experts,
            accelerator: accelerator.map(str::to_owned),
            why: "test".to_owned(),
            parameters: BTreeMap::from([("moe_us".to_owned(), f64::from(minor))]),
        };
        let block = Some(NumberFormat::Fp8Block);
        let engine = EngineProfile {
            release: vec![table(18, block, None), table(13, block, None), table(20, None, Some("B200"))],
            ..find("vllm-v1").unwrap().clone()
        };
        let found = |minor, experts, gpu: &str| engine.deltas((0, minor), experts, gpu).map(|r| r.before[1]);
        assert_eq!(found(12, block, "H200-SXM-141GB"), Some(13));
        assert_eq!(found(13, block, "H200-SXM-141GB"), Some(18));
        assert_eq!(found(18, block, "H200-SXM-141GB"), None);
        assert_eq!(found(18, block, "B200-SXM"), Some(20));
        assert_eq!(found(12, Some(NumberFormat::Bf16), "H200-SXM-141GB"), None);
        assert_eq!(found(12, None, "B200-SXM"), Some(20));
        // The release after 0.9 is not 0.1.
        assert_eq!(engine.deltas((1, 0), block, "B200-SXM"), None);
    }

    #[test]
    fn names_not_built_are_refused_with_the_reason() {
        assert_eq!(Policy::parse("sarathi"), Ok(Policy::ChunkedPrefill));
        assert!(Policy::parse("nanoflow").unwrap_err().contains("not built"));
        let unknown = Policy::parse("quick").unwrap_err();
        for name in Policy::NAMES {
            let policy = Policy::parse(name).unwrap();
            // Files and the command line use the same names.
            assert_eq!(toml::Value::try_from(policy).unwrap().as_str(), Some(name));
            assert!(unknown.contains(name));
        }
    }
}
