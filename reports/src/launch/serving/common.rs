//! What the three engines' scripts share: replicas on a node, lengths, rates, promises.

use super::ServingLaunch;
use crate::launch::{LaunchError, LaunchFile};
use crate::number::counted;
use crate::words::serving_label;
use psim_models::serving::{Arrival, Metric, NumberFormat, ServingWorkload, Tenant, Traffic};
use psim_sim::serving::Router;

/// First port of the replicas of a node.
pub(super) const PORT: u32 = 8000;

/// Requests drawn to find the longest one.
const DRAWN: u32 = 20_000;

/// Context that covers every request of the workload, tokens, in steps of 256.
pub(super) fn context(workload: &ServingWorkload) -> u64 {
    let mut sample = workload.clone();
    for tenant in &mut sample.tenants {
        tenant.requests = Some(tenant.requests.unwrap_or(DRAWN).min(DRAWN));
    }
    let traffic = Traffic::generate(&sample, 0);
    let longest =
        traffic.requests.iter().map(|r| u64::from(r.input) + u64::from(r.output)).max().unwrap_or(1);
    // Distributions without an end have longer requests than any sample.
    (longest + longest / 8).next_multiple_of(256)
}

/// Header of a script.
pub(super) fn header(job: &ServingLaunch<'_>, engine: &str, what: &str) -> String {
    format!(
        "#!/bin/bash\n# {what}: {} on {} ({engine}), {}.\n# Written by psim for workload {}; predicted with the profile {}.\n\
         set -euo pipefail\n# The checkpoint of {}: a directory or a name on the Hugging Face hub.\n\
         MODEL=\"${{MODEL:?set MODEL to the checkpoint of {}}}\"\n",
        job.model.name,
        job.cluster.name,
        serving_label(job.deployment),
        job.workload.name,
        job.engine.name,
        job.model.name,
        job.model.name,
    )
}

/// Replicas that fit a node, at least 1, and nodes of one replica.
pub(super) fn placement(job: &ServingLaunch<'_>) -> (u32, u32) {
    let per_node = job.cluster.first_node().accelerators.max(1);
    let each = job.deployment.accelerators_per_replica();
    let fit = (per_node / each).max(1).min(job.deployment.replicas.max(1));
    (fit, each.div_ceil(per_node))
}

/// A loop that starts a command for every replica of this node, each on its own accelerators and port.
/// `command` uses `$PORT`.
fn replicas(job: &ServingLaunch<'_>, command: &str) -> String {
    let (fit, nodes) = placement(job);
    let each = job.deployment.accelerators_per_replica();
    let all = job.deployment.replicas;
    if nodes > 1 {
        return format!(
            "# One replica spans {nodes} nodes; {all} in all. Start it once per group of {nodes} nodes.\nPORT=${{PORT:-{PORT}}}\n{command}\n"
        );
    }
    if fit == 1 {
        return format!(
            "# {}, one per node: run this on {}.\nPORT=${{PORT:-{PORT}}}\n{command}\n",
            counted(all.into(), "replica in all", "replicas in all"),
            counted(all.into(), "node", "nodes"),
        );
    }
    format!(
        "# {all} replicas in all, {fit} on each node: run this on {}.\n\
         for replica in $(seq 0 {}); do\n  first=$((replica * {each}))\n  \
         export CUDA_VISIBLE_DEVICES=$(seq -s, \"$first\" $((first + {each} - 1)))\n  PORT=$(({PORT} + replica))\n  {} &\ndone\nwait\n",
        counted(all.div_ceil(fit).into(), "node", "nodes"),
        fit - 1,
        command.replace('\n', "\n  "),
    )
}

/// A load balancer that does what the prediction assumes, as far as nginx can.
fn balancer(job: &ServingLaunch<'_>) -> Option<LaunchFile> {
    let (fit, nodes) = placement(job);
    if job.deployment.replicas < 2 {
        return None;
    }
    let ports = if nodes > 1 { 1 } else { fit };
    let mut servers = String::new();
    let hosts = job.deployment.replicas.div_ceil(ports);
    let mut left = job.deployment.replicas;
    for host in 0..hosts {
        for port in 0..ports.min(left) {
            servers.push_str(&format!("    server node{host}:{};\n", PORT + port));
        }
        left = left.saturating_sub(ports);
    }
    let (remark, rule) = match job.router {
        Router::RoundRobin => ("Balancer in turn in front of the replicas, as the prediction assumes.", ""),
        Router::LeastLoad => (
            "Least-connections balancer in front of the replicas, as the prediction assumes.",
            "    least_conn;\n",
        ),
        Router::PrefixAware => (
            "Least-connections balancer in front of the replicas. The prediction sends a request where its prefix is cached,\n# \
             which nginx does not: fewer prompt tokens will be found cached. A router of the engine (sglang_router, policy \
             cache_aware) does.",
            "    least_conn;\n",
        ),
    };
    Some(LaunchFile {
        name: "nginx.conf".to_owned(),
        contents: format!(
            "# {remark} Replace node0 … by the hosts.\n\
             events {{ worker_connections 16384; }}\nhttp {{\n  upstream replicas {{\n{rule}{servers}  }}\n  server {{\n    \
             listen 8080;\n    proxy_buffering off;\n    proxy_read_timeout 3600s;\n    location / {{ proxy_pass http://replicas; }}\n  }}\n}}\n"
        ),
    })
}

/// Address that the benchmark talks to.
fn address(job: &ServingLaunch<'_>) -> &'static str {
    if job.deployment.replicas > 1 { "http://localhost:8080" } else { "http://localhost:8000" }
}

/// What a benchmark client needs of one tenant.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Load {
    pub(super) input: u64,
    pub(super) output: u64,
    /// Requests a second; `inf` for all at once.
    pub(super) rate: String,
    /// Shape of gamma gaps: 1 is Poisson.
    pub(super) burstiness: f64,
    pub(super) concurrency: Option<u32>,
    pub(super) requests: u32,
    /// What the client cannot express, as a remark.
    pub(super) remark: Option<String>,
}

/// The load of a tenant as fixed mean lengths.
pub(super) fn load(tenant: &Tenant) -> Load {
    let (input, output) = tenant.mean_lengths();
    let fixed = |l: &psim_models::serving::Lengths| matches!(l, psim_models::serving::Lengths::Fixed(_));
    let exact = tenant.pairs.is_none()
        && fixed(&tenant.input)
        && fixed(&tenant.output)
        && !matches!(tenant.arrival, Arrival::Trace(_));
    let mut remarks = Vec::new();
    if !exact {
        remarks.push("lengths vary in the workload; the client sends their means");
    }
    if tenant.sessions.is_some() {
        remarks.push("conversations are sent as requests that stand alone, each with its whole prompt new");
    } else if tenant.prefix.is_some() {
        remarks.push("the shared prefix is sent as if it were new in every request");
    }
    let mean = tenant.rate().map_or_else(|| "inf".to_owned(), number);
    let (rate, burstiness, concurrency) = match &tenant.arrival {
        Arrival::Burst => ("inf".to_owned(), 1.0, None),
        Arrival::ClosedLoop { concurrency } => ("inf".to_owned(), 1.0, Some(*concurrency)),
        Arrival::Gamma { cv, .. } => (mean, 1.0 / (cv * cv), None),
        Arrival::Poisson { .. } => (mean, 1.0, None),
        _ => {
            remarks.push("arrivals vary in the workload; the client keeps the mean rate");
            (mean, 1.0, None)
        }
    };
    Load {
        input: input.round().max(1.0) as u64,
        output: output.round().max(1.0) as u64,
        rate,
        burstiness,
        concurrency,
        requests: tenant.requests.unwrap_or(1000).min(10_000),
        remark: (!remarks.is_empty()).then(|| remarks.join("; ")),
    }
}

/// A rate without needless digits.
fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Promises as the `--goodput` of the benchmark clients: `ttft:500 tpot:50`, the tightest of each.
pub(super) fn goodput(tenant: &Tenant) -> String {
    [(Metric::Ttft, "ttft"), (Metric::Tpot, "tpot"), (Metric::E2e, "e2el")]
        .into_iter()
        .filter_map(|(metric, name)| tenant.slo.limit_ms(metric).map(|ms| format!("{name}:{}", number(ms))))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Options one a line, continued.
pub(super) fn continued(first: &str, options: &[String]) -> String {
    let mut out = first.to_owned();
    for option in options {
        out.push_str(" \\\n  ");
        out.push_str(option);
    }
    out
}

/// A benchmark client of the family that vLLM began: one command per tenant, fixed lengths, a rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    /// Program and subcommand.
    pub(super) command: &'static str,
    /// Flags that choose backend and random prompts of exactly the given lengths.
    pub(super) prompts: &'static str,
    /// It sends gamma arrivals (`--burstiness`); else Poisson only.
    pub(super) burstiness: bool,
    /// It reports percentiles and goodput by `--percentile-metrics` and `--goodput`.
    pub(super) percentiles: bool,
}

/// The script that runs a client for every tenant against `address`.
pub(super) fn bench(job: &ServingLaunch<'_>, engine: &str, client: Client, address: &str) -> String {
    let mut out = header(job, engine, "Check");
    for tenant in &job.workload.tenants {
        let load = load(tenant);
        let mut remark = load.remark.map(|r| format!("# {r}.\n")).unwrap_or_default();
        let mut options = vec![
            format!("--base-url {address}"),
            client.prompts.to_owned(),
            format!("--random-input-len {} --random-output-len {}", load.input, load.output),
            format!("--num-prompts {}", load.requests),
            format!("--request-rate {}", load.rate),
        ];
        if client.burstiness && load.rate != "inf" {
            options.push(format!("--burstiness {:.4}", load.burstiness));
        } else if (load.burstiness - 1.0).abs() > 1e-9 {
            remark.push_str("# This client sends Poisson arrivals only; the workload is burstier.\n");
        }
        if let Some(clients) = load.concurrency {
            options.push(format!("--max-concurrency {clients}"));
        }
        if client.percentiles {
            let metrics = "--percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,90,95,99";
            options.push(metrics.to_owned());
            let promises = goodput(tenant);
            if !promises.is_empty() {
                options.push(format!("--goodput {promises}"));
            }
        }
        let command = continued(&format!("{} --model \"$MODEL\"", client.command), &options);
        out.push_str(&format!("# Tenant {}.\n{remark}{command}\n", tenant.name));
    }
    out
}

/// An engine by name, by the first part of its files' names, and its client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Engine {
    pub(super) name: &'static str,
    pub(super) stem: &'static str,
    pub(super) client: Client,
}

impl Engine {
    /// What the engine cannot express.
    pub(super) fn refuse(&self, what: impl Into<String>) -> LaunchError {
        LaunchError { framework: self.name, what: what.into() }
    }

    /// The script that starts the replicas of a node with `command`, the benchmark that checks them, the balancer in front.
    pub(super) fn scripts(&self, job: &ServingLaunch<'_>, remarks: &str, command: &str) -> Vec<LaunchFile> {
        let serve = format!("{}{remarks}{}", header(job, self.name, "Serve"), replicas(job, command));
        let check = bench(job, self.name, self.client, address(job));
        let named = |name: String, contents: String| LaunchFile { name, contents };
        let stem = self.stem;
        let mut files = vec![named(format!("{stem}.sh"), serve), named(format!("{stem}-bench.sh"), check)];
        files.extend(balancer(job));
        files
    }

    /// The option for 16-bit or 8-bit weights, which vLLM and SGLang call alike, or a remark where the checkpoint says it.
    pub(super) fn weights(
        &self,
        format: NumberFormat,
        options: &mut Vec<String>,
        remarks: &mut String,
    ) -> Result<(), LaunchError> {
        match format {
            NumberFormat::Bf16 => options.push("--dtype bfloat16".to_owned()),
            NumberFormat::Fp8 => options.push("--quantization fp8".to_owned()),
            NumberFormat::Q4km => {
                return Err(self.refuse("llama.cpp's Q4_K_M weights at the predicted speed"));
            }
            other => remarks.push_str(&format!(
                "# MODEL must be a checkpoint in {}; {} finds the format in it.\n",
                other.name(),
                self.name
            )),
        }
        Ok(())
    }
}
