//! Serving on the command line: plans, simulations, capacity, launch files, scores.

use crate::harness::{directory, psim, psim_in};
use serde_json::Value;

const DEPLOYMENT: &[u8] = b"schema = 1\nreplicas = 2\ntp = 4\nrouter = \"least-load\"\n";
const TRAFFIC: &str = "schema = 1\nname = \"small\"\n[[tenant]]\narrival = \"poisson\"\nrate = 2.0\nrequests = 200\n\
                       input = { fixed = 512 }\noutput = { fixed = 64 }\nslo = \"ttft<1s@p90, tpot<50ms@p90\"\n";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn a_plan_ranks_deployments_and_its_best_one_keeps_its_promises() {
    let files = directory(&[("w.toml", TRAFFIC.as_bytes())]);
    let command = "plan --model 8b --cluster h100x8 --workload w.toml";
    let run = psim_in(&files, command);
    assert_eq!(run.code, 0, "{}", run.transcript());
    for line in run.out.lines() {
        assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
    }
    for part in ["serving small", "req/s", "TTFT", "tok/s/user", "best:", "promises:", "split into pools"] {
        assert!(run.out.contains(part), "{part}\n{}", run.out);
    }
    let value = json(&psim_in(&files, &format!("{command} --json --emit out")).out);
    let plans = value["plans"].as_array().unwrap();
    let rate = |p: &Value| p["goodput_rps"].as_f64().unwrap();
    assert!(plans.windows(2).all(|w| rate(&w[0]) >= rate(&w[1])), "best first");
    assert!(plans.iter().any(|p| p["pareto"] == true));
    assert_eq!(value["best_at_the_workloads_rate"]["saturated"], false);
    // The emitted deployment answers the workload within its promises when simulated.
    let again = psim_in(
        &files,
        "simulate --model 8b --cluster h100x8 --workload w.toml --plan out/deployment.toml --json",
    );
    assert_eq!(again.code, 0, "{}", again.transcript());
    let report = &json(&again.out)["report"];
    assert_eq!(report["requests"], 200);
    assert!(report["promises"].as_array().unwrap().iter().all(|p| p["kept"] == true), "{report}");
    for name in [
        "vllm.sh",
        "vllm-bench.sh",
        "sglang.sh",
        "sglang-bench.sh",
        "trtllm.sh",
        "trtllm.yaml",
        "trtllm-bench.sh",
    ] {
        let text = std::fs::read_to_string(files.path().join("out").join(name)).unwrap();
        assert!(text.len() > 80, "{name}");
    }
}

#[test]
fn same_seed_same_bytes_whatever_the_threads() {
    let files = directory(&[("w.toml", TRAFFIC.as_bytes())]);
    let run = |extra: &str| {
        psim_in(&files, &format!("plan --model 8b --cluster h100x8 --workload w.toml --json {extra}")).out
    };
    let one = run("--threads 1");
    assert_eq!(one, run("--threads 2"));
    assert_ne!(one, run("--threads 1 --seed 9"));
}

#[test]
fn cost_prefers_fewer_accelerators_for_the_rate() {
    let files = directory(&[("w.toml", TRAFFIC.as_bytes())]);
    let value = json(
        &psim_in(&files, "plan --model 8b --cluster h100x8 --workload w.toml --objective cost --json").out,
    );
    let needed: Vec<f64> = value["plans"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|p| p["needed"]["usd_per_hour"].as_f64())
        .collect();
    assert!(needed.len() > 1 && needed.windows(2).all(|w| w[0] <= w[1]), "{needed:?}");
}

#[test]
fn saturation_is_flagged_and_never_a_number() {
    let heavy = TRAFFIC.replace("rate = 2.0", "rate = 2000.0").replace("requests = 200", "requests = 4000");
    let one = b"schema = 1\ntp = 1\n";
    let files = directory(&[("w.toml", heavy.as_bytes()), ("d.toml", one)]);
    let command = "simulate --model 8b --cluster h100x8 --workload w.toml --plan d.toml";
    let run = psim_in(&files, command);
    assert!(run.out.contains("SATURATED") && !run.out.contains("TTFT  "), "{}", run.out);
    let report = &json(&psim_in(&files, &format!("{command} --json")).out)["report"];
    assert_eq!(report["saturated"], true);
    for key in ["ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"] {
        assert!(report[key].is_null(), "{key}");
    }
    assert!(
        report["promises"]
            .as_array()
            .unwrap()
            .iter()
            .all(|p| p["kept"] == false && p["reached_ms"].is_null())
    );
}

#[test]
fn the_first_launching_benchmark() {
    let files = directory(&[("d.toml", DEPLOYMENT)]);
    let run = psim_in(
        &files,
        "simulate --model 70b --cluster h100x8 --workload fixed-2048-128 --plan d.toml --json --trace t.json --report r.html",
    );
    assert_eq!(run.code, 0, "{}", run.transcript());
    let report = &json(&run.out)["report"];
    assert_eq!(report["requests"], 1024);
    // All requests at once: the run lasts as long as 1,024 · 2,048 prompt tokens take, above the arithmetic roofline of
    // 8 accelerators (2 · 70.6e9 flops a token, 989e12 flops a second each).
    let seconds = report["seconds"].as_f64().unwrap();
    let roofline = 1024.0 * 2048.0 * 2.0 * 69.5e9 / (8.0 * 989.5e12);
    assert!(seconds > roofline && seconds < 6.0 * roofline, "{seconds} s against {roofline} s");
    let trace = json(&std::fs::read_to_string(files.path().join("t.json")).unwrap());
    let events = trace["traceEvents"].as_array().unwrap();
    assert_eq!(events.iter().filter(|e| e["ph"] == "b" && e["name"] == "request").count(), 1024);
    assert!(events.iter().any(|e| e["ph"] == "C" && e["name"] == "KV cache"));
    let page = std::fs::read_to_string(files.path().join("r.html")).unwrap();
    assert!(!page.replace("http://www.w3.org/2000/svg", "").contains("http"), "an outside address");
    for part in ["Over time", "time to first token", "KV cache"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("NaN"), "a number that is none");
}

#[test]
fn a_report_of_a_plan_is_a_page() {
    let files = directory(&[("w.toml", TRAFFIC.as_bytes())]);
    let run = psim_in(&files, "report --model 8b --cluster h100x8 --workload w.toml --out r.html");
    assert_eq!(run.code, 0, "{}", run.transcript());
    let page = std::fs::read_to_string(files.path().join("r.html")).unwrap();
    for part in ["Throughput against what a user sees", "All layouts", "Promises", "Traffic"] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn explain_sets_steps_against_their_roofline() {
    let files = directory(&[("d.toml", DEPLOYMENT)]);
    let value = json(
        &psim_in(&files, "explain --model 70b --cluster h100x8 --workload chat --plan d.toml --json").out,
    );
    for key in ["decode", "prompts"] {
        let points = value["steps"][key].as_array().unwrap();
        assert!(points.len() >= 3, "{key}");
        for p in points {
            let (step, roofline) = (p["step_ms"].as_f64().unwrap(), p["roofline_ms"].as_f64().unwrap());
            assert!(roofline > 0.0 && step >= roofline * 0.999, "{key}: {step} below {roofline}");
        }
    }
}

#[test]
fn weights_are_those_that_the_model_is_published_with() {
    let files = directory(&[("w.toml", TRAFFIC.as_bytes())]);
    let plan = |extra: &str| {
        let run =
            psim_in(&files, &format!("plan --model gpt-oss-20b --cluster h100x8 --workload w.toml {extra}"));
        assert_eq!(run.code, 0, "{}", run.transcript());
        json(&run.out)["question"]["weights"].clone()
    };
    assert_eq!(plan("--json --precision bf16"), "bf16");
    let published = psim_in(&files, "plan --model gpt-oss-20b --cluster h100x8 --workload w.toml");
    assert!(published.out.contains("weights mxfp4 (as this model is published"), "{}", published.out);
    // DeepSeek's 8-bit weights have a scale per block of 128; `fp8` beside it cannot mean others.
    let run =
        psim_in(&files, "plan --model deepseek-v3 --cluster h200x8 --workload w.toml --precision fp8 --json");
    assert_eq!(run.code, 0, "{}", run.transcript());
    assert_eq!(json(&run.out)["question"]["weights"], "fp8-block");
}

#[test]
fn requests_longer_than_the_cache_are_said_and_have_no_latencies() {
    let long = "schema = 1\n[[tenant]]\narrival = \"poisson\"\nrate = 1\nrequests = 20\ninput = 2000000\noutput = 8\n";
    let files = directory(&[("w.toml", long.as_bytes()), ("d.toml", DEPLOYMENT)]);
    let run = psim_in(&files, "simulate --model 70b --cluster h100x8 --workload w.toml --plan d.toml");
    assert_eq!(run.code, 1, "{}", run.transcript());
    assert!(run.err.contains("all 20 requests are longer than the cache"), "{}", run.transcript());
    let files = directory(&[("w.toml", long.replace("2000000", "16000").as_bytes()), ("d.toml", DEPLOYMENT)]);
    let run = psim_in(&files, "simulate --model 70b --cluster h100x8 --workload w.toml --plan d.toml");
    assert_eq!(run.code, 0, "{}", run.transcript());
    let text = run.out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("beyond the 8192 that the model was released for"), "{}", run.transcript());
}

#[test]
fn a_deployment_without_formats_serves_what_is_published() {
    let files = directory(&[
        ("w.toml", TRAFFIC.as_bytes()),
        ("d.toml", b"schema = 1\nreplicas = 1\ntp = 8\n"),
        ("fp8.toml", b"schema = 1\nreplicas = 1\ntp = 8\nweights = \"fp8\"\n"),
    ]);
    for plan in ["d.toml", "fp8.toml"] {
        let command =
            format!("simulate --model deepseek-v3 --cluster h200x8 --workload w.toml --plan {plan} --json");
        let run = psim_in(&files, &command);
        assert_eq!(run.code, 0, "{}", run.transcript());
        assert_eq!(json(&run.out)["deployment"]["experts"], "fp8-block", "{plan}");
    }
}

#[test]
fn capacity_sizes_several_accelerators_with_headroom() {
    let command = "capacity --model 8b --rate 30rps --slo 'ttft_p95<2s,tpot_p95<50ms' --input 512 --output 64 \
                   --accelerators h100,h200 --availability 99.999 --json";
    let run = psim(command);
    assert_eq!(run.code, 0, "{}", run.transcript());
    let value = json(&run.out);
    let options = value["options"].as_array().unwrap();
    assert_eq!(options.len(), 2, "{value}");
    let number = |v: &Value, key: &str| v[key].as_f64().unwrap_or_else(|| panic!("{key}: {v}"));
    for o in options {
        let needed = o["needed"]["replicas"].as_f64().unwrap();
        assert!(needed * number(o, "rate_rps_per_replica") >= 30.0);
        assert!(number(o, "spare_replicas") >= 1.0 && number(o, "load") <= 1.0);
        assert!(number(o, "kilowatts") > 0.0 && number(o, "usd_per_hour") > 0.0);
        // No accelerator draws more than twice its board power, host and facility included.
        assert!(number(o, "kilowatts") < 2.5 * number(o, "accelerators"), "{o}");
    }
    assert!(number(&options[0], "usd_per_hour") <= number(&options[1], "usd_per_hour"));
    let more = json(&psim(&command.replace("30rps", "300rps")).out);
    assert!(number(&more["options"][0], "accelerators") > number(&options[0], "accelerators"));
}

#[test]
fn a_trace_is_replayed_as_it_stands() {
    let workload = "schema = 1\n[[tenant]]\narrival = \"trace\"\ntrace = \"t.csv\"\n";
    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.50,100,3\n2023-11-16 18:15:48.00,200,4\n";
    let files =
        directory(&[("w.toml", workload.as_bytes()), ("t.csv", azure.as_bytes()), ("d.toml", DEPLOYMENT)]);
    let value = json(
        &psim_in(&files, "simulate --model 8b --cluster h100x8 --workload w.toml --plan d.toml --json").out,
    );
    assert_eq!(value["report"]["requests"], 2);
    let seconds = value["report"]["seconds"].as_f64().unwrap();
    assert!(seconds > 1.5 && seconds < 3.0, "{seconds}");
}

#[test]
fn rows_of_both_kinds_are_scored_in_one_file() {
    let row = r#"{"id":"x-1","kind":"serve","model":{"name":"llama3-8b"},"hardware":{"gpu":"H100-SXM-80GB","gpus":1},"config":{"engine":"vllm 0.9.0","tp":1,"quant":"bf16"},"workload":{"isl":512,"osl":128,"concurrency":16,"arrival":"closed-loop"},"measured":{"output_tokens_per_s":1.0,"ttft_ms":1.0,"tpot_ms":1.0}}
{"id":"y-1","kind":"train","model":{"name":"llama3-8b"},"hardware":{"gpu":"H100-SXM-80GB","gpus":8},"config":{"framework":"Megatron-LM","tp":1,"pp":1,"micro_batch":1,"global_batch_seqs":64,"seq_len":8192,"precision":"bf16","zero":1},"measured":{"step_time_s":1.0}}
"#;
    let files = directory(&[("r.jsonl", row.as_bytes())]);
    let run = psim_in(&files, "validate r.jsonl --json");
    assert_eq!(run.code, 0, "{}", run.transcript());
    let value = json(&run.out);
    let of =
        |id: &str| value["rows"].as_array().unwrap().iter().filter(|r| r["id"] == id).collect::<Vec<_>>();
    let metrics: Vec<&str> = of("x-1").iter().map(|r| r["metric"].as_str().unwrap()).collect();
    assert_eq!(metrics, ["output_tokens_per_s", "tpot_ms", "ttft_ms", "fits"]);
    for entry in of("x-1").into_iter().chain(of("y-1")) {
        assert_eq!(entry["status"], "predicted", "{entry}");
        assert!(!entry["predicted"].is_null(), "{entry}");
    }
    assert!(value["summary"]["serving"]["aggregated"]["tpot"]["sources"]["x"]["median_ape"].is_number());
    assert!(value["summary"]["sources"]["y"]["median_ape"].is_number());
}

#[test]
fn texts_of_serving() {
    insta::assert_snapshot!("show_workloads", psim("show workloads").transcript());
    insta::assert_snapshot!("help_capacity", psim("capacity --help").transcript());
    insta::assert_snapshot!(
        "unknown_workload",
        psim("plan --model 8b --cluster h100x8 --workload chatt").transcript()
    );
    let text = TRAFFIC.replace("\"poisson\"", "\"posson\"");
    let files = directory(&[("w.toml", text.as_bytes())]);
    insta::assert_snapshot!(
        "workload_arrival",
        psim_in(&files, "plan --model 8b --cluster h100x8 --workload w.toml").transcript()
    );
}

#[test]
fn listed_workloads_and_engines_are_files_to_start_from() {
    let chat = psim("show workloads chat").out;
    let engine = psim("show engines vllm-v1").out;
    let files =
        directory(&[("w.toml", chat.as_bytes()), ("e.toml", engine.as_bytes()), ("d.toml", DEPLOYMENT)]);
    let own = psim_in(
        &files,
        "simulate --model 70b --cluster h100x8 --workload w.toml --plan d.toml --stack e.toml --json",
    );
    assert_eq!(own.code, 0, "{}", own.transcript());
    let built_in =
        psim_in(&files, "simulate --model 70b --cluster h100x8 --workload chat --plan d.toml --json");
    assert_eq!(json(&own.out)["report"], json(&built_in.out)["report"]);
}

#[test]
fn a_release_of_an_engine_is_named_and_an_unknown_one_refused_with_the_known() {
    let deployment = format!("{}engine = \"vllm@0.12\"\n", String::from_utf8_lossy(DEPLOYMENT));
    let files = directory(&[("d.toml", deployment.as_bytes())]);
    let run = |stack: &str| {
        let given =
            format!("simulate --model 70b --cluster h100x8 --workload chat --plan d.toml {stack} --json");
        psim_in(&files, &given)
    };
    let own = run("");
    assert_eq!(own.code, 0, "{}", own.transcript());
    let given = run("--stack vllm-v1@0.12");
    assert_eq!(json(&own.out)["report"], json(&given.out)["report"]);
    let unknown = run("--stack vllm@9.9");
    assert_eq!(unknown.code, 2, "{}", unknown.transcript());
    for part in ["release 9.9 of vllm is not known", "0.3 to 0.7 (vllm-2024)", "takes the newest"] {
        assert!(unknown.transcript().contains(part), "{}", unknown.transcript());
    }
    assert!(psim("show engines").out.contains("vllm 0.1 to 0.19"));
}
