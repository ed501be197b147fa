//! The same plans on MPI ranks: this test program starts itself under `mpirun`.

use super::{Expected, models, settings};
use psim_executor::Job;
use psim_executor::comm::{Mpi, Process};
use psim_executor::launch::Launch;
use psim_kernels::cpu::CpuDevice;
use std::process::Command;

/// Set for the processes that `mpirun` starts.
const WORKER: &str = "PSIM_TEST_MPI_WORKER";
/// More than any plan's ranks.
const RANKS: usize = 16;

/// One rank of every plan in turn; does nothing unless `mpirun` started it.
#[test]
fn worker() {
    if std::env::var_os(WORKER).is_none() {
        return;
    }
    assert_eq!(Launch::from_environment().unwrap().unwrap().world, RANKS);
    let process = Process::new(Mpi::join().unwrap());
    let mut plans_run = 0;
    for (model, plans) in models::suite() {
        let mut expected = Expected::new(&model);
        for plan in plans {
            let job = Job::new(&model, &plan, &models::workload()).unwrap();
            let run = job.run_process(&settings(1), CpuDevice::poisoning(), &process).unwrap();
            if let Some(run) = run {
                expected.check(&plan, &run);
                plans_run += 1;
            }
        }
    }
    if plans_run > 0 {
        println!("{plans_run} plans over MPI equal the reference");
    }
}

fn launch(mpirun: &str, arguments: &[&str], test: &str) -> String {
    let output = Command::new(mpirun)
        .args(arguments)
        .args(["-n", &RANKS.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(WORKER, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Open MPI refuses to run as root or on fewer cores than ranks unless it is told.
#[test]
fn plans_on_open_mpi_ranks_equal_the_reference() {
    let found = Command::new("mpirun").arg("--version").output();
    if !found.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("Open MPI")) {
        println!(
            "SKIP plans on MPI ranks: Open MPI's mpirun is not installed (`apt-get install openmpi-bin`)"
        );
        return;
    }
    let text = launch("mpirun", &["--allow-run-as-root", "--oversubscribe"], "mpi::worker");
    let all = format!("{} plans over MPI equal the reference", super::plans_compared());
    assert!(text.contains(&all), "{text}");
}

/// The other handle layout.
#[test]
fn plans_on_mpich_ranks_equal_the_reference() {
    if Command::new("mpiexec.mpich").arg("--version").output().is_err() {
        println!("SKIP plans on MPICH ranks: mpiexec.mpich is not installed (`apt-get install mpich`)");
        return;
    }
    let text = launch("mpiexec.mpich", &[], "mpi::worker");
    let all = format!("{} plans over MPI equal the reference", super::plans_compared());
    assert!(text.contains(&all), "{text}");
}
