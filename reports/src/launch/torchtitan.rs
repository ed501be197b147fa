//! torchtitan 0.2.2: a TOML file and the script that starts it.

use super::{LaunchError, LaunchFile, LaunchJob, shell};
use psim_models::plan::{ContextParallel, Precision, Recompute, Schedule, Sharding};
use std::fmt::Write as _;

const NAME: &str = "torchtitan";

fn cannot(what: impl Into<String>) -> LaunchError {
    LaunchError { framework: NAME, what: what.into() }
}

/// Writes `torchtitan.toml` and `torchtitan.sh`.
pub(super) fn emit(job: &LaunchJob<'_>) -> Result<Vec<LaunchFile>, LaunchError> {
    let toml = LaunchFile { name: "torchtitan.toml".to_owned(), contents: config(job)? };
    let script = format!(
        "{}CONFIG=${{CONFIG:-$PWD/torchtitan.toml}}\n\
         cd \"${{TORCHTITAN:?set TORCHTITAN to a checkout of pytorch/torchtitan at v0.2.2}}\"\n\
         {} -m torchtitan.train --job.config_file \"$CONFIG\" \"${{@}}\"\n",
        shell::header(job, NAME),
        shell::torchrun(job),
    );
    Ok(vec![toml, LaunchFile { name: "torchtitan.sh".to_owned(), contents: script }])
}

/// Model name and flavour of torchtitan's registry.
fn flavour(name: &str) -> Option<(&'static str, &'static str)> {
    Some(match name {
        "llama3-8b" | "llama3.1-8b" => ("llama3", "8B"),
        "llama3-70b" | "llama3.1-70b" => ("llama3", "70B"),
        "llama3.1-405b" => ("llama3", "405B"),
        _ => return None,
    })
}

/// The data-parallel degrees and what is sharded.
fn data_parallel(job: &LaunchJob<'_>) -> Result<(u32, u32, &'static str), LaunchError> {
    let plan = job.plan;
    let shard = if plan.shard_group == 0 { plan.dp } else { plan.shard_group.min(plan.dp) };
    Ok(match plan.sharding {
        _ if plan.dp == 1 => (1, 1, "default"),
        Sharding::None => (plan.dp, 1, "default"),
        Sharding::Optimizer => return Err(cannot("ZeRO-1 (sharding = \"optimizer\")")),
        Sharding::Gradients => (plan.dp / shard, shard, "never"),
        Sharding::Parameters => (plan.dp / shard, shard, "always"),
    })
}

fn config(job: &LaunchJob<'_>) -> Result<String, LaunchError> {
    let plan = job.plan;
    if plan.etp != 1 && plan.etp != plan.tp {
        return Err(cannot("expert tensor parallelism other than 1 or tp"));
    }
    if !plan.stage_layers.is_empty() {
        return Err(cannot("uneven layers per stage by number (it takes module names per part)"));
    }
    let (replicate, shard, reshard) = data_parallel(job)?;
    let mut out = format!("# {} on {}: {}\n", job.model.name, job.cluster.name, crate::plan_label(plan));
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line("# Written by psim for torchtitan 0.2.2, the last release that reads TOML.\n".to_owned());
    line("[job]\ndump_folder = \"./outputs\"\n".to_owned());
    line("[model]".to_owned());
    match flavour(&job.model.name) {
        Some((name, size)) => line(format!("name = \"{name}\"\nflavor = \"{size}\"")),
        None => line(format!(
            "# Register a flavour with {} layers of width {} and name it here.\nname = \"llama3\"\nflavor = \"{}\"",
            job.model.layers(),
            job.model.hidden,
            job.model.name
        )),
    }
    match plan.precision {
        Precision::Bf16 => line(String::new()),
        Precision::Fp8 => line("converters = [\"quantize.linear.float8\"]\n\n[quantize.linear.float8]\nrecipe_name = \"tensorwise\"\n".to_owned()),
        Precision::MxFp8 => line("converters = [\"quantize.linear.mx\"]\n".to_owned()),
        other => return Err(cannot(format!("precision {}", other.name()))),
    }
    // Per data-parallel rank, all pipeline micro-batches together; without a pipeline the rest is accumulated.
    let local = if plan.pp > 1 { plan.global_batch / plan.dp.max(1) } else { plan.micro_batch };
    line("[training]".to_owned());
    line(format!(
        "local_batch_size = {local}\nglobal_batch_size = {}\nseq_len = {}",
        plan.global_batch, job.workload.seq_len
    ));
    line(format!("steps = {}", job.steps().unwrap_or(100)));
    line("dataset = \"c4_test\"\n".to_owned());
    line("[parallelism]".to_owned());
    line(format!("data_parallel_replicate_degree = {replicate}\ndata_parallel_shard_degree = {shard}"));
    line(format!("fsdp_reshard_after_forward = \"{reshard}\""));
    line(format!(
        "tensor_parallel_degree = {}\nenable_async_tensor_parallel = {}",
        plan.tp,
        job.overlaps_tp()
    ));
    line(format!("context_parallel_degree = {}", plan.cp));
    if plan.cp > 1 {
        let method = match plan.cp_kind {
            ContextParallel::Ring => "alltoall",
            ContextParallel::AllGather => "allgather",
            ContextParallel::Ulysses => return Err(cannot("Ulysses context parallelism")),
        };
        line(format!("context_parallel_rotate_method = \"{method}\""));
    }
    line(format!("expert_parallel_degree = {}\nexpert_tensor_parallel_degree = {}", plan.ep, plan.etp));
    line(format!("pipeline_parallel_degree = {}", plan.pp));
    if plan.pp > 1 {
        pipeline(job, &mut line)?;
    }
    line("\n[activation_checkpoint]".to_owned());
    match plan.recompute {
        Recompute::None => line("mode = \"none\"".to_owned()),
        Recompute::Full => line("mode = \"full\"".to_owned()),
        // Fused attention keeps no scores: recomputing its core costs nothing here.
        Recompute::Selective => line("# Fused attention never keeps its scores.\nmode = \"none\"".to_owned()),
        Recompute::Layers(_) => return Err(cannot("recomputation of some of the layers")),
    }
    line(format!("\n[compile]\nenable = {}", job.overlaps_tp()));
    Ok(out)
}

/// Schedule and layers per virtual stage.
fn pipeline(job: &LaunchJob<'_>, line: &mut impl FnMut(String)) -> Result<(), LaunchError> {
    let plan = job.plan;
    let schedule = match plan.schedule {
        Schedule::Gpipe => "GPipe",
        Schedule::OneFOneB => "1F1B",
        Schedule::Interleaved => "Interleaved1F1B",
        Schedule::ZbV => "ZBVZeroBubble",
        Schedule::ZbH1 | Schedule::ZbH2 => return Err(cannot("the zero-bubble schedules ZB-H1 and ZB-H2")),
    };
    let layers = job.model.layers();
    if !layers.is_multiple_of(plan.chunks().max(1)) {
        return Err(cannot(format!("{layers} layers on {} virtual stages evenly", plan.chunks())));
    }
    line(format!("pipeline_parallel_schedule = \"{schedule}\""));
    line(format!("pipeline_parallel_microbatch_size = {}", plan.micro_batch));
    line(format!("pipeline_parallel_layers_per_stage = {}", layers / plan.chunks().max(1)));
    // Both default to 1, which shortens the ends of an even plan.
    line(
        "pipeline_parallel_first_stage_less_layers = 0\npipeline_parallel_last_stage_less_layers = 0"
            .to_owned(),
    );
    Ok(())
}
