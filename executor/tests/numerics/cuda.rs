//! The executor on CUDA devices without a GPU: kernels emulated by the tests of the kernels crate, collectives by a library
//! with NCCL's calls (`fake_nccl.cpp`). On a machine with a GPU the same plans also run on it.

#[path = "../../../kernels/tests/emulated/device.rs"]
mod emulation;

use super::{Expected, SEED, assemble, models, settings, short};
use emulation::{Emulation, device};
use psim_executor::comm::{Comm, Hub, Process, Tcp};
use psim_executor::fabric::{Fabric, Nccl};
use psim_executor::launch::Launch;
use psim_executor::serving::{Clock, ServeRequest, ServeSettings, serve, serve_in};
use psim_executor::{Job, Run, Settings, run_threads};
use psim_hardware::DType;
use psim_kernels::conformance::relative_error;
use psim_kernels::cuda::CudaDevice;
use psim_kernels::cuda::nccl::Library;
use psim_kernels::cuda::runtime::Runtime;
use psim_models::plan::{ContextParallel, Recompute, Schedule, Sharding};
use psim_models::{Model, Plan};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};

/// Set for the processes that the test of processes starts: the port of rank 0.
const WORKER: &str = "PSIM_TEST_NCCL_WORKER";

/// Tiny models with heads of a width that the kernels have.
fn suite() -> [(Model, Vec<Plan>); 3] {
    let base = || Plan { global_batch: 4, ..models::base() };
    let wide = |model: Model| models::widened(model, 64, 61, 32, 48);
    let gpt = vec![
        base(),
        Plan { micro_batch: 4, recompute: Recompute::Full, ..base() },
        Plan { tp: 2, dp: 2, ..base() },
        Plan { pp: 2, dp: 2, sharding: Sharding::None, ..base() },
    ];
    let llama = vec![
        Plan { recompute: Recompute::Selective, micro_batch: 2, ..base() },
        Plan { tp: 2, ..base() },
        Plan { cp: 2, ..base() },
        Plan { cp: 4, micro_batch: 2, ..base() },
        Plan { cp: 2, cp_kind: ContextParallel::AllGather, ..base() },
        Plan { dp: 3, global_batch: 3, ..base() },
        Plan { dp: 2, sharding: Sharding::Gradients, ..base() },
        Plan { dp: 2, pp: 2, sharding: Sharding::Parameters, ..base() },
        Plan { pp: 2, vpp: 2, schedule: Schedule::Interleaved, ..base() },
        Plan { pp: 2, vpp: 2, schedule: Schedule::ZbV, ..base() },
        Plan { pp: 4, schedule: Schedule::ZbH1, ..base() },
    ];
    let mixture = vec![
        base(),
        Plan { dp: 2, ep: 2, ..base() },
        Plan { tp: 2, dp: 2, ep: 2, etp: 2, ..base() },
        Plan { pp: 2, dp: 2, ep: 2, recompute: Recompute::Full, ..base() },
    ];
    [(wide(models::gpt(2)), gpt), (wide(models::llama(4)), llama), (wide(models::mixture(3)), mixture)]
}

/// The workload of a plan: as many sequences as it says.
fn workload(plan: &Plan) -> psim_models::TrainingWorkload {
    psim_models::TrainingWorkload { global_batch: plan.global_batch, ..models::workload() }
}

/// The library with NCCL's calls, compiled once; `None` without a compiler.
fn fake_nccl() -> Option<Arc<Library>> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        std::fs::create_dir_all(&folder).unwrap();
        let binary = folder.join(format!("fake-nccl-{}.so", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/numerics/fake_nccl.cpp");
        let done = Command::new("g++")
            .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-o"])
            .arg(&binary)
            .arg(source)
            .output();
        match done {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                Some(binary)
            }
            Err(_) => {
                println!("SKIP ranks over NCCL: g++ is not on this machine");
                None
            }
        }
    });
    path.as_deref().map(|p| Library::open(p).unwrap())
}

/// All ranks as threads, a device each, tensors over NCCL.
fn run_nccl<R: Runtime + Sync + 'static>(
    job: &Job,
    settings: &Settings,
    library: &Arc<Library>,
    world: usize,
    device: impl Fn() -> CudaDevice<R> + Sync,
) -> Run
where
    R::Event: Send,
{
    let hub = Hub::new(world);
    let records = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..world)
            .map(|rank| {
                let (hub, device) = (&hub, &device);
                scope.spawn(move || {
                    let device = device();
                    let comm = Comm::new(hub.endpoint(rank));
                    let fabric = Nccl::connect(library, &device, &comm, job).unwrap();
                    let fabric: Box<dyn Fabric<CudaDevice<R>>> = Box::new(fabric);
                    job.run_rank(device, comm, Some(fabric), settings)
                })
            })
            .collect();
        handles.into_iter().map(|h| h.join().unwrap().unwrap()).collect()
    });
    job.outcome(records, settings)
}

#[test]
fn steps_on_emulated_devices_equal_the_reference() {
    if device().is_none() {
        return;
    }
    for (model, plans) in suite() {
        // One rank, and ranks that talk through the host.
        for plan in plans.iter().filter(|p| p.world() <= 2).take(4) {
            let mut expected = Expected::new(&model);
            let make = |_| Ok(CudaDevice::on(Emulation));
            let run = run_threads(&model, plan, &workload(plan), &settings(1), make).unwrap();
            assert!(run.ranks[0].memory.peak > run.ranks[0].states);
            expected.check(plan, &run);
        }
    }
}

#[test]
fn nccl_ranks_on_emulated_devices_equal_the_reference() {
    let (Some(library), Some(_)) = (fake_nccl(), device()) else { return };
    assert_eq!(library.version().unwrap(), 22_799);
    for (model, plans) in suite() {
        let mut expected = Expected::new(&model);
        for plan in &plans {
            let job = Job::new(&model, plan, &workload(plan)).unwrap();
            let make = || CudaDevice::on(Emulation);
            let run = run_nccl(&job, &settings(1), &library, plan.world() as usize, make);
            if plan.global_batch == plans[0].global_batch {
                expected.check(plan, &run);
            } else {
                Expected::new(&model).check(plan, &run);
            }
        }
    }
}

/// bf16 with fp32 accumulation and master weights: the same step up to rounding, and another one behind it.
#[test]
fn bf16_steps_follow_the_reference() {
    let (Some(library), Some(_)) = (fake_nccl(), device()) else { return };
    let [_, (model, _), (mixture, _)] = suite();
    let base = Plan { global_batch: 4, ..models::base() };
    for (model, plan) in [
        (&model, base.clone()),
        (&model, Plan { tp: 2, dp: 2, sharding: Sharding::Parameters, ..base.clone() }),
        (&mixture, base.clone()),
    ] {
        let job = Job::new(model, &plan, &workload(&plan)).unwrap();
        let settings = Settings { dtype: DType::Bf16, ..settings(2) };
        let world = plan.world() as usize;
        let run = run_nccl(&job, &settings, &library, world, || CudaDevice::on(Emulation));
        let exact = run_threads(model, &base, &workload(&plan), &super::settings(2), |_| {
            Ok(psim_kernels::cpu::CpuDevice::new())
        })
        .unwrap();
        assert!((run.losses[1] / exact.losses[1] - 1.0).abs() < 1e-2, "{:?} {:?}", run.losses, exact.losses);
        assert!((run.losses[0] / exact.losses[0] - 1.0).abs() < 1e-2, "{:?} {:?}", run.losses, exact.losses);
        let gradients = assemble_loosely(&run);
        let mut worst: f64 = 0.0;
        for (name, (_, values)) in assemble(exact.ranks.iter().flat_map(|r| r.gradients.clone())) {
            let exact: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
            let error = relative_error(&gradients[&name], &exact);
            // Routing is a choice: a token whose two experts are nearly equal may go the other way.
            let limit = if model.name.starts_with("mixture") { 0.5 } else { 0.1 };
            assert!(error < limit, "{} {}: {name} is off by {error:.2e}", model.name, short(&plan));
            worst = worst.max(error);
        }
        println!("{} {} in bf16: worst gradient error {worst:.1e}", model.name, short(&plan));
    }
}

/// Pieces put together; copies on several ranks may differ by rounding.
fn assemble_loosely(run: &Run) -> std::collections::BTreeMap<String, Vec<f32>> {
    let mut whole = std::collections::BTreeMap::new();
    for piece in run.ranks.iter().flat_map(|r| &r.gradients) {
        let len = piece.whole[0] * piece.whole[1];
        let values = whole.entry(piece.name.clone()).or_insert_with(|| vec![f32::NAN; len]);
        for (&position, &value) in piece.positions.iter().zip(&piece.values) {
            values[position] = value;
        }
    }
    whole
}

/// One process of the test below; does nothing unless it started it.
#[test]
fn nccl_worker() {
    if std::env::var_os(WORKER).is_none() {
        return;
    }
    let launch = Launch::from_environment().unwrap().unwrap();
    let process = Process::new(Tcp::meet(&launch).unwrap());
    let library = fake_nccl().unwrap();
    let [_, (model, _), _] = suite();
    let plan = Plan { tp: 2, pp: 2, global_batch: 4, ..models::base() };
    let job = Job::new(&model, &plan, &workload(&plan)).unwrap();
    let device = CudaDevice::on(Emulation);
    let fabric = Nccl::connect(&library, &device, &Comm::new(&process), &job).unwrap();
    let run = job.run_process_with(&settings(1), device, &process, Some(Box::new(fabric))).unwrap();
    if let Some(run) = run {
        Expected::new(&model).check(&plan, &run);
        println!("ranks as processes over NCCL equal the reference");
    }
}

#[test]
fn nccl_processes_equal_the_reference() {
    if fake_nccl().is_none() || device().is_none() {
        return;
    }
    // A port that is free now.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let children: Vec<_> = (0..4)
        .map(|rank: u32| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "cuda::nccl_worker", "--nocapture", "--test-threads=1"])
                .env(WORKER, "1")
                .envs([
                    ("RANK", rank.to_string()),
                    ("WORLD_SIZE", "4".to_owned()),
                    ("LOCAL_RANK", rank.to_string()),
                    ("MASTER_ADDR", "127.0.0.1".to_owned()),
                    ("MASTER_PORT", port.to_string()),
                ])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut said = String::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        said.push_str(&text);
    }
    assert!(said.contains("over NCCL equal the reference"), "{said}");
}

/// World size 1 of the real library, on a machine that has a GPU.
#[test]
fn nccl_alone_on_a_gpu_equals_the_reference() {
    let (library, gpu) = match (Library::load(), psim_kernels::cuda::open(0)) {
        (Ok(library), Ok(_)) => (library, || psim_kernels::cuda::open(0).unwrap()),
        (library, gpu) => {
            let why = gpu.err().or(library.err()).map(|e| e.to_string()).unwrap_or_default();
            println!("SKIP NCCL on a GPU: {why}");
            return;
        }
    };
    for (model, plans) in suite() {
        for plan in plans.iter().filter(|p| p.world() == 1) {
            let job = Job::new(&model, plan, &workload(plan)).unwrap();
            let run = run_nccl(&job, &settings(1), &library, 1, gpu);
            Expected::new(&model).check(plan, &run);
        }
        // More ranks than one share the card and talk through the host.
        for plan in plans.iter().filter(|p| p.world() == 2) {
            let run = run_threads(&model, plan, &workload(plan), &settings(1), |_| Ok(gpu())).unwrap();
            Expected::new(&model).check(plan, &run);
        }
    }
    println!("seed {SEED}: NCCL in a world of one, and rank threads on one GPU, equal the reference");
}

/// Requests served by an emulated device, prompts in blocks and decoding over pages, get the scores of the processor.
#[test]
fn serving_on_emulated_devices_gives_the_same_scores() {
    if device().is_none() {
        return;
    }
    let [_, (model, _), _] = suite();
    let requests: Vec<ServeRequest> = [(3, 5), (17, 4), (1, 6), (9, 3)]
        .into_iter()
        .enumerate()
        .map(|(i, (prompt, output))| ServeRequest {
            arrival: 0.0,
            prompt: (0..prompt).map(|t| ((7 * t + 13 * i + 5) % 61) as u32).collect(),
            output,
        })
        .collect();
    // Room for all at once; and prompts in pieces, sequences that lose their pages.
    for (tp, pages, tokens) in [(1, 64, 64), (1, 9, 8), (2, 64, 16)] {
        let settings = ServeSettings {
            tp,
            replicas: 1,
            page: 4,
            pages,
            tokens,
            sequences: 4,
            seed: SEED,
            scores: true,
            clock: Clock::Wall,
            warm_up: false,
        };
        let exact = serve(&model, &requests, &settings, |_| Ok(psim_kernels::cpu::CpuDevice::new())).unwrap();
        for (dtype, limit) in [(DType::Fp32, 1e-5), (DType::Bf16, 0.05)] {
            let make = |_| Ok(CudaDevice::on(Emulation));
            let run = serve_in(dtype, &model, &requests, &settings, make).unwrap();
            for (a, b) in run.requests.iter().zip(&exact.requests) {
                assert_eq!(a.tokens.len(), b.tokens.len());
                for (i, (scores, exact)) in a.scores.iter().zip(&b.scores).enumerate() {
                    let exact: Vec<f64> = exact.iter().map(|v| f64::from(*v)).collect();
                    let error = relative_error(scores, &exact);
                    assert!(error < limit, "{dtype} tp{tp}: token {i} is off by {error:.1e}");
                    if a.tokens[i] != b.tokens[i] {
                        // Rounding chose another word: what follows is another text.
                        assert!(dtype != DType::Fp32);
                        break;
                    }
                }
            }
        }
    }
}
