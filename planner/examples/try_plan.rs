//! Plans one question and prints the table: `try_plan MODEL CLUSTER [SEQ GLOBAL_BATCH]`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use psim_cost_models::ProfileLibrary;
use psim_planner::{PlanRequest, Silent, plan};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let model = psim_models::presets::find(&args[1]).unwrap();
    let cluster = psim_hardware::catalogue::cluster(&args[2]).unwrap();
    let library = ProfileLibrary::built_in();
    let stack = library.stack(psim_cost_models::stacks::DEFAULT_TRAINING).unwrap();
    let (mut workload, assumptions) = PlanRequest::default_workload();
    if let [_, _, _, seq, batch, ..] = &args[..] {
        workload.seq_len = seq.parse().unwrap();
        workload.global_batch = batch.parse().unwrap();
    }
    let mut request = PlanRequest::new(&model, cluster, &workload, stack, &library);
    request.assumptions = assumptions;
    let start = std::time::Instant::now();
    let report = plan(&request, &Silent).unwrap();
    println!("{:.3} s", start.elapsed().as_secs_f64());
    println!(
        "searched {} simulated {} pruned {} {:?}",
        report.searched, report.simulated, report.pruned, report.optimality
    );
    for k in report.constraints.iter().take(6) {
        println!("  {} {}: {}", k.constraint, k.candidates, k.example);
    }
    for p in &report.plans {
        let q = &p.plan;
        println!(
            "tp{} pp{} dp{} cp{} ep{} etp{} vpp{} mbs{} {:?} {:?} {:?} | {:.3} s (L1 {:.3}) mfu {:.1} mem {:.1}/{:.0} bubble {:.3} comm {:.3} ${:.0}/Btok {:.0} days, {}",
            q.tp,
            q.pp,
            q.dp,
            q.cp,
            q.ep,
            q.etp,
            q.vpp,
            q.micro_batch,
            q.recompute,
            q.sharding,
            q.stage_layers,
            p.step_time_s.value,
            p.ranked_by_s,
            p.mfu,
            p.peak_mem_gb,
            p.mem_capacity_gb,
            p.bubble,
            p.exposed_comm,
            p.cost_usd_per_btok,
            p.days.unwrap_or(0.0),
            p.bound_by.sentence
        );
    }
    println!("pareto {}", report.pareto.len());
    for p in report.pareto.iter().take(12) {
        let q = &p.plan;
        println!(
            "  tp{} pp{} dp{} mbs{} {:?} {:.3} s {:.1} GB",
            q.tp, q.pp, q.dp, q.micro_batch, q.recompute, p.step_time_s, p.peak_mem_gb
        );
    }
    println!("{:?}", report.infeasible);
}
