//! NeMo's Megatron-Bridge: overrides of a recipe, given to `scripts/training/run_recipe.py`.

use super::{LaunchError, LaunchFile, LaunchJob, megatron, shell};
use psim_models::plan::{ContextParallel, Precision, Recompute, Schedule, Sharding};

const NAME: &str = "NeMo (Megatron-Bridge)";

fn cannot(what: impl Into<String>) -> LaunchError {
    LaunchError { framework: NAME, what: what.into() }
}

/// Writes `nemo.sh`.
pub(super) fn emit(job: &LaunchJob<'_>) -> Result<Vec<LaunchFile>, LaunchError> {
    let overrides = overrides(job)?;
    let contents = format!(
        "{}{}# The recipe gives the model; it must have {} layers of width {}. Every KEY=VALUE below wins over it.\n\
         RECIPE=${{RECIPE:?name a pretraining recipe function of Megatron-Bridge for {}}}\n\
         cd \"${{MEGATRON_BRIDGE:?set MEGATRON_BRIDGE to a checkout of NVIDIA-NeMo/Megatron-Bridge}}\"\n\
         {} scripts/training/run_recipe.py --recipe \"$RECIPE\" --mode pretrain{}",
        shell::header(job, NAME),
        gradients(job),
        job.model.layers(),
        job.model.hidden,
        job.model.name,
        shell::torchrun(job),
        shell::options(&overrides),
    );
    Ok(vec![LaunchFile { name: "nemo.sh".to_owned(), contents }])
}

/// What a named precision with fp8 or fp4 leaves different from the prediction.
fn gradients(job: &LaunchJob<'_>) -> String {
    if job.plan.precision == Precision::Bf16 || !job.reduces_in_bf16() {
        return String::new();
    }
    "# The prediction sums gradients in bf16, this named precision in fp32, which needs more memory: the recipe function\n\
     # must set mixed_precision.grad_reduce_in_fp32 and ddp.grad_reduce_in_fp32 to False, as the performance recipes do.\n"
        .to_owned()
}

fn overrides(job: &LaunchJob<'_>) -> Result<Vec<String>, LaunchError> {
    let plan = job.plan;
    if plan.pp > 1 && !matches!(plan.schedule, Schedule::OneFOneB | Schedule::Interleaved) {
        return Err(cannot("schedules other than 1F1B and interleaved 1F1B"));
    }
    let flag = |on: bool| if on { "true" } else { "false" };
    let mut out = vec![
        format!("model.tensor_model_parallel_size={}", plan.tp),
        format!("model.pipeline_model_parallel_size={}", plan.pp),
        format!("model.context_parallel_size={}", plan.cp),
        format!("model.sequence_parallel={}", flag(plan.sequence_parallel && plan.tp > 1)),
    ];
    if plan.pp > 1 {
        out.push("model.pipeline_dtype=torch.bfloat16".to_owned());
    }
    if !plan.stage_layers.is_empty() {
        out.push(format!("model.pipeline_model_parallel_layout='{}'", megatron::layout(&plan.stage_layers)));
    }
    // Chunks per rank here, unlike Megatron-LM's older option.
    let chunks = if plan.vpp > 1 { plan.vpp.to_string() } else { "null".to_owned() };
    out.push(format!("model.virtual_pipeline_model_parallel_size={chunks}"));
    if job.model.is_moe() {
        out.push(format!("model.expert_model_parallel_size={}", plan.ep));
        out.push(format!("model.expert_tensor_parallel_size={}", plan.etp));
    }
    if plan.cp > 1 {
        let kind = match plan.cp_kind {
            ContextParallel::Ring => "p2p",
            ContextParallel::Ulysses => "a2a",
            ContextParallel::AllGather => "allgather",
        };
        out.push(format!("model.cp_comm_type={kind}"));
    }
    let (granularity, method, layers) = match plan.recompute {
        Recompute::None => ("null", "null", "null".to_owned()),
        Recompute::Selective => ("selective", "null", "null".to_owned()),
        Recompute::Full => ("full", "uniform", "1".to_owned()),
        Recompute::Layers(n) => ("full", "block", n.to_string()),
    };
    out.push(format!("model.recompute_granularity={granularity}"));
    out.push(format!("model.recompute_method={method} model.recompute_num_layers={layers}"));
    out.push(format!("train.micro_batch_size={}", plan.micro_batch));
    out.push(format!("train.global_batch_size={}", plan.global_batch));
    out.push(format!("dataset.seq_length={}", job.workload.seq_len));
    if let Some(steps) = job.steps() {
        out.push(format!("train.train_iters=${{TRAIN_ITERS:-{steps}}}"));
    }
    let (optimizer, fsdp) = match plan.sharding {
        Sharding::None => (false, None),
        Sharding::Optimizer => (true, None),
        Sharding::Gradients => (true, Some("optim_grads")),
        Sharding::Parameters => (true, Some("optim_grads_params")),
    };
    out.push(format!("ddp.use_distributed_optimizer={}", flag(optimizer)));
    if let Some(strategy) = fsdp {
        out.push(format!("ddp.use_megatron_fsdp=true ddp.data_parallel_sharding_strategy={strategy}"));
    }
    let overlap = &job.stack.overlap;
    out.push(format!("ddp.overlap_grad_reduce={}", flag(overlap.grad_reduce && plan.dp * plan.cp > 1)));
    out.push(format!(
        "ddp.overlap_param_gather={}",
        flag(overlap.param_gather && optimizer && plan.dp * plan.cp > 1)
    ));
    let precision = match plan.precision {
        Precision::Fp32 => return Err(cannot("fp32 by the name of a mixed precision")),
        // A named precision would set the gradients of the reduction back to fp32 (`MixedPrecisionConfig.setup`).
        Precision::Bf16 if job.reduces_in_bf16() => {
            "null model.bf16=true model.params_dtype=torch.bfloat16 optimizer.bf16=true \
             optimizer.params_dtype=torch.bfloat16 ddp.grad_reduce_in_fp32=false"
        }
        Precision::Fp16 => "fp16_mixed",
        Precision::Bf16 => "bf16_mixed",
        Precision::Fp8 => "bf16_with_fp8_current_scaling_mixed",
        Precision::MxFp8 => "bf16_with_mxfp8_mixed",
        Precision::Fp8Block => "bf16_with_fp8_subchannel_scaling_mixed",
        Precision::NvFp4 => "bf16_with_nvfp4_mixed",
    };
    out.push(format!("mixed_precision={precision}"));
    if job.stack.fusion.cross_entropy {
        out.push("model.cross_entropy_loss_fusion=true".to_owned());
    }
    out.push("\"${@}\"".to_owned());
    Ok(out)
}
