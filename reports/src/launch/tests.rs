use super::*;
use psim_cost_models::ProfileLibrary;
use psim_models::presets;

/// Emits for a preset on a cluster with the plan given as TOML.
fn files(
    framework: Framework,
    model: &str,
    cluster: &str,
    plan: &str,
) -> Result<Vec<LaunchFile>, LaunchError> {
    let model = presets::find(model).unwrap();
    let cluster = psim_hardware::catalogue::cluster(cluster).unwrap();
    let library = ProfileLibrary::built_in();
    let plan: Plan = toml::from_str(plan).unwrap();
    let workload = TrainingWorkload {
        seq_len: 8192,
        global_batch: plan.global_batch,
        tokens: Some(15e12),
        packed_length: None,
        lora_rank: None,
        expert_imbalance: 1.0,
        capacity_factor: None,
    };
    let stack = library.stack(psim_cost_models::stacks::DEFAULT_TRAINING).unwrap();
    emit(framework, &LaunchJob { model: &model, cluster, workload: &workload, plan: &plan, stack })
}

const DENSE: &str =
    "tp = 8\npp = 4\ndp = 2\nvpp = 5\nmicro_batch = 1\nglobal_batch = 512\nschedule = \"interleaved\"";

#[test]
fn megatron_gets_the_whole_layout() {
    let text = &files(Framework::Megatron, "70b", "h100x64", DENSE).unwrap()[0].contents;
    for option in [
        "--num-layers 80",
        "--num-query-groups 8",
        "--tensor-model-parallel-size 8",
        "--pipeline-model-parallel-size 4",
        "--num-virtual-stages-per-pipeline-rank 5",
        "--sequence-parallel",
        "--micro-batch-size 1",
        "--global-batch-size 512",
        "--use-distributed-optimizer",
        "--bf16",
        "--nnodes 8 --nproc-per-node 8",
        "export CUDA_DEVICE_MAX_CONNECTIONS=1",
    ] {
        assert!(text.contains(option), "{option}\n{text}");
    }
    assert!(!text.contains("expert"), "a dense model has no expert options");
}

#[test]
fn experts_always_write_their_tensor_parallelism() {
    let plan = "tp = 2\npp = 1\ndp = 32\nep = 8\nmicro_batch = 1\nglobal_batch = 512";
    let text = &files(Framework::Megatron, "mixtral-8x7b", "h100x64", plan).unwrap()[0].contents;
    for option in [
        "--num-experts 8",
        "--moe-router-topk 2",
        "--expert-model-parallel-size 8",
        "--expert-tensor-parallel-size 1",
    ] {
        assert!(text.contains(option), "{option}");
    }
    let deepseek = &files(Framework::Megatron, "deepseek-v3", "h100x1024", plan).unwrap()[0].contents;
    for option in ["--multi-latent-attention", "--moe-layer-freq '([0]*3+[1]*58)'", "--kv-lora-rank 512"] {
        assert!(deepseek.contains(option), "{option}");
    }
}

#[test]
fn uneven_stages_become_a_layout() {
    let plan = "tp = 8\npp = 4\ndp = 2\nmicro_batch = 1\nglobal_batch = 512\nstage_layers = [19, 21, 21, 19]";
    let text = &files(Framework::Megatron, "70b", "h100x64", plan).unwrap()[0].contents;
    let layout = text.split("--pipeline-model-parallel-layout '").nth(1).unwrap().split('\'').next().unwrap();
    let stages: Vec<&str> = layout.split('|').collect();
    assert_eq!(stages.iter().map(|s| s.matches('t').count()).collect::<Vec<_>>(), [19, 21, 21, 19]);
    assert!(stages[0].starts_with('E') && stages[3].ends_with('L'));
}

#[test]
fn bridge_counts_chunks_per_rank() {
    let text = &files(Framework::Nemo, "70b", "h100x64", DENSE).unwrap()[0].contents;
    for option in [
        "model.virtual_pipeline_model_parallel_size=5",
        "train.global_batch_size=512",
        "ddp.grad_reduce_in_fp32=false",
        "ddp.use_distributed_optimizer=true",
    ] {
        assert!(text.contains(option), "{option}");
    }
}

#[test]
fn torchtitan_parses_and_refuses_what_it_cannot() {
    let refused = files(Framework::Torchtitan, "70b", "h100x64", DENSE).unwrap_err();
    assert!(refused.to_string().contains("ZeRO-1"), "{refused}");
    let written =
        files(Framework::Torchtitan, "70b", "h100x64", &format!("{DENSE}\nsharding = \"parameters\""))
            .unwrap();
    let table: toml::Table = toml::from_str(&written[0].contents).unwrap();
    let parallelism = table["parallelism"].as_table().unwrap();
    assert_eq!(parallelism["pipeline_parallel_layers_per_stage"].as_integer(), Some(4));
    assert_eq!(parallelism["pipeline_parallel_first_stage_less_layers"].as_integer(), Some(0));
    assert_eq!(parallelism["data_parallel_shard_degree"].as_integer(), Some(2));
    assert_eq!(table["training"]["local_batch_size"].as_integer(), Some(256));
    assert_eq!(table["model"]["flavor"].as_str(), Some("70B"));
}

#[test]
fn zero_bubble_is_refused_by_name() {
    let plan = "tp = 8\npp = 8\ndp = 1\nmicro_batch = 1\nglobal_batch = 64\nschedule = \"zb-h1\"";
    for framework in Framework::ALL {
        let error = files(framework, "70b", "h100x64", plan).unwrap_err().to_string();
        assert!(error.contains(framework.name()), "{error}");
    }
}

/// The scripts are shell: bash, where there is one, reads them without complaint.
#[test]
fn scripts_are_well_formed() {
    for framework in [Framework::Megatron, Framework::Nemo] {
        for file in files(framework, "70b", "h100x64", DENSE).unwrap() {
            let child = std::process::Command::new("bash").args(["-n", "-c", &file.contents]).output();
            let Ok(output) = child else { return };
            assert!(output.status.success(), "{}: {}", file.name, String::from_utf8_lossy(&output.stderr));
        }
    }
}
