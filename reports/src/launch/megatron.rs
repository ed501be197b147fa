//! Megatron-LM: the command line of `pretrain_gpt.py`.

use super::{LaunchError, LaunchFile, LaunchJob, shell};
use psim_models::arch::{Ffn, Mixer, Position};
use psim_models::plan::{ContextParallel, Precision, Recompute, Schedule, Sharding};

const NAME: &str = "Megatron-LM";

/// The refusal of `what`.
fn cannot(what: impl Into<String>) -> LaunchError {
    LaunchError { framework: NAME, what: what.into() }
}

/// Writes `megatron.sh`.
pub(super) fn emit(job: &LaunchJob<'_>) -> Result<Vec<LaunchFile>, LaunchError> {
    let mut options = model(job)?;
    options.extend(parallel(job)?);
    options.extend(run(job));
    let contents = format!(
        "{}{}cd \"${{MEGATRON_LM:?set MEGATRON_LM to a checkout of NVIDIA/Megatron-LM}}\"\n{} pretrain_gpt.py{}",
        shell::header(job, NAME),
        connections(job),
        shell::torchrun(job),
        shell::options(&options),
    );
    Ok(vec![LaunchFile { name: "megatron.sh".to_owned(), contents }])
}

/// `CUDA_DEVICE_MAX_CONNECTIONS`: asserted to be 1 before Blackwell under tensor or context parallelism; must not be 1
/// with Megatron-FSDP.
fn connections(job: &LaunchJob<'_>) -> &'static str {
    let sharded = matches!(job.plan.sharding, Sharding::Gradients | Sharding::Parameters);
    let fsdp = sharded && job.plan.dp > 1;
    if !fsdp && !job.is_blackwell() && (job.plan.tp > 1 || job.plan.cp > 1) {
        "export CUDA_DEVICE_MAX_CONNECTIONS=1\n"
    } else {
        "unset CUDA_DEVICE_MAX_CONNECTIONS\n"
    }
}

/// Dimensions of the model.
pub(super) fn model(job: &LaunchJob<'_>) -> Result<Vec<String>, LaunchError> {
    let model = job.model;
    if model.encoder.is_some() {
        return Err(cannot(format!("`{}` through pretrain_gpt.py: it has an encoder", model.name)));
    }
    let mut out = vec![
        format!("--num-layers {}", model.layers()),
        format!("--hidden-size {}", model.hidden),
        format!("--seq-length {}", job.workload.seq_len),
    ];
    let table = match model.position {
        Position::Learned(rows) => {
            out.push("--position-embedding-type learned_absolute".to_owned());
            rows
        }
        Position::Rope => {
            out.push("--position-embedding-type rope".to_owned());
            model.max_context.unwrap_or(job.workload.seq_len).max(job.workload.seq_len)
        }
        Position::None => {
            out.push("--position-embedding-type none".to_owned());
            job.workload.seq_len
        }
        Position::Alibi => return Err(cannot("ALiBi positions")),
        Position::Relative(_) => return Err(cannot("relative position buckets in a decoder")),
    };
    out.push(format!("--max-position-embeddings {table}"));
    attention(job, &mut out)?;
    feed_forward(job, &mut out)?;
    if model.norm.rms {
        out.push("--normalization RMSNorm".to_owned());
    }
    if !model.tied_embeddings {
        out.push("--untie-embeddings-and-output-weights".to_owned());
    }
    if model.mtp_layers > 0 {
        out.push(format!("--mtp-num-layers {}", model.mtp_layers));
    }
    Ok(out)
}

/// The sequence mixer; Megatron's GPT model has one kind for all layers.
fn attention(job: &LaunchJob<'_>, out: &mut Vec<String>) -> Result<(), LaunchError> {
    let model = job.model;
    let kinds: Vec<&Mixer> = model.kinds.iter().map(|b| &b.mixer).collect();
    for kind in &kinds {
        match kind {
            Mixer::Attention(_) | Mixer::Mla(_) => {}
            Mixer::Mamba2(_) | Mixer::Linear(_) | Mixer::None => {
                return Err(cannot("layers without attention through pretrain_gpt.py (hybrid model)"));
            }
        }
    }
    match kinds.first() {
        Some(Mixer::Mla(mla)) => {
            out.push("--multi-latent-attention".to_owned());
            out.push(format!("--num-attention-heads {}", mla.heads));
            if let Some(rank) = mla.q_lora_rank {
                out.push(format!("--q-lora-rank {rank}"));
            }
            out.push(format!("--kv-lora-rank {}", mla.kv_lora_rank));
            out.push(format!("--qk-head-dim {}", mla.qk_nope_dim));
            out.push(format!("--qk-pos-emb-head-dim {}", mla.qk_rope_dim));
            out.push(format!("--v-head-dim {}", mla.v_head_dim));
        }
        Some(Mixer::Attention(a)) => {
            out.push(format!("--num-attention-heads {}", a.heads));
            if a.kv_heads != a.heads {
                out.push("--group-query-attention".to_owned());
                out.push(format!("--num-query-groups {}", a.kv_heads));
            }
            out.push(format!("--kv-channels {}", a.head_dim));
            match (a.qkv_bias, a.out_bias) {
                (false, false) => out.push("--disable-bias-linear".to_owned()),
                (true, false) => {
                    out.push("--disable-bias-linear".to_owned());
                    out.push("--add-qkv-bias".to_owned());
                }
                (_, true) => {}
            }
        }
        _ => return Err(cannot("a model without layers")),
    }
    Ok(())
}

/// Dense and expert networks.
fn feed_forward(job: &LaunchJob<'_>, out: &mut Vec<String>) -> Result<(), LaunchError> {
    let model = job.model;
    let dense = model.kinds.iter().find_map(|b| match &b.ffn {
        Ffn::Dense(d) => Some(d),
        _ => None,
    });
    let gated = dense.map(|d| d.gated).or(model.moe().map(|m| m.gated)).unwrap_or(false);
    if let Some(inner) = dense.map(|d| d.hidden).or(model.moe().map(|m| m.hidden)) {
        out.push(format!("--ffn-hidden-size {inner}"));
    }
    if gated {
        out.push("--swiglu".to_owned());
    }
    let Some(moe) = model.moe() else { return Ok(()) };
    if moe.latent.is_some() {
        return Err(cannot("experts of a latent width"));
    }
    out.push(format!("--num-experts {}", moe.experts));
    out.push(format!("--moe-router-topk {}", moe.top_k));
    out.push(format!("--moe-ffn-hidden-size {}", moe.hidden));
    if moe.shared_hidden > 0 {
        out.push(format!("--moe-shared-expert-intermediate-size {}", moe.shared_hidden));
    }
    out.push("--moe-grouped-gemm".to_owned());
    out.push("--moe-token-dispatcher-type alltoall".to_owned());
    let layers: Vec<u8> =
        (0..model.layers() as usize).map(|i| u8::from(matches!(model.block(i).ffn, Ffn::Moe(_)))).collect();
    if layers.contains(&0) {
        out.push(format!("--moe-layer-freq '{}'", pattern(&layers)));
    }
    Ok(())
}

/// `([0]*3+[1]*58)` for runs of equal layers.
fn pattern(layers: &[u8]) -> String {
    let mut runs: Vec<(u8, usize)> = Vec::new();
    for layer in layers {
        match runs.last_mut() {
            Some((kind, length)) if kind == layer => *length += 1,
            _ => runs.push((*layer, 1)),
        }
    }
    let parts: Vec<String> = runs.iter().map(|(kind, length)| format!("[{kind}]*{length}")).collect();
    format!("({})", parts.join("+"))
}

/// The layout, the batch and what is recomputed and sharded.
fn parallel(job: &LaunchJob<'_>) -> Result<Vec<String>, LaunchError> {
    let plan = job.plan;
    let mut out = vec![
        format!("--tensor-model-parallel-size {}", plan.tp),
        format!("--pipeline-model-parallel-size {}", plan.pp),
        format!("--context-parallel-size {}", plan.cp),
    ];
    if plan.sequence_parallel && plan.tp > 1 {
        out.push("--sequence-parallel".to_owned());
    }
    if plan.cp > 1 {
        let kind = match plan.cp_kind {
            ContextParallel::Ring => "p2p",
            ContextParallel::Ulysses => "a2a",
            ContextParallel::AllGather => "allgather",
        };
        out.push(format!("--cp-comm-type {kind}"));
    }
    if job.model.is_moe() {
        // Expert tensor parallelism defaults to the tensor-parallel size, so it is always written.
        out.push(format!("--expert-model-parallel-size {}", plan.ep));
        out.push(format!("--expert-tensor-parallel-size {}", plan.etp));
    }
    pipeline(job, &mut out)?;
    out.push(format!("--micro-batch-size {}", plan.micro_batch));
    out.push(format!("--global-batch-size {}", plan.global_batch));
    match plan.recompute {
        Recompute::None => {}
        Recompute::Selective => out.push("--recompute-granularity selective".to_owned()),
        Recompute::Full => {
            out.push(
                "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1".to_owned(),
            );
        }
        Recompute::Layers(n) => {
            out.push(format!(
                "--recompute-granularity full --recompute-method block --recompute-num-layers {n}"
            ));
        }
    }
    sharding(job, &mut out);
    out.extend(precision(plan.precision));
    if job.reduces_in_bf16() {
        // Without it Megatron keeps gradients in fp32 (`accumulate_allreduce_grads_in_fp32`), which the ledger has not.
        out.push("--grad-reduce-in-bf16".to_owned());
    }
    if job.stack.fusion.cross_entropy {
        out.push("--cross-entropy-loss-fusion".to_owned());
    }
    if job.overlaps_tp() {
        out.push("--tp-comm-overlap".to_owned());
    }
    Ok(out)
}

/// Stages, chunks and uneven layers.
fn pipeline(job: &LaunchJob<'_>, out: &mut Vec<String>) -> Result<(), LaunchError> {
    let plan = job.plan;
    if plan.pp > 1 {
        match plan.schedule {
            Schedule::OneFOneB | Schedule::Interleaved => {}
            Schedule::Gpipe => return Err(cannot("the GPipe schedule")),
            Schedule::ZbH1 | Schedule::ZbH2 | Schedule::ZbV => return Err(cannot("zero-bubble schedules")),
        }
    }
    if !plan.stage_layers.is_empty() {
        out.push(format!("--pipeline-model-parallel-layout '{}'", layout(&plan.stage_layers)));
    } else if plan.vpp > 1 {
        out.push(format!("--num-virtual-stages-per-pipeline-rank {}", plan.vpp));
    }
    if plan.vpp == 1 && plan.pp > 1 {
        // Without chunks the overlap is switched off by the framework anyway.
        out.push("--no-overlap-p2p-communication".to_owned());
    }
    Ok(())
}

/// `Ettt|tttt|tttL`: embedding, layers and loss, a bar between model chunks.
pub(super) fn layout(layers: &[u32]) -> String {
    let last = layers.len().saturating_sub(1);
    let stages: Vec<String> = layers
        .iter()
        .enumerate()
        .map(|(i, n)| {
            let (head, tail) = (if i == 0 { "E" } else { "" }, if i == last { "L" } else { "" });
            format!("{head}{}{tail}", "t".repeat(*n as usize))
        })
        .collect();
    stages.join("|")
}

/// What data-parallel ranks share, and which communication is hidden.
fn sharding(job: &LaunchJob<'_>, out: &mut Vec<String>) {
    let plan = job.plan;
    let fsdp = match plan.sharding {
        Sharding::Gradients => Some("optim_grads"),
        Sharding::Parameters => Some("optim_grads_params"),
        Sharding::None | Sharding::Optimizer => None,
    };
    match fsdp {
        Some(strategy) if plan.dp > 1 => {
            out.push(format!("--use-megatron-fsdp --data-parallel-sharding-strategy {strategy}"));
            out.push("--ckpt-format fsdp_dtensor --use-distributed-optimizer".to_owned());
        }
        _ if plan.sharding != Sharding::None => out.push("--use-distributed-optimizer".to_owned()),
        _ => {}
    }
    if job.stack.overlap.grad_reduce && plan.dp * plan.cp > 1 {
        out.push("--overlap-grad-reduce".to_owned());
        if job.stack.overlap.param_gather && plan.sharding != Sharding::None {
            out.push("--overlap-param-gather".to_owned());
        }
    }
}

/// Arithmetic.
fn precision(precision: Precision) -> Vec<String> {
    let fp8 = |recipe: &str| vec!["--bf16".to_owned(), format!("--fp8-format hybrid --fp8-recipe {recipe}")];
    match precision {
        Precision::Fp32 => Vec::new(),
        Precision::Fp16 => vec!["--fp16".to_owned()],
        Precision::Bf16 => vec!["--bf16".to_owned()],
        Precision::Fp8 => fp8("tensorwise"),
        Precision::MxFp8 => fp8("mxfp8"),
        Precision::Fp8Block => fp8("blockwise"),
        Precision::NvFp4 => vec!["--bf16".to_owned(), "--fp4-format e2m1".to_owned()],
    }
}

/// Data, steps and the rest of a run that measures: random data, no checkpoint.
fn run(job: &LaunchJob<'_>) -> Vec<String> {
    let steps = job.steps().unwrap_or(100);
    vec![
        format!("--train-iters ${{TRAIN_ITERS:-{steps}}}"),
        "--lr 1.5e-4 --min-lr 1.5e-5 --lr-decay-style cosine --weight-decay 0.1 --clip-grad 1.0".to_owned(),
        format!("--mock-data --tokenizer-type NullTokenizer --vocab-size {}", job.model.vocab),
        "--use-flash-attn --attention-dropout 0.0 --hidden-dropout 0.0".to_owned(),
        "--transformer-impl transformer_engine --distributed-timeout-minutes 60".to_owned(),
        "--log-interval 1 --log-throughput --eval-iters 0".to_owned(),
        "\"${@}\"".to_owned(),
    ]
}
