//! `psim execute`: runs a plan on this machine and puts the prediction beside the measurement, phase by phase.

mod shard;

use crate::Host;
use crate::failure::Failure;
use crate::inputs::job::Format;
use crate::inputs::{CommonArguments, Job, JobArguments};
use crate::machine::{MAX_RANKS, Place, hinted};
use crate::number::grouped;
use crate::table::{Align, Table, wrap};
use clap::{Args, ValueEnum};
use psim_calibration::measure::DeviceChoice;
use psim_executor::execute::{ExecuteDevice, ExecuteReport, ExecuteRequest, RankMode, execute};
use psim_executor::predict::Basis;
use psim_models::Plan;
use psim_models::plan::Precision;
use psim_reports::plan_label;
use psim_sim::residual::PhaseFactors;
use serde_json::json;
use std::path::PathBuf;

/// How ranks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ranks {
    /// Threads of this process
    Threads,
    /// Processes of an MPI launch
    Mpi,
    /// Processes of torchrun or srun, TCP between them
    Tcp,
    /// One process per GPU, NCCL between them
    Nccl,
}

/// Arguments of `psim execute`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    job: JobArguments,
    /// Plan file (TOML): schema = 1, tp, pp, dp, micro_batch, global_batch …
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// Where it runs: cpu, or cuda:N
    #[arg(long, value_name = "cpu|cuda:N", default_value = "cpu")]
    device: DeviceChoice,
    /// How ranks are made
    #[arg(long, value_enum, default_value_t = Ranks::Threads)]
    ranks: Ranks,
    /// Run only this rank's part; collectives wait as long as they are predicted to take
    #[arg(long, value_name = "RANK")]
    shard: Option<u32>,
    /// Steps that are timed, after one that warms up
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: u32,
    #[command(flatten)]
    common: CommonArguments,
}

/// Refuses what this program cannot run, with the reason.
fn supported(device: DeviceChoice, ranks: Ranks, shard: Option<u32>) -> Result<(), Failure> {
    if shard.is_some() && ranks != Ranks::Threads {
        return Err(Failure::input(
            "--shard runs one rank, whose peers are waits",
            "leave --ranks out, or leave --shard out",
        ));
    }
    if ranks == Ranks::Nccl && device == DeviceChoice::Cpu {
        return Err(Failure::input(
            "NCCL connects GPUs, and the device is the CPU",
            "use --ranks threads or --ranks mpi with --device cpu",
        ));
    }
    Ok(())
}

/// Loads a job for the CPU, where arithmetic is fp32.
pub(crate) fn in_fp32(job: &JobArguments) -> Result<JobArguments, Failure> {
    match job.precision.map(Format::training).transpose()? {
        None | Some(Precision::Fp32) => {
            Ok(JobArguments { precision: Some(Precision::Fp32.into()), ..job.clone() })
        }
        Some(other) => Err(Failure::input(
            format!("--precision {} on the CPU, which computes in fp32", other.name()),
            "leave --precision out, or say fp32",
        )),
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    supported(arguments.device, arguments.ranks, arguments.shard)?;
    if let Some(rank) = arguments.shard {
        return shard::run(arguments, rank as usize, host);
    }
    let written = crate::inputs::job::read_plan(host, &arguments.plan)?;
    let wanted = match arguments.device {
        DeviceChoice::Cpu => in_fp32(&arguments.job)?,
        DeviceChoice::Cuda(_) => arguments.job.clone(),
    };
    let (job, plan) = super::simulate::load(&wanted, &arguments.common, &arguments.plan, host)?;
    match arguments.ranks {
        Ranks::Threads => fits(&job, &plan)?,
        Ranks::Mpi | Ranks::Tcp | Ranks::Nccl => enough(&job, &plan)?,
    }
    let processes = matches!(arguments.ranks, Ranks::Mpi | Ranks::Tcp);
    if arguments.device == DeviceChoice::Cpu && processes && arguments.common.profiles.is_empty() {
        return Err(Failure::input(
            "every process would measure the machine at once",
            "run `psim calibrate --device cpu --out cpu.toml` first, then give --profile cpu.toml",
        ));
    }
    let place = match arguments.device {
        DeviceChoice::Cpu => Place::processor(&arguments.common, &job, host)?,
        DeviceChoice::Cuda(index) => Place::gpu(&arguments.common, &job, index)?,
    };
    let mut notes: Vec<String> = place.note.iter().cloned().collect();
    if arguments.device == DeviceChoice::Cpu && written.precision != Precision::Fp32 {
        notes.push(format!("the plan says {}; the CPU computes in fp32", written.precision.name()));
    }
    // Where ranks are processes, the first one speaks.
    let Some(report) = measured(&job, &plan, &place, arguments)? else { return Ok(()) };
    notes.extend(report.notes.iter().cloned());
    if arguments.common.json {
        return host.json(&json!({
            "schema": 1, "model": job.model.name, "cluster": job.cluster.name, "plan": plan,
            "profile": place.origin, "error": report.error(), "factors": report.factors(),
            "report": report, "notes": notes,
        }));
    }
    host.print(text(&job, &plan, &place, arguments.ranks, &report, &notes))
}

/// The plan must have no more ranks than the cluster.
fn enough(job: &Job, plan: &Plan) -> Result<(), Failure> {
    let (ranks, there) = (plan.world(), job.cluster.accelerators());
    if ranks > there {
        return Err(Failure::input(
            format!("the plan needs {ranks} ranks, the cluster has {there}"),
            "make tp · pp · dp · cp smaller, or take a larger cluster",
        ));
    }
    Ok(())
}

/// The plan must fit the cluster, and have few enough ranks for threads.
fn fits(job: &Job, plan: &Plan) -> Result<(), Failure> {
    enough(job, plan)?;
    let ranks = plan.world();
    if ranks > MAX_RANKS {
        return Err(Failure::input(
            format!("the plan needs {ranks} ranks; at most {MAX_RANKS} threads are started"),
            "run a smaller plan",
        ));
    }
    Ok(())
}

fn measured(
    job: &Job,
    plan: &Plan,
    place: &Place,
    arguments: &Arguments,
) -> Result<Option<ExecuteReport>, Failure> {
    let cluster = place.cluster(plan.world());
    let basis = Basis {
        cluster: &cluster,
        stack: &place.stack,
        library: &place.library,
        sharing: &place.sharing,
        factors: PhaseFactors::default(),
    };
    let request = ExecuteRequest {
        model: &job.model,
        plan,
        workload: &job.workload,
        device: place.device,
        ranks: match arguments.ranks {
            Ranks::Threads => RankMode::Threads,
            Ranks::Mpi => RankMode::Mpi,
            Ranks::Tcp => RankMode::Tcp,
            Ranks::Nccl => RankMode::Nccl,
        },
        steps: arguments.steps,
        seed: arguments.common.seed,
        basis: Some(basis),
    };
    execute(&request).map_err(|e| hinted(&e.to_string(), "change the plan or the model"))
}

/// Milliseconds.
fn ms(seconds: f64) -> String {
    format!("{:.2}", seconds * 1e3)
}

/// Predicted against measured, percent.
fn off(predicted: f64, measured: f64) -> String {
    if measured > 1e-9 { format!("{:+.0}", (predicted / measured - 1.0) * 100.0) } else { String::new() }
}

/// Phases of a report as a table.
pub(crate) fn phases(report: &ExecuteReport) -> String {
    let mut table = Table::new(&[
        ("stage", Align::Right),
        ("phase", Align::Left),
        ("measured ms", Align::Right),
        ("predicted ms", Align::Right),
        ("error %", Align::Right),
        ("processor ms", Align::Right),
        ("predicted ms", Align::Right),
        ("error %", Align::Right),
    ]);
    for row in &report.phases {
        let (predicted, processor) = (row.predicted.unwrap_or(0.0), row.predicted_processor.unwrap_or(0.0));
        let waiting = row.phase == "wait";
        table.row([
            row.stage.to_string(),
            row.phase.to_owned(),
            ms(row.measured),
            ms(predicted),
            off(predicted, row.measured),
            if waiting { String::new() } else { ms(row.processor) },
            if waiting { String::new() } else { ms(processor) },
            if waiting { String::new() } else { off(processor, row.processor) },
        ]);
    }
    table.render()
}

fn text(job: &Job, plan: &Plan, place: &Place, ranks: Ranks, r: &ExecuteReport, notes: &[String]) -> String {
    let on_gpu = matches!(place.device, ExecuteDevice::Cuda(_));
    let kind = match ranks {
        Ranks::Threads => "rank threads",
        Ranks::Mpi => "ranks over MPI",
        Ranks::Tcp => "ranks over TCP",
        Ranks::Nccl => "ranks over NCCL",
    };
    let cores = if on_gpu { String::new() } else { format!(", {} cores", r.cores) };
    let mut out = format!(
        "{} ({}) on {} {kind}{cores} ({})\nplan: {}; sequences of {} tokens\n",
        job.model.name,
        crate::number::short(job.model.parameters().total as f64),
        r.ranks,
        r.device,
        plan_label(plan),
        grouped(job.workload.seq_len),
    );
    let predicted = r.predicted.unwrap_or(0.0);
    out.push_str(&format!(
        "step: measured {} ms (spread of {} steps {:.0} %), predicted {} ms, error {} %\n",
        ms(r.measured),
        r.step_seconds.len(),
        r.spread * 100.0,
        ms(predicted),
        off(predicted, r.measured)
    ));
    let processor = r.predicted_processor.unwrap_or(0.0);
    let whose = if on_gpu { "time of the devices" } else { "processor time" };
    out.push_str(&format!(
        "{whose} of all ranks: measured {} ms (spread {:.0} %), predicted {} ms, error {} %\n\n",
        ms(r.processor),
        r.processor_spread * 100.0,
        ms(processor),
        off(processor, r.processor)
    ));
    out.push_str(&phases(r));
    for c in &r.communication {
        out.push_str(&format!(
            "{} communication: {} ms per rank and step, {} of them waiting, {:.2} MB sent\n",
            c.dimension,
            ms(c.seconds),
            ms(c.wait),
            c.bytes as f64 * 1e-6
        ));
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    out.push_str(&format!(
        "memory of the fullest rank: measured {:.1} MiB, predicted {:.1} MiB\n",
        mib(r.memory),
        mib(r.predicted_memory.unwrap_or(0))
    ));
    if let Some(taken) = r.device_memory {
        out.push_str(&format!("memory taken on the device in the end: {:.1} MiB\n", mib(taken)));
    }
    let losses: Vec<String> = r.losses.iter().take(8).map(|l| format!("{l:.4}")).collect();
    out.push_str(&format!("loss per step: {}\n", losses.join(" ")));
    out.push_str(&format!("prediction from: {}\n", place.origin));
    for note in notes {
        out.push_str(&wrap(&format!("note: {note}"), 100, "  "));
        out.push('\n');
    }
    out
}
