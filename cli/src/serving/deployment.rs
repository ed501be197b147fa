//! Deployment files: how a model is served, as `psim plan --emit` writes it and `psim simulate --plan` reads it.
//!
//! ```toml
//! schema = 1
//! replicas = 8
//! tp = 8
//! weights = "bf16"
//! kv = "bf16"
//! engine = "vllm-v1"         # or a release: "vllm@0.12"
//! router = "least-load"
//! ```
//!
//! `[prefill]` and `[decode]` tables take the place of the sizes where prompts and answers run on pools of their own;
//! `[speculation]`, `[autoscale]`, `[kv_offload]`, `[adapters]` and `[co_serving]` run beside the replicas; `overlap` and
//! `[sm_partition]` say how kernels share an accelerator, `[redundant_experts]` evens out experts, `[expert_offload]` keeps
//! them outside, `[attention_ffn]` gives feed-forward layers accelerators of their own. Every key is used or refused.

pub(super) mod file;
pub(super) mod pools;

use super::formats::cache_format;
use crate::Host;
use crate::failure::Failure;
use crate::files::read_text;
use file::{File, NOT_BUILT, PoolFile};
use psim_cost_models::serving::EngineProfile;
use psim_hardware::device::{Device, find as find_device};
use psim_hardware::source_error::{MAX_FILE_BYTES, find_key, parse_toml_body};
use psim_hardware::{Cluster, SourceError};
use psim_models::serving::{Deployment, NumberFormat, Quantization};
use psim_planner::serving::Split;
use psim_sim::serving::{Placement, Router, TransferMode};
use std::path::Path;

/// Most accelerators of a deployment.
pub(super) const MOST: u64 = 1 << 24;

const HINT: &str = "a deployment has `schema = 1`, replicas, tp and optionally pp, attention_dp, ep, weights, kv, engine, \
                    router, or tables [prefill] and [decode]; `psim plan --workload … --emit DIR` writes one";

/// A deployment file, its numbers checked.
#[derive(Debug, Clone)]
pub(crate) struct Deployed {
    pub(super) shown: String,
    pub(super) text: String,
    pub(super) file: File,
    /// Formats of weights and cache.
    pub(crate) quantization: Quantization,
}

/// The file of replicas; `name` is what the engine is called.
pub(crate) fn to_toml(
    deployment: &Deployment,
    (name, engine): (&str, &EngineProfile),
    token_budget: u32,
    router: Router,
) -> Result<String, Failure> {
    let file = File {
        replicas: Some(deployment.replicas),
        tp: Some(deployment.tp),
        pp: Some(deployment.pp),
        attention_dp: Some(deployment.attention_dp),
        ep: Some(deployment.ep),
        router: Some(router_name(router).to_owned()),
        token_budget: (token_budget != engine.token_budget).then_some(token_budget),
        ..File::of(deployment.quantization, name)
    };
    Ok(format!("schema = 1\n{}", toml::to_string(&file).map_err(Failure::defect)?))
}

/// The file of a split.
pub(crate) fn split_to_toml(split: &Split, cluster: &Cluster, engine: &str) -> Result<String, Failure> {
    let pool = |p: &psim_planner::serving::PoolLayout| {
        let name = cluster.groups.get(p.group).map(|g| g.node.accelerator.name.clone());
        PoolFile {
            token_budget: p.token_budget,
            max_sequences: p.max_sequences,
            ..PoolFile::of(&p.deployment, p.context_parallel, name.filter(|_| cluster.is_mixed()))
        }
    };
    let file = File {
        placement: Some(placement_name(split.placement).to_owned()),
        transfer: Some(transfer_name(split.transfer).to_owned()),
        prefill: Some(pool(&split.prefill)),
        decode: Some(pool(&split.decode)),
        ..File::of(split.decode.deployment.quantization, engine)
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

/// The name of a placement in files.
pub(crate) fn placement_name(placement: Placement) -> &'static str {
    match placement {
        Placement::Paired => "paired",
        Placement::Apart => "apart",
    }
}

/// The name of a transfer in files.
pub(crate) fn transfer_name(transfer: TransferMode) -> &'static str {
    match transfer {
        TransferMode::LayerWise => "layer-wise",
        TransferMode::AfterPrompt => "after-prompt",
    }
}

/// Reads a deployment file and checks what can be checked without model and cluster.
pub(crate) fn read(host: &Host<'_>, path: &Path) -> Result<Deployed, Failure> {
    let shown = path.display().to_string();
    let text = read_text(host, path, "deployment", MAX_FILE_BYTES)?;
    let place = Place { shown: &shown, text: &text };
    if let Ok(table) = toml::from_str::<toml::Table>(&text) {
        if let Some((key, why)) = NOT_BUILT.iter().find(|(key, _)| table.contains_key(*key)) {
            return Err(place.at(None, key, format!("`{key}`: {why}"), "leave it out"));
        }
        if table.contains_key("micro_batch") || table.contains_key("global_batch") {
            let message = "this is a plan of training, and the workload is traffic".to_owned();
            return Err(place.at(None, "micro_batch", message, HINT));
        }
    }
    let file: File = parse_toml_body(&shown, &text, "deployment", 1, HINT)?;
    let quantization = formats(&file, place)?;
    let deployed = Deployed { file, quantization, shown, text };
    deployed.check()?;
    Ok(deployed)
}

/// A place in the file, for errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    shown: &'a str,
    text: &'a str,
}

impl Place<'_> {
    /// A failure at a key, of a table where one is named.
    pub(super) fn at(&self, table: Option<&str>, key: &str, message: String, hint: &str) -> Failure {
        let header = |name: &str| {
            let header = format!("[{name}]");
            self.text.find(&header).map(|start| start..start + header.len())
        };
        let from = table.and_then(header).map_or(0, |span| span.end);
        let found = find_key(&self.text[from..], key).map(|s| s.start + from..s.end + from);
        let whole = || table.and_then(|t| header(t).or_else(|| find_key(self.text, t)));
        match found.or_else(whole).or_else(|| header(key)) {
            Some(span) => SourceError::at(self.shown, self.text, &span, message, hint).into(),
            None => Failure::input_at(message, self.shown.to_owned(), hint),
        }
    }
}

fn formats(file: &File, place: Place<'_>) -> Result<Quantization, Failure> {
    let dense = match &file.weights {
        Some(name) => weight_format(name, place, None, "weights")?,
        None => NumberFormat::Bf16,
    };
    let or = |key: &str, given: &Option<String>| {
        given.as_deref().map_or(Ok(dense), |name| weight_format(name, place, None, key))
    };
    Ok(Quantization {
        dense,
        attention: or("attention", &file.attention)?,
        experts: or("experts", &file.experts)?,
        kv: cache_format(&file.kv).ok_or_else(|| {
            let message = format!("`{}` is not a format of the cache", file.kv);
            place.at(None, "kv", message, "one of bf16, fp8, int8, fp4, int4")
        })?,
    })
}

pub(super) fn weight_format(
    name: &str,
    place: Place<'_>,
    table: Option<&str>,
    key: &str,
) -> Result<NumberFormat, Failure> {
    NumberFormat::parse(name).ok_or_else(|| {
        let known: Vec<&str> = NumberFormat::ALL.iter().map(|f| f.name()).collect();
        let message = format!("`{name}` is not a number format of weights");
        place.at(table, key, message, &format!("one of {}", known.join(", ")))
    })
}

impl Deployed {
    pub(super) fn place(&self) -> Place<'_> {
        Place { shown: &self.shown, text: &self.text }
    }

    /// Whether the file names a format of any weights; where it does not, they are those that the model is published with.
    pub(crate) fn names_weights(&self) -> bool {
        self.file.weights.is_some() || self.file.attention.is_some() || self.file.experts.is_some()
    }

    /// A failure at a key of the file.
    pub(crate) fn at(&self, key: &str, message: String, hint: &str) -> Failure {
        self.place().at(None, key, message, hint)
    }

    /// The same in a table of it.
    pub(super) fn inside(&self, table: &str, key: &str, message: String, hint: &str) -> Failure {
        self.place().at(Some(table), key, message, hint)
    }

    /// The file as it is, or with another engine.
    pub(crate) fn kept(&self, engine: Option<&str>) -> Result<String, Failure> {
        let Some(engine) = engine else { return Ok(self.text.clone()) };
        let file = File { engine: Some(engine.to_owned()), ..self.file.clone() };
        Ok(format!("schema = 1\n{}", toml::to_string(&file).map_err(Failure::defect)?))
    }

    /// Engine profile named by the file.
    pub(crate) fn engine(&self) -> Option<&str> {
        self.file.engine.as_deref()
    }

    /// Sizes of replicas by name, 1 where they are not given.
    fn sizes(&self) -> [(&'static str, Option<u32>); 5] {
        let f = &self.file;
        [("replicas", f.replicas), ("tp", f.tp), ("pp", f.pp), ("attention_dp", f.attention_dp), ("ep", f.ep)]
    }

    fn check(&self) -> Result<(), Failure> {
        let file = &self.file;
        for (key, value) in self.sizes() {
            if let Some(value) = value.filter(|v| *v == 0 || u64::from(*v) > MOST) {
                let message = format!("{key} is {value}, must lie between 1 and {MOST}");
                return Err(self.at(key, message, HINT));
            }
        }
        let all =
            self.sizes()[..4].iter().fold(1u64, |n, (_, v)| n.saturating_mul(u64::from(v.unwrap_or(1))));
        if all > MOST {
            let message = format!(
                "replicas · tp · pp · attention_dp is {all}, at most {MOST} accelerators are supported"
            );
            return Err(self.at("replicas", message, "check the numbers"));
        }
        for (key, value) in [("max_sequences", file.max_sequences), ("token_budget", file.token_budget)] {
            if value == Some(0) {
                let message = format!("{key} is 0, must be at least 1");
                return Err(self.at(key, message, "leave it out for the engine's own"));
            }
        }
        if let Some(share) = file.memory_share.filter(|s| !(*s > 0.0 && *s <= 1.0)) {
            let message = format!("memory_share is {share}, a share lies above 0 and at most 1");
            return Err(self.at("memory_share", message, "leave it out for the engine's own"));
        }
        pools::check(self)
    }

    /// The limits of the file over those of the engine.
    pub(crate) fn limit(&self, engine: &mut EngineProfile) {
        engine.max_sequences = self.file.max_sequences.unwrap_or(engine.max_sequences);
        engine.token_budget = self.file.token_budget.unwrap_or(engine.token_budget);
        engine.memory_share = self.file.memory_share.unwrap_or(engine.memory_share);
    }

    /// Group of the cluster's nodes on which replicas lie.
    pub(crate) fn group(&self, cluster: &Cluster) -> Result<usize, Failure> {
        match &self.file.accelerator {
            None => Ok(0),
            Some(wanted) => pools::group(self, cluster, None, wanted),
        }
    }

    /// The device that stands in place of an accelerator, with the layout on it.
    pub(crate) fn device(&self, host: &Host<'_>) -> Result<Option<(Device, Deployment)>, Failure> {
        let Some(name) = &self.file.device else { return Ok(None) };
        if self.file.prefill.is_some() {
            let message = "`device` beside pools: the steps of pools on it are not built".to_owned();
            return Err(self.at("device", message, "leave the pools out"));
        }
        if self.quantization != Quantization::uniform(NumberFormat::Bf16) {
            let message = "`device` with other formats than bf16 is not built".to_owned();
            return Err(self.at("weights", message, "leave weights, attention, experts and kv out"));
        }
        let path = Path::new(name);
        let device = if host.path(path).is_file() {
            let text = read_text(host, path, "device", MAX_FILE_BYTES)?;
            Device::parse(name, &text)?
        } else {
            find_device(name).map_err(|m| self.at("device", m, "or the path of a device file"))?
        };
        Ok(Some((device, self.replicas())))
    }

    /// The layout of replicas.
    pub(super) fn replicas(&self) -> Deployment {
        let [replicas, tp, pp, attention_dp, ep] = self.sizes().map(|(_, v)| v.unwrap_or(1));
        Deployment { replicas, tp, pp, attention_dp, ep, quantization: self.quantization }
    }
}
