//! Deployment and workload files of serving: every example runs, every fault is named, nothing is ignored.

use crate::harness::{directory, psim, psim_in};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TRAFFIC: &str = "schema = 1\nname = \"small\"\n[[tenant]]\narrival = \"poisson\"\nrate = 4.0\nrequests = 200\n\
                       input = { fixed = 512 }\noutput = { fixed = 64 }\nslo = \"ttft<1s@p90, tpot<50ms@p90\"\n";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/serving")
}

/// A copy of the examples to run in.
fn copied() -> TempDir {
    let files = directory(&[]);
    std::fs::create_dir(files.path().join("traces")).unwrap();
    for folder in ["", "traces"] {
        for entry in std::fs::read_dir(examples().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, files.path().join(folder).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    files
}

fn tomls() -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = std::fs::read_dir(examples())
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .collect();
    list.sort();
    list
}

#[test]
fn every_example_runs_by_its_first_line() {
    let files = copied();
    let readme = std::fs::read_to_string(examples().join("README.md")).unwrap();
    for path in tomls() {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(readme.contains(name), "{name} is not in the list of examples");
        let command =
            text.lines().next().unwrap().strip_prefix("# psim ").unwrap_or_else(|| panic!("{name}"));
        let run = psim_in(&files, command);
        assert_eq!(run.code, 0, "{name}: {}", run.transcript());
        for line in run.out.lines() {
            assert!(line.chars().count() <= 100, "{name}: {} columns: {line}", line.chars().count());
        }
        assert!(run.out.contains("requests answered") && !run.out.contains("NaN"), "{name}: {}", run.out);
        let value = json(&psim_in(&files, &format!("{command} --json")).out);
        assert!(value["report"]["requests"].as_u64().unwrap() > 0, "{name}");
    }
}

#[test]
fn every_layout_of_traces_replays_and_gives_lengths() {
    let files = copied();
    for (name, requests) in [
        ("psim.csv", 4),
        ("azure.csv", 5),
        ("burstgpt.csv", 3),
        ("vidur.csv", 3),
        ("apex.jsonl", 3),
        ("mooncake.jsonl", 3),
    ] {
        let replay = format!("schema = 1\n[[tenant]]\narrival = \"trace\"\ntrace = \"traces/{name}\"\n");
        let drawn = format!(
            "schema = 1\n[[tenant]]\narrival = \"constant\"\nrate = 5.0\nrequests = 40\nlengths = \"traces/{name}\"\n"
        );
        for (text, expected) in [(replay, requests), (drawn, 40)] {
            std::fs::write(files.path().join("w.toml"), text).unwrap();
            let command =
                "simulate --model 8b --cluster h100x8 --workload w.toml --plan replicas.toml --json";
            let run = psim_in(&files, command);
            assert_eq!(run.code, 0, "{name}: {}", run.transcript());
            assert_eq!(json(&run.out)["report"]["requests"], expected, "{name}");
        }
    }
}

#[test]
fn built_in_workloads_are_served() {
    let plain = b"schema = 1\nreplicas = 2\ntp = 4\n";
    let adapted = b"schema = 1\nreplicas = 2\ntp = 4\n[adapters]\nrank = 8\n";
    let files = directory(&[("d.toml", plain), ("a.toml", adapted)]);
    let listed = psim("show workloads").out;
    for name in listed.lines().skip(1).filter_map(|l| l.split_whitespace().next()) {
        let plan = if name == "adapters" { "a.toml" } else { "d.toml" };
        let run = psim_in(
            &files,
            &format!("simulate --model 8b --cluster h100x8 --workload {name} --plan {plan} --json"),
        );
        assert_eq!(run.code, 0, "{name}: {}", run.transcript());
        let value = json(&run.out);
        assert!(value["report"]["requests"].as_u64().unwrap() > 100, "{name}");
        assert_eq!(value["report"]["refused"], 0, "{name}");
        let hits = value["report"]["cache_hits"].as_f64().unwrap();
        // Most of a conversation was said before.
        assert!(name != "conversations" || hits > 0.5, "{hits}");
    }
}

#[test]
fn faults_of_deployments_are_named_with_a_hint() {
    for (text, words) in [
        ("tp = 0", "tp is 0"),
        ("[prefill]\ntp = 2", "no [decode]"),
        ("tp = 2\n[prefill]\ntp = 2\n[decode]\ntp = 2", "`tp` stands beside pools"),
        ("router = \"least-load\"\n[prefill]\n[decode]", "`router` beside pools"),
        ("[prefill]\ntp = 4\nreplicas = 9\n[decode]\ntp = 1", "need 37 accelerators"),
        ("[prefill]\naccelerator = \"A100-SXM-80GB\"\n[decode]", "has no nodes with A100-SXM-80GB"),
        ("[prefill]\naccelerator = \"H1000\"\n[decode]", "H1000"),
        ("[prefill]\ncp = 2\n[decode]\ncp = 2", "prompts only"),
        ("transfer = \"layer-wise\"", "there are none"),
        ("transfer = \"shared-storage\"\n[prefill]\n[decode]", "not built"),
        ("[speculation]\nmethod = \"lookahead\"\ntokens = 4\nacceptance = 0.5", "not built"),
        ("[speculation]\nmethod = \"dovetail\"\ntokens = 4", "not built"),
        ("[speculation]\nmethod = \"draft-model\"\ntokens = 4\nacceptance = 0.5", "needs `draft_model`"),
        ("[speculation]\nmethod = \"mtp\"\nacceptance = 1.5", "not between 0 and 1"),
        ("[speculation]\nmethod = \"mtp\"", "needs `acceptance`"),
        ("[speculation]\nmethod = \"mtp\"\nacceptance = 0.5\ngroup = 2", "`group` means nothing"),
        ("[speculation]\nmethod = \"medusa\"\ntokens = 8", "needs `chances`"),
        ("pp = 2\n[speculation]\nmethod = \"mtp\"\nacceptance = 0.5", "not built"),
        (
            "[prefill]\n[decode]\n[speculation]\nmethod = \"pearl\"\ndraft_model = \"llama3.2-1b\"\ntokens = 3\nacceptance = 0.5",
            "accelerators of their own",
        ),
        (
            "[autoscale]\nleast = 2\nrequests_per_replica = 4.0\nstart_up_s = 1.0\ncool_down_s = 1.0",
            "impossible",
        ),
        ("[autoscale]\nleast = 1", "missing field"),
        ("[kv_offload]\nhost_gb = 1e6", "accelerator are asked for"),
        ("[kv_offload]\nhost_gb_per_s = 3.0", "neither host_gb nor disk_gb"),
        ("engine = \"trtllm-1.0\"\n[kv_offload]\nhost_gb = 10.0", "keeps no prefixes"),
        ("[adapters]\nrank = 8", "no request of the workload"),
        ("[co_serving]\nstep_ms = 5.0\nmost_tokens = 64", "means nothing to engine"),
        ("priority_steps = 5", "means nothing to engine"),
        ("[swap]\ngroup_blocks = 4", "without swapping"),
        ("preemption = \"drop\"", "is not a treatment"),
        ("accelerator = \"A100-SXM-80GB\"", "has no nodes"),
        ("[expert_offload]\npolicy = \"pre-gated\"", "has no experts"),
        ("[expert_offload]\npolicy = \"read-me\"", "is not built"),
        ("[expert_offload]\npolicy = \"predicted:2\"", "not between 0 and 1"),
        ("[expert_offload]\npolicy = \"pre-gated\"\ntier = \"tape\"", "no place for experts"),
        ("[expert_offload]\npolicy = \"pre-gated\"\ngb_per_s = 0.0", "not a number above zero"),
        ("[attention_ffn]\ninstances = 0\nmicro_batches = 3", "`instances` of [attention_ffn] is 0"),
        ("[attention_ffn]\ninstances = 2\nmicro_batches = 65", "between 1 and 64"),
        ("[attention_ffn]\ninstances = 9\nmicro_batches = 3", "need 9 accelerators"),
        ("[attention_ffn]\ninstances = 8\nmicro_batches = 3", "the deployment needs 9 accelerators"),
        ("pp = 2\n[attention_ffn]\ninstances = 1\nmicro_batches = 3", "without pipeline stages"),
        (
            "[attention_ffn]\ninstances = 1\nmicro_batches = 3\n[prefill]\n[decode]",
            "`attention_ffn` beside pools",
        ),
        (
            "[attention_ffn]\ninstances = 1\nmicro_batches = 3\n[speculation]\nmethod = \"mtp\"\nacceptance = 0.5",
            "together with speculation",
        ),
        ("overlap = \"magic\"", "no overlap of kernels"),
        ("overlap = \"nanoflow\"\npp = 2", "without pipeline stages"),
        ("overlap = \"nanoflow\"\n[sm_partition]", "both cut the multiprocessors"),
        ("overlap = \"nanoflow\"\n[prefill]\n[decode]", "in pools of their own is not built"),
        ("[sm_partition]\nprompts = 1.5", "between 0.05 and 0.95"),
        ("[sm_partition]\nttft_ms = 100.0", "stands alone"),
        ("router = \"least-load\"\n[sm_partition]", "not built"),
        ("[redundant_experts]\ncopies = 8\nskew = 0.5", "has no experts"),
        ("[redundant_experts]\ncopies = 8\nskew = -1.0", "between 0 and 3"),
        ("device = \"neupims\"", "not simulated"),
        ("speed = 3", "unknown field"),
    ] {
        let text = format!("schema = 1\n{text}\n");
        let files = directory(&[("w.toml", TRAFFIC.as_bytes()), ("d.toml", text.as_bytes())]);
        let run = psim_in(&files, "simulate --model 8b --cluster h100x8 --workload w.toml --plan d.toml");
        assert_eq!(run.code, 2, "{text}{}", run.transcript());
        assert!(run.err.contains(words), "{text}{}", run.err);
        assert!(run.err.contains("hint:") && run.err.contains("d.toml"), "{text}{}", run.err);
    }
}

#[test]
fn faults_are_shown_at_their_line() {
    let deployment = "schema = 1\nkv = \"fp8\"\n\n[prefill]\ntp = 2\n\n[decode]\ntp = 2\nreplicas = 0\n";
    let files = directory(&[("w.toml", TRAFFIC.as_bytes()), ("d.toml", deployment.as_bytes())]);
    let run = psim_in(&files, "simulate --model 8b --cluster h100x8 --workload w.toml --plan d.toml");
    for part in ["`replicas` of [decode] is 0", "d.toml:9:1", "hint:"] {
        assert!(run.err.contains(part), "{part}\n{}", run.err);
    }
    let workload = TRAFFIC.replace("rate = 4.0", "rate = 4.0\ncv = 2.0");
    let files = directory(&[("w.toml", workload.as_bytes()), ("d.toml", b"schema = 1\ntp = 1\n")]);
    let run = psim_in(&files, "simulate --model 8b --cluster h100x8 --workload w.toml --plan d.toml");
    for part in ["`cv` means nothing to arrival `poisson`", "w.toml:6:", "hint: it belongs to gamma"] {
        assert!(run.err.contains(part), "{part}\n{}", run.err);
    }
}

#[test]
fn a_planned_split_simulates_within_its_promises() {
    let files = directory(&[("w.toml", TRAFFIC.as_bytes())]);
    let run = psim_in(&files, "plan --model 8b --cluster h100x8 --workload w.toml --emit out --json");
    assert_eq!(run.code, 0, "{}", run.transcript());
    let best = &json(&run.out)["split"][0];
    let command = "simulate --model 8b --cluster h100x8 --workload w.toml --plan out/split.toml";
    let value = json(&psim_in(&files, &format!("{command} --json")).out);
    assert_eq!(value["deployment"]["prefill"]["replicas"], best["prefill"]["replicas"]);
    assert_eq!(value["report"]["requests"], 200);
    assert!(value["report"]["promises"].as_array().unwrap().iter().all(|p| p["kept"] == true), "{value}");
    assert!(value["pools"]["transfer_ms"].as_f64().unwrap() > 0.0);
    let text = psim_in(&files, command);
    assert!(text.out.contains("prompts on") && text.out.contains("pools ("), "{}", text.transcript());
    for name in
        ["vllm-split.sh", "vllm-proxy.sh", "sglang-split.sh", "trtllm-split.sh", "vllm-split-bench.sh"]
    {
        let text = std::fs::read_to_string(files.path().join("out").join(name)).unwrap();
        assert!(text.starts_with("#!/bin/bash") && text.len() > 200, "{name}");
    }
    // Both roles are explained, and the page shows them.
    let explained = json(
        &psim_in(
            &files,
            "explain --model 8b --cluster h100x8 --workload w.toml --plan out/split.toml --json",
        )
        .out,
    );
    assert_eq!(explained["roles"].as_array().unwrap().len(), 2);
    let page = psim_in(&files, &format!("{command} --report r.html"));
    assert_eq!(page.code, 0, "{}", page.transcript());
    let page = std::fs::read_to_string(files.path().join("r.html")).unwrap();
    assert!(page.contains("for a cache to arrive") && !page.contains("NaN"));
}

#[test]
fn two_deployments_are_compared_figure_by_figure() {
    let files = directory(&[
        ("w.toml", TRAFFIC.as_bytes()),
        ("a.toml", b"schema = 1\nreplicas = 4\ntp = 1\n"),
        ("b.toml", b"schema = 1\n[prefill]\nreplicas = 2\n[decode]\nreplicas = 2\n"),
    ]);
    let command = "compare --model 8b --cluster h100x8 --workload w.toml --plan a.toml --to-plan b.toml";
    let run = psim_in(&files, command);
    assert_eq!(run.code, 0, "{}", run.transcript());
    for part in ["A: 4 x TP1", "B: prompts on 2 x TP1", "TTFT p95", "B / A"] {
        assert!(run.out.contains(part), "{part}\n{}", run.out);
    }
    let value = json(&psim_in(&files, &format!("{command} --json")).out);
    let row = value["figures"].as_array().unwrap().iter().find(|r| r["figure"] == "accelerators").unwrap();
    assert_eq!((row["a"].as_f64(), row["b"].as_f64()), (Some(4.0), Some(4.0)));
    let alone = psim_in(
        &files,
        "compare --model 8b --cluster h100x8 --workload w.toml --plan a.toml --measured-tflops 3",
    );
    assert_eq!(alone.code, 2, "{}", alone.transcript());
}

#[test]
fn speculation_is_faster_where_drafts_are_right_and_counts_its_rounds() {
    let workload = "schema = 1\n[[tenant]]\narrival = \"closed-loop\"\nconcurrency = 2\nrequests = 20\n\
                    input = { fixed = 256 }\noutput = { fixed = 128 }\n";
    let draft = b"schema = 1\ntp = 8\n[speculation]\nmethod = \"draft-model\"\ndraft_model = \"llama3.2-1b\"\ntokens = 4\nacceptance = 0.9\n";
    let files =
        directory(&[("w.toml", workload.as_bytes()), ("p.toml", b"schema = 1\ntp = 8\n"), ("s.toml", draft)]);
    let of = |plan: &str| {
        let command = format!("simulate --model 70b --cluster h100x8 --workload w.toml --plan {plan} --json");
        json(&psim_in(&files, &command).out)
    };
    let (plain, fast) = (of("p.toml"), of("s.toml"));
    let tpot = |v: &Value| v["report"]["tpot_ms"]["p50"].as_f64().unwrap();
    assert!(tpot(&fast) < 0.8 * tpot(&plain), "{} {}", tpot(&plain), tpot(&fast));
    // Mean of (1 - a^5) / (1 - a) at a = 0.9: 4.1.
    let per_round = fast["speculation"]["tokens_per_round"].as_f64().unwrap();
    assert!((per_round - 4.1).abs() < 0.15, "{per_round}");
    assert!(plain["speculation"].is_null());
    let emitted =
        psim_in(&files, "emit --model 70b --cluster h100x8 --workload w.toml --plan s.toml --dir out");
    assert_eq!(emitted.code, 2, "{}", emitted.transcript());
    let emitted =
        psim_in(&files, "emit --model 70b --cluster h100x8 --workload w.toml --plan p.toml --dir out");
    assert_eq!(emitted.code, 0, "{}", emitted.transcript());
    assert!(files.path().join("out/vllm.sh").is_file());
}

#[test]
fn replicas_that_come_and_go_cost_less() {
    let ramp = "schema = 1\n[[tenant]]\narrival = \"ramp\"\nfrom = 1.0\nto = 30.0\nover_s = 60.0\nduration_s = 90.0\n\
                input = { fixed = 800 }\noutput = { fixed = 100 }\n";
    let scaled = b"schema = 1\nreplicas = 8\nrouter = \"least-load\"\n[autoscale]\nleast = 1\nrequests_per_replica = 12.0\n\
                   start_up_s = 5.0\ncool_down_s = 20.0\n";
    let fixed = b"schema = 1\nreplicas = 8\nrouter = \"least-load\"\n";
    let files = directory(&[("w.toml", ramp.as_bytes()), ("s.toml", scaled), ("f.toml", fixed)]);
    let of = |plan: &str| {
        let command = format!("simulate --model 8b --cluster h100x8 --workload w.toml --plan {plan} --json");
        json(&psim_in(&files, &command).out)
    };
    let (scaled, fixed) = (of("s.toml"), of("f.toml"));
    let usd = |v: &Value| v["usd_per_hour"].as_f64().unwrap();
    assert!(usd(&scaled) < usd(&fixed), "{} {}", usd(&scaled), usd(&fixed));
    assert_eq!(fixed["mean_replicas"].as_f64().unwrap().round(), 8.0);
    assert_eq!(scaled["report"]["requests"], fixed["report"]["requests"]);
}

#[test]
fn plans_are_ranked_by_energy_and_explained_without_a_file() {
    let files = directory(&[("w.toml", TRAFFIC.as_bytes())]);
    let command = "plan --model 8b --cluster h100x8 --workload w.toml --objective energy --json";
    let value = json(&psim_in(&files, command).out);
    let joules: Vec<f64> = value["plans"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|p| p["keeps_promises"] == true)
        .map(|p| p["energy_j_per_output_token"].as_f64().unwrap())
        .collect();
    assert!(joules.len() > 1 && joules.windows(2).all(|w| w[0] <= w[1]), "{joules:?}");
    assert!(joules[0] > 0.0);
    let run = psim_in(&files, "explain --model 8b --cluster h100x8 --workload w.toml");
    assert_eq!(run.code, 0, "{}", run.transcript());
    assert!(run.out.contains("the best of the search") && run.out.contains("reached %"), "{}", run.out);
}

#[test]
fn a_mixed_cluster_is_planned_by_kinds_and_across_them() {
    let files = directory(&[("w.toml", TRAFFIC.as_bytes())]);
    let run = psim_in(&files, "plan --model 8b --cluster mixed-h100-a100 --workload w.toml --json --top 40");
    assert_eq!(run.code, 0, "{}", run.transcript());
    let value = json(&run.out);
    let plans = value["plans"].as_array().unwrap();
    for part in ["H100-SXM-80GB", "A100-SXM-80GB"] {
        let of: Vec<&Value> = plans.iter().filter(|p| p["accelerator"] == part).collect();
        assert!(!of.is_empty(), "{part}");
        assert!(of.iter().all(|p| p["accelerators"].as_u64().unwrap() <= 32), "32 of each kind");
    }
    let text = psim_in(&files, "plan --model 8b --cluster mixed-h100-a100 --workload w.toml");
    for line in text.out.lines() {
        assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
    }
}

#[test]
fn capacity_has_a_page() {
    let files = directory(&[]);
    let run = psim_in(
        &files,
        "capacity --model 8b --rate 30rps --slo 'ttft_p95<2s,tpot_p95<50ms' --input 512 --output 64 --accelerators \
         h100,a100 --report r.html",
    );
    assert_eq!(run.code, 0, "{}", run.transcript());
    for line in run.out.lines() {
        assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
    }
    let page = std::fs::read_to_string(files.path().join("r.html")).unwrap();
    assert!(!page.replace("http://www.w3.org/2000/svg", "").contains("http"), "an outside address");
    for part in ["Cheapest", "Price against power", "All options", "Traffic"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("NaN") && !page.contains(">inf<"), "a number that is none");
}

#[test]
fn steps_on_a_device_of_several_engines_are_explained() {
    let files = directory(&[
        ("w.toml", TRAFFIC.as_bytes()),
        ("d.toml", b"schema = 1\ndevice = \"neupims\"\ntp = 1\n"),
        ("x.toml", b"schema = 1\ndevice = \"neupim\"\n"),
    ]);
    let command = "explain --model llama2-7b --cluster h100x8 --workload w.toml --plan d.toml";
    let run = psim_in(&files, command);
    assert_eq!(run.code, 0, "{}", run.transcript());
    assert!(run.out.contains("pim busy %") && run.out.contains("neupims"), "{}", run.out);
    let value = json(&psim_in(&files, &format!("{command} --json")).out);
    assert!(value["steps"]["decode"].as_array().unwrap().len() > 2);
    let wrong = psim_in(&files, &command.replace("d.toml", "x.toml"));
    assert_eq!(wrong.code, 2, "{}", wrong.transcript());
    assert!(wrong.err.contains("neupims") && wrong.err.contains("hint:"), "{}", wrong.err);
}

#[test]
fn experts_outside_are_slower_the_less_is_hidden() {
    let files = copied();
    let tpot = |policy: &str| {
        let text = std::fs::read_to_string(files.path().join("expert-offload.toml")).unwrap();
        let text = text.replace("pre-gated\" ", &format!("{policy}\" "));
        std::fs::write(files.path().join("own.toml"), text).unwrap();
        let command =
            "simulate --model mixtral-8x7b --cluster h100x8 --workload fixed-2048-128 --plan own.toml --json";
        let run = psim_in(&files, command);
        assert_eq!(run.code, 0, "{policy}: {}", run.transcript());
        json(&run.out)["report"]["tpot_ms"]["p50"].as_f64().unwrap()
    };
    let (gated, demand, all) = (tpot("pre-gated"), tpot("on-demand"), tpot("prefetch-all"));
    assert!(gated < demand && gated < all, "{gated} {demand} {all}");
    let page = psim_in(
        &files,
        "explain --model mixtral-8x7b --cluster h100x8 --workload fixed-2048-128 --plan expert-offload.toml",
    );
    assert_eq!(page.code, 2, "{}", page.transcript());
}

#[test]
fn what_shares_an_accelerator_is_said() {
    for (plan, command) in [
        ("nanoflow.toml", "simulate --model 70b --cluster h100x8 --workload fixed-2048-128"),
        ("semi-pd.toml", "simulate --model 70b --cluster h100x16 --workload chat"),
        (
            "redundant-experts.toml",
            "simulate --model deepseek-v3 --cluster h100x64 --workload fixed-2048-128",
        ),
    ] {
        let files = copied();
        let run = psim_in(&files, &format!("{command} --plan {plan}"));
        assert_eq!(run.code, 0, "{plan}: {}", run.transcript());
        // The lines about the deployment, without the figures, which move with every profile.
        let said: Vec<&str> = run.out.lines().skip_while(|l| !l.starts_with("deployment:")).take(4).collect();
        let said: String =
            said.join("\n").chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        let mut squeezed = said.clone();
        while squeezed.contains("00") {
            squeezed = squeezed.replace("00", "0");
        }
        let name = plan.trim_end_matches(".toml").replace('-', "_");
        insta::assert_snapshot!(format!("arrangement_{name}"), squeezed);
    }
}

#[test]
fn a_search_drafts_tokens_and_finds_how_many() {
    let traffic = TRAFFIC.replace("requests = 200", "requests = 60").replace("tpot<50ms", "tpot<9ms");
    let drafts = b"schema = 1\n[speculation]\nmethod = \"mtp\"\nacceptance = 0.9\n";
    let beside = b"schema = 1\ntp = 2\n[speculation]\nmethod = \"mtp\"\nacceptance = 0.9\n";
    let files = directory(&[("w.toml", traffic.as_bytes()), ("s.toml", drafts), ("b.toml", beside)]);
    let ask = "plan --model 8b --cluster h100x2 --workload w.toml --speculation";
    let run = psim_in(&files, &format!("{ask} s.toml --json"));
    assert_eq!(run.code, 0, "{}", run.transcript());
    let value = json(&run.out);
    let best = &value["speculation"][0];
    assert!(
        best["tokens"].as_u64().unwrap() >= 1 && best["tokens_per_round"].as_f64().unwrap() > 1.5,
        "{best}"
    );
    assert!(best["rate"].as_f64().unwrap() > best["rate_without"].as_f64().unwrap(), "{best}");
    let split = &value["speculation_split"][0];
    assert!(split["rate"].as_f64().unwrap() > 0.0 && split["tokens"].as_u64().unwrap() >= 1, "{split}");
    let shown = psim_in(&files, &format!("{ask} s.toml"));
    assert!(shown.out.contains("with speculation mtp:"), "{}", shown.transcript());
    assert!(shown.out.contains("pools with speculation mtp:"), "{}", shown.transcript());
    for (command, words) in [
        (format!("{ask} b.toml"), "a [speculation] table and nothing else"),
        (format!("{ask} w.toml"), "unknown field"),
        ("plan --model 8b --cluster h100x8 --speculation s.toml".to_owned(), "belongs to serving"),
    ] {
        let run = psim_in(&files, &command);
        assert_eq!(run.code, 2, "{command}: {}", run.transcript());
        assert!(run.err.contains(words) && run.err.contains("hint:"), "{command}: {}", run.err);
    }
}
