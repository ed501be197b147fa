//! Defects that users of serving met, each by its name.

use crate::harness::{Run, directory, psim, psim_in};
use serde_json::Value;

const BASE: &str = "input = 500\noutput = 40\nslo = \"ttft<1s@p90, tpot<50ms@p90\"\n";
const ON: &str = "--model llama3-8b --cluster h100x8";

fn poisson(rest: &str) -> String {
    format!("schema = 1\nname = \"w\"\n[[tenant]]\narrival = \"poisson\"\nrate = 4.0\nrequests = 60\n{rest}")
}

fn figures(run: &Run) -> Value {
    assert_eq!(run.code, 0, "{}", run.transcript());
    serde_json::from_str(&run.out).unwrap()
}

#[test]
fn an_emitted_deployment_says_everything_that_was_predicted() {
    let deployment = "schema = 1\nreplicas = 4 # four\nmax_sequences = 32\nmemory_share = 0.8\ntoken_budget = 1024\nrouter = \"round-robin\"\n";
    let files = directory(&[("w.toml", poisson(BASE).as_bytes()), ("d.toml", deployment.as_bytes())]);
    let run = psim_in(&files, &format!("emit {ON} --workload w.toml --plan d.toml --dir out"));
    assert_eq!(run.code, 0, "{}", run.transcript());
    let read = |name: &str| std::fs::read_to_string(files.path().join("out").join(name)).unwrap();
    assert_eq!(read("deployment.toml"), deployment);
    assert!(!read("nginx.conf").contains("least_conn"));
    let simulate =
        |plan: &str| psim_in(&files, &format!("simulate {ON} --workload w.toml --plan {plan} --json"));
    assert_eq!(figures(&simulate("out/deployment.toml")), figures(&simulate("d.toml")));
    // Another engine is written by the name that was given, what was set is said.
    let run = psim_in(
        &files,
        &format!(
            "emit {ON} --workload w.toml --plan d.toml --dir other --stack radix --set parameters.layer_us=9"
        ),
    );
    assert_eq!(run.code, 0, "{}", run.transcript());
    let other = std::fs::read_to_string(files.path().join("other/deployment.toml")).unwrap();
    for part in
        ["engine = \"radix\"", "max_sequences = 32", "memory_share = 0.8", "--set parameters.layer_us=9"]
    {
        assert!(other.contains(part), "{part}: {other}");
    }
    let again = simulate("other/deployment.toml");
    assert_eq!(again.code, 0, "{}", again.transcript());
}

#[test]
fn a_plan_of_a_policy_is_emitted_under_the_name_that_reads_back() {
    let files = directory(&[("w.toml", poisson(BASE).as_bytes())]);
    let run =
        psim_in(&files, &format!("plan {ON} --workload w.toml --stack fastswitch --emit out --top 1 --json"));
    assert_eq!(run.code, 0, "{}", run.transcript());
    let text = std::fs::read_to_string(files.path().join("out/deployment.toml")).unwrap();
    assert!(text.contains("engine = \"fastswitch\""), "{text}");
    // None of the engines has fair priorities.
    assert!(run.err.contains("skipped: vLLM, SGLang and TensorRT-LLM, which do not run fair priorities"));
    assert!(!files.path().join("out/vllm.sh").exists());
    let run = psim_in(&files, &format!("simulate {ON} --workload w.toml --plan out/deployment.toml"));
    assert_eq!(run.code, 0, "{}", run.transcript());
}

#[test]
fn swapping_has_no_place_in_launch_files() {
    let deployment = "schema = 1\nengine = \"vllm-2024\"\npreemption = \"swap\"\n";
    let files = directory(&[("w.toml", poisson(BASE).as_bytes()), ("d.toml", deployment.as_bytes())]);
    let run = psim_in(&files, &format!("emit {ON} --workload w.toml --plan d.toml --dir out"));
    assert_eq!(run.code, 2, "{}", run.transcript());
    assert!(run.err.contains("caches swapped to host memory"), "{}", run.err);
}

#[test]
fn answers_of_one_token_have_no_time_per_token() {
    let short = poisson("input = 100\noutput = 1\nslo = \"ttft<1s@p90, tpot<50ms@p90\"\n");
    let files = directory(&[("w.toml", short.as_bytes()), ("d.toml", b"schema = 1\nreplicas = 2\n")]);
    let run = psim_in(&files, &format!("simulate {ON} --workload w.toml --plan d.toml --report out.html"));
    assert_eq!(run.code, 0, "{}", run.transcript());
    let row = run.out.lines().find(|l| l.starts_with("TPOT")).unwrap();
    assert_eq!(row.split_whitespace().skip(1).collect::<Vec<_>>(), ["-"; 6], "{row}");
    assert!(run.out.replace("\n  ", " ").contains("TPOT p90 nothing to measure of 50 ms (kept)"));
    let value = figures(&psim_in(&files, &format!("simulate {ON} --workload w.toml --plan d.toml --json")));
    assert!(value["report"]["tpot_ms"].is_null() && value["report"]["itl_ms"].is_null(), "{value}");
    assert!(value["report"]["ttft_ms"]["p50"].as_f64().unwrap() > 0.0);
    let value = figures(&psim_in(&files, &format!("plan {ON} --workload w.toml --json --top 1")));
    assert!(value["plans"][0]["output_tokens_per_s_per_user"].is_null(), "{}", value["plans"][0]);
}

#[test]
fn one_of_a_thing_is_not_many() {
    let files = directory(&[("w.toml", poisson(BASE).as_bytes()), ("d.toml", b"schema = 1\n")]);
    let run = psim_in(&files, "simulate --model llama3-8b --cluster h100x4 --workload w.toml --plan d.toml");
    assert!(run.out.contains("1 x TP1 bf16, 1 GPU, round-robin"), "{}", run.out);
    let flat = run.out.replace("\n  ", " ");
    let note =
        "cluster 4 H100-SXM-80GB in 1 node, DGX/HGX H100 (NDR) (the usual node, one full-bisection switch";
    assert!(flat.contains(note), "{flat}");
    let run = psim_in(
        &files,
        "capacity --model llama3-8b --rate 4rps --slo 'ttft_p95<2s,tpot_p95<50ms' --accelerators h100 --report c.html",
    );
    assert_eq!(run.code, 0, "{}", run.transcript());
    let page = std::fs::read_to_string(files.path().join("c.html")).unwrap();
    for wrong in ["1 more replicas", "1 more instances", "1 more units", "80 % interval"] {
        assert!(!page.contains(wrong), "{wrong}");
    }
    assert!(!run.out.contains("1 replicas") && !run.out.contains("1 instances"), "{}", run.out);
}

#[test]
fn devices_and_policies_can_be_found() {
    let list = psim("show devices");
    assert_eq!(list.code, 0, "{}", list.transcript());
    for name in ["neupims", "sn40l", "wse-2", "xeon-5220r"] {
        assert!(list.out.contains(name), "{name}: {}", list.out);
    }
    let one = psim("show devices pim-gpt");
    assert!(one.out.starts_with("schema = 1") && one.out.contains("[[memory]]"), "{}", one.out);
    assert!(psim("show devices neupim").err.contains("did you mean `neupims`?"));
    assert_eq!(figures(&psim("show devices --json"))["devices"].as_array().unwrap().len(), 7);
    assert!(psim("show engines").err.contains("fastswitch"));
}

#[test]
fn a_turn_of_a_conversation_does_not_hold_up_others() {
    let talk = poisson(&format!("sessions = {{ turns = {{ fixed = 4 }}, think_s = 20.0 }}\n{BASE}"));
    let files = directory(&[("w.toml", talk.as_bytes()), ("d.toml", b"schema = 1\nreplicas = 8\n")]);
    let value = figures(&psim_in(&files, &format!("simulate {ON} --workload w.toml --plan d.toml --json")));
    // Eight idle machines answer a short prompt in some tens of milliseconds.
    assert!(value["report"]["ttft_ms"]["max"].as_f64().unwrap() < 500.0, "{}", value["report"]["ttft_ms"]);
}

#[test]
fn twenty_requests_that_come_too_fast_are_saturated_too() {
    let long = "schema = 1\n[[tenant]]\narrival = \"constant\"\nrate = 0.1\nrequests = 20\ninput = 200000\noutput = 20\n";
    let files = directory(&[("w.toml", long.as_bytes()), ("d.toml", b"schema = 1\nreplicas = 1\n")]);
    let run = |rate: &str| {
        std::fs::write(files.path().join("w.toml"), long.replace("0.1", rate)).unwrap();
        figures(&psim_in(&files, &format!("simulate {ON} --workload w.toml --plan d.toml --json")))
    };
    // A prompt takes 26 s: one in ten seconds is too much, one in a minute is not.
    let (fast, slow) = (run("0.1"), run("0.0166"));
    assert_eq!(fast["report"]["saturated"], true, "{}", fast["report"]);
    assert!(fast["report"]["ttft_ms"].is_null());
    assert_eq!(slow["report"]["saturated"], false, "{}", slow["report"]);
}
