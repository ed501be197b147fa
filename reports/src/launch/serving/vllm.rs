//! vLLM: `vllm serve` and `vllm bench serve`.

use super::ServingLaunch;
use super::common::{Client, Engine, context, continued, placement};
use crate::launch::{LaunchError, LaunchFile};
use psim_hardware::DType;

/// Its client; the range ratio of 0 sends exactly the lengths.
pub(super) const ENGINE: Engine = Engine {
    name: "vLLM",
    stem: "vllm",
    client: Client {
        command: "vllm bench serve",
        prompts: "--dataset-name random --random-range-ratio 0 --ignore-eos",
        burstiness: true,
        percentiles: true,
    },
};

/// Options of the server and remarks above it.
pub(super) fn options(job: &ServingLaunch<'_>) -> Result<(Vec<String>, String), LaunchError> {
    let d = job.deployment;
    let ranks = d.tp * d.attention_dp;
    let mut options = vec![
        "--host 0.0.0.0 --port \"$PORT\"".to_owned(),
        format!("--tensor-parallel-size {}", d.tp),
        format!("--gpu-memory-utilization {}", job.engine.memory_share),
        format!("--max-model-len {}", context(job.workload)),
        format!("--max-num-seqs {}", job.engine.max_sequences),
        format!("--max-num-batched-tokens {}", job.engine.token_budget),
    ];
    if d.pp > 1 {
        options.push(format!("--pipeline-parallel-size {}", d.pp));
    }
    let spans = placement(job).1 > 1;
    if d.attention_dp > 1 {
        options.push(format!("--data-parallel-size {}", d.attention_dp));
    }
    if d.attention_dp > 1 && spans {
        // One command per node, the first with the API server (docs/serving/expert_parallel_deployment.md).
        let local = (job.cluster.first_node().accelerators / d.tp).max(1);
        options.push(format!("--data-parallel-size-local {local}"));
        options.push(
            "--data-parallel-address \"${MASTER_ADDR:-localhost}\" --data-parallel-rpc-port 13345".to_owned(),
        );
        options.push(format!(
            "$(test \"${{NODE_RANK:-0}}\" = 0 || echo --headless --data-parallel-start-rank $(({local} * NODE_RANK)))"
        ));
    }
    match d.ep {
        1 if d.attention_dp > 1 && job.model.is_moe() => {
            return Err(ENGINE.refuse("attention data parallelism with experts split by tensor parallelism"));
        }
        1 => {}
        ep if ep == ranks => options.push("--enable-expert-parallel".to_owned()),
        ep => {
            return Err(ENGINE
                .refuse(format!("experts over {ep} of {ranks} ranks: it spreads them over all or none")));
        }
    }
    let mut remarks = String::new();
    ENGINE.weights(d.quantization.dense, &mut options, &mut remarks)?;
    match d.quantization.kv {
        DType::Bf16 | DType::Fp16 => {}
        DType::Fp8 => options.push("--kv-cache-dtype fp8".to_owned()),
        other => return Err(ENGINE.refuse(format!("a {} KV cache", other.name()))),
    }
    if spans && d.attention_dp > 1 {
        remarks.push_str(
            "# Run on every node of the replica with NODE_RANK and MASTER_ADDR set. Experts are exchanged by DeepEP, which must be\n\
             # installed; releases that know the option take it as --all2all-backend.\n\
             export VLLM_ALL2ALL_BACKEND=\"${VLLM_ALL2ALL_BACKEND:-deepep_low_latency}\"\n",
        );
    } else if spans {
        remarks.push_str("# Start a Ray cluster over the nodes of the replica first (ray start --head; ray start --address …).\n");
        options.push("--distributed-executor-backend ray".to_owned());
    }
    Ok((options, remarks))
}

/// The files.
pub(super) fn emit(job: &ServingLaunch<'_>) -> Result<Vec<LaunchFile>, LaunchError> {
    let (options, remarks) = options(job)?;
    let command = continued("vllm serve \"$MODEL\"", &options);
    Ok(ENGINE.scripts(job, &remarks, &command))
}
