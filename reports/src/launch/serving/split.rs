//! Launch files of a split: instances for prompts, instances for answers, and what sends requests through both.
//!
//! One script per engine starts the instances of a node (`NODE=0 ./vllm-split.sh` …), another the proxy in front. Option
//! names were compared with the engines' own guides, not run:
//! - vLLM: docs/features/nixl_connector_usage.md (v0.12 and later; a copy of the attention takes the side-channel port
//!   base + its rank; the role in the transfer configuration is a placeholder, the proxy decides), the proxy's arguments in
//!   tests/v1/kv_connector/nixl_integration/toy_proxy_server.py;
//! - SGLang: docs/advanced_features/pd_disaggregation.md and router.md (0.5; `--prefill URL BOOTSTRAP_PORT`);
//! - TensorRT-LLM: docs/source/features/disagg-serving.md (1.0 and later; `--extra_llm_api_options` is called `--config` too;
//!   the transfer buffer should hold the longest prompt) and examples/disaggregated/README.md.

use super::common::{bench, continued};
use super::{ServingEngine, ServingLaunch, sglang, trtllm, vllm};
use crate::launch::{LaunchError, LaunchFile};
use crate::words::layout_label;
use psim_cost_models::serving::EngineProfile;
use psim_hardware::Cluster;
use psim_models::Model;
use psim_models::serving::{Deployment, ServingWorkload};
use psim_planner::serving::{Layout, PoolLayout, Split};
use psim_sim::serving::Router;
use psim_sim::serving::placement::{Role, place};

/// What is launched.
#[derive(Debug, Clone, Copy)]
pub struct SplitLaunch<'a> {
    /// Model.
    pub model: &'a Model,
    /// Machines.
    pub cluster: &'a Cluster,
    /// Traffic, for the benchmark.
    pub workload: &'a ServingWorkload,
    /// Engine whose limits the prediction used.
    pub engine: &'a EngineProfile,
    /// The pools.
    pub split: &'a Split,
}

/// First ports of the two roles, and of their side channels.
const PREFILL_PORT: u32 = 8100;
const DECODE_PORT: u32 = 8300;
const SIDE_PORT: u32 = 5600;
/// Side-channel ports that one instance may use (one per copy of the attention).
const SIDE_STEP: u32 = 64;
/// Address of the proxy.
const PROXY: &str = "http://localhost:8000";

/// An instance on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instance {
    prompts: bool,
    node: u32,
    /// First accelerator of the node.
    first: u32,
    /// Its place among the instances of its role on the node.
    index: u32,
}

/// Where the instances lie, by node; prompts before answers inside a node.
fn instances(job: &SplitLaunch<'_>, engine: &'static str) -> Result<Vec<Instance>, LaunchError> {
    let refuse = |what: String| LaunchError { framework: engine, what };
    let (p, d) = (&job.split.prefill, &job.split.decode);
    let size = |pool: &PoolLayout| pool.deployment.accelerators_per_replica() * pool.context_parallel.max(1);
    for (pool, name) in [(p, "prompts"), (d, "answers")] {
        let node = job.cluster.groups.get(pool.group).map_or(job.cluster.first_node(), |g| &g.node);
        if size(pool) > node.accelerators {
            return Err(refuse(format!("an instance for {name} that spans nodes")));
        }
    }
    if p.context_parallel > 1 {
        return Err(refuse("context parallelism for prompts".to_owned()));
    }
    let role =
        |pool: &PoolLayout| Role { instances: pool.deployment.replicas, size: size(pool), group: pool.group };
    let (from, to) = place(job.cluster, job.split.placement, role(p), role(d))
        .ok_or_else(|| refuse(format!("pools larger than {}", job.cluster.name)))?;
    let mut out: Vec<Instance> = Vec::new();
    for (sites, prompts, each) in [(from, true, size(p)), (to, false, size(d))] {
        for site in sites {
            let beside = |i: &&Instance| i.node == site.node;
            let width = |i: &Instance| if i.prompts { size(p) } else { size(d) };
            let first = out.iter().filter(beside).map(width).sum();
            let index = out.iter().filter(beside).filter(|i| i.prompts == prompts).count() as u32;
            debug_assert!(each > 0);
            out.push(Instance { prompts, node: site.node, first, index });
        }
    }
    out.sort_by_key(|i| (i.node, !i.prompts, i.index));
    Ok(out)
}

/// The launch of one instance of a pool.
fn side<'a>(
    job: &SplitLaunch<'a>,
    engine: &'a EngineProfile,
    deployment: &'a Deployment,
) -> ServingLaunch<'a> {
    let router = Router::LeastLoad;
    ServingLaunch {
        model: job.model,
        cluster: job.cluster,
        workload: job.workload,
        engine,
        deployment,
        router,
    }
}

/// How an engine starts an instance of a role, and its proxy.
struct Recipe {
    name: &'static str,
    stem: &'static str,
    /// Command of an instance for prompts, and of one for answers; `$PORT` and `$SIDE` are set.
    commands: [String; 2],
    remarks: String,
    /// The proxy, given the addresses of both roles as shell words.
    proxy: Proxy,
    files: Vec<LaunchFile>,
}

/// The commands of a proxy in front of instances for prompts and for answers.
type Proxy = fn(&[Address], &[Address]) -> String;

/// Host (a shell word), port and side-channel port of an instance.
type Address = (String, u32, u32);

fn words(list: &[Address], word: impl Fn(&Address) -> String) -> String {
    list.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn vllm_proxy(prefill: &[Address], decode: &[Address]) -> String {
    let hosts = |list: &[Address]| words(list, |a| a.0.clone());
    let ports = |list: &[Address]| words(list, |a| a.1.to_string());
    format!(
        "# The proxy lies in vLLM's source tree: set VLLM_SOURCE to a checkout of the installed version.\n{}\n",
        continued(
            "python3 \"${VLLM_SOURCE:?}/tests/v1/kv_connector/nixl_integration/toy_proxy_server.py\"",
            &[
                "--host 0.0.0.0 --port 8000".to_owned(),
                format!("--prefiller-hosts {} --prefiller-ports {}", hosts(prefill), ports(prefill)),
                format!("--decoder-hosts {} --decoder-ports {}", hosts(decode), ports(decode)),
            ],
        )
    )
}

fn sglang_proxy(prefill: &[Address], decode: &[Address]) -> String {
    let mut options = vec!["--pd-disaggregation --host 0.0.0.0 --port 8000".to_owned()];
    options.extend(prefill.iter().map(|(host, port, side)| format!("--prefill http://{host}:{port} {side}")));
    options.extend(decode.iter().map(|(host, port, _)| format!("--decode http://{host}:{port}")));
    format!("{}\n", continued("python3 -m sglang_router.launch_router", &options))
}

fn trtllm_proxy(prefill: &[Address], decode: &[Address]) -> String {
    let urls = |list: &[Address]| {
        list.iter().map(|(host, port, _)| format!("      - \"{host}:{port}\"\n")).collect::<String>()
    };
    format!(
        "cat > trtllm-split.yaml <<YAML\nhostname: 0.0.0.0\nport: 8000\nbackend: pytorch\ncontext_servers:\n  num_instances: {}\n  \
         urls:\n{}generation_servers:\n  num_instances: {}\n  urls:\n{}YAML\ntrtllm-serve disaggregated -c trtllm-split.yaml\n",
        prefill.len(),
        urls(prefill),
        decode.len(),
        urls(decode),
    )
}

fn recipe(engine: ServingEngine, sides: [&ServingLaunch<'_>; 2]) -> Result<Recipe, LaunchError> {
    let mut files = Vec::new();
    let mut all_remarks = String::new();
    let mut commands = [String::new(), String::new()];
    for (i, launch) in sides.into_iter().enumerate() {
        let (command, mut options, remarks) = match engine {
            ServingEngine::Vllm => {
                let (mut options, remarks) = vllm::options(launch)?;
                // The proxy, not kv_role, decides who computes prompts.
                options.push(
                    "--kv-transfer-config '{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"kv_both\"}'"
                        .to_owned(),
                );
                let host = "VLLM_NIXL_SIDE_CHANNEL_HOST=$(hostname -i | cut -d' ' -f1)";
                let command = format!("{host} VLLM_NIXL_SIDE_CHANNEL_PORT=\"$SIDE\" vllm serve \"$MODEL\"");
                (command, options, remarks)
            }
            ServingEngine::Sglang => {
                let (mut options, remarks) = sglang::options(launch)?;
                let mode = if i == 0 { "prefill" } else { "decode" };
                options.push(format!("--disaggregation-mode {mode} --disaggregation-transfer-backend nixl"));
                if i == 0 {
                    options.push("--disaggregation-bootstrap-port \"$SIDE\"".to_owned());
                }
                ("python3 -m sglang.launch_server --model-path \"$MODEL\"".to_owned(), options, remarks)
            }
            ServingEngine::TensorRtLlm => {
                let (mut options, remarks, yaml) = trtllm::options(launch)?;
                let name = if i == 0 { "trtllm-prefill.yaml" } else { "trtllm-decode.yaml" };
                options.push(format!("--extra_llm_api_options \"$(dirname \"$0\")/{name}\""));
                // Instances for prompts cannot overlap scheduling and computing yet, says the engine's guide.
                let overlap = if i == 0 { "disable_overlap_scheduler: true\n" } else { "" };
                let buffer = super::common::context(launch.workload);
                let contents = format!(
                    "{yaml}{overlap}cache_transceiver_config:\n  backend: UCX\n  max_tokens_in_buffer: {buffer}\n"
                );
                files.push(LaunchFile { name: name.to_owned(), contents });
                ("trtllm-serve \"$MODEL\"".to_owned(), options, remarks)
            }
        };
        options.retain(|o| !o.is_empty());
        commands[i] = continued(&command, &options);
        if !all_remarks.contains(&remarks) {
            all_remarks.push_str(&remarks);
        }
    }
    let (name, stem, proxy): (_, _, Proxy) = match engine {
        ServingEngine::Vllm => ("vLLM", "vllm", vllm_proxy),
        ServingEngine::Sglang => ("SGLang", "sglang", sglang_proxy),
        ServingEngine::TensorRtLlm => ("TensorRT-LLM", "trtllm", trtllm_proxy),
    };
    Ok(Recipe { name, stem, commands, remarks: all_remarks, proxy, files })
}

/// Files that start a split with an engine, the proxy in front of it, and the benchmark that checks it.
///
/// # Errors
/// [`LaunchError`] names what the engine cannot express.
pub fn emit_split(engine: ServingEngine, job: &SplitLaunch<'_>) -> Result<Vec<LaunchFile>, LaunchError> {
    let placed = instances(job, engine.name())?;
    let limits = |pool: &PoolLayout| EngineProfile {
        token_budget: pool.token_budget.unwrap_or(job.engine.token_budget),
        max_sequences: pool.max_sequences.unwrap_or(job.engine.max_sequences),
        ..job.engine.clone()
    };
    let single = |pool: &PoolLayout| Deployment { replicas: 1, ..pool.deployment };
    let (p, d) = (&job.split.prefill, &job.split.decode);
    let (engines, layouts) = ([limits(p), limits(d)], [single(p), single(d)]);
    let sides = [side(job, &engines[0], &layouts[0]), side(job, &engines[1], &layouts[1])];
    let made = recipe(engine, [&sides[0], &sides[1]])?;
    let head = |what: &str, variables: &str| {
        format!(
            "#!/bin/bash\n# {what}: {} on {} ({}), {}.\n# Written by psim for workload {}; predicted with the profile {}.\n\
             set -euo pipefail\n{variables}",
            job.model.name,
            job.cluster.name,
            made.name,
            layout_label(&Layout::Pools(*job.split)),
            job.workload.name,
            job.engine.name,
        )
    };
    let model = format!("MODEL=\"${{MODEL:?set MODEL to the checkpoint of {}}}\"\n", job.model.name);
    let mut serve = head("Serve prompts and answers apart", &model);
    serve.push_str("NODE=\"${NODE:?set NODE to the number of this node, from 0}\"\n");
    serve.push_str(&made.remarks);
    for (name, command, each) in [
        ("prefill", &made.commands[0], layouts[0].accelerators_per_replica()),
        ("decode", &made.commands[1], layouts[1].accelerators_per_replica()),
    ] {
        serve.push_str(&format!(
            "# Arguments: port, side-channel port, first accelerator.\n{name}() {{\n  local PORT=$1 SIDE=$2 first=$3\n  export \
             CUDA_VISIBLE_DEVICES=$(seq -s, \"$first\" $((first + {each} - 1)))\n  {} &\n}}\n",
            command.replace('\n', "\n  ")
        ));
    }
    serve.push_str("case \"$NODE\" in\n");
    let nodes = placed.last().map_or(0, |i| i.node + 1);
    let of = |i: &Instance| {
        let port = if i.prompts { PREFILL_PORT } else { DECODE_PORT } + i.index;
        let side = SIDE_PORT + SIDE_STEP * (2 * i.index + u32::from(!i.prompts));
        (port, side)
    };
    for node in 0..nodes {
        let here = placed.iter().filter(|i| i.node == node);
        let calls: Vec<String> = here
            .map(|i| {
                let (port, side) = of(i);
                format!("{} {port} {side} {}", if i.prompts { "prefill" } else { "decode" }, i.first)
            })
            .collect();
        if !calls.is_empty() {
            serve.push_str(&format!("  {node}) {} ;;\n", calls.join("; ")));
        }
    }
    serve.push_str("  *) echo \"there is nothing to start on node $NODE\" >&2; exit 1 ;;\nesac\nwait\n");
    let addresses = |prompts: bool| -> Vec<Address> {
        placed
            .iter()
            .filter(|i| i.prompts == prompts)
            .map(|i| {
                let (port, side) = of(i);
                (format!("${{HOSTS[{}]}}", i.node), port, side)
            })
            .collect()
    };
    let hosts = format!(
        "# Hosts of the nodes 0 to {}, in this order: ./{}-proxy.sh host0 host1 …\nHOSTS=(\"$@\")\n[ \"${{#HOSTS[@]}}\" -ge {nodes} ] \
         || {{ echo \"give the names of {nodes} hosts\" >&2; exit 1; }}\n",
        nodes.saturating_sub(1),
        made.stem,
    );
    let mut proxy = head("Proxy", &hosts);
    proxy.push_str(&(made.proxy)(&addresses(true), &addresses(false)));
    let client = match engine {
        ServingEngine::Vllm => vllm::ENGINE.client,
        ServingEngine::Sglang => sglang::ENGINE.client,
        ServingEngine::TensorRtLlm => trtllm::ENGINE.client,
    };
    let mut files = vec![
        LaunchFile { name: format!("{}-split.sh", made.stem), contents: serve },
        LaunchFile { name: format!("{}-proxy.sh", made.stem), contents: proxy },
        LaunchFile {
            name: format!("{}-split-bench.sh", made.stem),
            contents: bench(&sides[1], made.name, client, PROXY),
        },
    ];
    files.extend(made.files);
    Ok(files)
}
