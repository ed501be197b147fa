//! The parallel plan and the workload of a row, with every default that fills a field which was not printed.

use super::row::Row;
use super::stack::StackSelection;
use super::task::task;
use psim_models::Model;
use psim_models::plan::{ContextParallel, Plan, Precision, Recompute, Schedule, Sharding};
use psim_models::workload::TrainingWorkload;

/// A plan, its workload, and what was assumed on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct MappedPlan {
    /// Layout.
    pub plan: Plan,
    /// Job.
    pub workload: TrainingWorkload,
    /// Printed batch over the simulated one (the batch is rounded to whole micro-batches).
    pub batch_scale: f64,
    /// Assumptions taken.
    pub notes: Vec<String>,
}

/// The layout family of a framework; decides what an unprinted field means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Megatron-LM, Megatron-Core, NeMo, Megatron-Bridge.
    Megatron,
    /// DeepSpeed, with or without Megatron layers.
    DeepSpeed,
    /// PyTorch FSDP scripts, torchtitan, LLM Foundry, MaxText.
    Fsdp,
    /// Anything else.
    Other,
}

/// Reads the family from the framework text.
pub fn family(framework: &str) -> Family {
    let has = |words: &[&str]| words.iter().any(|w| framework.contains(w));
    if has(&["deepspeed", "zero-3", "zero3"]) {
        Family::DeepSpeed
    } else if has(&["megatron", "nemo", "mcore", "transformer engine"]) {
        Family::Megatron
    } else if has(&[
        "fsdp",
        "torchtitan",
        "titan",
        "foundry",
        "maxtext",
        "jax",
        "automodel",
        "fairscale",
        "axlearn",
    ]) {
        Family::Fsdp
    } else {
        Family::Other
    }
}

/// Builds plan and workload.
///
/// # Errors
/// The first decisive field that is missing or contradictory.
pub fn map(row: &Row, model: &Model, stack: &StackSelection) -> Result<MappedPlan, String> {
    let config = &row.config;
    let mut notes = Vec::new();
    let family = family(&stack.framework);
    let gpus = row.hardware.gpus.ok_or("`hardware.gpus` is missing")?;
    let seq_len = config.seq_len.ok_or("`config.seq_len` is missing")?;
    if gpus == 0 || seq_len == 0 || seq_len > 1 << 24 || gpus > 1 << 20 {
        return Err(format!("absurd size: {gpus} GPUs, {seq_len} tokens per sequence"));
    }
    let degree = |value: Option<u64>| u32::try_from(value.unwrap_or(1).max(1)).unwrap_or(u32::MAX);
    let (tp, cp, ep) = (degree(config.tp), degree(config.cp), degree(config.ep));
    let pp = degree(config.pp);
    let inner = u64::from(tp) * u64::from(pp) * u64::from(cp);
    if !gpus.is_multiple_of(inner) {
        return Err(format!("{gpus} GPUs are no multiple of tp {tp} x pp {pp} x cp {cp}"));
    }
    let dp = (gpus / inner) as u32;
    if config.dp.is_some_and(|printed| printed != u64::from(dp)) {
        notes.push(format!("dp printed {}, gpus/(tp*pp*cp) = {dp} used", config.dp.unwrap_or(0)));
    }
    let layers = model.layers();
    let (vpp, schedule) = pipeline(row, layers, pp, &mut notes);
    let stage_layers = stage_layers(row, model, pp, vpp, family);
    let etp = expert_tensor(row, model, tp, cp, dp, ep, family, stack.era);
    let (sharding, shard_group) = sharding(row, family, stack.era, dp * cp);
    let precision = precision(row, stack.era)?;
    let recompute = recompute(row, family, stack, sharding, layers / (pp * vpp).max(1));
    let sequence_parallel =
        tp > 1 && config.sequence_parallel.unwrap_or(family == Family::Megatron && stack.era >= 2022.3);

    let printed_batch = config.global_batch_seqs;
    let mut micro_batch = degree_of(config.micro_batch);
    let count =
        config.extra_number("grad_accum").or(config.extra_number("num_microbatches")).filter(|n| *n >= 1.0);
    if micro_batch.is_none() {
        micro_batch = match (printed_batch, count) {
            (Some(batch), Some(count)) => degree_of(Some((batch as f64 / f64::from(dp) / count) as u64)),
            _ => None,
        };
        if micro_batch.is_none() && sharding == Sharding::Parameters && inner == u64::from(tp * cp) {
            // Every accumulation step gathers all parameters again: two sequences where the batch has them.
            let each = printed_batch.map_or(1, |batch| batch / u64::from(dp).max(1));
            micro_batch = Some(each.clamp(1, 2) as u32);
            notes.push("micro batch not printed: 2 assumed under FSDP".to_owned());
        } else if micro_batch.is_none() {
            notes.push("micro batch not printed: 1 assumed".to_owned());
        }
    }
    let micro_batch = micro_batch.unwrap_or(1);
    let batch = match (printed_batch, count) {
        (Some(batch), _) => batch,
        (None, Some(count)) => (count * f64::from(dp) * f64::from(micro_batch)) as u64,
        (None, None) => {
            // Per-GPU throughput is nearly independent of the batch once the pipeline is full.
            notes.push("global batch not printed: 8 micro-batches per stage and replica assumed".to_owned());
            u64::from(dp) * u64::from(micro_batch) * if pp > 1 { 8 * u64::from(pp) } else { 1 }
        }
    };
    let unit = u64::from(dp) * u64::from(micro_batch);
    let (micro_batch, unit) =
        if batch < unit && batch >= u64::from(dp) { (1, u64::from(dp)) } else { (micro_batch, unit) };
    let steps = ((batch as f64 / unit as f64).round() as u64).max(1);
    let simulated = steps.saturating_mul(unit);
    if simulated != batch {
        notes.push(format!("global batch {batch} rounded to {simulated} (whole micro-batches)"));
    }
    let global_batch = u32::try_from(simulated).map_err(|_| format!("absurd global batch {simulated}"))?;
    let plan = Plan {
        tp,
        pp,
        dp,
        cp,
        ep,
        etp,
        vpp,
        micro_batch,
        global_batch,
        sequence_parallel,
        recompute,
        sharding,
        shard_group,
        schedule,
        cp_kind: context_parallel(row),
        precision,
        stage_layers,
        vocabulary_parallel: pp > 1 && config.extra_flag("vocab_parallel") == Some(true),
    };
    Ok(MappedPlan {
        plan,
        workload: workload(row, model, seq_len, global_batch, family),
        batch_scale: batch as f64 / simulated as f64,
        notes,
    })
}

fn degree_of(value: Option<u64>) -> Option<u32> {
    value.filter(|v| *v > 0).and_then(|v| u32::try_from(v).ok())
}

/// Chunks per stage and schedule.
fn pipeline(row: &Row, layers: u32, pp: u32, notes: &mut Vec<String>) -> (u32, Schedule) {
    let config = &row.config;
    let name = config.extra_text("schedule_name").or_else(|| config.schedule.clone()).unwrap_or_default();
    let name = name.to_lowercase();
    let mut vpp = degree_of(config.vpp).unwrap_or_else(|| {
        let per_chunk = config.extra_number("layers_per_virtual_stage").filter(|n| *n >= 1.0);
        per_chunk.map_or(1, |n| (layers / (pp * n as u32).max(1)).max(1))
    });
    let interleaved =
        name == "interleaved" || name == "1f1b-i" || (name.contains("interleav") && !name.contains("non"));
    if pp == 1 {
        return (1, Schedule::OneFOneB);
    }
    if name.contains("zb-v") || name.contains("zbv") {
        return (2, Schedule::ZbV);
    }
    if name.contains("zb-2p") || name.contains("zb-h2") || name.contains("zbh2") {
        return (1, Schedule::ZbH2);
    }
    if name.starts_with("zb") || name.contains("zero bubble") || name.contains("zero-bubble") {
        return (1, Schedule::ZbH1);
    }
    if name.contains("gpipe") {
        return (1, Schedule::Gpipe);
    }
    if interleaved && vpp == 1 && config.vpp.is_none() {
        notes.push("interleaved without a chunk count: 2 chunks per stage assumed".to_owned());
        vpp = 2;
    }
    if vpp > 1 && layers + 2 < pp * vpp {
        notes.push(format!("{vpp} chunks per stage for {layers} layers on {pp} stages: 1 used"));
        vpp = 1;
    }
    (vpp, if vpp > 1 { Schedule::Interleaved } else { Schedule::OneFOneB })
}

/// Layers of every chunk where an even split is impossible or the row says that it is not even; empty for even.
fn stage_layers(row: &Row, model: &Model, pp: u32, vpp: u32, family: Family) -> Vec<u32> {
    let (layers, chunks) = (model.layers(), pp * vpp);
    if chunks <= 1 || layers == 0 {
        return Vec::new();
    }
    let config = &row.config;
    let partition = config.extra_text("pp_partition").unwrap_or_default().to_lowercase();
    if config.extra_flag("layer_redistribution") == Some(true) {
        return redistribute(row, model, chunks);
    }
    if let Some(parts) = recipe_layout(row, model, chunks) {
        return parts;
    }
    // A row that says nothing about the split: a number of layers that divides with the ends alone was chosen for them.
    let chosen =
        partition.is_empty() && !layers.is_multiple_of(chunks) && (layers + 2).is_multiple_of(chunks);
    let with_ends = partition.contains("embedding") || family == Family::DeepSpeed && chosen;
    if family == Family::DeepSpeed && vpp == 1 && layers >= chunks {
        return filled(layers, chunks, with_ends);
    }
    if !with_ends && layers.is_multiple_of(chunks) {
        return Vec::new();
    }
    // Embedding and output layer take a layer's place each where that makes the stages even.
    let extra = if with_ends || (layers + 2).is_multiple_of(chunks) {
        (1, 1)
    } else if partition.is_empty() && (layers + 1 + model.mtp_layers).is_multiple_of(chunks) {
        (0, 1)
    } else {
        (0, 0)
    };
    let total = layers + extra.0 + extra.1;
    let (base, over) = (total / chunks, total % chunks);
    // The larger chunks lie in the middle: the ends carry the embedding and the output layer.
    let first_large = (chunks - over) / 2;
    let mut parts: Vec<u32> =
        (0..chunks).map(|c| base + u32::from(c >= first_large && c < first_large + over)).collect();
    let last = parts.len() - 1;
    parts[0] = parts[0].saturating_sub(extra.0);
    parts[last] = parts[last].saturating_sub(extra.1);
    // Rounding at the ends must not lose layers.
    let mut missing = layers.saturating_sub(parts.iter().sum());
    let mut chunk = 0;
    while missing > 0 {
        parts[chunk % chunks as usize] += 1;
        missing -= 1;
        chunk += 1;
    }
    parts
}

/// The partition of DeepSpeed's pipeline (`partition_balanced` over layers of equal weight, `type:transformer` unless the
/// row says that the embedding and the output layer count too): the largest stage is as small as possible, and stages
/// fill up to it from the first one on; the last takes what is left.
fn filled(layers: u32, chunks: u32, with_ends: bool) -> Vec<u32> {
    let weight = layers + if with_ends { 2 } else { 0 };
    let most = weight.div_ceil(chunks);
    let mut left = weight;
    let mut parts: Vec<u32> = (0..chunks)
        .map(|c| {
            // Every later stage must keep at least one unit.
            let take = most.min(left.saturating_sub(chunks - 1 - c)).max(1);
            left = left.saturating_sub(take);
            take
        })
        .collect();
    if with_ends {
        let last = parts.len() - 1;
        parts[0] = parts[0].saturating_sub(1);
        parts[last] = parts[last].saturating_sub(1);
    }
    parts
}

/// The explicit layouts of NVIDIA's DeepSeek-style recipes: every chunk takes the same number of layers and the last one,
/// which also holds multi-token prediction and the loss, what is left (Megatron-Bridge, DeepSeek-V3 recipe: 16 chunks of
/// 4 layers with 1 on the last; 32 chunks of 2 with none on the last).
fn recipe_layout(row: &Row, model: &Model, chunks: u32) -> Option<Vec<u32>> {
    let layers = model.layers();
    let framework = row.config.framework.to_lowercase();
    let uneven = !layers.is_multiple_of(chunks) && !(layers + 2).is_multiple_of(chunks);
    if !framework.contains("bridge") || !model.is_moe() || !uneven {
        return None;
    }
    let each = layers.div_ceil(chunks);
    let mut parts = vec![each; chunks as usize];
    let mut over = (each * chunks).saturating_sub(layers);
    let last = parts.len() - 1;
    parts[last] -= over.min(each);
    over = over.saturating_sub(each);
    // What the last chunk cannot give, the first does: it holds the embedding.
    (over < each).then(|| {
        parts[0] -= over;
        parts
    })
}

/// Layers moved away from the stage of the output layer so that the largest stage is as small as possible
/// (Vocabulary Parallelism, arXiv 2411.05288, section 6: the "Redis" baseline, balanced by FLOPs).
fn redistribute(row: &Row, model: &Model, chunks: u32) -> Vec<u32> {
    let hidden = model.hidden as f64;
    let seq = row.config.seq_len.unwrap_or(2048) as f64;
    let layer = 72.0 * hidden + 12.0 * seq;
    let head = 6.0 * model.vocab as f64 / layer;
    let input = 3.0 / layer;
    let layers = model.layers();
    let mean = (f64::from(layers) + head + input) / f64::from(chunks);
    // The last stage takes what the output layer leaves of an equal share; the others share the rest, later ones
    // taking one more where it does not divide.
    let last = ((mean - head).ceil().max(0.0) as u32).min(layers);
    let others = chunks - 1;
    let (each, over) = ((layers - last) / others, (layers - last) % others);
    (0..chunks).map(|c| if c == others { last } else { each + u32::from(c >= others - over) }).collect()
}

/// Expert tensor parallelism: before folding (2025) Megatron's experts are sharded over tp like everything else.
fn expert_tensor(
    row: &Row,
    model: &Model,
    tp: u32,
    cp: u32,
    dp: u32,
    ep: u32,
    family: Family,
    era: f64,
) -> u32 {
    if let Some(etp) = degree_of(row.config.etp) {
        return etp;
    }
    let framework = row.config.framework.to_lowercase();
    let folded = framework.contains("folding") || framework.contains("bridge") || era >= 2025.6;
    let fits = (u64::from(tp) * u64::from(cp) * u64::from(dp)).is_multiple_of(u64::from(tp) * u64::from(ep));
    if model.is_moe() && family == Family::Megatron && !folded && fits { tp } else { 1 }
}

/// Sharding and the size of the group that shares (0: all).
fn sharding(row: &Row, family: Family, era: f64, replicas: u32) -> (Sharding, u32) {
    let config = &row.config;
    let text = config.fsdp.as_deref().unwrap_or("").to_lowercase();
    let off = matches!(text.as_str(), "" | "false" | "no" | "none" | "0");
    let kind = if text.contains("grad_op") || text.contains("shard_grad") || text.contains("_2") {
        Sharding::Gradients
    } else if text.contains("no_shard") {
        Sharding::None
    } else if !off {
        Sharding::Parameters
    } else {
        match config.zero {
            Some(0) => Sharding::None,
            Some(1) => Sharding::Optimizer,
            Some(2) => Sharding::Gradients,
            Some(_) => Sharding::Parameters,
            None => match family {
                Family::Megatron if era < 2023.0 => Sharding::None,
                Family::Megatron | Family::DeepSpeed | Family::Other => Sharding::Optimizer,
                Family::Fsdp => Sharding::Parameters,
            },
        }
    };
    let mut group = 0;
    if kind == Sharding::Parameters || kind == Sharding::Gradients {
        let number = |text: &str| -> u32 {
            let digits: String =
                text.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap_or(0)
        };
        if text.contains("hybrid") {
            group = u32::try_from(row.hardware.gpus_per_node.unwrap_or(8)).unwrap_or(8);
        } else if text.contains("fsdp=") || text.chars().all(|c| c.is_ascii_digit()) && !text.is_empty() {
            group = number(&text);
        }
    }
    if group <= 1 || group >= replicas || !replicas.is_multiple_of(group) {
        group = 0;
    }
    (if replicas <= 1 && kind != Sharding::Parameters { Sharding::None } else { kind }, group)
}

/// Arithmetic: the printed precision, refined by the printed label of its scaling recipe.
fn precision(row: &Row, era: f64) -> Result<Precision, String> {
    let config = &row.config;
    let label = config.extra_text("precision_label").unwrap_or_default().to_lowercase();
    let recipe = config.extra_text("fp8").unwrap_or_default().to_lowercase();
    let printed = config.precision.clone().unwrap_or_default().to_lowercase();
    let text = if printed.is_empty() { label.clone() } else { printed };
    Ok(if text.contains("nvfp4") || text.contains("fp4") {
        Precision::NvFp4
    } else if text.contains("mxfp8") || (text.contains("fp8") && label.contains("mx")) {
        Precision::MxFp8
    } else if text.contains("fp8") {
        let blocks = ["-sc", "block", "sub"]
            .iter()
            .any(|w| label.contains(w) || recipe.contains(w) || text.contains(w));
        if blocks { Precision::Fp8Block } else { Precision::Fp8 }
    } else if text.contains("bf16") || text.contains("bfloat16") {
        Precision::Bf16
    } else if text.contains("fp16") || text.contains("half") {
        Precision::Fp16
    } else if text.contains("32") {
        Precision::Fp32
    } else if text.is_empty() {
        let gpu = &row.hardware.gpu;
        if era < 2022.5 || gpu.starts_with('V') || gpu.starts_with('P') {
            Precision::Fp16
        } else {
            Precision::Bf16
        }
    } else {
        return Err(format!("precision `{text}` is unknown"));
    })
}

/// Recomputation: printed, else what the stack of that era did by default.
fn recompute(
    row: &Row,
    family: Family,
    stack: &StackSelection,
    sharding: Sharding,
    layers_per_chunk: u32,
) -> Recompute {
    let config = &row.config;
    let modules = config
        .extra_text("recompute_modules_recipe_head")
        .or_else(|| config.extra_text("recompute_modules"))
        .unwrap_or_default()
        .to_lowercase();
    if let Some(text) = config.recompute.as_deref() {
        let text = text.to_lowercase();
        if text.contains("full") || text == "true" {
            return Recompute::Full;
        }
        if text.contains("selective") {
            // Norms, activations and up-projections are cheap to run again and change memory, not time; only the
            // attention core is what "selective" meant before module lists existed.
            let named = modules.contains('"') || modules.contains('_');
            return if named && !modules.contains("core_attn") {
                Recompute::None
            } else {
                Recompute::Selective
            };
        }
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        if let Ok(layers) = digits.parse() {
            return Recompute::Layers(layers);
        }
        return Recompute::None;
    }
    if stack.framework.contains("maxtext") {
        // Its remat policies keep the attention's products and run the feed-forward part again: about half of a layer.
        return Recompute::Layers(layers_per_chunk.div_ceil(2));
    }
    let full = match family {
        Family::Megatron => stack.era < 2022.3,
        Family::DeepSpeed => true,
        Family::Fsdp => sharding == Sharding::Parameters && !stack.framework.contains("automodel"),
        Family::Other => false,
    };
    if full { Recompute::Full } else { Recompute::None }
}

fn context_parallel(row: &Row) -> ContextParallel {
    let text = ["cp_comm_type", "cp_kind", "context_parallel"]
        .iter()
        .find_map(|k| row.config.extra_text(k))
        .unwrap_or_default()
        .to_lowercase();
    if text.contains("a2a") || text.contains("ulysses") {
        ContextParallel::Ulysses
    } else if text.contains("gather") {
        ContextParallel::AllGather
    } else {
        ContextParallel::Ring
    }
}

/// Mean length of a packed document of the question-answer set that NVIDIA's fine-tuning recipes use.
const PACKED_SQUAD: u64 = 200;
/// Adapter rank of NVIDIA's LoRA recipes where none is printed.
const LORA_RANK: u64 = 16;

fn workload(row: &Row, model: &Model, seq_len: u64, global_batch: u32, family: Family) -> TrainingWorkload {
    let config = &row.config;
    let task = task(row);
    let printed = config.extra_number("mean_subsequence_len_estimate").map(|n| n as u64).filter(|n| *n > 0);
    let packed = printed.or_else(|| {
        let packs = family == Family::Megatron && task != "pre";
        (packs || config.extra_text("packed_dataset").is_some()).then_some(PACKED_SQUAD)
    });
    let capacity = config
        .extra_number("token_drop_capacity_factor")
        .or_else(|| config.extra_number("moe_capacity_factor"))
        .or_else(|| row.notes.to_lowercase().contains("tokendrop").then_some(1.0));
    let balanced = config.extra_flag("force_balanced_moe") == Some(true)
        || row.notes.to_lowercase().contains("force-balanced")
        || capacity.is_some();
    // An auxiliary loss keeps the load of benchmark runs close to even: 3 % over the mean.
    let imbalance = if model.is_moe() && !balanced { 1.03 } else { 1.0 };
    TrainingWorkload {
        seq_len,
        global_batch,
        tokens: None,
        packed_length: packed.filter(|n| *n < seq_len),
        lora_rank: (task == "lora").then(|| config.extra_number("lora_rank").map_or(LORA_RANK, |n| n as u64)),
        expert_imbalance: imbalance,
        capacity_factor: capacity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::row;

    #[test]
    fn recipe_layouts_leave_the_last_chunk_what_is_left() {
        let row = &row::read(
            r#"{"id":"a","kind":"train","config":{"framework":"Megatron-Bridge"},"model":{"name":"deepseek-v3"},"hardware":{}}"#,
        )
        .unwrap()[0];
        let (model, _) = super::super::model::map(&row.model, &row.config).unwrap();
        let sixteen = recipe_layout(row, &model, 16).unwrap();
        assert_eq!((sixteen[0], sixteen[14], sixteen[15]), (4, 4, 1));
        let chunks = recipe_layout(row, &model, 32).unwrap();
        assert_eq!((chunks[0], chunks[1], chunks[31]), (1, 2, 0));
        assert_eq!(chunks.iter().sum::<u32>(), 61);
    }

    #[test]
    fn layers_that_divide_with_both_ends_alone_were_chosen_for_them() {
        let parts = |layers: u32, extra: &str| {
            let row = format!(
                r#"{{"id":"a","kind":"train","config":{{"framework":"Megatron-DeepSpeed"{extra}}},"hardware":{{}},
                "model":{{"name":"gpt-x","layers":{layers},"hidden":1024,"heads":16,"vocab":50000}}}}"#
            );
            let row = &row::read(&row.replace('\n', " ")).unwrap()[0];
            let (model, _) = super::super::model::map(&row.model, &row.config).unwrap();
            stage_layers(row, &model, 12, 1, Family::DeepSpeed)
        };
        assert_eq!(parts(82, ""), filled(82, 12, true));
        assert_eq!(parts(82, r#","extra":{"pp_partition":"transformer"}"#), filled(82, 12, false));
        // 84 divide as they are; 80 divide neither way.
        assert_eq!(parts(84, ""), filled(84, 12, false));
        assert_eq!(parts(80, ""), filled(80, 12, false));
    }

    #[test]
    fn pipelines_of_deepspeed_fill_up_from_the_first_stage() {
        let mut last_one = vec![7; 11];
        last_one.push(1);
        assert_eq!(filled(78, 12, false), last_one);
        assert_eq!(filled(72, 12, false), vec![6; 12]);
        // BLOOM: 70 layers and both ends on 12 stages.
        let ends = filled(70, 12, true);
        assert_eq!((ends[0], ends[1], ends[11]), (5, 6, 5));
        for (layers, chunks, with_ends) in [(5, 4, false), (13, 12, false), (11, 12, true), (100, 7, true)] {
            let parts = filled(layers, chunks, with_ends);
            assert_eq!((parts.iter().sum::<u32>(), parts.len()), (layers, chunks as usize));
        }
    }
}
