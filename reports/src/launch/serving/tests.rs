use super::*;
use psim_cost_models::serving::engine::find;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::{Arrival, NumberFormat, Quantization, ServiceLevel};

fn files(deployment: Deployment, part: &str, engine: ServingEngine) -> Result<Vec<LaunchFile>, LaunchError> {
    let model = presets::find("llama3-70b").unwrap();
    let cluster = homogeneous(part, 16, &HomogeneousOptions::default()).unwrap();
    let mut workload = ServingWorkload::fixed("w", Arrival::Gamma { rate: 2.5, cv: 2.0 }, 500, 2048, 128);
    workload.tenants[0].slo = ServiceLevel::parse("ttft<500ms@p90,tpot<50ms").unwrap();
    let job = ServingLaunch {
        model: &model,
        cluster: &cluster,
        workload: &workload,
        engine: find("vllm-v1").unwrap(),
        deployment: &deployment,
        router: Router::LeastLoad,
    };
    emit(engine, &job)
}

#[test]
fn the_balancer_does_what_was_predicted() {
    let model = presets::find("llama3-8b").unwrap();
    let cluster = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default()).unwrap();
    let workload = ServingWorkload::fixed("w", Arrival::Poisson { rate: 2.5 }, 500, 2048, 128);
    let deployment = layout(8, 1);
    for (router, least, said) in [
        (Router::RoundRobin, false, "in turn"),
        (Router::LeastLoad, true, "as the prediction assumes"),
        (Router::PrefixAware, true, "nginx does not"),
    ] {
        let job = ServingLaunch {
            model: &model,
            cluster: &cluster,
            workload: &workload,
            engine: find("vllm-v1").unwrap(),
            deployment: &deployment,
            router,
        };
        let files = emit(ServingEngine::Vllm, &job).unwrap();
        let nginx = text(&files, "nginx.conf");
        assert_eq!(nginx.contains("least_conn"), least, "{nginx}");
        assert!(nginx.contains(said), "{nginx}");
        assert!(text(&files, "vllm.sh").contains("8 on each node: run this on 1 node."));
    }
}

fn layout(replicas: u32, tp: u32) -> Deployment {
    Deployment { replicas, ..Deployment::tensor_parallel(tp, Quantization::uniform(NumberFormat::Bf16)) }
}

fn text(files: &[LaunchFile], name: &str) -> String {
    files.iter().find(|f| f.name == name).map(|f| f.contents.clone()).unwrap_or_default()
}

#[test]
fn every_engine_says_the_layout_and_the_benchmark_the_load() {
    for (engine, name, tp, rate) in [
        (ServingEngine::Vllm, "vllm", "--tensor-parallel-size 4", "--burstiness 0.25"),
        (ServingEngine::Sglang, "sglang", "--tp-size 4", "Poisson arrivals only"),
        (ServingEngine::TensorRtLlm, "trtllm", "--tp_size 4", "--burstiness 0.25"),
    ] {
        let files = files(layout(4, 4), "H100-SXM-80GB", engine).unwrap();
        let serve = text(&files, &format!("{name}.sh"));
        assert!(serve.contains(tp), "{serve}");
        // Two replicas of four share a node of eight, on their own accelerators.
        assert!(serve.contains("seq 0 1") && serve.contains("first=$((replica * 4))"), "{serve}");
        // 2,048 + 128 tokens and an eighth, in steps of 256.
        assert!(serve.contains(" 2560"), "{serve}");
        let bench = text(&files, &format!("{name}-bench.sh"));
        for part in [
            "--random-input-len 2048 --random-output-len 128",
            "--request-rate 2.5",
            "--num-prompts 500",
            rate,
        ] {
            assert!(bench.contains(part), "{part}: {bench}");
        }
        assert_eq!(text(&files, "nginx.conf").matches("server node").count(), 4);
    }
}

#[test]
fn what_an_engine_cannot_express_is_refused() {
    let mut d = layout(1, 4);
    d.quantization = Quantization::uniform(NumberFormat::Q4km);
    for engine in ServingEngine::ALL {
        assert!(files(d, "H100-SXM-80GB", engine).unwrap_err().to_string().contains("Q4_K_M"));
    }
    assert!(
        files(layout(1, 4), "MI300X", ServingEngine::TensorRtLlm).unwrap_err().to_string().contains("MI300X")
    );
}

#[test]
fn scripts_are_valid_shell() {
    let Ok(status) = std::process::Command::new("bash").arg("--version").output() else { return };
    assert!(status.status.success());
    for engine in ServingEngine::ALL {
        for d in [layout(4, 4), layout(2, 8), layout(1, 16)] {
            for file in files(d, "H100-SXM-80GB", engine).unwrap() {
                if file.name.ends_with(".sh") {
                    let run = std::process::Command::new("bash")
                        .args(["-n", "-c", &file.contents])
                        .output()
                        .unwrap();
                    assert!(run.status.success(), "{}: {}", file.name, String::from_utf8_lossy(&run.stderr));
                }
            }
        }
    }
}

fn split_files(engine: ServingEngine, placement: psim_sim::serving::Placement) -> Vec<LaunchFile> {
    use psim_planner::serving::{PoolLayout, Split};
    let model = presets::find("llama3-70b").unwrap();
    let cluster = homogeneous("H100-SXM-80GB", 24, &HomogeneousOptions::default()).unwrap();
    let workload = ServingWorkload::fixed("w", Arrival::Poisson { rate: 2.5 }, 500, 2048, 128);
    let split = Split {
        prefill: PoolLayout { token_budget: Some(16_384), ..layout(2, 2).into() },
        decode: layout(3, 4).into(),
        placement,
        transfer: psim_sim::serving::TransferMode::LayerWise,
    };
    let job = SplitLaunch {
        model: &model,
        cluster: &cluster,
        workload: &workload,
        engine: find("vllm-v1").unwrap(),
        split: &split,
    };
    emit_split(engine, &job).unwrap()
}

#[test]
fn splits_start_every_instance_once_on_accelerators_of_its_own() {
    use psim_sim::serving::Placement;
    for placement in [Placement::Paired, Placement::Apart] {
        for engine in ServingEngine::ALL {
            let files = split_files(engine, placement);
            let serve = files.iter().find(|f| f.name.ends_with("-split.sh")).unwrap();
            let cases: Vec<&str> = serve.contents.lines().filter(|l| l.ends_with(";;")).collect();
            let calls: Vec<Vec<&str>> = cases
                .iter()
                .flat_map(|l| l.split_once(')').unwrap().1.trim_end_matches(";;").split(';'))
                .map(|c| c.split_whitespace().collect())
                .filter(|c: &Vec<&str>| matches!(c.first(), Some(&"prefill" | &"decode")))
                .collect();
            assert_eq!(calls.iter().filter(|c| c[0] == "prefill").count(), 2, "{}", serve.contents);
            assert_eq!(calls.iter().filter(|c| c[0] == "decode").count(), 3);
            for line in &cases {
                let mut used = Vec::new();
                for call in line.split([')', ';']).map(|c| c.split_whitespace().collect::<Vec<_>>()) {
                    if let [role @ ("prefill" | "decode"), _, _, first] = call[..] {
                        let first: u32 = first.parse().unwrap();
                        used.extend(first..first + if role == "prefill" { 2 } else { 4 });
                    }
                }
                let mut once = used.clone();
                once.sort_unstable();
                once.dedup();
                assert!(once.len() == used.len() && used.iter().all(|a| *a < 8), "{line}");
            }
            assert!(serve.contents.contains("16384"), "limits of a pool of its own");
            let proxy = files.iter().find(|f| f.name.ends_with("-proxy.sh")).unwrap();
            assert!(proxy.contents.matches("${HOSTS[").count() >= 5, "{}", proxy.contents);
            for file in files.iter().filter(|f| f.name.ends_with(".sh")) {
                let run =
                    std::process::Command::new("bash").args(["-n", "-c", &file.contents]).output().unwrap();
                assert!(run.status.success(), "{}: {}", file.name, String::from_utf8_lossy(&run.stderr));
            }
        }
    }
}

#[test]
fn copies_of_the_attention_over_nodes_start_once_per_node() {
    let model = presets::find("deepseek-v3").unwrap();
    let cluster = homogeneous("H100-SXM-80GB", 32, &HomogeneousOptions::default()).unwrap();
    let workload = ServingWorkload::fixed("w", Arrival::Poisson { rate: 2.5 }, 500, 2048, 128);
    let quantization = Quantization::uniform(NumberFormat::Fp8Block);
    let wide = Deployment { attention_dp: 32, ep: 32, ..Deployment::tensor_parallel(1, quantization) };
    let engine = find("vllm-v1").unwrap();
    let job = ServingLaunch {
        model: &model,
        cluster: &cluster,
        workload: &workload,
        engine,
        deployment: &wide,
        router: Router::LeastLoad,
    };
    let vllm = text(&emit(ServingEngine::Vllm, &job).unwrap(), "vllm.sh");
    for part in
        ["--data-parallel-size 32", "--data-parallel-size-local 8", "$((8 * NODE_RANK))", "--headless"]
    {
        assert!(vllm.contains(part), "{part}: {vllm}");
    }
    assert!(!vllm.contains("ray"), "{vllm}");
    let sglang = text(&emit(ServingEngine::Sglang, &job).unwrap(), "sglang.sh");
    // Limits are shared by all copies there.
    let budget = format!("--chunked-prefill-size {}", engine.token_budget * 32);
    for part in ["--tp-size 32", "--dp-size 32", "--moe-a2a-backend deepep", "--nnodes 4", budget.as_str()] {
        assert!(sglang.contains(part), "{part}: {sglang}");
    }
}
