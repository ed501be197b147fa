//! Spaces that the tests search: models, clusters and batches of different kinds.
#![allow(dead_code, reason = "each test binary uses a part")]

use psim_cost_models::{ProfileLibrary, stacks};
use psim_hardware::catalogue;
use psim_models::plan::Precision;
use psim_models::{TrainingWorkload, presets};
use psim_planner::objective::Scorer;
use psim_planner::rules::Facts;
use psim_planner::search::{PreparedFor, prepare};
use psim_planner::space::{SearchSpace, enumerate};
use psim_planner::step_evaluator::StepEvaluator;
use psim_planner::{Objective, PlanRequest, Silent};

/// A search space: model, accelerator, how many, sequence length, global batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Space {
    pub(crate) model: &'static str,
    pub(crate) accelerator: &'static str,
    pub(crate) count: u32,
    pub(crate) seq_len: u64,
    pub(crate) global_batch: u32,
    pub(crate) stack: &'static str,
    pub(crate) objective: Objective,
}

const fn space(
    model: &'static str,
    accelerator: &'static str,
    count: u32,
    seq_len: u64,
    global_batch: u32,
) -> Space {
    Space {
        model,
        accelerator,
        count,
        seq_len,
        global_batch,
        stack: stacks::DEFAULT_TRAINING,
        objective: Objective::Time,
    }
}

/// Dense, grouped-query, mixture, latent attention, hybrid pattern, encoder-decoder; one node to a thousand accelerators.
pub(crate) const SPACES: &[Space] = &[
    space("llama3-8b", "h100", 8, 8192, 32),
    space("llama3-8b", "a100", 16, 4096, 64),
    space("llama3-70b", "h100", 64, 8192, 64),
    space("llama3-70b", "h200", 32, 8192, 48),
    space("llama3-70b", "b200", 32, 16384, 32),
    space("llama3-70b", "mi300x", 64, 4096, 128),
    space("llama2-13b", "a100", 24, 4096, 96),
    space("llama3.1-405b", "h100", 512, 8192, 256),
    space("gpt3-175b", "a100", 256, 2048, 512),
    Space { stack: "megatron-2021", ..space("gpt3-175b", "a100", 128, 2048, 192) },
    Space { stack: "zero-bubble", ..space("llama3-8b", "a100", 16, 2048, 64) },
    Space { stack: "fsdp-generic", ..space("llama2-7b", "a100", 32, 4096, 128) },
    Space { stack: "deepspeed-zero", ..space("llama2-13b", "a100", 16, 2048, 64) },
    space("mixtral-8x7b", "h100", 64, 4096, 256),
    space("mixtral-8x7b", "a100", 32, 4096, 64),
    Space { objective: Objective::Energy, ..space("llama3-8b", "h100", 16, 8192, 64) },
    Space { objective: Objective::Cost, ..space("llama3-70b", "h100", 128, 8192, 128) },
    Space { objective: Objective::Goodput, ..space("llama3-70b", "h100", 256, 8192, 512) },
    space("deepseek-v3", "h100", 256, 4096, 1024),
    space("qwen3-235b-a22b", "h100", 128, 4096, 256),
    space("opt-6.7b", "v100", 16, 2048, 64),
    space("bloom-7b1", "a100", 40, 2048, 120),
];

pub(crate) fn workload(space: &Space) -> TrainingWorkload {
    let (mut workload, _) = PlanRequest::default_workload();
    workload.seq_len = space.seq_len;
    workload.global_batch = space.global_batch;
    workload
}

/// Prepares a space and hands it over.
pub(crate) fn with_space(
    space: &Space,
    check: impl FnOnce(&StepEvaluator<'_>, &Scorer, &PreparedFor<StepEvaluator<'_>>),
) {
    let model = presets::find(space.model).unwrap_or_else(|e| panic!("{}: {e}", space.model));
    let cluster = catalogue::homogeneous(space.accelerator, space.count, &Default::default())
        .unwrap_or_else(|e| panic!("{}: {e}", space.accelerator));
    let library = ProfileLibrary::built_in();
    let stack = library.stack(space.stack).unwrap_or_else(|| panic!("no stack {}", space.stack));
    let workload = workload(space);
    let facts = Facts::new(&model, &cluster, space.seq_len);
    let precision = if space.accelerator == "v100" { Precision::Fp16 } else { Precision::Bf16 };
    let mut choices = SearchSpace::default_for(&facts, cluster.first_node().scale_up.domain, &[precision]);
    choices.sequence_parallel = vec![true, false];
    if space.stack == "zero-bubble" {
        use psim_models::plan::Schedule::{Interleaved, OneFOneB, ZbH1, ZbH2, ZbV};
        choices.schedules = vec![OneFOneB, Interleaved, ZbH1, ZbH2, ZbV];
    }
    let evaluator = StepEvaluator::new(&model, &workload, &cluster, stack, &library);
    let scorer = Scorer::new(space.objective, &cluster, space.seq_len, model.parameters().total);
    let enumeration = enumerate(&choices, &facts, space.global_batch);
    let prepared = prepare(&evaluator, &scorer, enumeration, true, &Silent).expect("not cancelled");
    check(&evaluator, &scorer, &prepared);
}
