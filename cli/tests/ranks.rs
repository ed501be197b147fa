//! Ranks as processes of the program itself: under `mpirun`, and as torchrun would start them.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panic")]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const CONFIG: &str = r#"{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_layer": 2,
    "n_head": 4, "n_positions": 64, "vocab_size": 256}"#;
const PLAN: &str =
    "schema = 1\ntp = 2\npp = 1\ndp = 1\nmicro_batch = 1\nglobal_batch = 4\nprecision = \"fp32\"\n";
const PSIM: &str = env!("CARGO_BIN_EXE_psim");
const EXECUTE: [&str; 11] = [
    "execute",
    "--model",
    "config.json",
    "--cluster",
    "cpu.cluster.toml",
    "--plan",
    "plan.toml",
    "--profile",
    "cpu.toml",
    "--steps",
    "2",
];

/// A folder with a model, a plan, and this machine measured for a moment.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    std::fs::write(folder.path().join("plan.toml"), PLAN).unwrap();
    let calibrate =
        ["calibrate", "--device", "cpu", "--out", "cpu.toml", "--minutes", "0.06", "--ranks", "2"];
    let done = Command::new(PSIM).current_dir(folder.path()).args(calibrate).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    folder
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn losses(report: &Value) -> Vec<f64> {
    report["report"]["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect()
}

fn threads(folder: &Path) -> Vec<f64> {
    let output = Command::new(PSIM).current_dir(folder).args(EXECUTE).arg("--json").output().unwrap();
    losses(&report(&output))
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), 2);
    assert!(a.iter().zip(b).all(|(a, b)| (a / b - 1.0).abs() < 1e-5), "{a:?} {b:?}");
}

#[test]
fn mpirun_starts_the_ranks() {
    let version = Command::new("mpirun").arg("--version").output();
    let Ok(version) = version else {
        println!("SKIP ranks under mpirun: it is not installed (`apt-get install openmpi-bin`)");
        return;
    };
    let folder = folder();
    let mut command = Command::new("mpirun");
    if String::from_utf8_lossy(&version.stdout).contains("Open MPI") {
        // It refuses to run as root or on fewer cores than ranks unless it is told.
        command.args(["--allow-run-as-root", "--oversubscribe"]);
    }
    let output = command
        .current_dir(folder.path())
        .args(["-n", "2", PSIM])
        .args(EXECUTE)
        .args(["--ranks", "mpi", "--json"])
        .output()
        .unwrap();
    close(&losses(&report(&output)), &threads(folder.path()));
}

#[test]
fn a_launcher_with_torchruns_variables_starts_the_ranks() {
    let folder = folder();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let children: Vec<_> = ["0", "1"]
        .into_iter()
        .map(|rank| {
            Command::new(PSIM)
                .current_dir(folder.path())
                .args(EXECUTE)
                .args(["--ranks", "tcp", "--json"])
                .envs([("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank)])
                .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let outputs: Vec<Output> = children.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    assert!(outputs[1].status.success() && outputs[1].stdout.is_empty(), "only rank 0 reports");
    close(&losses(&report(&outputs[0])), &threads(folder.path()));
}

/// Without a GPU every way to ask for one ends with what is missing and what to do.
#[test]
fn gpus_that_are_not_there_are_named() {
    if psim_kernels::cuda::probe().usable() {
        println!("SKIP: this machine has a GPU");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    std::fs::write(folder.path().join("plan.toml"), PLAN.replace("fp32", "bf16")).unwrap();
    let job = ["--model", "config.json", "--cluster", "h100x8"];
    let execute = [&["execute"], &job[..], &["--plan", "plan.toml", "--device", "cuda"]].concat();
    let one = ["--model", "config.json", "--cluster", "h100x1", "--global-batch", "4"];
    for arguments in [
        execute.clone(),
        [&execute[..], &["--ranks", "nccl"]].concat(),
        [&execute[..], &["--shard", "0"]].concat(),
        [&["plan"], &one[..], &["--execute-top", "1", "--device", "cuda:0"]].concat(),
    ] {
        let output = Command::new(PSIM).current_dir(folder.path()).args(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("CUDA") && said.contains("hint: "), "{arguments:?}: {said}");
    }
}
