//! TensorRT-LLM: `trtllm-serve` with a YAML of options, and its `benchmark_serving` client.

use super::ServingLaunch;
use super::common::{Client, Engine, context, continued, placement};
use crate::launch::{LaunchError, LaunchFile};
use psim_hardware::DType;
use psim_models::serving::NumberFormat;

/// Its client, a relative of vLLM's; random token ids need no data set.
pub(super) const ENGINE: Engine = Engine {
    name: "TensorRT-LLM",
    stem: "trtllm",
    client: Client {
        command: "python3 -m tensorrt_llm.serve.scripts.benchmark_serving",
        prompts: "--backend openai --dataset-name random --random-ids --random-range-ratio 0 --ignore-eos",
        burstiness: true,
        percentiles: true,
    },
};

/// Options of the server, remarks above it, and its YAML.
pub(super) fn options(job: &ServingLaunch<'_>) -> Result<(Vec<String>, String, String), LaunchError> {
    let d = job.deployment;
    let part = &job.cluster.first_node().accelerator.name;
    if part.starts_with("MI") || part.starts_with("Gaudi") || part.starts_with("TPU") {
        return Err(ENGINE.refuse(format!("{part}: it runs on NVIDIA accelerators")));
    }
    // With attention data parallelism the tensor-parallel size counts all ranks of the replica.
    let ranks = d.tp * d.attention_dp;
    if d.attention_dp > 1 && d.tp > 1 {
        return Err(ENGINE.refuse("attention data parallelism together with tensor-parallel attention"));
    }
    let mut options = vec![
        "--backend pytorch --host 0.0.0.0 --port \"$PORT\"".to_owned(),
        format!("--tp_size {ranks}"),
        format!("--max_batch_size {}", job.engine.max_sequences),
        format!("--max_num_tokens {}", job.engine.token_budget),
        format!("--max_seq_len {}", context(job.workload)),
    ];
    if d.pp > 1 {
        options.push(format!("--pp_size {}", d.pp));
    }
    if d.ep > 1 {
        options.push(format!("--ep_size {}", d.ep));
    }
    let mut remarks = String::new();
    match d.quantization.dense {
        NumberFormat::Bf16 => {}
        NumberFormat::Q4km => return Err(ENGINE.refuse("llama.cpp's Q4_K_M weights")),
        other => remarks.push_str(&format!(
            "# MODEL must be a checkpoint in {} (for example made with TensorRT Model Optimizer).\n",
            other.name()
        )),
    }
    let dtype = match d.quantization.kv {
        DType::Bf16 | DType::Fp16 => "auto",
        DType::Fp8 => "fp8",
        other => return Err(ENGINE.refuse(format!("a {} KV cache", other.name()))),
    };
    if placement(job).1 > 1 {
        remarks.push_str(
            "# One replica spans nodes: start it under srun or mpirun with trtllm-llmapi-launch in front.\n",
        );
    }
    let yaml = format!(
        "# Options of trtllm-serve; written by psim.\nenable_attention_dp: {}\nenable_chunked_prefill: true\nkv_cache_config:\n  \
         dtype: {dtype}\n  free_gpu_memory_fraction: {}\n",
        d.attention_dp > 1,
        job.engine.memory_share,
    );
    Ok((options, remarks, yaml))
}

/// The files.
pub(super) fn emit(job: &ServingLaunch<'_>) -> Result<Vec<LaunchFile>, LaunchError> {
    let (mut options, remarks, yaml) = options(job)?;
    options.push("--extra_llm_api_options \"$(dirname \"$0\")/trtllm.yaml\"".to_owned());
    let command = continued("trtllm-serve \"$MODEL\"", &options);
    let mut files = ENGINE.scripts(job, &remarks, &command);
    files.push(LaunchFile { name: "trtllm.yaml".to_owned(), contents: yaml });
    Ok(files)
}
