//! SGLang: `sglang.launch_server` and `sglang.bench_serving`.

use super::ServingLaunch;
use super::common::{Client, Engine, context, continued, placement};
use crate::launch::{LaunchError, LaunchFile};
use psim_hardware::DType;

/// Its client; a range ratio of 1 sends exactly the lengths.
pub(super) const ENGINE: Engine = Engine {
    name: "SGLang",
    stem: "sglang",
    client: Client {
        command: "python3 -m sglang.bench_serving",
        prompts: "--backend sglang --dataset-name random-ids --random-range-ratio 1",
        burstiness: false,
        percentiles: false,
    },
};

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
    ENGINE.weights(d.quantization.dense, &mut options, &mut remarks)?;
    match d.quantization.kv {
        DType::Bf16 | DType::Fp16 => {}
        DType::Fp8 => options.push("--kv-cache-dtype fp8_e4m3".to_owned()),
        other => return Err(ENGINE.refuse(format!("a {} KV cache", other.name()))),
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
    Ok(ENGINE.scripts(job, &remarks, &command))
}
