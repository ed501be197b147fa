//! Laws of the serving step: every model, number format, layout and batch.
#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

use proptest::prelude::*;
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::engine::engines;
use psim_cost_models::serving::{KINDS, Lane, PromptChunk, StepCost};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_hardware::{Accelerator, Cluster, DType};
use psim_models::presets;
use psim_models::serving::{Deployment, NumberFormat, Quantization};
use std::sync::OnceLock;

const MODELS: [&str; 7] = [
    "llama3-8b",
    "llama3-70b",
    "mixtral-8x7b",
    "deepseek-v3",
    "gpt-oss-120b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
];
const MACHINES: [&str; 8] = [
    "A100-SXM-80GB",
    "H100-SXM-80GB",
    "H200-SXM-141GB",
    "B200-SXM",
    "GB200",
    "MI300X",
    "MI355X",
    "RTX-PRO-6000-Server",
];

fn library() -> &'static ProfileLibrary {
    static LIBRARY: OnceLock<ProfileLibrary> = OnceLock::new();
    LIBRARY.get_or_init(ProfileLibrary::built_in)
}

fn clusters() -> &'static Vec<Cluster> {
    static CLUSTERS: OnceLock<Vec<Cluster>> = OnceLock::new();
    CLUSTERS.get_or_init(|| {
        let build = |name: &&str| homogeneous(name, 8, &HomogeneousOptions::default()).unwrap();
        MACHINES.iter().map(build).collect()
    })
}

/// The fastest rate at which a part multiplies numbers of a format, straight from the datasheet.
fn peak(part: &Accelerator, format: NumberFormat) -> f64 {
    let of = |dtype| part.peak(dtype).map_or(0.0, |f| f.0);
    let half = of(DType::Bf16).max(of(DType::Fp16));
    let eight = half.max(of(DType::Fp8)).max(of(DType::Int8));
    match format {
        NumberFormat::Bf16 | NumberFormat::W8a16 | NumberFormat::W4a16 => half,
        NumberFormat::Nvfp4 | NumberFormat::Mxfp4 => eight.max(of(DType::Fp4)),
        _ => eight,
    }
}

/// Least time of a step from the model's dimensions alone: weights that every token meets and the cache are read once,
/// every product runs at the datasheet peak; memory and arithmetic overlap perfectly.
fn floor(cost: &StepCost, part: &Accelerator, lane: &Lane<'_>) -> f64 {
    let shape = cost.shape();
    let chunk_tokens: u32 = lane.chunks.iter().map(|c| c.tokens).sum();
    let tokens = f64::from(lane.decoding + chunk_tokens);
    let ends = f64::from(lane.decoding) + lane.chunks.len() as f64;
    let (mut bytes, mut seconds) = (0.0, 0.0);
    for l in &shape.linears {
        let rows = if l.last_token_only { ends } else { tokens };
        bytes += l.layers * (l.n * l.k) as f64 * l.format.weight_bits() / 8.0;
        seconds += l.layers * 2.0 * rows * (l.n * l.k) as f64 / peak(part, l.format);
    }
    for (core, context) in shape.attention.iter().zip(lane.context) {
        bytes += core.layers
            * context as f64
            * core.cache_elements as f64
            * shape.deployment.quantization.kv.size();
    }
    for e in &shape.experts {
        let rows = tokens * e.top_k as f64 * e.local as f64 / e.experts as f64;
        seconds += e.layers * 2.0 * rows * (e.matrices * e.hidden * e.inner) as f64 / peak(part, e.format);
    }
    seconds.max(bytes / part.memory_bandwidth.0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn no_step_beats_the_roofline(
        model in 0..MODELS.len(),
        machine in 0..MACHINES.len(),
        engine in 0..engines().len(),
        format in 0..NumberFormat::ALL.len(),
        eight_bit_cache: bool,
        tp in 0u32..4,
        pp in 0u32..2,
        batch in 0u32..600,
        each in 1u64..60_000,
        chunks in proptest::collection::vec((1u32..9000, 0u32..30_000), 0..4),
    ) {
        let model = presets::find(MODELS[model]).unwrap();
        let cluster = &clusters()[machine];
        let node = cluster.first_node();
        let mut quantization = Quantization::uniform(NumberFormat::ALL[format]);
        if eight_bit_cache {
            quantization.kv = DType::Fp8;
        }
        let deployment =
            Deployment { pp: 1 << pp, ..Deployment::tensor_parallel(1 << tp, quantization) };
        let mut engine = engines()[engine].clone();
        // Whether it fits is another question.
        engine.memory_share = 1e3;
        let Ok(cost) = StepCost::new(&model, &deployment, cluster, node, &engine, library()) else {
            // Heads that do not divide.
            return Ok(());
        };
        let chunks: Vec<PromptChunk> =
            chunks.into_iter().map(|(tokens, before)| PromptChunk { tokens, before }).collect();
        let mut context = [0; KINDS];
        for (slot, most) in context.iter_mut().zip(cost.reads_at_most()) {
            *slot = u64::from(batch) * most.map_or(each, |w| each.min(w));
        }
        let lane = Lane { decoding: batch, context, chunks: &chunks };
        if batch == 0 && chunks.is_empty() {
            return Ok(());
        }
        let seconds = cost.seconds(&[lane]);
        // With prompts in micro-batches over stages, stages work at once: each still does its share.
        let share = if engine.prompt_micro_batch.is_some() { f64::from(deployment.pp) } else { 1.0 };
        let least = floor(&cost, &node.accelerator, &lane) / share;
        prop_assert!(seconds >= 0.999 * least, "{} {:?}: {seconds} s below {least} s", node.accelerator.name, deployment);
        prop_assert!(seconds >= 0.999 * cost.roofline(&[lane]) / share);
        // A longer cache or one more sequence never makes a step of decoding faster.
        if chunks.is_empty() {
            let mut more = context;
            more.iter_mut().for_each(|c| *c += u64::from(batch));
            let longer = cost.seconds(&[Lane { context: more, ..lane }]);
            prop_assert!(longer >= 0.999_999 * seconds, "longer cache: {longer} against {seconds}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Runs of several lanes are priced as their single steps are, to the last bit.
    #[test]
    fn a_run_of_lanes_is_its_steps(
        model in 0..MODELS.len(),
        copies in 0u32..3,
        stages in 0u32..2,
        batches in prop::collection::vec(0u32..300, 8),
        each in 1u64..9000,
        drafts in 0u32..3,
    ) {
        let model = presets::find(MODELS[model]).unwrap();
        let quantization = Quantization::uniform(NumberFormat::Fp8);
        let (attention_dp, pp) = if stages > 0 { (1, 1 << stages) } else { (1 << copies, 1) };
        let deployment = Deployment { pp, attention_dp, ..Deployment::tensor_parallel(1, quantization) };
        let cluster = &clusters()[1];
        let mut engine = engines()[0].clone();
        engine.memory_share = 1e3;
        let Ok(cost) = StepCost::new(&model, &deployment, cluster, cluster.first_node(), &engine, library()) else {
            return Ok(());
        };
        let cost = cost.with_drafting(psim_cost_models::serving::Drafting { drafts, context: 1.3, cache: 0.9 });
        let batches = &batches[..cost.lanes().clamp(2, 8) as usize];
        let Some(run) = cost.lanes_run(batches) else {
            prop_assert!(batches.iter().all(|b| *b == 0));
            return Ok(());
        };
        for step in [0u64, 1, 7] {
            let read = |lane: usize| [u64::from(batches[lane]) * (each + 100 * lane as u64 + step); KINDS];
            let lanes: Vec<Lane<'_>> = batches
                .iter()
                .enumerate()
                .map(|(i, n)| Lane { decoding: *n, context: read(i), chunks: &[] })
                .collect();
            prop_assert_eq!(run.seconds(read).to_bits(), cost.seconds(&lanes).to_bits());
        }
    }
}
