//! TensorRT-LLM: `trtllm-serve` with a YAML of options, and its `benchmark_serving` client.

use super::ServingLaunch;
use super::common::{address, balancer, context, continued, goodput, header, load, placement, replicas};
use crate::launch::{LaunchError, LaunchFile};
use psim_hardware::DType;
use psim_models::serving::NumberFormat;

const NAME: &str = "TensorRT-LLM";

fn refuse(what: impl Into<String>) -> LaunchError {
    LaunchError { framework: NAME, what: what.into() }
}

/// The files.
pub(super) fn emit(job: &ServingLaunch<'_>) -> Result<Vec<LaunchFile>, LaunchError> {
    let d = job.deployment;
    let part = &job.cluster.first_node().accelerator.name;
    if part.starts_with("MI") || part.starts_with("Gaudi") || part.starts_with("TPU") {
        return Err(refuse(format!("{part}: it runs on NVIDIA accelerators")));
    }
    // With attention data parallelism the tensor-parallel size counts all ranks of the replica.
    let ranks = d.tp * d.attention_dp;
    if d.attention_dp > 1 && d.tp > 1 {
        return Err(refuse("attention data parallelism together with tensor-parallel attention"));
    }
    let mut options = vec![
        "--backend pytorch --host 0.0.0.0 --port $PORT".to_owned(),
        format!("--tp_size {ranks}"),
        format!("--max_batch_size {}", job.engine.max_sequences),
        format!("--max_num_tokens {}", job.engine.token_budget),
        format!("--max_seq_len {}", context(job.workload)),
        "--extra_llm_api_options \"$(dirname \"$0\")/trtllm.yaml\"".to_owned(),
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
        NumberFormat::Q4km => return Err(refuse("llama.cpp's Q4_K_M weights")),
        other => remarks.push_str(&format!(
            "# MODEL must be a checkpoint in {} (for example made with TensorRT Model Optimizer).\n",
            other.name()
        )),
    }
    let dtype = match d.quantization.kv {
        DType::Bf16 | DType::Fp16 => "auto",
        DType::Fp8 => "fp8",
        other => return Err(refuse(format!("a {} KV cache", other.name()))),
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
    let command = continued("trtllm-serve \"$MODEL\"", &options);
    let mut files = vec![
        LaunchFile {
            name: "trtllm.sh".to_owned(),
            contents: format!("{}{remarks}{}", header(job, NAME, "Serve"), replicas(job, &command)),
        },
        LaunchFile { name: "trtllm.yaml".to_owned(), contents: yaml },
        LaunchFile { name: "trtllm-bench.sh".to_owned(), contents: bench(job) },
    ];
    files.extend(balancer(job));
    Ok(files)
}

fn bench(job: &ServingLaunch<'_>) -> String {
    let mut out = header(job, NAME, "Check");
    for tenant in &job.workload.tenants {
        let load = load(tenant);
        let mut options = vec![
            format!("--backend openai --base-url {}", address(job)),
            "--dataset-name random --random-ids --random-range-ratio 0 --ignore-eos".to_owned(),
            format!("--random-input-len {} --random-output-len {}", load.input, load.output),
            format!("--num-prompts {}", load.requests),
            format!("--request-rate {}", load.rate),
        ];
        if load.rate != "inf" {
            options.push(format!("--burstiness {:.4}", load.burstiness));
        }
        if let Some(clients) = load.concurrency {
            options.push(format!("--max-concurrency {clients}"));
        }
        options.push("--percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,90,95,99".to_owned());
        let promises = goodput(tenant);
        if !promises.is_empty() {
            options.push(format!("--goodput {promises}"));
        }
        let remark = load.remark.map(|r| format!("# {r}.\n")).unwrap_or_default();
        out.push_str(&format!(
            "# Tenant {}.\n{remark}{}\n",
            tenant.name,
            continued("python3 -m tensorrt_llm.serve.scripts.benchmark_serving --model \"$MODEL\"", &options)
        ));
    }
    out
}
