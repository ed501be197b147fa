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
    };
    emit(engine, &job)
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
        (ServingEngine::Sglang, "sglang", "--tp 4", "Poisson arrivals only"),
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
