//! Commands that measure this machine, run plans on it, and read what other tools measured.

use crate::harness::{directory, psim, psim_in};
use serde_json::Value;

const CONFIG: &[u8] =
    br#"{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_layer": 2,
    "n_head": 4, "n_positions": 64, "vocab_size": 256}"#;
const PLAN: &[u8] =
    b"schema = 1\ntp = 2\npp = 1\ndp = 1\nmicro_batch = 1\nglobal_batch = 4\nprecision = \"fp32\"\n";

#[test]
fn calibrate_check_execute() {
    let files = directory(&[("config.json", CONFIG), ("plan.toml", PLAN)]);
    let begin = std::time::Instant::now();
    let run = psim_in(&files, "calibrate --device cpu --out cpu.toml --minutes 0.05 --ranks 2 --json");
    assert_eq!(run.code, 0, "{}", run.transcript());
    println!("a budget of 3 s took {:.1} s", begin.elapsed().as_secs_f64());
    let made: Value = serde_json::from_str(&run.out).unwrap();
    assert!(made["tables"].as_array().unwrap().iter().all(|t| t["fit_error"].as_f64().unwrap() >= 0.0));
    assert!(made["points"].as_u64().unwrap() > 20, "{made}");
    let check = psim_in(&files, "calibrate --check cpu.toml --points 4");
    assert_eq!(check.code, 0, "{}", check.transcript());
    assert!(check.out.contains("4 points measured again: median drift"), "{}", check.out);
    let execute = "execute --model config.json --cluster cpu.cluster.toml --plan plan.toml --profile cpu.toml --steps 2";
    let run = psim_in(&files, &format!("{execute} --json"));
    assert_eq!(run.code, 0, "{}", run.transcript());
    let report: Value = serde_json::from_str(&run.out).unwrap();
    let phases = report["report"]["phases"].as_array().unwrap();
    assert_eq!(phases.len(), 4);
    for phase in phases.iter().filter(|p| p["phase"] != "wait") {
        assert!(phase["measured"].as_f64().unwrap() > 0.0 && phase["predicted"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(report["report"]["losses"].as_array().unwrap().len(), 2);
    let text = psim_in(&files, execute);
    assert!(text.out.contains("forward") && text.out.contains("tp communication"), "{}", text.transcript());
    let shard: Value =
        serde_json::from_str(&psim_in(&files, &format!("{execute} --shard 1 --json")).out).unwrap();
    let bytes = |key: &str| shard["shard"][key].as_f64().unwrap();
    // The ledger cuts learned positions over tp; the executor, as Megatron, keeps them whole on every rank.
    assert!((bytes("predicted_states") / bytes("states") - 1.0).abs() < 0.1, "{shard}");
    let text = psim_in(&files, &format!("{execute} --shard 1"));
    assert!(
        text.out.contains("rank 1 (stage 0)") && text.out.contains("waits inserted"),
        "{}",
        text.transcript()
    );
    // A sequence on one rank and on two has the same loss.
    let one = String::from_utf8(PLAN.to_vec()).unwrap().replace("tp = 2", "tp = 1");
    std::fs::write(files.path().join("plan.toml"), one).unwrap();
    let alone: Value = serde_json::from_str(&psim_in(&files, &format!("{execute} --json")).out).unwrap();
    let loss = |v: &Value| v["report"]["losses"][0].as_f64().unwrap();
    assert!((loss(&alone) / loss(&report) - 1.0).abs() < 1e-4);
}

const TRAFFIC: &[u8] = b"schema = 1
name = \"tiny\"

[[tenant]]
name = \"all\"
arrival = \"poisson\"
rate = 50.0
requests = 12
input = { uniform = [4, 24] }
output = { uniform = [2, 8] }
slo = \"ttft<2s@p90\"
";

#[test]
fn serving_plans_run_and_are_ranked_again() {
    let talk = TRAFFIC.to_vec();
    let talk = String::from_utf8(talk).unwrap() + "sessions = { turns = { fixed = 3 }, think_s = 1.0 }\n";
    let files =
        directory(&[("config.json", CONFIG), ("traffic.toml", TRAFFIC), ("talk.toml", talk.as_bytes())]);
    let run = psim_in(&files, "calibrate --device cpu --out cpu.toml --minutes 0.06 --ranks 2");
    assert_eq!(run.code, 0, "{}", run.transcript());
    let plan =
        "plan --model config.json --cluster cpu.cluster.toml --profile cpu.toml --execute-top 3 --steps 2";
    let run = psim_in(&files, &format!("{plan} --workload traffic.toml --json"));
    assert_eq!(run.code, 0, "{}", run.transcript());
    let answer: Value = serde_json::from_str(&run.out).unwrap();
    let executed = answer["executed"].as_array().unwrap();
    assert!(executed.len() == 3 && answer["requests"] == 12, "{answer}");
    for ran in executed {
        let phases = ran["phases"].as_array().unwrap();
        let names: Vec<&str> = phases.iter().map(|p| p["phase"].as_str().unwrap()).collect();
        assert!(names.starts_with(&["queue", "prefill", "decode, a token"]), "{names:?}");
        let times = phases.iter().skip(1).flat_map(|p| [&p["measured_s"], &p["predicted_s"]]);
        assert!(times.into_iter().all(|t| t.as_f64().unwrap() > 0.0), "{ran}");
    }
    // Every layout of two ranks: two replicas of one, one of two, with each of the limits.
    let ranking = answer["ranking_after"].as_array().unwrap();
    assert_eq!(ranking.len(), 12);
    assert!(ranking.windows(2).all(|w| w[0]["rate"].as_f64() >= w[1]["rate"].as_f64()));
    let of = |tp: u64| ranking.iter().filter(|r| r["layout"]["tp"] == tp).count();
    assert_eq!((of(1), of(2)), (6, 6));
    // What was learned is kept, and changes what is predicted next.
    let kept = std::fs::read_to_string(files.path().join("psim-residuals.toml")).unwrap();
    assert_eq!(kept.matches("[[serving]]").count(), 3, "{kept}");
    let again = psim_in(&files, &format!("{plan} --workload traffic.toml"));
    assert_eq!(again.code, 0, "{}", again.transcript());
    assert!(again.out.contains("ranked again") && again.out.contains("the winner "), "{}", again.out);
    for (flags, expected) in [
        ("--workload talk.toml", "conversations"),
        ("--workload traffic.toml --stack vllm-v1", "--stack"),
        ("--workload traffic.toml --precision fp8", "fp"),
        ("--workload traffic.toml --kv-precision fp8", "fp32"),
        ("--workload traffic.toml --device cuda:0", "CPU"),
        ("--workload traffic.toml --emit d", "--emit"),
    ] {
        let run = psim_in(&files, &format!("{plan} {flags}"));
        assert_eq!(run.code, 2, "{flags}: {}", run.transcript());
        assert!(run.err.contains(expected) && run.err.contains("hint: "), "{flags}: {}", run.err);
    }
}

#[test]
fn a_cluster_of_gpus_is_played_by_threads() {
    let files = directory(&[("config.json", CONFIG), ("plan.toml", PLAN)]);
    let bf16 = String::from_utf8(PLAN.to_vec()).unwrap().replace("fp32", "bf16");
    std::fs::write(files.path().join("plan.toml"), bf16).unwrap();
    let run = psim_in(&files, "execute --model config.json --cluster h100x8 --plan plan.toml --steps 1");
    assert_eq!(run.code, 0, "{}", run.transcript());
    assert!(
        run.out.contains("played by rank threads") && run.out.contains("computes in fp32"),
        "{}",
        run.out
    );
    assert!(run.err.contains("no --profile"), "{}", run.err);
}

#[test]
fn what_cannot_be_measured_or_run_says_why() {
    let files = directory(&[("config.json", CONFIG), ("plan.toml", PLAN), ("junk.toml", b"x = 1\n")]);
    let execute = "execute --model config.json --cluster h100x8 --plan plan.toml";
    for (command, expected) in [
        ("calibrate --device cpu".to_owned(), "--out"),
        ("calibrate --out x.toml --minutes 0".to_owned(), "positive number of minutes"),
        ("calibrate --out x.toml --minutes nan".to_owned(), "positive number of minutes"),
        ("calibrate --out x.toml --device tpu".to_owned(), "unknown device"),
        ("calibrate --check missing.toml".to_owned(), "missing.toml"),
        ("calibrate --check junk.toml".to_owned(), "junk.toml"),
        (format!("{execute} --ranks nccl"), "NCCL connects GPUs"),
        (format!("{execute} --precision bf16"), "computes in fp32"),
        (format!("{execute} --shard 2"), "ranks go from 0 to 1"),
        (format!("{execute} --shard 0 --ranks mpi"), "leave --ranks out"),
        ("execute --model config.json --cluster h100x1 --plan plan.toml".to_owned(), "needs 2 ranks"),
        ("plan --model config.json --cluster h100x512 --global-batch 8 --execute-top 1".to_owned(), "512"),
        ("plan --model config.json --cluster h100x2 --execute-top 1 --emit d".to_owned(), "--emit"),
    ] {
        let run = psim_in(&files, &command);
        assert_eq!(run.code, 2, "{command}: {}", run.transcript());
        assert!(run.err.contains(expected) && run.err.contains("hint: "), "{command}: {}", run.err);
    }
    if !psim_kernels::cuda::probe().usable() {
        let run = psim("calibrate --device cuda:0 --out x.toml");
        assert!(
            run.code == 2 && run.err.contains("CUDA") && run.err.contains("hint: "),
            "{}",
            run.transcript()
        );
    }
}

const LOG: &[u8] = b"# Rank  0 Group  0 Pid 1 on host device  0 [0x01] NVIDIA H100 80GB HBM3
# Rank  1 Group  0 Pid 2 on host device  1 [0x02] NVIDIA H100 80GB HBM3
# all_reduce_perf
     1048576        262144     float     sum      -1    50.00   20.97   20.97      0    50.00   20.97   20.97      0
    16777216       4194304     float     sum      -1   200.00   83.89   83.89      0   200.00   83.89   83.89      0
";

#[test]
fn a_log_becomes_a_profile_that_plans() {
    let broken = LOG[..LOG.len() - 60].to_vec();
    let files = directory(&[("nccl.log", LOG), ("broken.log", &broken), ("empty.log", b"nothing here\n")]);
    let run = psim_in(&files, "import nccl.log --out measured.toml");
    assert_eq!(run.code, 0, "{}", run.transcript());
    assert!(run.out.contains("all-reduce over 2 ranks: 2 sizes"), "{}", run.out);
    let plan =
        psim_in(&files, "plan --model 8b --cluster h100x8 --global-batch 64 --profile measured.toml --top 1");
    assert_eq!(plan.code, 0, "{}", plan.transcript());
    // Launchers put their own mark before every line.
    let text = String::from_utf8(LOG.to_vec()).unwrap();
    let marked: String = text.lines().map(|l| format!("[1,0]<stdout>:{l}\n")).collect();
    std::fs::write(files.path().join("marked.log"), marked).unwrap();
    let run = psim_in(&files, "import marked.log --out marked.toml");
    assert_eq!(run.code, 0, "{}", run.transcript());
    for name in ["broken.log", "empty.log"] {
        let run = psim_in(&files, &format!("import {name} --out x.toml"));
        assert_eq!(run.code, 2, "{}", run.transcript());
        assert!(run.err.contains(name) && run.err.contains("hint: "), "{}", run.err);
        assert!(!files.path().join("x.toml").exists());
    }
}
