//! SGLang: `sglang.launch_server` and `sglang.bench_serving`.

use super::ServingLaunch;
use super::common::{Client, address, balancer, bench, context, continued, header, placement, replicas};
use crate::launch::{LaunchError, LaunchFile};
use psim_hardware::DType;
use psim_models::serving::NumberFormat;

const NAME: &str = "SGLang";

/// Its client; a range ratio of 1 sends exactly the lengths.
pub(super) const CLIENT: Client = Client {
    command: "python3 -m sglang.bench_serving",
    prompts: "--backend sglang --dataset-name random-ids --random-range-ratio 1",
    burstiness: false,
    percentiles: false,
};

fn refuse(what: impl Into<String>) -> LaunchError {
    LaunchError { framework: NAME, what: what.into() }
}

/// Options of the server and remarks above it.
pub(super) fn options(job: &ServingLaunch<'_>) -> Result<(Vec<String>, String), LaunchError> {
    let d = job.deployment;
    // With attention data parallelism `--tp` counts all ranks of the replica.
    let ranks = d.tp * d.attention_dp;
    let mut options = vec![
        "--host 0.0.0.0 --port \"$PORT\"".to_owned(),
        format!("--tp-size {ranks}"),
        format!("--mem-fraction-static {}", job.engine.memory_share),
        format!("--context-length {}", context(job.workload)),
        format!("--max-running-requests {}", job.engine.max_sequences.saturating_mul(d.attention_dp)),
        // Shared by the copies of the attention, as the limit of requests is (server_args.py divides both by dp_size).
        format!("--chunked-prefill-size {}", job.engine.token_budget.saturating_mul(d.attention_dp)),
    ];
    if d.pp > 1 {
        options.push(format!("--pp-size {}", d.pp));
    }
    if d.attention_dp > 1 {
        options.push(format!("--dp-size {} --enable-dp-attention", d.attention_dp));
    }
    if d.ep > 1 {
        options.push(format!("--ep-size {}", d.ep));
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
    if nodes > 1 && d.ep > 1 {
        options.push("--moe-a2a-backend deepep".to_owned());
    }
    if nodes > 1 {
        remarks.push_str("# Run on every node of the replica with NODE_RANK and MASTER_ADDR set.\n");
        options.push(format!("--nnodes {nodes} --node-rank \"${{NODE_RANK:-0}}\" --dist-init-addr \"${{MASTER_ADDR:-localhost}}:5000\""));
    }
    Ok((options, remarks))
}

/// The files.
pub(super) fn emit(job: &ServingLaunch<'_>) -> Result<Vec<LaunchFile>, LaunchError> {
    let (options, remarks) = options(job)?;
    let command = continued("python3 -m sglang.launch_server --model-path \"$MODEL\"", &options);
    let mut files = vec![
        LaunchFile {
            name: "sglang.sh".to_owned(),
            contents: format!("{}{remarks}{}", header(job, NAME, "Serve"), replicas(job, &command)),
        },
        LaunchFile { name: "sglang-bench.sh".to_owned(), contents: bench(job, NAME, CLIENT, address(job)) },
    ];
    files.extend(balancer(job));
    Ok(files)
}
