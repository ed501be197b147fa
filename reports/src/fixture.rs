//! A made-up result for the tests of this crate; its numbers are invented and consistent with one another.

use psim_hardware::profile::Provenance;
use psim_hardware::{Bytes, Seconds};
use psim_models::Plan;
use psim_planner::{
    Assumption, BoundBy, KilledBy, Objective, Optimality, ParetoPoint, PlanReport, Question, RankedPlan,
    TermShare, ThroughputPoint,
};
use psim_sim::prediction::StageMemory;
use psim_sim::{Breakdown, Estimate, Level, StepPrediction};

/// A plan of the given layout.
pub(crate) fn plan(tp: u32, pp: u32, dp: u32) -> Plan {
    let text = format!("tp = {tp}\npp = {pp}\ndp = {dp}\nmicro_batch = 1\nglobal_batch = 512\n");
    toml::from_str(&text).unwrap()
}

/// A prediction of `seconds` for a plan.
fn prediction(plan: &Plan, seconds: f64) -> StepPrediction {
    let breakdown = Breakdown {
        ideal_compute: Seconds(seconds * 0.48),
        kernel_inefficiency: Seconds(seconds * 0.2),
        memory_bound: Seconds(seconds * 0.09),
        tp_exposed: Seconds(seconds * 0.1),
        dp_exposed: Seconds(seconds * 0.03),
        bubble: Seconds(seconds * 0.08),
        optimizer: Seconds(seconds * 0.02),
        ..Breakdown::default()
    };
    let memory = (0..plan.pp)
        .map(|stage| {
            let gib = |g: f64| Bytes::from_f64(g * f64::from(1 << 30));
            let parts = vec![
                ("optimizer states", gib(14.0)),
                ("parameters", gib(12.0)),
                ("gradients", gib(11.0)),
                ("activations", gib(24.0 / f64::from(stage + 1))),
                ("logits", gib(if stage + 1 == plan.pp { 4.0 } else { 0.0 })),
                ("overheads", gib(3.0)),
            ];
            let total = parts.iter().map(|p| p.1).sum();
            StageMemory { stage, parts, total }
        })
        .collect();
    StepPrediction {
        level: Level::L2,
        step_time: Estimate { value: seconds, low: seconds * 0.93, high: seconds * 1.08 },
        tokens_per_s_per_gpu: 4_194_304.0 / seconds / 64.0,
        mfu: 48.0,
        model_tflops_per_gpu: 475.0,
        memory,
        memory_capacity: Bytes(80 << 30),
        fits: true,
        bubble: 0.08,
        exposed_comm: 0.13,
        breakdown,
        energy_joule: 64.0 * 900.0 * seconds,
        provenance: Provenance::Interpolated,
        doubts: Vec::new(),
        timeline: None,
        notes: vec!["one remark <with> markup & more".to_owned()],
    }
}

/// A ranked plan.
pub(crate) fn ranked(plan: Plan, seconds: f64) -> RankedPlan {
    let prediction = prediction(&plan, seconds);
    RankedPlan {
        step_time_s: prediction.step_time,
        level: Level::L2,
        tokens_per_s_per_gpu: prediction.tokens_per_s_per_gpu,
        mfu: prediction.mfu,
        peak_mem_gb: prediction.peak_memory().as_f64() / 1e9,
        mem_capacity_gb: 85.5,
        bubble: prediction.bubble,
        exposed_comm: prediction.exposed_comm,
        cost_usd_per_btok: 64.0 * 3.0 / 3600.0 * seconds / 4_194_304.0 * 1e9,
        energy_j_per_token: prediction.energy_joule / 4_194_304.0,
        days: Some(15e12 / 4_194_304.0 * seconds / 86_400.0),
        bound_by: BoundBy {
            term: "kernel inefficiency",
            share: 0.2,
            against_next: vec![("pipeline bubble", -0.31), ("exposed TP communication", 0.12)],
            sentence: "Kernels below their peak take 20.0 % of the step.".to_owned(),
        },
        provenance: prediction.provenance,
        breakdown: TermShare::list(&prediction.breakdown),
        idle_accelerators: 0,
        ranked_by_s: seconds,
        prediction,
        plan,
    }
}

/// A report with `count` plans.
pub(crate) fn report(count: u32) -> PlanReport {
    let layouts = [(8, 2, 4), (4, 4, 4), (8, 4, 2), (8, 1, 8), (2, 8, 4), (4, 8, 2)];
    let plans: Vec<RankedPlan> = layouts
        .iter()
        .take(count as usize)
        .enumerate()
        .map(|(i, &(tp, pp, dp))| ranked(plan(tp, pp, dp), 9.5 + 0.35 * i as f64))
        .collect();
    let pareto = plans
        .iter()
        .enumerate()
        .map(|(i, p)| ParetoPoint {
            plan: p.plan.clone(),
            step_time_s: p.step_time_s.value,
            time_per_token_s: p.step_time_s.value / 4_194_304.0,
            peak_mem_gb: p.peak_mem_gb - 6.0 * i as f64,
            cost_usd_per_btok: p.cost_usd_per_btok,
            level: Level::L2,
            rank: Some(i),
        })
        .collect();
    let throughput_curve = [64_u32, 128, 256, 512, 1024]
        .iter()
        .map(|&batch| ThroughputPoint {
            global_batch: batch,
            step_time_s: Some(f64::from(batch) / 50.0 + 0.8),
            tokens_per_s: 0.0,
            tokens_per_s_per_gpu: f64::from(batch) * 8192.0 / (f64::from(batch) / 50.0 + 0.8) / 64.0,
            plan: None,
        })
        .collect();
    PlanReport {
        schema: 1,
        question: Question {
            model: "llama3-70b".to_owned(),
            parameters: 70_553_706_496,
            cluster: "h100x64".to_owned(),
            accelerators: 64,
            accelerator: "H100-SXM-80GB".to_owned(),
            seq_len: 8192,
            global_batch_min: 512,
            global_batch_max: 512,
            tokens: Some(15e12),
            precisions: vec!["bf16"],
            stack: "megatron-core".to_owned(),
            objective: Objective::Time,
            top: 10,
            assumptions: vec![Assumption {
                name: "sequence length".to_owned(),
                value: "8,192 tokens".to_owned(),
                why: "usual in pre-training; --seq-len".to_owned(),
            }],
        },
        plans,
        pareto,
        searched: 1440,
        pruned: 1321,
        simulated: 119,
        constraints: vec![KilledBy {
            constraint: "memory",
            candidates: 812,
            example: "TP1 PP1 DP64 needs 1129 GB, an accelerator has 85.5 GB".to_owned(),
        }],
        optimality: Optimality::Proven { resimulated: 12, gap: 0.03 },
        throughput_curve,
        infeasible: None,
    }
}
