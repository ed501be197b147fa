//! SGLang: `sglang.launch_server` and `sglang.bench_serving`.

use super::ServingLaunch;
use super::common::{address, balancer, context, continued, header, load, placement, replicas};
use crate::launch::{LaunchError, LaunchFile};
use psim_hardware::DType;
use psim_models::serving::NumberFormat;

const NAME: &str = "SGLang";

fn refuse(what: impl Into<String>) -> LaunchError {
    LaunchError { framework: NAME, what: what.into() }
}

/// The files.
pub(super) fn emit(job: &ServingLaunch<'_>) -> Result<Vec<LaunchFile>, LaunchError> {
    let d = job.deployment;
    // With attention data parallelism `--tp` counts all ranks of the replica.
    let ranks = d.tp * d.attention_dp;
    let mut options = vec![
        "--host 0.0.0.0 --port $PORT".to_owned(),
        format!("--tp {ranks}"),
        format!("--mem-fraction-static {}", job.engine.memory_share),
        format!("--context-length {}", context(job.workload)),
        format!("--max-running-requests {}", job.engine.max_sequences.saturating_mul(d.attention_dp)),
        format!("--chunked-prefill-size {}", job.engine.token_budget),
    ];
    if d.pp > 1 {
        options.push(format!("--pp-size {}", d.pp));
    }
    if d.attention_dp > 1 {
        options.push(format!("--dp {} --enable-dp-attention", d.attention_dp));
    }
    if d.ep > 1 {
        options.push(format!("--ep {}", d.ep));
    }
    let mut remarks = String::new();
    match d.quantization.dense {
        NumberFormat::Bf16 => options.push("--dtype bfloat16".to_owned()),
        NumberFormat::Fp8 => options.push("--quantization fp8".to_owned()),
        NumberFormat::Q4km => return Err(refuse("llama.cpp's Q4_K_M weights at the predicted speed")),
        other => {
            remarks.push_str(&format!(
                "# MODEL must be a checkpoint in {}; SGLang finds the format in it.\n",
                other.name()
            ));
        }
    }
    match d.quantization.kv {
        DType::Bf16 | DType::Fp16 => {}
        DType::Fp8 => options.push("--kv-cache-dtype fp8_e4m3".to_owned()),
        other => return Err(refuse(format!("a {} KV cache", other.name()))),
    }
    let (_, nodes) = placement(job);
    if nodes > 1 {
        remarks.push_str("# Run on every node of the replica with NODE_RANK and MASTER_ADDR set.\n");
        options.push(format!("--nnodes {nodes} --node-rank \"${{NODE_RANK:-0}}\" --dist-init-addr \"${{MASTER_ADDR:-localhost}}:5000\""));
    }
    let command = continued("python3 -m sglang.launch_server --model-path \"$MODEL\"", &options);
    let mut files = vec![
        LaunchFile {
            name: "sglang.sh".to_owned(),
            contents: format!("{}{remarks}{}", header(job, NAME, "Serve"), replicas(job, &command)),
        },
        LaunchFile { name: "sglang-bench.sh".to_owned(), contents: bench(job) },
    ];
    files.extend(balancer(job));
    Ok(files)
}

fn bench(job: &ServingLaunch<'_>) -> String {
    let mut out = header(job, NAME, "Check");
    for tenant in &job.workload.tenants {
        let load = load(tenant);
        let mut options = vec![
            format!("--backend sglang --base-url {}", address(job)),
            // A ratio of 1 sends exactly these lengths.
            "--dataset-name random --random-range-ratio 1".to_owned(),
            format!("--random-input-len {} --random-output-len {}", load.input, load.output),
            format!("--num-prompts {}", load.requests),
            format!("--request-rate {}", load.rate),
        ];
        if let Some(clients) = load.concurrency {
            options.push(format!("--max-concurrency {clients}"));
        }
        let mut remark = load.remark.map(|r| format!("# {r}.\n")).unwrap_or_default();
        if (load.burstiness - 1.0).abs() > 1e-9 {
            remark.push_str("# This client sends Poisson arrivals only; the workload is burstier.\n");
        }
        out.push_str(&format!(
            "# Tenant {}.\n{remark}{}\n",
            tenant.name,
            continued("python3 -m sglang.bench_serving --model \"$MODEL\"", &options)
        ));
    }
    out
}
