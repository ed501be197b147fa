//! `psim execute --shard RANK`: one rank of a plan alone, its computation and memory beside the prediction.

use super::{Arguments, in_fp32, ms, off};
use crate::Host;
use crate::failure::Failure;
use crate::machine::{Machine, Place, hinted};
use crate::number::grouped;
use crate::table::{Align, Table, wrap};
use psim_calibration::measure::DeviceChoice;
use psim_executor::shard::{ShardBasis, ShardReport, shard};
use psim_executor::{ExecutorError, Settings};
use psim_hardware::DType;
use psim_kernels::cpu::CpuDevice;
use psim_models::plan::Precision;
use psim_reports::plan_label;
use serde_json::json;

/// Runs the rank on the CPU, in fp32, or on a GPU, in bf16.
pub(super) fn run(arguments: &Arguments, rank: usize, host: &mut Host<'_>) -> Result<(), Failure> {
    let failed = |e: ExecutorError| hinted(&e.to_string(), "change the plan or the model");
    let settings = Settings { steps: arguments.steps, seed: arguments.common.seed, ..Settings::default() };
    let (job, common) = match arguments.device {
        DeviceChoice::Cpu => (in_fp32(&arguments.job)?, &arguments.common),
        DeviceChoice::Cuda(_) => (arguments.job.clone(), &arguments.common),
    };
    let (job, plan) = crate::commands::simulate::load(&job, common, &arguments.plan, host)?;
    super::enough(&job, &plan)?;
    if rank >= plan.world() as usize {
        return Err(Failure::input(
            format!("rank {rank} of a plan with {} ranks", plan.world()),
            format!("ranks go from 0 to {}", plan.world() - 1),
        ));
    }
    let mut notes = vec![format!("collectives wait as long as `{}` is predicted to take", job.cluster.name)];
    let report = match arguments.device {
        DeviceChoice::Cpu => {
            let machine = Machine::load(common, &job.software.library, host)?;
            let (cluster, stack) = (machine.cluster(plan.world()), machine.stack(common)?);
            let basis = ShardBasis {
                cluster: &cluster,
                network: &job.cluster,
                stack: &stack,
                library: &machine.library,
            };
            notes.push(format!("prediction from: {}", machine.origin));
            shard(&job.model, &plan, &job.workload, &settings, basis, CpuDevice::new(), rank)
        }
        DeviceChoice::Cuda(index) => {
            if plan.precision != Precision::Bf16 {
                return Err(Failure::input(
                    format!(
                        "precision {} on a GPU, where the executor computes in bf16",
                        plan.precision.name()
                    ),
                    "say --precision bf16",
                ));
            }
            let device = psim_kernels::cuda::open(index)
                .map_err(|e| hinted(&e.to_string(), "`--device cpu` works everywhere"))?;
            let place = Place::gpu(common, &job, index)?;
            notes.push(format!("prediction from: {}", place.origin));
            notes.extend(place.note.clone());
            let basis = ShardBasis {
                cluster: &job.cluster,
                network: &job.cluster,
                stack: &place.stack,
                library: &place.library,
            };
            let settings = Settings { dtype: DType::Bf16, ..settings };
            shard(&job.model, &plan, &job.workload, &settings, basis, device, rank)
        }
    }
    .map_err(failed)?;
    if common.json {
        return host.json(&json!({
            "schema": 1, "model": job.model.name, "cluster": job.cluster.name, "plan": plan,
            "shard": report, "notes": notes,
        }));
    }
    let mut out = format!(
        "rank {} (stage {}) of {} alone on {}\nplan: {}; sequences of {} tokens\n\n",
        report.rank,
        report.stage,
        job.model.name,
        report.device,
        plan_label(&plan),
        grouped(job.workload.seq_len),
    );
    out.push_str(&text(&report));
    for note in &notes {
        out.push_str(&wrap(&format!("note: {note}"), 100, "  "));
        out.push('\n');
    }
    host.print(out)
}

fn text(report: &ShardReport) -> String {
    let mut table = Table::new(&[
        ("phase", Align::Left),
        ("computes ms", Align::Right),
        ("predicted ms", Align::Right),
        ("error %", Align::Right),
        ("waits inserted ms", Align::Right),
    ]);
    for row in &report.phases {
        table.row([
            row.phase.to_owned(),
            ms(row.compute),
            ms(row.predicted),
            off(row.predicted, row.compute),
            ms(row.inserted),
        ]);
    }
    let [measured, predicted] = report.compute();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    format!(
        "{}all computation: measured {} ms (spread {:.0} %), predicted {} ms, error {} %\n\
         parameters, gradients, optimizer states: measured {:.2} MiB, ledger {:.2} MiB\n\
         memory at the peak: measured {:.2} MiB, ledger {:.2} MiB\n",
        table.render(),
        ms(measured),
        report.spread * 100.0,
        ms(predicted),
        off(predicted, measured),
        mib(report.states),
        mib(report.predicted_states),
        mib(report.memory),
        mib(report.predicted_memory),
    )
}
